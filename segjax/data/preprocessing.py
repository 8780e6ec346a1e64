# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of images: from stored pixels to the input of a network.

Training and prediction share it. It belongs to a network: with another mean or
another order of channels, trained weights give other results.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data.examples import map_in_threads
from segjax.errors import InputError

# The sample that `measure_pixels` draws.
_IMAGES = 256
_PIXELS = 16_384  # Of each image.
_PERCENTILES = (0.1, 99.9)

_STRIP_VALUES = 2**22  # Of `image_statistics`.


def to_unit_range(
  image: jax.Array | np.ndarray, limits: Sequence = ()
) -> jax.Array:
  """Returns f32 values; integers are divided by their type's maximum.

  Args:
    image: unsigned integers of at most 32 bits, or floats [..., C].
    limits: (low, high), values that then become 0 and 1, each a number or one
      for each channel. Values outside are not clipped. () changes nothing.

  Raises:
    InputError: the image has another dtype, whose range is unknown.

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
    mean: a number, or one for each channel of the result.
    std: a number, or one for each channel of the result. Networks that were
      trained on 0..255 minus m take a mean of m / 255 and a std of 1 / 255.
    channels: indices of the channels of the result: (2, 1, 0) makes BGR of RGB,
      and () takes all channels in their order.

  >>> import numpy as np, segjax
  >>> segjax.standardise(np.float32([[0.0, 0.5, 1.0]]), mean=0.5, std=0.25)
  Array([[-2.,  0.,  2.]], dtype=float32)
  """
  image = jnp.asarray(image)
  if channels:
    image = image[..., jnp.asarray(channels)]
  shift, scale = (_along_channels(x, image.ndim) for x in (mean, std))
  return (image - shift) / scale


def image_statistics(image: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean and the standard deviation of each channel of an image.

  The image is read once, by strips of rows whose number follows from its shape,
  so that an array and a file of the same pixels give equal values. A channel
  without variation, or with less than float32 can hold, has standard deviation
  1.

  Args:
    image: an array [H, W, C], or anything with its `shape` that is read as
      `image[rows, columns]`, two slices, such as `images.windows.Raster`.

  Returns:
    f64[C], f64[C], in units of the stored pixels.

  >>> import numpy as np
  >>> mean, std = image_statistics(np.uint8([[[0], [2]], [[4], [6]]]))
  >>> mean.tolist(), std.round(3).tolist()
  ([3.0], [2.236])
  """
  height, width, channels = image.shape
  rows = max(_STRIP_VALUES // (width * channels), 1)
  columns = slice(0, width)
  # Sums of squares less a squared mean cancel; near 0 they do not.
  centre = np.asarray(image[slice(0, 1), columns], float).mean(axis=(0, 1))
  total, squares = np.zeros((2, channels))
  for start in range(0, height, rows):
    strip = image[slice(start, min(start + rows, height)), columns]
    values = np.asarray(strip, float) - centre
    total += values.sum(axis=(0, 1))
    squares += np.square(values).sum(axis=(0, 1))
  shift = total / (height * width)
  variance = np.maximum(squares / (height * width) - shift**2, 0)
  std = np.sqrt(variance)
  least = np.finfo(np.float32).tiny
  return centre + shift, np.where(std > least, std, 1.0)


def subtract_statistics(
  pixels: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
  """Returns (pixels - mean) / std, f32[..., C], of pixels [..., C]."""
  values = np.asarray(pixels, np.float32) - np.asarray(mean, np.float32)
  return values / np.asarray(std, np.float32)


def _along_channels(values, ndim):
  return jnp.asarray(values, jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


def measure_pixels(examples: Sequence[dict]) -> dict[str, Any]:
  """Returns the `dtype`, `limits`, `mean` and `std` of the pixels of a set.

  The limits hold 99.8 % of the values of a channel; those of integers are
  shares of the maximum of their type. Mean and standard deviation are those of
  the values that `to_unit_range` makes with these limits. All are rounded to
  four digits. They are measured on a random sample, the same in every call: at
  most 16,384 pixels of each of at most 256 images, spread over the set.

  Args:
    examples: see `segjax.data.examples`.

  Returns:
    Fields of `settings.PreprocessingSettings`; `limits`, `mean` and `std` have
    a number for each channel.
  """
  spread = np.linspace(0, len(examples) - 1, min(len(examples), _IMAGES))

  def draw(index):
    image = examples[index]['image']
    pixels = image.reshape(-1, image.shape[-1])
    size = min(len(pixels), _PIXELS)
    return pixels[np.random.default_rng(0).integers(len(pixels), size=size)]

  indices = spread.round().astype(int).tolist()
  drawn = np.concatenate([*map_in_threads(draw, indices)])
  dtype = drawn.dtype
  full = np.iinfo(dtype).max if dtype.kind in 'iu' else 1
  values = drawn / float(full)
  low, high = np.percentile(values, _PERCENTILES, axis=0)
  # The range of a constant channel is empty.
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
    mean, std, channels: see `standardise`.
  """
  for name, values in (('mean', mean), ('std', std)):
    if np.size(values) not in (1, in_channels):
      raise InputError(
        f'preprocessing.{name}={values} has {np.size(values)} numbers; '
        'expected 1'
        + (f', or {in_channels}, one a channel' if in_channels > 1 else '')
      )
  if np.min(std) <= 0:
    raise InputError(f'preprocessing.std={std} must be > 0')
  if channels and (
    len(channels) != in_channels or not {*channels} <= {*range(in_channels)}
  ):
    raise InputError(
      f'preprocessing.channels={channels}; expected {in_channels} indices in '
      f'0..{in_channels - 1}, or () for all'
    )
