# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: stored pixels to the values that a network takes.

Training and prediction share it. It is part of a network: with another mean or
order of channels, trained weights give other results.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import InputError


def to_unit_range(image: jax.Array | np.ndarray) -> jax.Array:
  """Returns f32 values; integers are divided by their type's maximum.

  >>> import numpy as np, segjax
  >>> segjax.to_unit_range(np.uint8([0, 255]))
  Array([0., 1.], dtype=float32)
  """
  if jnp.issubdtype(image.dtype, jnp.integer):
    return jnp.asarray(image, jnp.float32) / jnp.iinfo(image.dtype).max
  return jnp.asarray(image, jnp.float32)


def standardise(
  image: jax.Array,
  mean: float | Sequence[float],
  std: float | Sequence[float],
  channels: Sequence[int] = (),
) -> jax.Array:
  """Returns (image - mean) / std.

  Args:
    image: f32[..., C] in [0, 1], see `to_unit_range`.
    mean: one number, or one for each channel of the result.
    std: one number, or one for each channel of the result. Networks that were
      trained on 0..255 minus m take a mean of m / 255 and a std of 1 / 255.
    channels: indices of the channels to take, in their order; (2, 1, 0) makes
      BGR of RGB, and () takes all channels as they are.

  >>> import numpy as np, segjax
  >>> segjax.standardise(np.float32([[0.0, 0.5, 1.0]]), mean=0.5, std=0.25)
  Array([[-2.,  0.,  2.]], dtype=float32)
  """
  if channels:
    image = image[..., jnp.asarray(channels)]
  axes = (1,) * (image.ndim - 1) + (-1,)
  shift, scale = (
    jnp.asarray(x, jnp.float32).reshape(axes) for x in (mean, std)
  )
  return (image - shift) / scale


def check_preprocessing(
  in_channels: int,
  mean: float | Sequence[float],
  std: float | Sequence[float],
  channels: Sequence[int],
) -> None:
  """Raises InputError for arguments that `standardise` cannot use.

  Args:
    in_channels: number of channels that the network takes.
    mean: see `standardise`.
    std: see `standardise`.
    channels: see `standardise`.
  """
  for name, values in (('mean', mean), ('std', std)):
    if np.size(values) not in (1, in_channels):
      raise InputError(
        f'preprocessing.{name}={values} has {np.size(values)} numbers; '
        f'expected 1, or {in_channels}, one a channel'
      )
  if np.min(std) <= 0:
    raise InputError(f'preprocessing.std={std} must be > 0')
  if channels and (
    len(channels) != in_channels or not {*channels} <= {*range(in_channels)}
  ):
    raise InputError(
      f'preprocessing.channels={channels}; expected {in_channels} indices in '
      f'0..{in_channels - 1}, or ()'
    )
