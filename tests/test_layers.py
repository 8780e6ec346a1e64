# SPDX-License-Identifier: Apache-2.0
"""Layers against scipy, numpy loops and the plain linen formulations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from segjax.errors import InputError
from segjax.models.layers import Conv, UpConv, crop, max_pool

MODES = ('VALID', 'SAME', 'FULL')


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


@pytest.mark.parametrize(('height', 'width'), [(6, 6), (1, 9), (6, 2)])
def test_kernels_larger_than_the_map(height, width):
  image, kernel = normal(4, 2, height, width, 3), normal(5, 7, 7, 3, 2)

  def loss(image, kernel):
    params = {'kernel': kernel, 'bias': jnp.zeros(2)}
    return jnp.sum(Conv(2, (7, 7), 3).apply({'params': params}, image) ** 2)

  def plain(image, kernel):
    y = jax.lax.conv_general_dilated(
      image,
      kernel,
      (1, 1),
      [(3, 3)] * 2,
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
@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('k', [2, 3])
def test_strides_and_dilations_by_a_loop(mode, stride, dilation, k):
  image, kernel = normal(2, 11, 10, 2), normal(3, k, k, 2, 3)
  conv = Conv(3, (k, k), mode, (stride, stride), (dilation, dilation))
  params = {'kernel': kernel, 'bias': np.zeros(3)}
  got = conv.apply({'params': params}, image[None])[0]

  extent = dilation * (k - 1) + 1
  pads, sizes = [], []
  for n in image.shape[:2]:
    if mode == 'VALID':
      pads.append((0, 0))
      sizes.append((n - extent) // stride + 1)
    elif mode == 'FULL':
      pads.append((extent - 1, extent - 1))
      sizes.append((n + extent - 2) // stride + 1)
    else:
      sizes.append(-(-n // stride))
      total = max((sizes[-1] - 1) * stride + extent - n, 0)
      pads.append((total // 2, total - total // 2))
  padded = np.pad(image, [*pads, (0, 0)])
  want = np.zeros((*sizes, 3))
  for i, j in np.ndindex(*sizes):
    window = padded[
      i * stride : i * stride + extent : dilation,
      j * stride : j * stride + extent : dilation,
    ]
    want[i, j] = np.einsum('abc,abcd->d', window, kernel)
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_another_mode_is_refused():
  with pytest.raises(InputError, match='SOME'):
    Conv(1, mode='SOME').init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def test_max_pool_is_the_plain_one():
  x = normal(4, 2, 6, 8, 3)
  want, pull_want = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
  got, pull_got = jax.vjp(max_pool, x)
  np.testing.assert_array_equal(got, want)
  g = normal(5, *want.shape)
  np.testing.assert_allclose(pull_got(g)[0], pull_want(g)[0])


def test_up_convolution_is_the_transposed_convolution():
  x = normal(6, 2, 3, 5, 4)
  params = {'kernel': normal(7, 2, 2, 4, 3), 'bias': normal(8, 3)}
  plain = nn.ConvTranspose(3, (2, 2), (2, 2), padding='VALID')

  def want(kernel, x):
    flipped = {'kernel': kernel[::-1, ::-1], 'bias': params['bias']}
    return plain.apply({'params': flipped}, x)

  def got(kernel, x):
    return UpConv(3).apply({'params': params | {'kernel': kernel}}, x)

  y_want, pull_want = jax.vjp(want, params['kernel'], x)
  y_got, pull_got = jax.vjp(got, params['kernel'], x)
  np.testing.assert_allclose(y_got, y_want, atol=1e-5)
  for a, b in zip(pull_got(y_want), pull_want(y_want), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


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
