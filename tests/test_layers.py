# SPDX-License-Identifier: Apache-2.0
"""Layers against scipy, numpy loops and the plain formulations of lax."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from segjax.errors import InputError
from segjax.models.convolution import convolve
from segjax.models.layers import (
  RUNNING,
  BatchNorm,
  Conv,
  UpConv,
  crop,
  max_pool,
)
from segjax.models.unet import UpBlock

MODES = ('VALID', 'SAME', 'FULL')
# Largest difference, of the largest value; in bfloat16 each side is rounded to
# 8 bits, once for each layer.
TOLERANCES = {'float32': 1e-5, 'bfloat16': 0.02}
DTYPES = [*TOLERANCES]


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize(
  'kernel_size', [(1, 1), (2, 2), (3, 3), (4, 3), (5, 2)]
)
def test_modes_are_those_of_scipy(mode, kernel_size):
  image, kernel = normal(0, 9, 8), normal(1, *kernel_size)
  params = {'kernel': kernel[..., None, None], 'bias': np.array([0.5])}
  got = Conv(1, kernel_size, mode).apply(
    {'params': params}, image[None, ..., None]
  )
  want = scipy.signal.correlate2d(image, kernel, mode.lower()) + 0.5
  np.testing.assert_allclose(got[0, ..., 0], want, atol=1e-5)


@pytest.mark.parametrize(
  ('height', 'width', 'k', 'pad', 'stride'),
  [
    (6, 6, 7, 3, 1),
    (1, 9, 7, 3, 1),
    (6, 2, 7, 3, 1),
    (9, 8, 3, 3, 1),
    (9, 8, 3, 20, 1),
    (9, 8, 3, 20, 2),
  ],
)
def test_large_kernels_and_paddings(height, width, k, pad, stride):
  """Kernels larger than the map, paddings than the kernel."""
  image, kernel = normal(4, 2, height, width, 3), normal(5, k, k, 3, 2)
  conv = Conv(2, (k, k), pad, (stride, stride))

  def loss(image, kernel):
    params = {'kernel': kernel, 'bias': jnp.zeros(2)}
    return jnp.sum(conv.apply({'params': params}, image) ** 2)

  def plain(image, kernel):
    y = jax.lax.conv_general_dilated(
      image,
      kernel,
      (stride, stride),
      [(pad, pad)] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return jnp.sum(y**2)

  got, want = (
    jax.value_and_grad(f, (0, 1))(image, kernel) for f in (loss, plain)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
    got,
    want,
  )


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('k', [2, 3])
def test_strides_by_a_loop(mode, stride, k):
  image, kernel = normal(2, 11, 10, 2), normal(3, k, k, 2, 3)
  conv = Conv(3, (k, k), mode, (stride, stride))
  params = {'kernel': kernel, 'bias': np.zeros(3)}
  got = conv.apply({'params': params}, image[None])[0]

  pads, sizes = [], []
  for n in image.shape[:2]:
    if mode == 'VALID':
      pads.append((0, 0))
      sizes.append((n - k) // stride + 1)
    elif mode == 'FULL':
      pads.append((k - 1, k - 1))
      sizes.append((n + k - 2) // stride + 1)
    else:
      sizes.append(-(-n // stride))
      total = max((sizes[-1] - 1) * stride + k - n, 0)
      pads.append((total // 2, total - total // 2))
  padded = np.pad(image, [*pads, (0, 0)])
  want = np.zeros((*sizes, 3))
  for i, j in np.ndindex(*sizes):
    window = padded[i * stride : i * stride + k, j * stride : j * stride + k]
    want[i, j] = np.einsum('abc,abcd->d', window, kernel)
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_another_mode_is_refused():
  with pytest.raises(InputError, match='SOME'):
    Conv(1, mode='SOME').init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def pool_windows(x):
  return nn.max_pool(x, (2, 2), (2, 2))


def cells(seed, b, h, w, c):
  """Maps whose cells of 2 x 2 hold four of -6 .. 5, no two alike."""
  values = np.tile(np.arange(-6, 6), (b * h * w * c // 4, 1))
  values = np.random.default_rng(seed).permuted(values, axis=1)[:, :4]
  x = values.reshape(b, h // 2, w // 2, c, 2, 2).transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(b, h, w, c)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('after_relu', [False, True])
def test_max_pool_is_the_plain_one(after_relu, dtype):
  # After ReLU, as in all networks, cells of four zeros are ties, which ReLU
  # passes no gradient.
  x = jnp.asarray(cells(4, 2, 16, 18, 3), dtype)
  before = nn.relu if after_relu else lambda x: x
  want, pull_want = jax.vjp(lambda x: pool_windows(before(x)), x)
  got, pull_got = jax.vjp(lambda x: max_pool(before(x)), x)
  assert got.dtype == dtype and np.any(want == 0)
  np.testing.assert_array_equal(got, want)
  g = jnp.asarray(normal(5, *want.shape), dtype)
  np.testing.assert_array_equal(pull_got(g)[0], pull_want(g)[0])


def test_the_first_of_tied_maxima_has_the_gradient():
  x = normal(6, 2, 16, 18, 3).round()
  want, pull_want = jax.vjp(pool_windows, x)
  g = normal(7, *want.shape)
  got = jax.vjp(max_pool, x)[1](g)[0]
  np.testing.assert_array_equal(got, pull_want(g)[0])
  maxima = np.repeat(np.repeat(want, 2, axis=1), 2, axis=2)
  assert np.sum(x == maxima) > 1.3 * want.size


@pytest.mark.parametrize('level', [0, 3])
def test_pooling_keeps_its_gradient_however_xla_fuses(level):
  # Unoptimised, XLA:CPU convolves one channel anew for the gradient, and
  # rounds otherwise.
  x, kernel = normal(8, 1, 40, 40, 1), normal(9, 3, 3, 1, 3)
  g = normal(10, 1, 20, 20, 3)

  def pooled(pool, bias):
    y = convolve(x, kernel, 'SAME') + bias.reshape(1, 1, 1, -1)
    return jnp.sum(pool(nn.relu(y)) * g)

  def gradient(pool):
    f = jax.value_and_grad(functools.partial(pooled, pool))
    options = {'xla_backend_optimization_level': level}
    return jax.jit(f, compiler_options=options)(np.float32([0.1, 0, -0.1]))

  for got, want in zip(gradient(max_pool), gradient(pool_windows), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4)


def transposed(x, kernel, bias):
  """The plain 2x2 up-convolution, of a map with zeros between its pixels."""
  y = jax.lax.conv_general_dilated(
    x,
    kernel[::-1, ::-1],
    (1, 1),
    [(1, 1)] * 2,
    lhs_dilation=(2, 2),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return y + bias.reshape(1, 1, 1, -1)


def assert_same(got, want, params, maps, dtype):
  """Compares values, and gradients of all arguments, with the plain form.

  That is computed in float32 of the same numbers; parameters are float32
  always, maps and what `got` returns are of `dtype`.
  """
  maps = [jnp.asarray(x, dtype) for x in maps]
  y_got, pull_got = jax.vjp(got, params, *maps)
  maps = [x.astype(jnp.float32) for x in maps]
  y_want, pull_want = jax.vjp(want, params, *maps)
  assert y_got.dtype == dtype
  g = jnp.asarray(normal(9, *y_want.shape), dtype)
  pairs = zip(
    jax.tree.leaves((y_got, pull_got(g))),
    jax.tree.leaves((y_want, pull_want(g.astype(jnp.float32)))),
    strict=True,
  )
  for a, b in pairs:
    atol = TOLERANCES[dtype] * np.abs(b).max()
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=atol, rtol=0)


@pytest.mark.parametrize('dtype', DTYPES)
def test_up_convolution_is_the_transposed_convolution(dtype):
  def got(params, x):
    return UpConv(3, jnp.dtype(dtype)).apply({'params': params}, x)

  def want(params, x):
    return transposed(x, **params)

  params = {'kernel': normal(7, 2, 2, 4, 3), 'bias': normal(8, 3)}
  assert_same(got, want, params, [normal(6, 2, 3, 5, 4)], dtype)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('skip_first', [True, False])
def test_convolution_of_the_concatenation_is_the_plain_one(skip_first, dtype):
  block = UpBlock(4, 1, 'VALID', jnp.dtype(dtype), None, 5, False, skip_first)
  x, skip = normal(10, 2, 4, 5, 6), normal(11, 2, 8, 10, 3)
  # ReLU is far from its corner, on whose sides the two types might differ.
  bias = np.float32([20, 20, -20, 20])
  params = {
    'upconv': {'kernel': normal(12, 2, 2, 6, 5), 'bias': normal(13, 5)},
    'conv0': {'kernel': 0.2 * normal(14, 3, 3, 8, 4), 'bias': bias},
  }

  def got(params, x, skip):
    return block.apply({'params': params}, x, skip)

  def want(params, x, skip):
    x = transposed(x, **params['upconv'])
    y = jax.lax.conv_general_dilated(
      jnp.concatenate([skip, x] if skip_first else [x, skip], axis=-1),
      params['conv0']['kernel'],
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return nn.relu(y + params['conv0']['bias'].reshape(1, 1, 1, -1))

  assert_same(got, want, params, [x, skip], dtype)


@pytest.mark.parametrize('layer', [Conv, UpConv])
def test_gradients_of_biases_are_sums_over_many_pixels(layer):
  layer = layer(2, dtype=jnp.bfloat16)
  x = jnp.zeros((1, 66, 66, 1), jnp.bfloat16)
  params = layer.init(jax.random.key(0), x)
  y, pull = jax.vjp(lambda params: layer.apply(params, x), params)
  gradient = pull(jnp.ones_like(y))[0]['params']['bias']
  # A sum in bfloat16 would stay where another 1 is rounded away.
  np.testing.assert_array_equal(gradient, [y.size // 2] * 2)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('train', [False, True])
def test_batch_norm_is_that_of_flax(train, dtype):
  dtype = jnp.dtype(dtype)
  x = (3 * normal(20, 2, 9, 7, 4) + normal(21, 1, 1, 1, 4)).astype(dtype)
  params = {'scale': normal(22, 4), 'bias': normal(23, 4)}
  running = {'mean': normal(24, 4), 'var': np.exp(normal(25, 4))}
  flax = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=dtype)

  def want(params, x):
    variables = {'params': params, 'batch_stats': running}
    return flax.apply(variables, x, mutable=['batch_stats'])

  def got(params, x):
    variables = {'params': params | running}
    return BatchNorm(train).apply(variables, x, mutable=[RUNNING])

  values, pull, updated = jax.vjp(got, params, x, has_aux=True)
  wanted, pull_wanted, wanted_updated = jax.vjp(want, params, x, has_aux=True)
  assert values.dtype == dtype
  dy = normal(26, *x.shape).astype(dtype)
  same = functools.partial(
    np.testing.assert_allclose, atol=TOLERANCES[dtype.name]
  )
  for a, b in zip(
    jax.tree.leaves((values, pull(dy))),
    jax.tree.leaves((wanted, pull_wanted(dy))),
    strict=True,
  ):
    a, b = np.float32(a), np.float32(b)
    same(a / np.abs(b).max(), b / np.abs(b).max())
  if train:
    for name in running:
      np.testing.assert_allclose(
        updated[RUNNING][name], wanted_updated['batch_stats'][name], rtol=1e-5
      )
  assert bool(updated) == train


def test_statistics_of_bfloat16_are_float32():
  x = (100 + normal(27, 1, 66, 66, 3)).astype(jnp.bfloat16)
  params = BatchNorm(True).init(jax.random.key(0), x)['params']
  y, updated = BatchNorm(True).apply({'params': params}, x, mutable=[RUNNING])
  exact = np.float64(x).reshape(-1, 3)
  assert y.dtype == jnp.bfloat16
  batch = {
    name: (updated[RUNNING][name] - 0.9 * params[name]) / 0.1
    for name in ('mean', 'var')
  }
  np.testing.assert_allclose(batch['mean'], exact.mean(0), rtol=1e-6)
  np.testing.assert_allclose(batch['var'], exact.var(0), rtol=1e-4)


def test_up_convolution_places_the_kernel_unflipped():
  kernel = np.arange(4.0).reshape(2, 2, 1, 1)
  params = {'kernel': kernel, 'bias': np.zeros(1)}
  y = UpConv(1).apply({'params': params}, np.ones((1, 1, 1, 1)))
  np.testing.assert_array_equal(y[0, ..., 0], [[0, 1], [2, 3]])


def test_initial_standard_deviations():
  x = jnp.zeros((1, 4, 4, 64))
  conv = Conv(256).init(jax.random.key(0), x)['params']['kernel']
  up = UpConv(256).init(jax.random.key(1), x)['params']['kernel']
  assert np.std(conv) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.01)
  assert np.std(up) == pytest.approx(np.sqrt(2 / 64), rel=0.01)
  # A truncated Gaussian would end at 2.27 standard deviations.
  assert np.abs(conv).max() > 3.5 * np.std(conv)


def test_crop_takes_all_four_sides():
  x = normal(9, 1, 6, 8, 1)
  np.testing.assert_array_equal(crop(x, 2), x[:, 2:4, 2:6])
  np.testing.assert_array_equal(crop(x, 0), x)
