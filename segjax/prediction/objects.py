# SPDX-License-Identifier: Apache-2.0
"""Measurements of single objects: areas, centroids, perimeters, probabilities.

The measurements equal those of `skimage.measure.regionprops`, but are computed
block by block: memory holds a block and a few numbers per object, never the
image.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.prediction.components import blocks_of

# Code of a border pixel, see `_codes` -> length of the border there.
_LENGTHS = np.zeros(50)
_LENGTHS[[5, 7, 15, 17, 25, 27]] = 1
_LENGTHS[[21, 33]] = math.sqrt(2)
_LENGTHS[[13, 23]] = (1 + math.sqrt(2)) / 2
_BESIDE = ((-1, 0), (1, 0), (0, -1), (0, 1))
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))


def count_areas(numbers: Any, count: int, block_px: int = 2048) -> np.ndarray:
  """Returns the areas of the background and of each object, i64[count + 1].

  Args:
    numbers: [H, W], 0 for background and 1..count for objects; an array, or
      any object with a `shape` whose `numbers[rows, columns]` reads a window.
    count: number of objects.
    block_px: side of a block, in pixels.
  """
  areas = np.zeros(count + 1, np.int64)
  for window in blocks_of(numbers.shape, block_px):
    areas += np.bincount(np.ravel(numbers[window]), minlength=count + 1)
  return areas


def measure_objects(
  numbers: Any, values: Any, count: int, block_px: int = 2048
) -> Mapping[str, np.ndarray]:
  """Returns the measurements of the objects 1..count, each as an array [count].

  Rows and columns count from 0 at the centre of the first pixel. The bounding
  box is half open. The perimeter is the length of a line through the centres of
  the border pixels (Benkrid and Crookes 2000), as `skimage.measure.perimeter`
  computes it.

  Args:
    numbers: see `count_areas`; each of 1..count occurs.
    values: probabilities [H, W], read like `numbers`.
    count: number of objects.
    block_px: see `count_areas`.

  Returns:
    'label', 'area_px', 'centroid_row', 'centroid_column', 'top', 'left',
    'bottom', 'right', 'perimeter_px', 'mean_probability', 'max_probability' and
    'touches_border', 1 where an object has a pixel at the edge of the image.
  """
  height, width = numbers.shape
  area, rows, columns, total, perimeter = np.zeros((5, count + 1))
  most = np.full(count + 1, -np.inf)
  low = np.full((count + 1, 2), np.iinfo(np.int64).max)
  high = np.full((count + 1, 2), -1)
  for window in blocks_of(numbers.shape, block_px):
    ids = np.asarray(numbers[window])
    inside = np.nonzero(ids)
    found = ids[inside]
    value = np.asarray(values[window], np.float64)[inside]
    position = np.stack(inside, -1) + [window[0].start, window[1].start]
    for sums, weights in (
      (area, None),
      (rows, position[:, 0]),
      (columns, position[:, 1]),
      (total, value),
    ):
      sums += np.bincount(found, weights, count + 1)
    np.maximum.at(most, found, value)
    np.minimum.at(low, found, position)
    np.maximum.at(high, found, position)
    border, codes = _codes(_with_halo(numbers, window))
    perimeter += np.bincount(border, _LENGTHS[codes], count + 1)
  touches = (low == 0).any(axis=1) | (high == (height - 1, width - 1)).any(1)
  columns_of = {
    'label': np.arange(count + 1),
    'area_px': area.astype(np.int64),
    'centroid_row': rows / np.maximum(area, 1),
    'centroid_column': columns / np.maximum(area, 1),
    'top': low[:, 0],
    'left': low[:, 1],
    'bottom': high[:, 0] + 1,
    'right': high[:, 1] + 1,
    'perimeter_px': perimeter,
    'mean_probability': total / np.maximum(area, 1),
    'max_probability': most,
    'touches_border': touches.astype(np.int64),
  }
  return {name: column[1:] for name, column in columns_of.items()}


def _with_halo(numbers, window):
  """Returns a window with two pixels around it, 0 beyond the image."""
  wider, pads = [], []
  for side, length in zip(window, numbers.shape, strict=True):
    start, stop = max(side.start - 2, 0), min(side.stop + 2, length)
    wider.append(slice(start, stop))
    pads.append((start - side.start + 2, side.stop + 2 - stop))
  return np.pad(np.asarray(numbers[tuple(wider)]), pads)


def _codes(ids):
  """Returns the object and the code of each border pixel in a window.

  A border pixel shares an edge with another object or the background. Its code
  is 1, plus 2 for each border pixel of its object that shares an edge with it,
  plus 10 for each that shares only a corner.

  Args:
    ids: the window with two pixels around it.
  """

  def beside(array, rows, columns):
    height, width = array.shape
    return array[
      1 + rows : height - 1 + rows, 1 + columns : width - 1 + columns
    ]

  core = ids[1:-1, 1:-1]
  inner = np.all([beside(ids, *step) == core for step in _BESIDE], axis=0)
  border = np.where(inner, 0, core)
  own = border[1:-1, 1:-1]
  codes = np.ones(own.shape, np.int64)
  for steps, weight in ((_BESIDE, 2), (_DIAGONAL, 10)):
    for step in steps:
      codes += weight * (beside(border, *step) == own)
  is_border = own > 0
  return own[is_border], codes[is_border]
