# SPDX-License-Identifier: Apache-2.0
"""Layers that both networks share: convolution in three modes, pool, up-conv.

All take and return feature maps [B, H, W, C]. Parameters are float32 whatever
the compute dtype.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.errors import InputError

# Gaussian of standard deviation sqrt(2 / N), N incoming nodes (U-Net, section
# 3; He et al. 2015). Untruncated, unlike `nn.initializers.he_normal`.
he_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
_he_init_upconv = nn.initializers.variance_scaling(
  2.0, 'fan_in', 'normal', batch_axis=(0, 1)
)


def convolution_padding(
  mode: str, kernel_size: Sequence[int], dilation: Sequence[int]
) -> str | list[tuple[int, int]]:
  """Returns the `lax` padding of a convolution mode.

  With k' = dilation (k - 1) + 1 the extent of the kernel along an axis of N
  pixels and t the stride, the output has

      'VALID'  floor((N - k') / t) + 1  pixels; the kernel stays inside,
      'SAME'   ceil(N / t)              zeros around, the odd one at the end,
      'FULL'   floor((N + k' - 2) / t) + 1; every overlap, however small.

  At stride 1 these are the modes of `scipy.signal.correlate2d`.

  Raises:
    InputError: for another mode.
  """
  if mode == 'FULL':
    return [
      (d * (k - 1), d * (k - 1))
      for k, d in zip(kernel_size, dilation, strict=True)
    ]
  if mode in ('VALID', 'SAME'):
    return mode
  raise InputError(
    f"convolution mode {mode!r} is not one of 'VALID', 'SAME', 'FULL'"
  )


class Conv(nn.Module):
  """Two-dimensional cross-correlation plus bias, in one of three modes.

  Attributes:
    features: output channels.
    kernel_size: rows and columns, odd or even.
    mode: 'VALID', 'SAME' or 'FULL'; see `convolution_padding`.
    strides: rows and columns from one output to the next.
    dilation: rows and columns from one kernel tap to the next.
    dtype: compute dtype.
  """

  features: int
  kernel_size: Sequence[int] = (3, 3)
  mode: str = 'VALID'
  strides: Sequence[int] = (1, 1)
  dilation: Sequence[int] = (1, 1)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to dtype[B, H', W', features]."""
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', he_init, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    y = jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      window_strides=self.strides,
      padding=convolution_padding(self.mode, self.kernel_size, self.dilation),
      rhs_dilation=self.dilation,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class UpConv(nn.Module):
  """2x2 up-convolution of stride 2 (transposed convolution) plus bias.

  With kernel K [2, 2, C, features], y[2i + a, 2j + b] = K[a, b]^T x[i, j]:
  the windows don't overlap, so a 1x1 convolution to four times the features
  and an interleaving compute it. The kernel is laid out as Caffe's and
  PyTorch's, which is `nn.ConvTranspose`'s flipped in both directions.

  Each output pixel receives C terms, so the initial standard deviation is
  sqrt(2 / C), not sqrt(2 / 4C).

  Attributes:
    features: output channels.
    dtype: compute dtype.
  """

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to dtype[B, 2H, 2W, features]."""
    b, h, w, c = x.shape
    kernel = self.param('kernel', _he_init_upconv, (2, 2, c, self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    kernel = kernel.transpose(2, 0, 1, 3).reshape(1, 1, c, 4 * self.features)
    y = jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      window_strides=(1, 1),
      padding='VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    y = y.reshape(b, h, w, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(b, 2 * h, 2 * w, self.features)
    return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


def max_pool(x: jax.Array) -> jax.Array:
  """Returns the maxima of the 2x2 cells of [B, H, W, C], H and W even.

  A reduction over a reshaped array: the values of `nn.max_pool`, faster in
  both directions on CPU. Tied maxima share the gradient equally.
  """
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def crop(x: jax.Array, margin: int) -> jax.Array:
  """Returns [B, H, W, C] without `margin` pixels at each side."""
  _, h, w, _ = x.shape
  return x[:, margin : h - margin, margin : w - margin]
