# SPDX-License-Identifier: Apache-2.0
"""Tile plans: the tiles that cover an image, what each reads and writes.

Tiles put together equal one pass over the whole image under two conditions:
each reads all the context of the pixels that it writes, and their origins
differ by multiples of the period, since a network with strides is equivariant
to those shifts only. At the borders of the image the two networks differ:

- U-Net: the image goes on as its mirror image (Ronneberger et al., fig. 2).
  Tiles reach beyond it by the margin.
- FCN: the image ends, and the network pads it itself. Tiles are clipped: they
  begin and end where the image does. If a tile has room left, the network gets
  the size of the image in it.

All values are integers, as in `segjax.geometry`.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from segjax.errors import InputError
from segjax.geometry import Geometry
from segjax.tiling.axes import plan_axis, slacks
from segjax.tiling.settings import TileSettings
from segjax.tiling.shapes import check_size, choose_tile_shape
from segjax.tiling.turns import Transform, is_reversed, turned_shape

Window = tuple[slice, slice]  # Rows and columns.

_MOST_PIXELS = 2**31  # In a batch of several tiles.


class TilePosition(NamedTuple):
  """The position of the tile whose output fills a window.

  Attributes:
    origin: row and column in the image of the tile's first pixel, which may lie
      outside.
    size: row and column of the turned tile at which the image ends; those from
      there on lie beyond it.
    crop: the window in the output of the tile, turned back.
    begin: row and column of the turned tile at which the image begins.
  """

  origin: tuple[int, int]
  size: tuple[int, int]
  crop: Window
  begin: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class TilePlan:
  """Tiles of one shape that cover an image, row by row.

  Attributes:
    image_shape: height and width, in pixels.
    tile_shape: height and width of every tile, in input pixels.
    rows: rows that the tiles write, from the top to the bottom.
    columns: columns that the tiles write, from left to right. Each tile writes
      a window (rows, columns).
    period: period of the network, in pixels.
    margin: pixels of context on each side of a window.
    is_clipped: whether tiles end where the image does, and give output for all
      their pixels; otherwise only for pixels `margin` away from their edges.
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

  def position(
    self, window: Window, transform: Transform = (0, False)
  ) -> TilePosition:
    """Returns the position of the tile that writes `window`.

    Args:
      window: one of `windows`.
      transform: turn and flip of the image, see `turns`. Origins are multiples
        of the period from the first pixel of the turned image, so that the
        tiles put together equal one pass over it.
    """
    origin, size, crop, before = [], [], [], []
    for side, length, tile, backwards in zip(
      window,
      self.image_shape,
      self.tile_shape,
      is_reversed(*transform),
      strict=True,
    ):
      start = length - side.stop if backwards else side.start
      first = start // self.period * self.period - self.margin
      # Pixels at each edge of the tile that have no output.
      trim = self.margin
      if self.is_clipped:
        first, trim = max(first, 0), 0
      origin.append(length - first - tile if backwards else first)
      size.append(min(tile, length - first))
      before.append(max(-first, 0))
      begin = side.start - origin[-1] - trim
      crop.append(slice(begin, begin + side.stop - side.start))
    return TilePosition(
      tuple(origin),
      turned_shape(tuple(size), *transform),
      tuple(crop),
      turned_shape(tuple(before), *transform),
    )


def plan_tiles(
  height: int,
  width: int,
  geometry: Geometry,
  settings: TileSettings = TileSettings(),
) -> TilePlan:
  """Plans the tiles of an image of `height` x `width` pixels.

  With quarter turns among the transforms, tiles are square.

  Args:
    height: rows of the image, in pixels.
    width: columns of the image, in pixels.
    geometry: sizes of the network.
    settings: settings of the prediction; `tile_memory_mib` is not read.

  Raises:
    InputError: the image is empty, or the network can't take the tile size.
  """
  sizes = (height, width)
  check_size(sizes)
  tile_shape = settings.tile_size
  if tile_shape is None:
    tile_shape = choose_tile_shape([sizes], geometry, settings)
  if isinstance(tile_shape, int):
    tile_shape = tile_shape, tile_shape
  tile_height, tile_width = tile_shape
  if settings.has_quarter_turns and tile_height != tile_width:
    raise InputError(
      f'tiles of {tile_height} x {tile_width} px; those that are averaged '
      'over quarter turns must be square'
    )
  pixels = tile_height * tile_width
  if settings.tiles_per_batch > max(_MOST_PIXELS // pixels, 1):
    raise InputError(
      f'tiles_per_batch={settings.tiles_per_batch} tiles of {tile_height} x '
      f'{tile_width} px are too many for any memory; give at most '
      f'{max(_MOST_PIXELS // pixels, 1)}'
    )
  rows, columns = (
    tuple(plan_axis(size, geometry, tile, slack))
    for size, tile, slack in zip(
      sizes,
      tile_shape,
      slacks(sizes, geometry, settings.transforms),
      strict=True,
    )
  )
  return TilePlan(
    sizes,
    (tile_height, tile_width),
    rows,
    columns,
    geometry.period,
    geometry.margin,
    geometry.clips_tiles,
  )
