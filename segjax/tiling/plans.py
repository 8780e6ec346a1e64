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
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.tiling.axes import plan_axis, slacks
from segjax.tiling.shapes import (
  check_size,
  choose_tile_shape,
  has_quarter_turns,
)
from segjax.tiling.turns import Transform, is_reversed, turned_shape

Window = tuple[slice, slice]


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
      transform: of the image; see `turns`. Origins are multiples of the period
        from the first pixel of the transformed image, so that the
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


def plan_tiles(
  height: int,
  width: int,
  geometry: Any,
  tile_size: int | tuple[int, int] | None = None,
  max_tile_size_px: int | None = None,
  *,
  transforms: Sequence[Transform] = ((0, False),),
  bucket_px: int = 0,
) -> TilePlan:
  """Plans the tiles of an image of `height` x `width` pixels.

  Args:
    geometry: UNetGeometry, or of an FCN anything with its `period` and
      `margin`, such as FCNGeometry.
    tile_size: side of a tile, or its height and width, in input pixels; None
      for `choose_tile_shape` of this image.
    max_tile_size_px: as of `choose_tile_shape`.
    transforms: of the image, for which the same windows are predicted. With
      quarter turns among them, tiles are square.
    bucket_px: as of `choose_tile_shape`.

  Raises:
    InputError: for an empty image or a tile size that the network can't take.
  """
  sizes = (height, width)
  check_size(sizes)
  if tile_size is None:
    tile_size = choose_tile_shape(
      [sizes],
      geometry,
      max_tile_size_px,
      transforms=transforms,
      bucket_px=bucket_px,
    )
  tile_shape = tuple(tile_size) if np.ndim(tile_size) else (tile_size,) * 2
  if has_quarter_turns(transforms) and tile_shape[0] != tile_shape[1]:
    raise InputError(
      f'tiles of {tile_shape[0]} x {tile_shape[1]} px; those that are averaged '
      'over quarter turns must be square'
    )
  is_clipped = not isinstance(geometry, UNetGeometry)
  windows = [
    plan_axis(size, geometry, tile, slack)
    for size, tile, slack in zip(
      sizes, tile_shape, slacks(sizes, geometry, transforms), strict=True
    )
  ]
  return TilePlan(
    sizes,
    tile_shape,
    *map(tuple, windows),
    geometry.period,
    geometry.margin,
    is_clipped,
  )
