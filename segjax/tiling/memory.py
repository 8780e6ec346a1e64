# SPDX-License-Identifier: Apache-2.0
"""The largest size whose computation fits into a budget of device memory.

The compiler says how much memory a size takes. It is asked for a few sizes, so
the size that is chosen is compiled already.
"""

import bisect
import math
from collections.abc import Callable

import numpy as np

from segjax.errors import InputError
from segjax.geometry import Geometry
from segjax.tiling.settings import TileSettings

MIB = 2**20

# Each call of `bytes_with` compiles a program.
_MOST_COMPILATIONS = 8


def largest_that_fits(
  bytes_with: Callable[[int], float],
  sizes: range,
  limit: float,
  amount: Callable[[int], float],
  start: int | None = None,
) -> int | None:
  """Returns the largest size that takes at most `limit` bytes.

  A few calls find it, as if bytes were linear in `amount`. The size returned
  has been tried; where bytes are far from linear, a larger one may fit, too.

  Args:
    bytes_with: size -> bytes, more for larger sizes; infinite where the
      compiler only says that they are too many.
    sizes: the sizes to choose from, ascending.
    limit: largest number of bytes.
    amount: size -> a quantity in which bytes are about linear, such as the
      area.
    start: the size to try first; None for the smallest.

  Returns:
    The size; None if the smallest takes more than `limit`.
  """
  tried = {}
  low, high = -1, len(sizes)  # The largest known to fit, the smallest not to.
  guess = 0 if start is None else sizes.index(start)
  for _ in range(_MOST_COMPILATIONS):
    taken = bytes_with(sizes[guess])
    if math.isfinite(taken):
      tried[amount(sizes[guess])] = taken
    if taken <= limit:
      low = guess
    else:
      high = guess
    if high - low <= 1:
      break
    if tried:
      # A line through the two nearest to the limit; at first, through (0, 0).
      points = sorted(tried.items(), key=lambda point: abs(point[1] - limit))
      (x, y), (other_x, other_y) = [*points, (0, 0)][:2]
      slope = (y - other_y) / (x - other_x) if x != other_x else 0
      affordable = x + (limit - y) / max(slope, 1e-9)
    else:
      affordable = amount(sizes[guess]) / 4
    guess = bisect.bisect_right(sizes, affordable, key=amount) - 1
    guess = min(max(guess, low + 1), high - 1)
  return None if low < 0 else sizes[low]


def fitting_tile_size(
  bytes_of: Callable[[tuple[int, int, int], np.dtype], int],
  image_shape: tuple[int, int, int],
  dtype: np.dtype,
  geometry: Geometry,
  settings: TileSettings,
) -> int:
  """Returns the `max_tile_size_px` that keeps tiles within a memory budget.

  It is the largest that the network admits, or one that covers the image. A
  plan within this limit has no larger tile.

  Args:
    bytes_of: (shape of a tile, dtype) -> bytes, such as
      `programs.Program.bytes_of`. More pixels must not take fewer bytes.
    image_shape: H, W, C.
    dtype: dtype of the image.
    geometry: sizes of the network.
    settings: settings of the prediction; `tile_memory_mib` is the budget.

  Raises:
    InputError: the smallest tile takes more memory.
  """
  bucket = max(settings.bucket_px, 1) if geometry.takes_any_size else 1
  step = math.lcm(geometry.period, bucket)
  # Two periods: one may be slack, so that any turned image is covered.
  smallest = geometry.tile_size(2 * geometry.period - 1)
  whole = [geometry.input_size(size) for size in image_shape[:2]]
  if geometry.takes_any_size:
    smallest, *whole = (-(-n // step) * step for n in (smallest, *whole))

  def shape(tile_size):
    height, width = (min(tile_size, side) for side in whole)
    longer = max(height, width)
    return (longer, longer) if settings.has_quarter_turns else (height, width)

  def used(tile_size):
    height, width = shape(tile_size)
    return bytes_of((height, width, image_shape[2]), dtype)

  size = largest_that_fits(
    used,
    range(smallest, max(*whole, smallest) + 1, step),
    settings.tile_memory_mib * MIB,
    amount=lambda tile_size: math.prod(shape(tile_size)),
  )
  if size is None:
    least = ' x '.join(map(str, shape(smallest)))
    raise InputError(
      f'tile_memory_mib={settings.tile_memory_mib} is too small: the smallest '
      f'tile, of {least} px, takes {math.ceil(used(smallest) / MIB)} MiB'
    )
  return size
