# SPDX-License-Identifier: Apache-2.0
"""The tile shape that covers images with the fewest computed pixels."""

import collections
import math
from collections.abc import Iterable, Sequence

import numpy as np

from segjax.errors import InputError
from segjax.geometry import Geometry
from segjax.tiling.axes import count_tiles, least_waste_tile_size, slacks
from segjax.tiling.settings import TileSettings
from segjax.tiling.turns import Transform

MAX_SIDE = 2**31 - 1  # Networks take sizes as int32.


def choose_tile_shape(
  sizes: Iterable[tuple[int, int]],
  geometry: Geometry,
  settings: TileSettings,
) -> tuple[int, int]:
  """Returns the tile shape that covers images with the fewest pixels.

  All images share the shape, so that one compiled program serves them all. The
  candidates are the sizes that are best for a side of one of the images. The
  pair that computes the fewest pixels wins, and at a tie the larger one.

  Args:
    sizes: height and width of each image, in pixels.
    geometry: sizes of the network.
    settings: settings of the prediction; `tile_size` and `tile_memory_mib` are
      not read.

  Returns:
    height and width, in input pixels.

  Raises:
    InputError: an image is empty, or no tile within the limit works.
  """
  images = collections.Counter((height, width) for height, width in sizes)
  for size in images:
    check_size(size)
  transforms = settings.transforms
  # The lengths of all images along each axis, each with its slack.
  axes = [
    [(size[axis], slacks(size, geometry, transforms)[axis]) for size in images]
    for axis in range(2)
  ]
  is_square = settings.has_quarter_turns
  tiles = [
    _tile_sizes(lengths, geometry, settings)
    for lengths in ([axes[0] + axes[1]] * 2 if is_square else axes)
  ]
  # Pixels computed along each axis: [tile sizes, images].
  rows, columns = (
    np.array([[_computed(*side, geometry, t) for side in sides] for t in sizes])
    for sizes, sides in zip(tiles, axes, strict=True)
  )
  weights = np.array(list(images.values()), np.float64)
  total = np.einsum('in,jn,n->ij', rows, columns, weights)  # BLAS warns of inf.
  if is_square:
    total[~np.eye(len(total), dtype=bool)] = np.inf
  row, column = np.unravel_index(np.argmin(total), total.shape)
  return tiles[0][row], tiles[1][column]


def check_tiles(geometry: Geometry, settings: TileSettings) -> None:
  """Raises InputError if the settings admit no tile for images of all sizes."""
  # The smallest image that may need more than one tile.
  side = geometry.period
  if settings.tile_size is None:
    choose_tile_shape([(side, side)], geometry, settings)


def most_windows(
  sizes: Iterable[tuple[int, int]],
  geometry: Geometry,
  tile_shape: tuple[int, int],
  transforms: Sequence[Transform],
) -> int:
  """Returns the number of tiles of the image that needs the most.

  It is the number of windows that `plans.plan_tiles` plans, computed without
  the plan: the size that a file states may be too large for a list of tiles.

  Args:
    sizes: height and width of each image, in pixels.
    geometry: sizes of the network.
    tile_shape: height and width of the tiles, in input pixels.
    transforms: turns and flips of test-time augmentation.
  """
  return max(
    math.prod(
      count_tiles(length, geometry, tile, slack)
      for length, tile, slack in zip(
        size,
        tile_shape,
        slacks(size, geometry, transforms),
        strict=True,
      )
    )
    for size in set(sizes)
  )


def check_size(size: tuple[int, int]) -> None:
  """Raises InputError unless an image has pixels, and not too many."""
  height, width = size
  if height < 1 or width < 1:
    raise InputError(
      f'image of {height} x {width} pixels is empty; at least 1 x 1 is needed'
    )
  if max(size) > MAX_SIDE:
    raise InputError(
      f'image of {height} x {width} pixels; sides are at most {MAX_SIDE} px'
    )


def _tile_sizes(sides, geometry, settings):
  """Returns the tile sizes that may be best for an axis, the largest first.

  Args:
    sides: (length, slack) of each image.
  """
  limit = settings.max_tile_size_px
  if limit is None:
    limit = geometry.default_max_tile_size_px
  sizes = {
    least_waste_tile_size(length, geometry, limit, slack, settings.bucket_px)
    for length, slack in set(sides)
  }
  if len(set(sides)) > 1:
    # The size of a tile that is alone need not be admissible for several.
    first, period = geometry.tile_size(1), geometry.period
    largest = _floor(limit, first, period)
    above = {-_floor(-size, -first, period) for size in sizes}
    sizes |= {largest, *(size for size in above if size <= largest)}
  return sorted(sizes, reverse=True)


def _floor(size, first, step):
  """Returns the largest of first + j step, j any whole number, within size."""
  return first + (size - first) // step * step


def _computed(length, slack, geometry, tile_size):
  """Returns the pixels of an axis that tiles compute; inf if they can't."""
  try:
    return tile_size * count_tiles(length, geometry, tile_size, slack)
  except InputError:
    return np.inf
