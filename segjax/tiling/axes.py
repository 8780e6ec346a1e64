# SPDX-License-Identifier: Apache-2.0
"""How tiles of one size cover one axis of an image, and the size to take.

`geometry` is as of `plans.plan_tiles`. Tiles of a U-Net have their margins
outside of the image at its ends; of an FCN they end where the image does. Only
integers here, as in `segjax.geometry`.
"""

import math
from collections.abc import Sequence
from typing import Any

from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.tiling.turns import Transform, is_reversed


def plan_axis(
  size: int, geometry: Any, tile_size: int, slack: int = 0
) -> list[slice]:
  """Returns the windows of the fewest tiles that cover one axis.

  The stride is the largest multiple of the period P that leaves every window
  its margins, often smaller than what a tile could write: the paper's tile of
  572 writes 384 of its 388 pixels, and the last tile all that the image still
  has. The first tile and the last of an FCN need a margin on one side only.

  Args:
    slack: pixels that windows but the last leave free, 0 .. P - 1. Read
      backwards they begin size mod P pixels after a multiple of P.

  Raises:
    InputError: if `tile_size` is inadmissible, or too small: nothing to write,
      or less than P where one tile doesn't cover.
  """
  count, first, stride = _steps(size, geometry, tile_size, slack)
  starts = [0, *(first + i * stride for i in range(1, count))]
  return list(map(slice, starts, [*starts[1:], size]))


def count_tiles(
  size: int, geometry: Any, tile_size: int, slack: int = 0
) -> int:
  """Returns the number of windows of `plan_axis`; raises what it does."""
  return _steps(size, geometry, tile_size, slack)[0]


def least_waste_tile_size(
  size: int,
  geometry: Any,
  max_tile_size_px: int,
  slack: int = 0,
  bucket_px: int = 0,
) -> int:
  """Returns the tile size that covers `size` with the fewest pixels computed.

  Those are T x tile size with T tiles; the fewer tiles at a tie. Of an FCN the
  smallest size with the fewest tiles is taken.

  Args:
    bucket_px: of an FCN: a tile that covers the axis alone is rounded up to a
      multiple of this; 0 for as large as the axis.

  Raises:
    InputError: if no tile within `max_tile_size_px` works.
  """
  period = geometry.period
  if not isinstance(geometry, UNetGeometry):
    if size <= max_tile_size_px:
      return math.ceil(size / max(bucket_px, 1)) * max(bucket_px, 1)
    tile_size = max_tile_size_px // period * period
    fewest = count_tiles(size, geometry, tile_size, slack)
    least = _least_clipped(geometry, slack)
    while (
      tile_size > least
      and count_tiles(size, geometry, tile_size - period, slack) == fewest
    ):
      tile_size -= period
    return tile_size
  choices = []
  largest = min(max_tile_size_px, geometry.input_size(size))
  for tile_size in range(geometry.input_size(1), largest + 1, period):
    core, stride = _core(geometry, tile_size, slack)
    if core >= size or stride >= 1:
      count = _count(size, core, stride)
      choices.append((count * tile_size, count, tile_size))
  if not choices:
    raise InputError(
      f'max_tile_size_px={max_tile_size_px} is too small; for an image side of '
      f'{size} px give {_smallest_tile(size, geometry, slack)} or more'
    )
  return min(choices)[-1]


def slacks(
  size: tuple[int, int], geometry: Any, transforms: Sequence[Transform]
) -> list[int]:
  """Returns, of each axis, the slack with which windows fit the image turned.

  Args:
    size: height and width of the image.
    transforms: of it, see `segjax.tiling.turns`.
  """
  backwards = map(any, zip(*(is_reversed(*t) for t in transforms), strict=True))
  return [
    length % geometry.period if is_backwards else 0
    for length, is_backwards in zip(size, backwards, strict=True)
  ]


def _steps(size, geometry, tile_size, slack):
  """Returns how many tiles, and what is added to i strides for the i-th."""
  if isinstance(geometry, UNetGeometry):
    core, stride = _core(geometry, tile_size, slack)
    if core < 1 or (stride < 1 and core < size):
      raise InputError(
        f'tile size {tile_size} px is too small for an image side of {size} '
        f'px: it leaves {max(core, 0)} px to write; '
        f'use {_smallest_tile(size, geometry, slack)} or more'
      )
    return _count(size, core, stride), 0, stride
  if size <= tile_size:
    return 1, 0, 0
  period, margin = geometry.period, geometry.margin
  least = _least_clipped(geometry, slack)
  if tile_size % period or tile_size < least:
    raise InputError(
      f'tile size {tile_size} px for an image side of {size} px: tiles of this '
      f'network are {least} + {period} j px, j >= 0; it needs {margin} px of '
      'context on each side'
    )
  stride = (tile_size - 2 * margin - slack) // period * period
  return max(2, _count(size, tile_size, stride)), margin, stride


def _core(geometry, tile_size, slack):
  """Returns the core of a tile, and how far it is to the next."""
  core = geometry.output_size(tile_size) - 2 * geometry.core_offset
  return core, (core - slack) // geometry.period * geometry.period


def _least_clipped(geometry, slack):
  """Returns the least tile of an FCN that can be one of several."""
  period = geometry.period
  return 2 * geometry.margin + period + (period if slack else 0)


def _count(size, covered, stride):
  """Returns the tiles that cover `size`, of which the last covers `covered`."""
  return 1 if size <= covered else math.ceil((size - covered) / stride) + 1


def _smallest_tile(size, geometry, slack):
  """Returns the least tile that covers `size` pixels or allows a stride."""
  return geometry.input_size(min(size, geometry.period + slack))
