# SPDX-License-Identifier: Apache-2.0
"""Backbones: published sizes, Caffe's layers by loops, their two forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import InputError
from segjax.geometry import Footprint
from segjax.models.alexnet import CaffeNet
from segjax.models.backbone import scaled
from segjax.models.googlenet import GoogLeNet, caffe_name, googlenet
from segjax.models.layers import Conv, local_response_norm, max_pool_ceil
from segjax.models.vgg import VGG16

# Narrow networks, for whatever runs.
SMALL = {
  'vgg16': VGG16(width=1 / 16, fc_features=24, num_classes=5),
  'caffenet': CaffeNet(width=1 / 16, fc_features=24, num_classes=5),
  'googlenet': GoogLeNet(width=1 / 16, num_classes=5),
}
NATIVE = {'vgg16': 224, 'caffenet': 227, 'googlenet': 224}


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(model, height, width):
  image = jnp.zeros((2, height, width, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return variables, jax.eval_shape(model.apply, variables, image).shape


def random_params(shapes, seed=0):
  """He's initial values, without compiling an init."""
  rng = np.random.default_rng(seed)

  def draw(x):
    fan_in = np.prod(x.shape[:-1]) if x.ndim > 1 else 100
    return np.float32(rng.normal(0, np.sqrt(2 / fan_in), x.shape))

  return jax.tree.map(draw, shapes)


def reshaped(params, like):
  """Dense kernels [H * W * C, O] as convolution kernels [H, W, C, O]."""
  return jax.tree.map(lambda x, y: x.reshape(y.shape), params, like)


@pytest.mark.parametrize(
  'model, size, count',
  [
    (VGG16, 224, 138_357_544),
    (CaffeNet, 227, 60_965_224),
    (GoogLeNet, 224, 6_998_552),
  ],
)
def test_parameters_of_the_classifiers(model, size, count):
  for convolutional in (False, True):
    variables, shape = shapes(model(convolutional=convolutional), size, size)
    assert sum(x.size for x in jax.tree.leaves(variables)) == count
    assert shape == ((2, 1, 1, 1000) if convolutional else (2, 1000))


@pytest.mark.parametrize('name', SMALL)
def test_both_forms_agree_at_the_native_size(name):
  classifier = SMALL[name]
  convolutional = classifier.clone(convolutional=True)
  size = NATIVE[name]
  image = normal(0, 1, size, size, 3)
  params = random_params(shapes(classifier, size, size)[0])
  like, _ = shapes(convolutional, size, size)
  assert jax.tree.structure(params) == jax.tree.structure(like)
  want = jax.jit(classifier.apply)(params, image)
  got = jax.jit(convolutional.apply)(reshaped(params, like), image)
  assert np.ptp(want) > 0.01
  np.testing.assert_allclose(got[:, 0, 0], want, atol=1e-5 * np.ptp(want))


def test_caffenet_slides_over_451_px_in_64_windows():
  # Caffe's net_surgery example: 227 + 7 * 32 = 451.
  assert shapes(CaffeNet(convolutional=True), 451, 451)[1] == (2, 8, 8, 1000)
  assert shapes(VGG16(convolutional=True), 224, 256)[1] == (2, 1, 2, 1000)


@pytest.mark.parametrize('name', SMALL)
def test_images_of_another_size_are_refused(name):
  model, size = SMALL[name], NATIVE[name]
  with pytest.raises(InputError, match=f'{size} x {size} px'):
    shapes(model, size, size + 1)
  with pytest.raises(InputError, match='smaller than'):
    shapes(model.clone(convolutional=True), size, size - 1)


@pytest.mark.parametrize(
  'footprint', [(2, 2, 0), (3, 2, 0), (3, 1, 1), (3, 2, 1), (3, 3, 0)]
)
@pytest.mark.parametrize('size', [(1, 2), (4, 5), (6, 7), (8, 9)])
def test_ceil_pooling_by_a_loop(footprint, size):
  footprint = Footprint(*footprint, ceil=True)
  # All negative: a padding with zeros would win.
  x = -np.abs(normal(1, 2, *size, 3)) - 1
  rows, columns = (footprint.output_size(n) for n in size)
  want = np.empty((2, rows, columns, 3))
  winners = np.zeros(x.shape)
  for i, j in np.ndindex(rows, columns):
    top = i * footprint.stride - footprint.pad
    left = j * footprint.stride - footprint.pad
    part = np.s_[
      :,
      max(top, 0) : top + footprint.kernel,
      max(left, 0) : left + footprint.kernel,
    ]
    want[:, i, j] = x[part].max((1, 2))
    winners[part] += x[part] == x[part].max((1, 2), keepdims=True)
  np.testing.assert_array_equal(max_pool_ceil(x, footprint), want)
  gradient = jax.grad(lambda x: max_pool_ceil(x, footprint).sum())(x)
  np.testing.assert_array_equal(gradient, winners)


def test_local_response_norm_by_a_loop():
  x = 100 * normal(2, 1, 2, 3, 8)
  want = np.empty_like(x)
  for c in range(8):
    squares = (x[..., max(c - 2, 0) : c + 3].astype(np.float64) ** 2).sum(-1)
    want[..., c] = x[..., c] / (1 + 1e-4 / 5 * squares) ** 0.75
  np.testing.assert_allclose(local_response_norm(x), want, rtol=1e-5)
  half = local_response_norm(jnp.asarray(x, jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), want, rtol=0.02)


def test_groups_are_convolutions_side_by_side():
  x, kernel, bias = normal(3, 1, 6, 7, 4), normal(4, 3, 3, 2, 6), normal(5, 6)
  conv = Conv(6, (3, 3), 1, groups=2)
  got = conv.apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  for part, (into, out) in enumerate([(0, 0), (2, 3)]):
    params = {
      'kernel': kernel[..., out : out + 3],
      'bias': bias[out : out + 3],
    }
    want = Conv(3, (3, 3), 1).apply({'params': params}, x[..., into : into + 2])
    np.testing.assert_allclose(got[..., 3 * part : 3 * part + 3], want, 1e-5)


def test_padding_by_a_number_of_zeros():
  x, kernel = normal(6, 1, 5, 6, 2), normal(7, 3, 3, 2, 3)
  params = {'params': {'kernel': kernel, 'bias': np.zeros(3)}}
  padded = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
  np.testing.assert_allclose(
    Conv(3, (3, 3), 4).apply(params, x),
    Conv(3, (3, 3), 'VALID').apply(params, padded),
    atol=1e-6,
  )
  with pytest.raises(InputError, match='-1'):
    Conv(3, (3, 3), -1).apply(params, x)


def test_parameters_have_caffes_names():
  def names(model, size):
    params = shapes(model, size, size)[0]['params']
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return {caffe_name([key.key for key in path[:-1]]) for path, _ in paths}

  blocks = ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))
  vgg = {f'conv{b}_{i + 1}' for b, n in blocks for i in range(n)}
  assert names(SMALL['vgg16'], 224) == vgg | {'fc6', 'fc7', 'fc8'}
  caffenet_names = {f'conv{i}' for i in range(1, 6)} | {'fc6', 'fc7', 'fc8'}
  assert names(SMALL['caffenet'], 227) == caffenet_names
  parts = ('1x1', '3x3_reduce', '3x3', '5x5_reduce', '5x5', 'pool_proj')
  modules = ('3a', '3b', '4a', '4b', '4c', '4d', '4e', '5a', '5b')
  inceptions = {f'inception_{m}/{part}' for m in modules for part in parts}
  others = {'conv1/7x7_s2', 'conv2/3x3_reduce', 'conv2/3x3', 'loss3/classifier'}
  assert names(SMALL['googlenet'], 224) == inceptions | others


def test_googlenet_has_no_fc_features():
  with pytest.raises(InputError, match='fc_features=8'):
    googlenet(fc_features=8)


def test_widths():
  assert [scaled(64, w) for w in (1, 0.25, 1 / 16, 1e-9)] == [64, 16, 4, 1]
  assert [scaled(96, w, 2) for w in (1, 1 / 16, 1e-9)] == [96, 6, 2]
