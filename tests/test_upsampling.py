# SPDX-License-Identifier: Apache-2.0
"""Deconvolutions against their definition, a loop over inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.geometry import Deconvolution
from segjax.models.upsampling import (
  LearnedDeconvolution,
  bilinear_deconvolution,
  bilinear_weights,
  deconvolution,
)

LAYERS = [Deconvolution(k, s) for k, s in ((4, 2), (5, 3), (7, 4), (2, 3))]


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spread(x, kernel, stride):
  """Each input adds its multiple of the kernel to the output."""
  b, h, w, _ = x.shape
  k, _, _, features = kernel.shape
  y = np.zeros((b, (h - 1) * stride + k, (w - 1) * stride + k, features))
  for i, j in np.ndindex(h, w):
    top, left = i * stride, j * stride
    y[:, top : top + k, left : left + k] += np.einsum(
      'bc,hwcf->bhwf', x[:, i, j], kernel
    )
  return y


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('size', [(1, 1), (1, 3), (4, 2)])
def test_deconvolution_by_a_loop(layer, size):
  x = normal(0, 2, *size, 3)
  kernel = normal(1, layer.kernel, layer.kernel, 3, 2)
  got = deconvolution(x, kernel, layer)
  want = spread(x, kernel, layer.stride)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert got.shape[1:3] == tuple(layer.output_size(n) for n in size)


@pytest.mark.parametrize(
  'layer', [*LAYERS[:3], Deconvolution(63, 32), Deconvolution(64, 32)]
)
def test_the_bilinear_one_is_the_diagonal_one(layer):
  x = normal(2, 1, 3, 4, 2)
  diagonal = np.zeros((layer.kernel, layer.kernel, 2, 2))
  weights = bilinear_weights(layer.kernel)
  for c in range(2):
    diagonal[..., c, c] = np.outer(weights, weights)
  want = spread(x, diagonal, layer.stride)
  whole = bilinear_deconvolution(x, layer, 0, want.shape[1:3])
  np.testing.assert_allclose(whole, want, atol=1e-5)
  window = bilinear_deconvolution(x, layer, 3, (2, 5))
  np.testing.assert_allclose(window, want[:, 3:5, 3:8], atol=1e-5)
  learned = LearnedDeconvolution(layer)
  params = learned.init(jax.random.key(0), x)
  np.testing.assert_array_equal(params['params']['kernel'], diagonal)
  np.testing.assert_allclose(learned.apply(params, x), want, atol=1e-5)


def transposed(x, kernel, stride):
  """The plain deconvolution, a convolution of the map with zeros between."""
  k = kernel.shape[0]
  return jax.lax.conv_general_dilated(
    x,
    kernel[::-1, ::-1],
    (1, 1),
    [(k - 1, k - 1)] * 2,
    lhs_dilation=(stride, stride),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def assert_same_gradients(got, want, *args):
  """Compares values and the gradients of all arguments."""
  y_got, pull_got = jax.vjp(got, *args)
  y_want, pull_want = jax.vjp(want, *args)
  g = normal(6, *y_want.shape)
  for a, b in zip((y_got, *pull_got(g)), (y_want, *pull_want(g)), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize('layer', [*LAYERS, Deconvolution(16, 8)])
@pytest.mark.parametrize('size', [(1, 3), (4, 2)])
def test_gradients_of_the_deconvolution_are_the_plain_ones(layer, size):
  assert_same_gradients(
    lambda x, kernel: deconvolution(x, kernel, layer),
    lambda x, kernel: transposed(x, kernel, layer.stride),
    normal(4, 2, *size, 3),
    normal(5, layer.kernel, layer.kernel, 3, 2),
  )


@pytest.mark.parametrize('layer', [*LAYERS[:3], Deconvolution(64, 32)])
def test_gradient_of_the_bilinear_one_is_the_plain_one(layer):
  weights = bilinear_weights(layer.kernel)
  kernel = np.outer(weights, weights)[..., None, None] * np.eye(2, dtype='f')
  assert_same_gradients(
    lambda x: bilinear_deconvolution(x, layer, 2, (3, 5)),
    lambda x: transposed(x, kernel, layer.stride)[:, 2:5, 2:7],
    normal(7, 2, 3, 4, 2),
  )


def test_bilinear_weights_by_hand():
  np.testing.assert_array_equal(bilinear_weights(4), [0.25, 0.75, 0.75, 0.25])
  np.testing.assert_allclose(
    bilinear_weights(5), [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3], rtol=1e-6
  )
  assert np.outer(*2 * [bilinear_weights(64)]).sum() == 1024


@pytest.mark.parametrize('stride', [2, 8, 32])
def test_the_interior_is_half_pixel_interpolation(stride):
  layer = Deconvolution(2 * stride, stride)
  x = normal(3, 1, 5, 4, 3)
  offset = stride // 2
  sizes = (5 * stride, 4 * stride)
  got = bilinear_deconvolution(x, layer, offset, sizes)
  want = jax.image.resize(x, (1, *sizes, 3), 'bilinear')
  inside = np.s_[:, offset:-offset, offset:-offset]
  np.testing.assert_allclose(got[inside], want[inside], atol=1e-5)
  ones = bilinear_deconvolution(jnp.ones_like(x), layer, offset, sizes)
  np.testing.assert_allclose(ones[inside], 1, atol=1e-6)
  assert ones.min() < 0.6  # Fades to zero, where interpolation would clamp.
