# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: stored pixels to the values that a network takes.

Training and prediction share it. It is part of a network: with another mean or
order of channels, trained weights give other results.
"""

import concurrent.futures
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import InputError

# Of what `measure_pixels` draws.
_IMAGES = 256
_PIXELS = 16_384
_PERCENTILES = (0.1, 99.9)


def to_unit_range(
  image: jax.Array | np.ndarray, limits: Sequence = ()
) -> jax.Array:
  """Returns f32 values; integers are divided by their type's maximum.

  Args:
    image: unsigned integers of at most 32 bits, or floats [..., C].
    limits: (low, high) become 0 and 1 afterwards, each one number or one a
      channel. What lies outside is not cut off. () leaves the values.

  Raises:
    InputError: another dtype, whose values have no range known.

  >>> import numpy as np, segjax
  >>> segjax.to_unit_range(np.uint8([0, 255]))
  Array([0., 1.], dtype=float32)
  >>> segjax.to_unit_range(np.uint8([0, 255]), limits=(0, 2))
  Array([0. , 0.5], dtype=float32)
  """
  is_integer = jnp.issubdtype(image.dtype, jnp.unsignedinteger)
  if not (is_integer and image.dtype.itemsize <= 4) and not jnp.issubdtype(
    image.dtype, jnp.floating
  ):
    raise InputError(
      f'image of {image.dtype}; expected uint8, uint16 or uint32, which are '
      'divided by their maximum, or float32'
    )
  unit = jnp.asarray(image, jnp.float32)
  if is_integer:
    unit = unit / jnp.iinfo(image.dtype).max
  if not len(limits):
    return unit
  low, high = (_along_channels(end, unit.ndim) for end in limits)
  return (unit - low) / (high - low)


def standardise(
  image: jax.Array | np.ndarray,
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
  image = jnp.asarray(image)
  if channels:
    image = image[..., jnp.asarray(channels)]
  shift, scale = (_along_channels(x, image.ndim) for x in (mean, std))
  return (image - shift) / scale


def _along_channels(values, ndim):
  return jnp.asarray(values, jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


def measure_pixels(examples: Sequence[dict]) -> dict[str, Any]:
  """Returns the `dtype`, `limits`, `mean` and `std` of the pixels of a set.

  The limits hold 99.8 % of the values of a channel, as shares of what the type
  of an integer can hold; the mean and the standard deviation are of the
  values that `to_unit_range` makes of it. They are rounded to four digits.
  Pixels are drawn, the same whenever this is called: at most 16,384 of an image
  and of at most 256 images, spread over the set.

  Args:
    examples: as `segjax.data.examples` defines them.

  Returns:
    Fields of `settings.PreprocessingSettings`; `limits`, `mean` and `std` have
    tuples of one number a channel.
  """
  spread = np.linspace(0, len(examples) - 1, min(len(examples), _IMAGES))

  def draw(index):
    image = examples[index]['image']
    pixels = image.reshape(-1, image.shape[-1])
    size = min(len(pixels), _PIXELS)
    return pixels[np.random.default_rng(0).integers(len(pixels), size=size)]

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    drawn = np.concatenate([*pool.map(draw, spread.round().astype(int))])
  dtype = drawn.dtype
  full = np.iinfo(dtype).max if dtype.kind in 'iu' else 1
  values = drawn / float(full)
  low, high = np.percentile(values, _PERCENTILES, axis=0)
  # A channel that is the same everywhere has no range of its own.
  high = np.where(high > low, high, low + 1)
  low, high = _rounded(low), _rounded(high)
  unit = (values - low) / (np.asarray(high) - low)
  std = unit.std(axis=0)
  return {
    'dtype': str(dtype),
    'limits': (low, high),
    'mean': _rounded(unit.mean(axis=0)),
    'std': _rounded(np.where(std > 0, std, 1.0)),
  }


def _rounded(values):
  return tuple(float(f'{value:.4g}') for value in values)


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
