# SPDX-License-Identifier: Apache-2.0
"""The largest tile whose computation fits into a budget of device memory.

What a tile takes is asked of the compiler, for a few sizes. A size that is
settled on is compiled already.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.tiling.turns import Transform

MIB = 2**20


def fitting_tile_size(
  bytes_of: Callable[[tuple[int, int, int], np.dtype], int],
  image_shape: tuple[int, int, int],
  dtype: np.dtype,
  geometry: Any,
  memory_mib: int,
  *,
  transforms: Sequence[Transform] = ((0, False),),
  bucket_px: int = 0,
) -> int:
  """Returns the `max_tile_size_px` of `plan_tiles` for a memory budget.

  It is the largest that the network admits, or one that covers the image; all
  tiles that a plan chooses within it are as small or smaller.

  Args:
    bytes_of: maps the shape of a tile and its dtype to the bytes it takes, such
      as `programs.Score.bytes_of`. More pixels must not take fewer.
    image_shape: H, W, C.
    dtype: of the image.
    geometry: as of `plan_tiles`.
    memory_mib: the budget, in MiB.
    transforms: as of `plan_tiles`.
    bucket_px: as of `plan_tiles`.

  Raises:
    InputError: the smallest tile takes more.
  """
  if isinstance(geometry, UNetGeometry):
    step = geometry.period
    # Covers any image that is turned.
    smallest = geometry.input_size(2 * step - 1)
    whole = [geometry.input_size(size) for size in image_shape[:2]]
  else:
    step = math.lcm(geometry.period, max(bucket_px, 1))
    smallest = math.ceil(2 * (geometry.margin + geometry.period) / step) * step
    whole = [math.ceil(size / step) * step for size in image_shape[:2]]
  sizes = range(smallest, max(*whole, smallest) + 1, step)
  is_square = any(turns % 2 for turns, _ in transforms)

  def shape(tile_size):
    sides = [min(tile_size, side) for side in whole]
    return (max(sides),) * 2 if is_square else tuple(sides)

  def used(tile_size):
    return bytes_of((*shape(tile_size), image_shape[2]), dtype)

  budget = memory_mib * MIB
  least = used(smallest)
  if least > budget:
    raise InputError(
      f'tile_memory_mib={memory_mib} is too small: the smallest tile, of '
      f'{" x ".join(map(str, shape(smallest)))} px, takes '
      f'{math.ceil(least / MIB)} MiB'
    )
  number = _last_within(
    len(sizes),
    lambda i: math.prod(shape(sizes[i])),
    lambda i: used(sizes[i]),
    least,
    budget,
  )
  return sizes[number]


def _last_within(count, area, used, least, budget):
  """Returns the last index 0 .. count - 1 with `used` within the budget.

  The first, which uses `least`, is. What is used is about linear in the area.
  """
  low, high = 0, count
  # From nothing that nothing takes, until one beyond the budget is known.
  within, other = (area(0), least), (0, 0)
  while high - low > 1:
    slope = (within[1] - other[1]) / max(within[0] - other[0], 1)
    affordable = within[0] + (budget - within[1]) / max(slope, 1e-9)
    guess = bisect.bisect_right(range(count), affordable, key=area) - 1
    guess = min(max(guess, low + 1), high - 1)
    point = area(guess), used(guess)
    if point[1] <= budget:
      low, within = guess, point
    else:
      high, other = guess, point
  return low
