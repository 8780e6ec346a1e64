# SPDX-License-Identifier: Apache-2.0
"""The authors' networks of two heads and of two kinds of image."""

import functools

import caffe_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fcn_nets import (
  CLASSES,
  NARROW,
  assert_equals_caffe,
  normal,
  param_shapes,
  random_params,
)
from narrow_nets import assert_equal, flat

from segjax import convert
from segjax.errors import InputError
from segjax.models.fcn import FCN8s, FCN16s, FCN32s
from segjax.weights import surgery

ODD_SIZE = (37, 53)
HEADS = (('sem', 5), ('geo', 3))
TWO_HEADS = NARROW | dict(num_classes=8, heads=HEADS)
STREAMS = NARROW | dict(in_channels=6, streams=('color', 'hha'))
BGRD = NARROW | dict(in_channels=4, first_conv='conv1_1_bgrd')
ALL_LEARNED = ('upscore2', 'upscore_pool4', 'upscore8')
VARIANTS = {
  'sift flow 32s': (
    FCN32s(**TWO_HEADS),
    caffe_nets.siftflow(ODD_SIZE, HEADS, 32),
  ),
  'sift flow 8s': (
    FCN8s(**TWO_HEADS),
    caffe_nets.siftflow(ODD_SIZE, HEADS, 8),
  ),
  'sift flow 8s learned': (
    FCN8s(learned=ALL_LEARNED, **TWO_HEADS),
    caffe_nets.siftflow(ODD_SIZE, HEADS, 8),
  ),
  'color-d': (FCN32s(**BGRD), caffe_nets.nyud_color_d(ODD_SIZE, CLASSES)),
  'color-hha': (
    FCN32s(**STREAMS),
    caffe_nets.nyud_color_hha(ODD_SIZE, CLASSES),
  ),
}
# Deconvolutions that the model computes without the file's.
FIXED = {
  'sift flow 32s': 'upscore_sem upscore_geo',
  'sift flow 8s': 'upscore2_sem upscore_pool4_sem upscore8_sem '
  'upscore2_geo upscore_pool4_geo upscore8_geo',
  'sift flow 8s learned': '',
  'color-d': 'upscore',
  'color-hha': 'upscore',
}


@pytest.mark.parametrize('name', VARIANTS)
def test_the_caffemodel_is_read_and_gives_caffes_logits(tmp_path, name):
  model, text = VARIANTS[name]
  assert_equals_caffe(tmp_path, model, text, ODD_SIZE)
  source = convert.read_tensors(tmp_path / 'net.caffemodel')
  params, report = convert.convert(source, model)
  assert_equal(flat(params), flat(random_params(model)))
  assert len(report.matched) == len(flat(params))
  assert set(report.fixed) == {f'{x}[0]' for x in FIXED[name].split()}
  assert (report.ignored, report.initial) == ((), ())


def test_names_of_the_layers():
  assert FCN8s(**TWO_HEADS).head_sizes == (5, 3)
  assert FCN8s().head_sizes == (21,)
  scores = ('score_fr', 'score_pool4', 'score_pool3')
  names = {name for name in param_shapes(FCN8s(**TWO_HEADS)) if 'score' in name}
  assert names == {f'{x}_{head}' for x in scores for head in ('sem', 'geo')}
  names = set(param_shapes(FCN32s(**NARROW)))
  joined = set(param_shapes(FCN32s(**STREAMS)))
  assert joined == {f'{x}{s}' for x in names for s in ('color', 'hha')}
  early = set(param_shapes(FCN32s(**BGRD)))
  assert early - names == {'conv1_1_bgrd'} and names - early == {'conv1_1'}


def test_a_deconvolution_that_is_not_bilinear_is_refused(tmp_path):
  model, _ = VARIANTS['sift flow 8s']
  learned, _ = VARIANTS['sift flow 8s learned']
  params = random_params(learned)
  kernel = params['upscore2_geo']['kernel'].transpose(2, 3, 0, 1)
  source = {
    f'{layer}/{kind}': convert.Tensor(layer, values, 'HWIO')
    for layer, leaf in random_params(model).items()
    for kind, values in leaf.items()
  }
  source['upscore2_geo/kernel'] = convert.Tensor('upscore2_geo', kernel, 'IOHW')
  with pytest.raises(InputError, match='upscore2_geo holds other weights'):
    convert.convert(source, model)


def test_early_fusion_starts_from_colours():
  params = random_params(FCN32s(**NARROW))
  changed = surgery.add_channel(params)
  assert list(changed) == [
    'conv1_1_bgrd' if name == 'conv1_1' else name for name in params
  ]
  old = params['conv1_1']['kernel']
  kernel = changed['conv1_1_bgrd']['kernel']
  assert kernel.shape == (3, 3, 4, 4)
  np.testing.assert_array_equal(kernel[:, :, :3], old)
  mean = (old[:, :, 0] + old[:, :, 1] + old[:, :, 2]) / 3
  np.testing.assert_allclose(kernel[:, :, 3], mean, atol=1e-6)
  assert changed['conv1_1_bgrd']['bias'] is params['conv1_1']['bias']
  assert changed['conv1_2'] is params['conv1_2']
  shapes = param_shapes(FCN32s(**BGRD))
  assert jax.tree.map(jnp.shape, changed) == jax.tree.map(jnp.shape, shapes)


def test_late_fusion_is_the_mean_of_two_networks():
  one, model = FCN32s(**NARROW), FCN32s(**STREAMS)
  color, hha = random_params(one, seed=1), random_params(one, seed=2)
  joined = surgery.join_streams({'color': color, 'hha': hha})
  images = 50 * normal(3, 2, 1, 20, 31, 3)
  apply = jax.jit(one.apply)
  want = (
    apply({'params': color}, images[0]) + apply({'params': hha}, images[1])
  ) / 2
  padded = np.full((1, *ODD_SIZE, 6), np.nan, np.float32)
  padded[:, :20, :31] = np.concatenate(images, axis=-1)
  got = jax.jit(functools.partial(model.apply, size=np.array([[20, 31]])))(
    {'params': joined}, padded
  )
  np.testing.assert_allclose(got[:, :20, :31], want, atol=1e-5 * np.ptp(want))
  assert not np.any(got[:, 20:]) and not np.any(got[:, :, 31:])


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    (lambda p: surgery.add_channel({'fc8': p['fc8']}), "no layer 'conv1_1'"),
    (
      lambda p: surgery.join_streams({'x': {'upscore': p['fc8']}}),
      "upscore of 'x' is learned",
    ),
  ],
)
def test_surgery_refuses(change, expected):
  layer = {'kernel': normal(0, 3, 3, 3, 2), 'bias': normal(1, 2)}
  params = {'conv1_1': layer, 'fc8': {'kernel': normal(2, 4, 2)}}
  with pytest.raises(InputError) as caught:
    change(params)
  assert expected in str(caught.value)


@pytest.mark.parametrize(
  ('model', 'message'),
  [
    (FCN32s(heads=HEADS), 'num_classes=21 must be 8, the sum over heads'),
    (FCN32s(heads=(('a', 20), ('a', 1))), 'heads=.* no two equal'),
    (FCN32s(streams=('a', 'a'), in_channels=6), 'streams=.* no two equal'),
    (FCN32s(streams=('a', '')), 'must have a name each'),
    (FCN32s(streams=('a', 'b')), 'in_channels=3 must be a multiple of 2'),
    (FCN16s(streams=('a', 'b'), in_channels=6), 'stride=16 must be 32'),
    (FCN32s(first_conv='fc6'), "first_conv='fc6' is the name of another"),
  ],
)
def test_impossible_variants_are_refused(model, message):
  with pytest.raises(InputError, match=message):
    _ = model.geometry
