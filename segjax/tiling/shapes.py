# SPDX-License-Identifier: Apache-2.0
"""The shape of the tiles with which a network covers images cheapest."""

import collections
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.tiling.axes import count_tiles, least_waste_tile_size, slacks
from segjax.tiling.turns import Transform

MAX_SIDE = 2**31 - 1  # Networks take sizes as int32.


def choose_tile_shape(
  sizes: Iterable[tuple[int, int]],
  geometry: Any,
  max_tile_size_px: int | None = None,
  *,
  transforms: Sequence[Transform] = ((0, False),),
  bucket_px: int = 0,
) -> tuple[int, int]:
  """Returns the height and width of the tiles that cover images cheapest.

  All images share the shape, so that one compiled program does for them all.
  The fewest pixels are computed that a size allows which is best for a side of
  one of them; the fewer tiles at a tie.

  Args:
    sizes: height and width of each image.
    geometry: as of `plans.plan_tiles`.
    max_tile_size_px: limit to the choice, in input pixels; None for 1024, or of
      an FCN, whose margins of 224 px would take half of that, for 1536.
    transforms: as of `plans.plan_tiles`.
    bucket_px: of an FCN: a tile that covers a side is rounded up to a multiple
      of this; 0 for as large as the side.

  Raises:
    InputError: for an empty image, or if no tile within the limit works.
  """
  images = collections.Counter(map(tuple, sizes))
  for size in images:
    check_size(size)
  if max_tile_size_px is None:
    max_tile_size_px = 1024 if isinstance(geometry, UNetGeometry) else 1536
  # Of each axis, the lengths of all images, each with its slack.
  axes = [
    [(size[axis], slacks(size, geometry, transforms)[axis]) for size in images]
    for axis in range(2)
  ]
  is_square = has_quarter_turns(transforms)
  tiles = [
    _tile_sizes(lengths, geometry, max_tile_size_px, bucket_px)
    for lengths in ([axes[0] + axes[1]] * 2 if is_square else axes)
  ]
  # Of each axis [tile sizes, images], the pixels computed.
  rows, columns = (
    np.array([[_computed(*side, geometry, t) for side in sides] for t in sizes])
    for sizes, sides in zip(tiles, axes, strict=True)
  )
  weights = np.float64(list(images.values()))
  total = np.einsum('in,jn,n->ij', rows, columns, weights)  # BLAS warns of inf.
  if is_square:
    total[~np.eye(len(total), dtype=bool)] = np.inf
  row, column = np.unravel_index(np.argmin(total), total.shape)
  return tiles[0][row], tiles[1][column]


def most_windows(
  sizes: Iterable[tuple[int, int]],
  geometry: Any,
  tile_shape: tuple[int, int],
  transforms: Sequence[Transform] = ((0, False),),
) -> int:
  """Returns the number of tiles of the image that needs most.

  Args:
    sizes: height and width of each image.

  The others are as of `plans.plan_tiles`, which agrees with it.
  """
  return max(
    math.prod(
      count_tiles(length, geometry, tile, slack)
      for length, tile, slack in zip(
        size, tile_shape, slacks(size, geometry, transforms), strict=True
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


def has_quarter_turns(transforms: Sequence[Transform]) -> bool:
  return any(turns % 2 for turns, _ in transforms)


def _tile_sizes(sides, geometry, max_tile_size_px, bucket_px):
  """Returns the tile sizes that may be best for an axis, the largest first.

  Args:
    sides: (length, slack) of each image.
  """
  sizes = {
    least_waste_tile_size(length, geometry, max_tile_size_px, slack, bucket_px)
    for length, slack in set(sides)
  }
  if len(set(sides)) > 1:
    # A size that one tile can have need not do for a longer side.
    is_unet = isinstance(geometry, UNetGeometry)
    first = geometry.input_size(1) if is_unet else 0
    largest = _floor(max_tile_size_px, first, geometry.period)
    above = {-_floor(-size, -first, geometry.period) for size in sizes}
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
