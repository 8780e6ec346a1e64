# SPDX-License-Identifier: Apache-2.0
"""Data sets, and the values of their pixels.

What an example holds: `segjax.data.examples`; the sets by name:
`segjax.data.sets`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data.examples import IGNORE_LABEL, Dataset
from segjax.errors import InputError

if TYPE_CHECKING:
  from segjax.data.sets import LOADERS, create_dataset, look_of

__all__ = (
  'IGNORE_LABEL',
  'LOADERS',
  'Dataset',
  'check_preprocessing',
  'create_dataset',
  'look_of',
  'standardise',
  'to_unit_range',
)


def __getattr__(name):
  # Late, so that a training step needs no library that reads files.
  if name in ('LOADERS', 'create_dataset', 'look_of'):
    from segjax.data import sets

    return getattr(sets, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def to_unit_range(image: jax.Array | np.ndarray) -> jax.Array:
  """Returns f32 values; integers are divided by their type's maximum."""
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
    mean: one, or one for each channel of the result.
    std: the same. Where 0..255 minus m was trained on: m / 255 and 1 / 255.
    channels: which channels, in which order; () takes them as they are, and
      (2, 1, 0) makes BGR of RGB.
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
  """Raises InputError for what `standardise` cannot do to C channels."""
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
