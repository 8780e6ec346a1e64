# SPDX-License-Identifier: Apache-2.0
"""Which tiles cover an image, and where each reads and writes.

Tiles put together equal one pass over the whole image if they read all the
context of the pixels they write and their origins differ by multiples of the
period: a network with strides is equivariant to those shifts only. At the
borders of the image the two networks differ:

- U-Net: the image goes on as its mirror image (Ronneberger et al., fig. 2).
  Tiles reach beyond it by the margin.
- FCN: the image ends, and the network pads it itself. Tiles begin and end with
  the image; of one that has room left, the network is told the size.

Only integers here, as in `segjax.geometry`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.turns import Transform, is_reversed, turned_shape

Window = tuple[slice, slice]

MAX_SIDE = 2**31 - 1  # Networks take sizes as int32.


class Place(NamedTuple):
  """Where a tile lies that is to write a window.

  Attributes:
    origin: row and column of its first pixel in the image; it may lie outside.
    size: rows and columns, as the network sees them, that it shares with the
      image, counted from its first; the rest is beyond the image's end.
    crop: the window in the scores of the tile, turned back.
  """

  origin: tuple[int, int]
  size: tuple[int, int]
  crop: Window


@dataclasses.dataclass(frozen=True)
class TilePlan:
  """Tiles of one shape that cover an image, row by row.

  Attributes:
    image_shape: height and width, in pixels.
    tile_shape: height and width of every tile, in input pixels.
    rows: rows that the tiles write, from the top to the bottom.
    columns: the same of columns. Each tile writes a window (rows, columns).
    period: of the network.
    margin: pixels of context on each side of a window.
    is_clipped: whether tiles end where the image does, and have scores for all
      their pixels; else for those that are `margin` from their edges.
  """

  image_shape: tuple[int, int]
  tile_shape: tuple[int, int]
  rows: tuple[slice, ...]
  columns: tuple[slice, ...]
  period: int
  margin: int
  is_clipped: bool

  @property
  def windows(self) -> Iterator[Window]:
    """The windows, row by row. They partition the image."""
    return itertools.product(self.rows, self.columns)

  def window(self, number: int) -> Window:
    """Returns the window of that number in the order of `windows`."""
    row, column = divmod(number, len(self.columns))
    return self.rows[row], self.columns[column]

  def __len__(self) -> int:
    """Returns the number of tiles."""
    return len(self.rows) * len(self.columns)

  def place(self, window: Window, transform: Transform = (0, False)) -> Place:
    """Returns where the tile lies that writes `window`.

    Args:
      window: one of `windows`.
      transform: of the image; see `segjax.turns`. Origins are multiples of
        the period from the first pixel of the transformed image, so that the
        tiles put together equal a pass over that.
    """
    origin, size, crop = [], [], []
    for side, length, tile, backwards in zip(
      window,
      self.image_shape,
      self.tile_shape,
      is_reversed(*transform),
      strict=True,
    ):
      start = length - side.stop if backwards else side.start
      first = start // self.period * self.period - self.margin
      # Of the tile, before and after the pixels that have scores.
      trim = self.margin
      if self.is_clipped:
        first, trim = max(first, 0), 0
      origin.append(length - first - tile if backwards else first)
      size.append(min(tile, length - first))
      begin = side.start - origin[-1] - trim
      crop.append(slice(begin, begin + side.stop - side.start))
    return Place(
      tuple(origin), turned_shape(tuple(size), *transform), tuple(crop)
    )


def plan_axis(
  size: int, geometry: UNetGeometry, tile_size: int, slack: int = 0
) -> list[slice]:
  """Returns the windows of the fewest tiles that cover one axis.

  The stride is the largest multiple of the period P within the core, often
  smaller than the core: the paper's tile of 572 writes 384 of its 388 pixels,
  and the last tile all that the image still has.

  Args:
    slack: pixels of the core that windows but the last leave free, 0 .. P - 1.
      Read backwards they begin size mod P pixels after a multiple of P.

  Raises:
    InputError: if `tile_size` is inadmissible, or too small: no core, or a core
      below P where one tile doesn't cover.
  """
  core, stride = _core(geometry, tile_size, slack)
  if core < 1 or (stride < 1 and core < size):
    raise InputError(
      f'tile size {tile_size} px is too small for an image side of {size} px: '
      f'it leaves {max(core, 0)} px to write; '
      f'use {_smallest_tile(size, geometry, slack)} or more'
    )
  count = _count(size, core, stride)
  starts = [i * stride for i in range(count)]
  return list(map(slice, starts, [*starts[1:], size]))


def least_waste_tile_size(
  size: int, geometry: UNetGeometry, max_tile_size_px: int, slack: int = 0
) -> int:
  """Returns the tile size that covers `size` with the fewest pixels computed.

  Those are T x tile size with T tiles; the fewer tiles at a tie.

  Raises:
    InputError: if no tile within `max_tile_size_px` works.
  """
  choices = []
  largest = min(max_tile_size_px, geometry.input_size(size))
  for tile_size in range(geometry.input_size(1), largest + 1, geometry.period):
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


def plan_clipped_axis(
  size: int, geometry: Any, tile_size: int, slack: int = 0
) -> list[slice]:
  """Returns the windows of the fewest tiles that end where the image does.

  The first tile and the last need a margin on one side only. `geometry` is as
  of `plan_tiles`, `slack` as of `plan_axis`.

  Raises:
    InputError: if one tile doesn't cover, and `tile_size` is no multiple of the
      period or leaves nothing between the margins.
  """
  if size <= tile_size:
    return [slice(0, size)]
  period, margin = geometry.period, geometry.margin
  least = 2 * margin + period + (period if slack else 0)
  if tile_size % period or tile_size < least:
    raise InputError(
      f'tile size {tile_size} px for an image side of {size} px: tiles of this '
      f'network are {least} + {period} j px, j >= 0; it needs {margin} px of '
      'context on each side'
    )
  stride = (tile_size - 2 * margin - slack) // period * period
  count = max(2, _count(size, tile_size, stride))
  starts = [0, *(margin + i * stride for i in range(1, count))]
  return list(map(slice, starts, [*starts[1:], size]))


def plan_tiles(
  height: int,
  width: int,
  geometry: Any,
  tile_size: int | None = None,
  max_tile_size_px: int = 1024,
  *,
  transforms: Sequence[Transform] = ((0, False),),
  bucket_px: int = 0,
) -> TilePlan:
  """Plans the tiles of an image of `height` x `width` pixels.

  Args:
    geometry: UNetGeometry, or of an FCN anything with its `period` and
      `margin`, such as FCNGeometry.
    tile_size: height and width of a tile, in input pixels; None chooses each
      so that the fewest pixels are computed.
    max_tile_size_px: limit to that choice, in input pixels.
    transforms: of the image, for which the same windows are predicted. With
      quarter turns among them, tiles are square.
    bucket_px: of an FCN: a chosen tile that covers a side is rounded up to a
      multiple of this; 0 for as large as the side.

  Raises:
    InputError: for an empty image or a tile size that the network can't take.
  """
  if height < 1 or width < 1:
    raise InputError(
      f'image of {height} x {width} pixels is empty; at least 1 x 1 is needed'
    )
  if max(height, width) > MAX_SIDE:
    raise InputError(
      f'image of {height} x {width} pixels; sides are at most {MAX_SIDE} px'
    )
  is_clipped = not isinstance(geometry, UNetGeometry)
  choose, cover = least_waste_tile_size, plan_axis
  if is_clipped:
    choose = functools.partial(_least_clipped_tile_size, bucket_px=bucket_px)
    cover = plan_clipped_axis
  sizes = (height, width)
  backwards = map(any, zip(*(is_reversed(*t) for t in transforms), strict=True))
  slacks = [
    size % geometry.period if is_backwards else 0
    for size, is_backwards in zip(sizes, backwards, strict=True)
  ]
  tile_shape = (tile_size, tile_size)
  if tile_size is None:
    tile_shape = tuple(
      choose(size, geometry, max_tile_size_px, slack)
      for size, slack in zip(sizes, slacks, strict=True)
    )
    if any(turns % 2 for turns, _ in transforms):
      side, step = max(tile_shape), geometry.period
      if is_clipped and side < max(sizes):  # It covers one axis only.
        side = min(-(-side // step), max_tile_size_px // step) * step
      tile_shape = (side, side)
  windows = [
    cover(size, geometry, tile, slack)
    for size, tile, slack in zip(sizes, tile_shape, slacks, strict=True)
  ]
  return TilePlan(
    sizes,
    tile_shape,
    *map(tuple, windows),
    geometry.period,
    geometry.margin,
    is_clipped,
  )


def _least_clipped_tile_size(
  size, geometry, max_tile_size_px, slack, bucket_px
):
  """Returns the smallest of the tiles that cover an axis in as few."""
  if size <= max_tile_size_px:
    return math.ceil(size / max(bucket_px, 1)) * max(bucket_px, 1)
  period = geometry.period
  count = functools.partial(plan_clipped_axis, size, geometry, slack=slack)
  tile_size = max_tile_size_px // period * period
  fewest = len(count(tile_size))
  least = 2 * geometry.margin + period + (period if slack else 0)
  while tile_size > least and len(count(tile_size - period)) == fewest:
    tile_size -= period
  return tile_size


def _core(geometry, tile_size, slack):
  """Returns the core of a tile, and how far it is to the next."""
  core = geometry.output_size(tile_size) - 2 * geometry.core_offset
  return core, (core - slack) // geometry.period * geometry.period


def _count(size, covered, stride):
  """Returns the tiles that cover `size`, of which the last covers `covered`."""
  return 1 if size <= covered else math.ceil((size - covered) / stride) + 1


def _smallest_tile(size: int, geometry: UNetGeometry, slack: int) -> int:
  """Least tile whose core covers `size` pixels or allows a stride."""
  return geometry.input_size(min(size, geometry.period + slack))
