# SPDX-License-Identifier: Apache-2.0
"""Tests of the conversion of foreign weights, on networks a few pixels wide."""

import numpy as np
import pytest
from caffemodel import write_caffemodel
from flax.traverse_util import unflatten_dict
from narrow_nets import (
  VGG16,
  AtOnce,
  FCN8s,
  FCN32s,
  assert_equal,
  at_once_layers,
  caffe_layers,
  dense_bilinear,
  flat,
  normal,
  random_params,
)

from segjax import convert, models
from segjax.errors import InputError
from segjax.geometry import Deconvolution
from segjax.models.backbone import Classifier
from segjax.models.googlenet import googlenet
from segjax.models.layers import Conv
from segjax.models.upsampling import deconvolution
from segjax.weights import files, torchvision
from segjax.weights.matching import Tensor, arrange


def test_grouped_convolution_is_caffes():
  weights, x = normal(4, 3, 2, 5), normal(1, 6, 7, 6, seed=1)  # 2 groups of 3
  kernel = arrange(Tensor('w', weights, 'OIHW'), 'c/kernel', (2, 5, 3, 4))
  layer = Conv(4, (2, 5), groups=2)
  params = {'params': {'kernel': kernel, 'bias': np.zeros(4, np.float32)}}
  actual = layer.apply(params, x)[0]
  expected = np.zeros((5, 3, 4))
  for y, z, o in np.ndindex(expected.shape):
    first = 3 * (o // 2)
    window = x[0, y : y + 2, z : z + 5, first : first + 3]
    expected[y, z, o] = np.sum(window.transpose(2, 0, 1) * weights[o])
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_asymmetric_deconvolution_is_caffes():
  weights, x = normal(2, 3, 4, 4), normal(1, 3, 2, 2, seed=1)
  kernel = arrange(Tensor('w', weights, 'IOHW'), 'up/kernel', (4, 4, 2, 3))
  actual = deconvolution(x, kernel, Deconvolution(4, 2))[0]
  expected = np.zeros((8, 6, 3))
  for y, z, i in np.ndindex(3, 2, 2):
    spread = x[0, y, z, i] * weights[i].transpose(1, 2, 0)
    expected[2 * y : 2 * y + 4, 2 * z : 2 * z + 4] += spread
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('legacy', [False, True])
def test_inner_product_is_caffes(legacy):
  weights, x = normal(5, 4 * 2 * 3), normal(2, 3, 4, seed=1)
  stored = weights.reshape(1, 1, 5, 24) if legacy else weights
  tensor = Tensor('w', stored, 'OIHW')
  expected = weights @ x.transpose(2, 0, 1).ravel()
  conv = arrange(tensor, 'fc6/kernel', (2, 3, 4, 5))
  np.testing.assert_allclose(
    np.einsum('hwc,hwco->o', x, conv), expected, rtol=1e-5, atol=1e-5
  )
  dense = arrange(tensor, 'fc6/kernel', (24, 5), window=(2, 3))
  np.testing.assert_allclose(x.ravel() @ dense, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('version', ['new', 'v1'])
def test_at_once_caffemodel(tmp_path, version):
  layers, expected = at_once_layers()
  file = tmp_path / 'net.caffemodel'
  write_caffemodel(file, layers, version)
  params, report = convert.convert(
    convert.read_tensors(file), AtOnce(num_classes=3)
  )
  assert_equal(flat(params), expected)
  assert ('fc6/kernel', 'fc6[0]') in report.matched
  assert len(report.matched) == len(expected) == 36
  assert len(report.fixed) == 5
  assert (report.ignored, report.initial) == ((), ())
  assert str(report).endswith('36 matched, 5 fixed, 0 not used, 0 initial')


def test_learned_deconvolutions_and_doubles():
  model = FCN8s(num_classes=2, learned=('upscore2', 'upscore8'))
  expected = random_params(model)
  layers = caffe_layers(expected) | {'upscore_pool4': [dense_bilinear(4, 2)]}
  layers = {k: [a.astype(np.float64) for a in v] for k, v in layers.items()}
  params, _ = convert.convert(convert.caffe.tensors_of(layers), model)
  assert_equal(flat(params), expected)


def test_a_file_carries_on_what_it_says(tmp_path):
  """A net of ours keeps its padding and pixels; at once is not 8s."""
  path = tmp_path / 'net.npz'
  fields = {'width': 1 / 64, 'fc_features': 5}
  params = random_params(FCN8s(num_classes=3))
  metadata = {'model': 'fcn8s', 'pixels': 'standardised', 'padding': 'same'}
  files.write_params(path, unflatten_dict(params, sep='/'), metadata=metadata)
  copy = tmp_path / 'copy.safetensors'
  convert.convert_file(path, 'fcn8s', copy, fields=fields)
  assert files.read_metadata(copy) == metadata
  assert_equal(files.read_arrays(copy), params)
  with pytest.raises(InputError, match='other factors'):
    convert.convert_file(
      path, 'fcn8s_atonce', tmp_path / 'other.npz', fields=fields
    )
  assert not (tmp_path / 'other.npz').exists()


def test_pixels_are_those_of_the_framework_unless_given(tmp_path):
  """torchvision's are standardised, but for some that were Caffe's."""
  state = {
    'features.0.weight': np.ones((1, 3, 3, 3), np.float32),
    'features.0.bias': np.ones(1, np.float32),
  }
  np.savez(tmp_path / 'torch.npz', **state)
  layers = {p.rpartition('/')[0] for p in random_params(VGG16(num_classes=2))}
  for given, expected in ((None, 'standardised'), ('0..255', '0..255')):
    output = tmp_path / f'{expected[0]}.npz'
    convert.convert_file(
      tmp_path / 'torch.npz',
      'vgg16',
      output,
      num_classes=2,
      fields={'width': 1 / 64, 'fc_features': 5},
      initial=[*layers - {'conv1_1'}],
      pixels=given,
    )
    assert files.read_metadata(output) == {'model': 'vgg16', 'pixels': expected}


@pytest.mark.parametrize(
  ('state', 'expected'),
  [
    ({'conv1_1.weight': (1, 3, 3, 3), 'conv1_1.bias': (1,)}, '0..255'),
    # Of torchvision's layers, those without `features` are enough.
    (
      {'classifier.3.weight': (5, 5), 'classifier.3.bias': (5,)},
      'standardised',
    ),
    ({'stem.0.weight': (1, 3, 3, 3), 'stem.0.bias': (1,)}, None),
  ],
)
def test_names_in_a_state_dict_imply_the_pixels(tmp_path, state, expected):
  source, output = tmp_path / 'torch.npz', tmp_path / 'net.npz'
  np.savez(source, **{k: np.ones(v, np.float32) for k, v in state.items()})
  layers = {p.rpartition('/')[0] for p in random_params(VGG16(num_classes=2))}
  names = torchvision.tensors_of(files.read_arrays(source))
  found = {path.rpartition('/')[0] for path in names}
  arguments = dict(
    num_classes=2,
    fields={'width': 1 / 64, 'fc_features': 5},
    initial=[*layers - found],
    ignore=[*found - layers],
  )
  if expected is None:
    with pytest.raises(InputError, match='give --pixels=0..255 or'):
      convert.convert_file(source, 'vgg16', output, **arguments)
    assert not output.exists()
    arguments['pixels'] = expected = 'standardised'
  convert.convert_file(source, 'vgg16', output, **arguments)
  assert files.read_metadata(output) == {'model': 'vgg16', 'pixels': expected}


def test_googlenets_slashes():
  model = Classifier(googlenet, num_classes=2, width=1 / 64)
  expected = random_params(model)
  layers = caffe_layers(
    {
      path: a if a.ndim < 2 else np.atleast_2d(a)
      for path, a in expected.items()
    }
  )
  layers['loss3_classifier'][0] = layers['loss3_classifier'][0].T
  for name in ('conv1/7x7_s2', 'conv2/3x3_reduce', 'conv2/3x3'):
    layers[name] = layers.pop(name.replace('/', '_'))
  layers['loss3/classifier'] = layers.pop('loss3_classifier')
  assert 'inception_5b/pool_proj' in layers
  params, _ = convert.convert(convert.caffe.tensors_of(layers), model)
  assert_equal(flat(params), expected)


def test_fcn_starts_from_a_classifier(tmp_path):
  model = VGG16(num_classes=7)
  classifier = random_params(model)
  files.write_params(tmp_path / 'vgg.npz', classifier)
  source = convert.read_tensors(tmp_path / 'vgg.npz')
  model = FCN8s(num_classes=3, learned=('upscore2',))
  scores = ('score_fr', 'score_pool4', 'score_pool3')
  params, report = convert.convert(
    source, model, ignore=['fc8'], initial=[*scores, 'upscore2']
  )
  for layer in scores:
    assert not params[layer]['kernel'].any() and not params[layer]['bias'].any()
  np.testing.assert_array_equal(
    params['upscore2']['kernel'].transpose(2, 3, 0, 1), dense_bilinear(4, 3)
  )
  np.testing.assert_array_equal(
    params['fc6']['kernel'], classifier['fc6/kernel'].reshape(7, 7, 8, 5)
  )
  assert report.ignored == ('fc8/bias', 'fc8/kernel')
  assert len(report.initial) == 7
  assert 'score_fr/kernel: LEFT AT ITS INITIAL VALUE' in str(report)
  back, _ = convert.convert(
    {path: Tensor(path, a, 'HWIO') for path, a in flat(params).items()},
    VGG16(num_classes=7),
    ignore=[*scores, 'upscore2'],
    initial=['fc8'],
  )
  np.testing.assert_array_equal(back['fc6']['kernel'], classifier['fc6/kernel'])


def changed(layers, **changes):
  return {**layers, **changes}


def without(layers, *names):
  return {k: v for k, v in layers.items() if k not in names}


@pytest.mark.parametrize(
  ('change', 'arguments', 'expected'),
  [
    (lambda n: changed(n, fc8=[normal(2, 5)]), {}, 'fc8 in the file has no'),
    (lambda n: without(n, 'fc7'), {}, 'fc7 of the model is not in the file'),
    (lambda n: changed(n, fc7=n['fc7'][:1]), {}, 'fc7 of the model is not in'),
    (lambda n: changed(n, fc7=[normal(5, 5, 2, 1)]), {}, 'fc7 of the model'),
    (
      lambda n: changed(n, conv1_1=[normal(1, 3, 5, 3), normal(1)]),
      {},
      'conv1_1[0] has shape [1, 3, 5, 3], which does not fit conv1_1/kernel '
      '[3, 3, 3, 1]',
    ),
    (lambda n: n, {'num_classes': 60}, '[3, 8, 1, 1], which does not fit'),
    (lambda n: n, {'num_classes': 0}, 'num_classes=0'),
    (lambda n: without(n, 'score_fr'), {}, 'number of classes comes from'),
    (
      lambda n: changed(n, upscore8=[normal(3, 3, 16, 16)]),
      {},
      'upscore8[0] holds other weights than the fixed',
    ),
    (
      lambda n: changed(n, scale_pool4=[np.ones(8)]),
      {},
      'scale_pool4[0] holds other',
    ),
    (
      lambda n: without(n, 'scale_pool4'),
      {},
      'score_pool4 without scale_pool4',
    ),
    (lambda n: n, {'model_name': 'fcn8s'}, 'scale_pool4, scale_pool3 in the'),
    (lambda n: n, {'model_name': 'vgg19'}, "model='vgg19' is not one of"),
    (
      lambda n: n,
      {'initial': ['fc9']},
      'initial=fc9 is no layer among conv1_1',
    ),
    (lambda n: n, {'ignore': ['fc9']}, 'ignore=fc9 is no layer among conv1_1'),
    (lambda n: n, {'fields': {'learned': ['upscore']}}, "('upscore',)"),
    (
      lambda n: changed(n, fc7=[np.full((5, 5, 1, 1), np.nan), n['fc7'][1]]),
      {},
      'fc7[0] holds NaN',
    ),
  ],
)
def test_partial_and_wrong_files_are_refused(
  tmp_path, monkeypatch, change, arguments, expected
):
  monkeypatch.setitem(models.MODELS, 'fcn8s', FCN8s)
  monkeypatch.setitem(models.MODELS, 'fcn8s_atonce', AtOnce)
  layers, _ = at_once_layers()
  write_caffemodel(tmp_path / 'net.caffemodel', change(layers))
  arguments = {'model_name': 'fcn8s_atonce', **arguments}
  with pytest.raises(InputError) as caught:
    convert.convert_file(
      tmp_path / 'net.caffemodel', output=tmp_path / 'out.npz', **arguments
    )
  assert expected in str(caught.value)
  assert '\n' not in str(caught.value)
  assert [p.name for p in tmp_path.iterdir()] == ['net.caffemodel']


@pytest.mark.parametrize('ending', ['.npz', '.safetensors'])
def test_written_file_is_whole_and_not_replaced(tmp_path, monkeypatch, ending):
  if ending == '.safetensors':
    pytest.importorskip('safetensors')
  monkeypatch.setitem(models.MODELS, 'fcn8s_atonce', AtOnce)
  layers, expected = at_once_layers()
  source, output = tmp_path / 'net.caffemodel', tmp_path / f'net{ending}'
  write_caffemodel(source, layers)
  convert.convert_file(source, 'fcn8s_atonce', output)
  assert_equal(flat(files.read_params(output)), expected)
  before = output.read_bytes()
  with pytest.raises(InputError, match='exists; give --overwrite'):
    convert.convert_file(source, 'fcn8s_atonce', output)
  source.write_bytes(source.read_bytes()[:-3])
  with pytest.raises(InputError, match='not a whole .caffemodel'):
    convert.convert_file(source, 'fcn8s_atonce', output, overwrite=True)
  assert output.read_bytes() == before
  again = tmp_path / 'again.npz'
  convert.convert_file(output, 'fcn8s_atonce', again)
  assert_equal(flat(files.read_params(again)), expected)
  assert len(list(tmp_path.iterdir())) == 3


def test_the_number_of_classes_is_that_of_the_heads_or_of_a_stream(
  tmp_path, monkeypatch
):
  file, output = tmp_path / 'net.caffemodel', tmp_path / 'net.npz'
  monkeypatch.setitem(models.MODELS, 'fcn32s', FCN32s)
  for fields, layers in (
    (
      {'heads': [['sem', 2], ['geo', 1]]},
      {'upscore_sem': 2, 'upscore_geo': 1},
    ),
    ({'streams': ['color', 'hha'], 'in_channels': 6}, {'upscore': 3}),
  ):
    model = models.make_model('fcn32s', num_classes=3, **fields)
    expected = random_params(model)
    layers = {x: [dense_bilinear(64, k)] for x, k in layers.items()}
    write_caffemodel(file, caffe_layers(expected) | layers)
    convert.convert_file(file, 'fcn32s', output, fields=fields, overwrite=True)
    assert_equal(flat(files.read_params(output)), expected)
  with pytest.raises(InputError, match='model.heads=.* is no field of vgg16'):
    convert.convert_file(
      file, 'vgg16', output, fields={'heads': []}, overwrite=True
    )
