# SPDX-License-Identifier: Apache-2.0
"""Tiles along one axis of an image: their number, stride and best size.

Each tile writes a window, and reads a margin of M pixels on both sides of it.
Windows begin at multiples of the period P. Networks differ only at the ends of
the image: if `geometry.clips_tiles`, the first and the last tile end where the
image does and need no margin there; otherwise they reach beyond it, into its
mirror image. All values are integers, as in `segjax.geometry`.
"""

import math
from collections.abc import Sequence

from segjax.errors import InputError
from segjax.geometry import Geometry
from segjax.tiling.turns import Transform, is_reversed


def plan_axis(
  size: int, geometry: Geometry, tile_size: int, slack: int = 0
) -> list[slice]:
  """Returns the windows of the fewest tiles that cover one axis.

  The stride is the largest multiple of P that leaves every window its margins.
  It is often smaller than the output of a tile: the paper's tile of 572 px has
  388 output pixels and writes 384 of them. The last tile writes the rest.

  Args:
    size: pixels of the axis.
    geometry: sizes of the network.
    tile_size: input pixels of a tile.
    slack: pixels kept free at the end of every window but the last, so that
      the same windows also fit the flipped image, whose period grid is shifted
      by size mod P.

  Raises:
    InputError: `tile_size` is inadmissible, or too small: it leaves no pixel to
      write, or fewer than P where one tile doesn't cover the axis.
  """
  count, stride = _count_and_stride(size, geometry, tile_size, slack)
  lead = geometry.margin if geometry.clips_tiles else 0
  starts = [0, *(lead + i * stride for i in range(1, count))]
  return list(map(slice, starts, [*starts[1:], size]))


def count_tiles(
  size: int, geometry: Geometry, tile_size: int, slack: int = 0
) -> int:
  """Returns the number of windows that `plan_axis` returns or refuses."""
  return _count_and_stride(size, geometry, tile_size, slack)[0]


def least_waste_tile_size(
  size: int,
  geometry: Geometry,
  max_tile_size_px: int,
  slack: int = 0,
  bucket_px: int = 0,
) -> int:
  """Returns the tile size that covers an axis with the fewest pixels computed.

  One tile covers the axis if the limit admits it, since each further tile adds
  its margins. Otherwise T tiles cover it, of the size for which T x size is
  least; at a tie, fewer tiles win.

  Args:
    size: pixels of the axis.
    geometry: sizes of the network.
    max_tile_size_px: the limit, in input pixels.
    slack: see `plan_axis`.
    bucket_px: a tile that covers the axis alone is rounded up to a multiple of
      this, even beyond the limit; 0 rounds nothing. Only for networks that take
      any size.

  Raises:
    InputError: no tile within `max_tile_size_px` works.
  """
  alone = geometry.input_size(size)
  if alone <= max_tile_size_px:
    bucket = max(bucket_px, 1) if geometry.takes_any_size else 1
    return math.ceil(alone / bucket) * bucket
  least = geometry.tile_size(geometry.period + slack)
  sizes = range(least, max_tile_size_px + 1, geometry.period)
  if not sizes:
    raise InputError(
      f'max_tile_size_px={max_tile_size_px} is too small; for an image side of '
      f'{size} px give {min(alone, least)} or more'
    )
  counts = [count_tiles(size, geometry, tile, slack) for tile in sizes]
  _, _, best = min(
    (count * tile, count, tile)
    for count, tile in zip(counts, sizes, strict=True)
  )
  return best


def slacks(
  size: tuple[int, int], geometry: Geometry, transforms: Sequence[Transform]
) -> list[int]:
  """Returns the slack of each axis, with which windows fit turned images.

  Args:
    size: height and width of the image, in pixels.
    geometry: sizes of the network.
    transforms: turns and flips of the image, see `segjax.tiling.turns`.
  """
  backwards = map(any, zip(*(is_reversed(*t) for t in transforms), strict=True))
  return [
    length % geometry.period if is_backwards else 0
    for length, is_backwards in zip(size, backwards, strict=True)
  ]


def _count_and_stride(size, geometry, tile_size, slack):
  """Returns the number of tiles, and the pixels from one to the next."""
  geometry.output_size(tile_size)  # Raises if it is inadmissible.
  period = geometry.period
  core = tile_size - 2 * geometry.margin
  # Pixels that one tile covers if it holds both ends of the image.
  alone = tile_size if geometry.clips_tiles else core
  if 0 < size <= alone:
    return 1, 0
  stride = (core - slack) // period * period
  least = geometry.tile_size(period + slack)
  is_on_grid = (tile_size - least) % period == 0
  if stride < period or not is_on_grid:
    reason = 'too small' if is_on_grid else f'off the grid of {period} px'
    raise InputError(
      f'tile size {tile_size} px is {reason} for an image side of {size} px: '
      f'it leaves {max(core, 0)} px to write between margins of '
      f'{geometry.margin} px; use {min(geometry.input_size(size), least)} or '
      f'more; several tiles of this network are {least} + {period} j px, j >= 0'
    )
  return math.ceil((size - alone) / stride) + 1, stride
