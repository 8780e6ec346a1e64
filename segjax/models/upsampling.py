# SPDX-License-Identifier: Apache-2.0
"""Deconvolutions of FCN: fixed bilinear ones, and learned ones.

A deconvolution (transposed convolution) of stride s and kernel K [k, k, C, K']
puts its inputs s pixels apart and adds up what each spreads. Per axis,

    y[s i + t] += K[t] x[i],  t = 0 .. k - 1,

so that n pixels give (n - 1) s + k. Kernels are oriented as in Caffe and
PyTorch, which is the orientation of `nn.ConvTranspose` flipped in both
directions.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax.geometry import Deconvolution


def bilinear_weights(kernel: int) -> np.ndarray:
  """Returns w f32[k]; the outer product of w and w is Caffe's bilinear kernel.

  w[i] = 1 - |i - (k - 1) / 2| / f with f = ceil(k / 2). For k = 2s, the
  deconvolution of stride s is half-pixel bilinear interpolation. It fades
  towards the border, since it takes zeros beyond the map.
  """
  distance = np.abs(np.arange(kernel) - (kernel - 1) / 2)
  return (1 - distance / -(-kernel // 2)).astype(np.float32)


def bilinear_deconvolution(
  x: jax.Array, layer: Deconvolution, offset: int, sizes: Sequence[int]
) -> jax.Array:
  """Returns a window of the bilinear deconvolution of each channel.

  Computed exactly as U_h X U_w^T, with a matrix for rows and one for columns,
  instead of a kernel [k, k, C, C] that is zero off its diagonal.

  Args:
    x: float[B,h,w,C].
    layer: kernel and stride.
    offset: first row and column to return.
    sizes: H and W, the numbers of rows and columns to return.

  Returns:
    float[B,H,W,C].
  """
  rows, columns = (
    jnp.asarray(_bilinear_matrix(layer, n, offset, size), x.dtype)
    for n, size in zip(x.shape[1:3], sizes, strict=True)
  )
  y = jnp.einsum('Hh,bhwc->bHwc', rows, x, precision='highest')
  return jnp.einsum('Ww,bHwc->bHWc', columns, y, precision='highest')


def deconvolution(
  x: jax.Array, kernel: jax.Array, layer: Deconvolution
) -> jax.Array:
  """Returns the deconvolution of [B, h, w, C] by a kernel [k, k, C, K'].

  With m = ceil(k / s), the s x s pixels of a cell depend on m x m inputs, so
  an m x m convolution to s^2 K' channels and an interleaving compute it, with
  no multiplication by zeros between inputs.

  Returns:
    float[B, (h - 1) s + k, (w - 1) s + k, K'].
  """
  s, k = layer.stride, layer.kernel
  _, _, c, features = kernel.shape
  taps = -(-k // s)
  kernel = jnp.pad(kernel, ((0, taps * s - k),) * 2 + ((0, 0),) * 2)
  kernel = kernel.reshape(taps, s, taps, s, c, features)[::-1, :, ::-1]
  kernel = kernel.transpose(0, 2, 4, 1, 3, 5)
  y = jax.lax.conv_general_dilated(
    x,
    kernel.reshape(taps, taps, c, s * s * features),
    window_strides=(1, 1),
    padding=[(taps - 1, taps - 1)] * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  b, h, w, _ = y.shape
  y = y.reshape(b, h, w, s, s, features).transpose(0, 1, 3, 2, 4, 5)
  y = y.reshape(b, h * s, w * s, features)
  height, width = (layer.output_size(n) for n in x.shape[1:3])
  return y[:, :height, :width]


class LearnedDeconvolution(nn.Module):
  """`deconvolution` with a learned kernel [k, k, C, C], bilinear at first.

  Attributes:
    layer: kernel size and stride.
  """

  layer: Deconvolution

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float[B,h,w,C] to float[B,H,W,C]; see `deconvolution`."""
    k, c = self.layer.kernel, x.shape[-1]
    kernel = self.param('kernel', _bilinear_init, (k, k, c, c))
    return deconvolution(x, kernel.astype(x.dtype), self.layer)


def _bilinear_init(key, shape):
  """Returns the bilinear kernel on the diagonal of [k, k, C, C]."""
  del key
  weights = bilinear_weights(shape[0])
  kernel = np.outer(weights, weights)[..., None, None] * np.eye(shape[-1])
  return jnp.asarray(kernel, jnp.float32)


def _bilinear_matrix(layer, size, offset, output_size):
  """Returns f32[output_size,size]: rows of its matrix, from `offset` on."""
  weights = bilinear_weights(layer.kernel)
  pixels = np.arange(offset, offset + output_size)[:, None]
  taps = pixels - layer.stride * np.arange(size)
  inside = (taps >= 0) & (taps < layer.kernel)
  return np.where(inside, weights[np.clip(taps, 0, layer.kernel - 1)], 0)
