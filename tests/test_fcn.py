# SPDX-License-Identifier: Apache-2.0
"""FCN against OpenCV's Caffe, its published counts, and its wiring."""

import caffe_nets
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fcn_nets import (
  CLASSES,
  NARROW,
  assert_equals_caffe,
  normal,
  output_shape,
  param_shapes,
  random_params,
)

from segjax.errors import InputError
from segjax.geometry import Deconvolution
from segjax.models.fcn import (
  FCN,
  FCN8s,
  FCN8sAtOnce,
  FCN16s,
  FCN32s,
  FCNAlexNet,
  FCNGoogLeNet,
)
from segjax.models.upsampling import bilinear_deconvolution

ODD_SIZE = (37, 53)


@pytest.mark.parametrize('same', [False, True])
@pytest.mark.parametrize('stride', [32, 16, 8])
@pytest.mark.smoke
def test_fcn_equals_caffe(tmp_path, stride, same):
  padding = 'same' if same else 'pad100'
  model = FCN(stride=stride, padding=padding, **NARROW)
  text = caffe_nets.fcn_vgg16(ODD_SIZE, CLASSES, stride, same=same)
  assert_equals_caffe(tmp_path, model, text, ODD_SIZE)


@pytest.mark.parametrize('size', [(64, 33), (1, 1), (333, 500)])
def test_fcn8s_at_once_equals_caffe(tmp_path, size):
  model = FCN8sAtOnce(**NARROW)
  text = caffe_nets.fcn_vgg16(size, CLASSES, 8, at_once=True)
  scales = {
    'scale_pool4': [np.full(32, 0.01)],
    'scale_pool3': [np.full(16, 0.0001)],
  }
  assert_equals_caffe(tmp_path, model, text, size, scales)


def test_learned_deconvolutions_equal_caffe(tmp_path):
  learned = ('upscore2', 'upscore_pool4', 'upscore8')
  model = FCN8s(learned=learned, **NARROW)
  text = caffe_nets.fcn_vgg16(ODD_SIZE, CLASSES, 8)
  assert_equals_caffe(tmp_path, model, text, ODD_SIZE)


def test_fcn_alexnet_equals_caffe(tmp_path):
  text = caffe_nets.fcn_alexnet(ODD_SIZE, CLASSES)
  assert_equals_caffe(tmp_path, FCNAlexNet(**NARROW), text, ODD_SIZE)


def test_fcn_googlenet_equals_caffe(tmp_path):
  model = FCNGoogLeNet(num_classes=CLASSES, width=1 / 8)
  text = caffe_nets.fcn_googlenet(ODD_SIZE, CLASSES)
  assert_equals_caffe(tmp_path, model, text, ODD_SIZE)


@pytest.mark.parametrize(
  'model, trunk, scores',
  [
    (FCN32s, 134_260_544, 86_037),
    (FCN16s, 134_260_544, 86_037 + 10_773),
    (FCN8s, 134_260_544, 86_037 + 16_170),
    (FCNAlexNet, 56_868_224, 86_037),
    (FCNGoogLeNet, 5_973_552, 21_525),
  ],
)
def test_parameter_counts(model, trunk, scores):
  counts = {True: 0, False: 0}
  params = param_shapes(model())
  for name, layer in params.items():
    counts[name.startswith('score')] += sum(
      x.size for x in jax.tree.leaves(layer)
    )
  assert counts == {False: trunk, True: scores}
  assert output_shape(model(), params, 2, 333, 500) == (2, 333, 500, 21)


@pytest.mark.parametrize('padding', ['pad100', 'same'])
@pytest.mark.parametrize(
  'model', [FCN32s, FCN16s, FCN8s, FCNAlexNet, FCNGoogLeNet]
)
def test_any_size_and_batch(model, padding):
  model = model(padding=padding, width=1 / 32)
  params = param_shapes(model)
  for size in ((1, 67), (31, 33)):
    assert output_shape(model, params, 3, *size) == (3, *size, 21)


def test_scores_begin_at_zero():
  model = FCN8s(**NARROW)

  @jax.jit
  def initial(key):
    params = model.init(key, jnp.zeros((1, 1, 1, 3)))['params']
    names = ('score_fr', 'score_pool4', 'score_pool3', 'fc7')
    return {name: params[name] for name in names}

  params = initial(jax.random.key(0))
  assert np.ptp(params.pop('fc7')['kernel']) > 0
  for leaf in jax.tree.leaves(params):
    np.testing.assert_array_equal(leaf, 0)


def test_a_new_skip_changes_nothing_but_the_upsampling():
  params = random_params(FCN32s(**NARROW))
  image = normal(3, 1, *ODD_SIZE, 3)
  _, state = jax.jit(
    lambda p, x: FCN32s(**NARROW).apply(
      {'params': p}, x, capture_intermediates=True
    )
  )(params, image)
  scores = state['intermediates']['score_fr']['__call__'][0]
  model = FCN16s(**NARROW)
  zeros = jax.tree.map(jnp.zeros_like, random_params(model)['score_pool4'])
  params = {'params': params | {'score_pool4': zeros}}
  got = jax.jit(model.apply)(params, image)
  between = [2 * n + 2 for n in scores.shape[1:3]]
  want = bilinear_deconvolution(scores, Deconvolution(4, 2), 0, between)
  want = bilinear_deconvolution(want, Deconvolution(32, 16), 27, ODD_SIZE)
  assert np.ptp(want) > 0.01
  np.testing.assert_allclose(got, want, atol=1e-5 * np.ptp(want))


def test_at_once_is_staged_with_smaller_score_weights():
  staged, at_once = FCN8s(**NARROW), FCN8sAtOnce(**NARROW)
  params = random_params(at_once)
  image = normal(4, 1, 9, 11, 3)
  want = jax.jit(at_once.apply)({'params': params}, image)
  for name, scale in (('score_pool4', 0.01), ('score_pool3', 0.0001)):
    kernel = params[name]['kernel'] * scale
    params = params | {name: params[name] | {'kernel': kernel}}
  got = jax.jit(staged.apply)({'params': params}, image)
  np.testing.assert_allclose(got, want, atol=1e-5 * np.ptp(want))


def test_every_parameter_carries_gradient():
  learned = ('upscore2', 'upscore_pool4', 'upscore8')
  model = FCN8s(learned=learned, padding='same', **NARROW)
  params = random_params(model)
  # Positive biases, so that no ReLU of this narrow net is dead.
  params = jax.tree.map(lambda x: np.abs(x) if x.ndim == 1 else x, params)
  image = normal(5, 1, 33, 40, 3)
  gradient = jax.jit(
    jax.grad(lambda p: jnp.sum(model.apply({'params': p}, image)[..., 0] ** 2))
  )(params)
  for path, leaf in jax.tree.leaves_with_path(gradient):
    assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
    assert np.any(leaf != 0), jax.tree_util.keystr(path)


def test_dropout_drops_values_not_channels():
  model = FCN32s(padding='same', **NARROW)
  params = random_params(model)
  for name, bias in (('fc6', 1e3), ('fc7', 1e6)):
    # Far from zero, so that none comes from ReLU.
    params[name]['bias'] = np.full_like(params[name]['bias'], bias)
  image = normal(6, 1, 200, 200, 3)

  @jax.jit
  def dropouts(key):
    _, state = model.apply(
      {'params': params},
      image,
      train=True,
      rngs={'dropout': key},
      capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
    )
    return jax.tree.leaves(state['intermediates'])

  first, second = dropouts(jax.random.key(0)), dropouts(jax.random.key(1))
  assert [x.shape for x in first] == [(1, 7, 7, 24)] * 2
  for x, y in zip(first, second, strict=True):
    assert np.any((x == 0) != (y == 0))
    fraction = np.mean(x == 0, axis=(0, 1, 2))
    assert np.all((fraction > 0.2) & (fraction < 0.8))


def test_dropout_acts_in_training_only():
  model = FCNAlexNet(padding='same', **NARROW)
  params = {'params': random_params(model)}
  image = normal(6, 1, 20, 20, 3)

  def train(rate):
    apply = jax.jit(model.clone(dropout_rate=rate).apply, static_argnums=2)
    return apply(params, image, True, rngs={'dropout': jax.random.key(0)})

  want = jax.jit(model.apply)(params, image)
  np.testing.assert_allclose(train(0.0), want, atol=1e-5 * np.ptp(want))
  assert not np.allclose(train(0.5), want, atol=0.01 * np.ptp(want))


def test_bfloat16_computes_but_does_not_store():
  model = FCNAlexNet(padding='same', dtype=jnp.bfloat16, **NARROW)
  params = {'params': random_params(model)}
  image = normal(7, 1, 20, 20, 3)
  got = jax.jit(model.apply)(params, image)
  assert got.dtype == jnp.float32
  exact = jax.jit(model.clone(dtype=jnp.float32).apply)(params, image)
  assert 0 < np.abs(got - exact).max() < 0.1 * np.ptp(exact)
  dtypes = {x.dtype for x in jax.tree.leaves(param_shapes(model))}
  assert dtypes == {np.dtype('float32')}


@pytest.mark.parametrize(
  'model, message',
  [
    (FCN32s(stride=4), 'stride=4'),
    (FCNAlexNet(stride=16), 'stride=16'),
    (FCN32s(padding='native'), "'native' is not one of"),
    (FCN32s(learned=('upscore8',)), "deconvolutions are .'upscore',"),
    (FCN32s(in_channels=4), 'in_channels=4'),
  ],
)
def test_impossible_networks_are_refused(model, message):
  with pytest.raises(InputError, match=message):
    model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))


def test_an_empty_image_is_refused():
  with pytest.raises(InputError, match='0 px'):
    output_shape(FCN32s(), {}, 1, 5, 0)
