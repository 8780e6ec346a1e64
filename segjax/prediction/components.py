# SPDX-License-Identifier: Apache-2.0
"""Instance labels of a predicted map: connected components, or a watershed.

Pixels above a threshold that share an edge belong to one component. With seeds,
a watershed cuts each component that holds several of them. `label_blocks` takes
maps larger than memory. It finds the instances of `label_instances`, but may
number them in another order.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import ndimage, sparse
from skimage.segmentation import watershed

from segjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class View:
  """An array [H, W] whose windows, `view[rows, columns]`, a function reads."""

  shape: tuple[int, int]
  read: Callable[[tuple[slice, slice]], np.ndarray]

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    return self.read(window)


def label_instances(
  cell: np.ndarray,
  threshold: float = 0.5,
  seed_threshold: float | None = None,
) -> np.ndarray:
  """Returns the instances of a map, i32[H, W], from 1; 0 is background.

  Args:
    cell: [H, W], the probability of cell, or a label that is 1 in cells.
    threshold: value that the pixels of cells exceed. Cells are 4-connected.
    seed_threshold: value that seeds exceed; None for components without a
      watershed. Each component of seed pixels grows to an instance, from high
      values to low ones, up to its neighbours and the threshold. Cells without
      a seed vanish.

  Raises:
    InputError: see `label_blocks`.

  >>> import numpy, segjax
  >>> probability = numpy.array([[0.9, 0.8, 0.1, 0.7]])
  >>> segjax.label_instances(probability).tolist()
  [[1, 1, 0, 2]]
  """
  cell = np.asarray(cell)
  out = np.zeros(cell.shape, np.int32)
  label_blocks(cell, out, threshold, seed_threshold, max((1, *cell.shape)))
  return out


def label_blocks(
  cell: Any,
  out: Any,
  threshold: float = 0.5,
  seed_threshold: float | None = None,
  block_px: int = 2048,
) -> int:
  """Writes the instances of a map, block by block, and returns their number.

  The size of the blocks does not change the result: pieces that touch across a
  border become one component, and the watershed runs in the bounding box of one
  component at a time. Memory holds a block, a row of the map and a few numbers
  per piece; with seeds also the bounding box of one component, which is large
  if many cells touch.

  Args:
    cell: [H, W], see `label_instances`; an array, a memory map, a Zarr array,
      or any object with a `shape` whose `cell[rows, columns]` reads a window.
    out: signed integers of the same shape, which are assigned by windows.
    threshold: see `label_instances`.
    seed_threshold: see `label_instances`.
    block_px: side of a block, in pixels.

  Raises:
    InputError: a shape, the dtype of `out` or an argument is wrong, the map
      holds NaN, or the dtype of `out` is too small to number all pieces.
  """
  _check(cell, out, threshold, seed_threshold, block_px)
  windows = list(blocks_of(cell.shape, block_px))
  boxes, touching = _label_pieces(cell, out, threshold, windows)
  numbers = _joined(len(boxes), touching)
  count = int(numbers.max())
  # Components are negative until the watershed gives them new numbers.
  sign = 1 if seed_threshold is None else -1
  for window in windows:
    out[window] = (sign * numbers[out[window]]).astype(out.dtype)
  if seed_threshold is None:
    return count
  # First row and column, and the negated ends of both; all four are minima.
  whole = np.full((count + 1, 4), np.iinfo(np.int64).max)
  np.minimum.at(whole, numbers[1:], boxes)
  return _cut(cell, out, whole[1:], seed_threshold)


def _label_pieces(cell, out, threshold, windows):
  """Writes the pieces to `out`, which are the components of each block alone.

  Returns:
    i64[P, 4], (top, left, -bottom, -right) of each piece; and i64[2, T], the
    pairs of pieces that touch across a border.
  """
  boxes, touching = [], []
  count = 0
  above = np.zeros(cell.shape[1], np.int64)
  beside = np.zeros(0, np.int64)  # The last column of the block before.
  for rows, columns in windows:
    pieces, number = ndimage.label(_read(cell, (rows, columns)) > threshold)
    if count + number > np.iinfo(out.dtype).max:
      raise InputError(f'{out.dtype} cannot number all pieces; use int64')
    found = [
      (r.start + rows.start, c.start + columns.start)
      + (-r.stop - rows.start, -c.stop - columns.start)
      for r, c in ndimage.find_objects(pieces)
    ]
    boxes.append(np.array(found, np.int64).reshape(-1, 4))
    pieces = np.where(pieces > 0, pieces + np.int64(count), 0)
    count += number
    touching.append(_pairs(above[columns], pieces[0]))
    if columns.start > 0:
      touching.append(_pairs(beside, pieces[:, 0]))
    above[columns], beside = pieces[-1], pieces[:, -1].copy()
    out[rows, columns] = pieces.astype(out.dtype)
  return np.concatenate(boxes), np.concatenate(touching, axis=1)


def _pairs(one, other):
  """Returns i64[2, T], the distinct pairs of pieces along a border."""
  both = (one > 0) & (other > 0)
  return np.unique(np.stack([one[both], other[both]]), axis=1)


def _joined(count, touching):
  """Returns i64[count + 1], the component of each piece; 0 is background."""
  graph = sparse.coo_array(
    (np.ones(touching.shape[1], bool), tuple(touching)),
    shape=(count + 1, count + 1),
  )
  _, kin = sparse.csgraph.connected_components(graph, directed=False)
  _, first, index = np.unique(kin, return_index=True, return_inverse=True)
  # Components are numbered in the order of their first pieces: 0 stays 0.
  return np.argsort(np.argsort(first))[index]


def _cut(cell, out, boxes, seed_threshold):
  """Cuts the components -1, -2, ... of `out`; returns how many there are."""
  count = 0
  for k, (top, left, bottom, right) in enumerate(boxes.tolist(), start=1):
    window = slice(top, -bottom), slice(left, -right)
    ids = np.array(out[window])
    inside = ids == -k
    values = _read(cell, window)
    seeds, number = ndimage.label(inside & (values > seed_threshold))
    if number > 1:
      seeds = watershed(-values, seeds, mask=inside)
    else:
      seeds = np.full(ids.shape, number)
    ids[inside] = np.where(seeds > 0, seeds + count, 0)[inside]
    out[window] = ids
    count += number
  return count


def fill_holes(numbers: Any, holes: Any, block_px: int = 2048) -> None:
  """Gives the pixels of each hole the number of the object around it, in place.

  A hole is a 4-connected piece of background that touches only one object, and
  not the edge of the map.

  Args:
    numbers: [H, W], 0 for background; read and assigned by windows.
    holes: signed integers of the same shape, which get the pieces of
      background.
    block_px: side of a block, in pixels.
  """
  height, width = numbers.shape
  background = View(
    numbers.shape, lambda window: np.asarray(numbers[window]) == 0
  )
  count = label_blocks(background, holes, block_px=block_px)
  # The least and the largest number of an object beside each piece; the edge of
  # the map counts as -1.
  least = np.full(count + 1, np.iinfo(np.int64).max)
  largest = np.full(count + 1, -1)
  windows = list(blocks_of(numbers.shape, block_px))
  for rows, columns in windows:
    # The window has one pixel more below and to the right, so that each pair of
    # neighbours lies in a window.
    ends = min(rows.stop + 1, height), min(columns.stop + 1, width)
    window = slice(rows.start, ends[0]), slice(columns.start, ends[1])
    ids, pieces = np.asarray(numbers[window]), np.asarray(holes[window])
    for one, other in (
      (np.s_[:-1], np.s_[1:]),
      (np.s_[:, :-1], np.s_[:, 1:]),
    ):
      for hole, beside in ((one, other), (other, one)):
        pair = (pieces[hole] > 0) & (ids[beside] > 0)
        np.minimum.at(least, pieces[hole][pair], ids[beside][pair])
        np.maximum.at(largest, pieces[hole][pair], ids[beside][pair])
    for is_edge, edge in (
      (rows.start == 0, pieces[0]),
      (columns.start == 0, pieces[:, 0]),
      (ends[0] == height, pieces[-1]),
      (ends[1] == width, pieces[:, -1]),
    ):
      if is_edge:
        least[edge] = -1
  is_hole = (least == largest) & (largest > 0)
  is_hole[0] = False
  filling = np.where(is_hole, largest, 0)
  for window in windows:
    filled = filling[holes[window]]
    numbers[window] = np.where(filled > 0, filled, numbers[window])


def blocks_of(
  shape: tuple[int, int], block_px: int
) -> Iterator[tuple[slice, slice]]:
  """Yields the blocks (rows, columns) of a map, row by row."""
  starts = (range(0, size, block_px) for size in shape)
  for top, left in itertools.product(*starts):
    yield (
      slice(top, min(top + block_px, shape[0])),
      slice(left, min(left + block_px, shape[1])),
    )


def _read(cell, window):
  # A comparison in float32 would round the threshold.
  values = np.asarray(cell[window], np.float64)
  if np.isnan(values).any():
    row, column = np.argwhere(np.isnan(values))[0]
    raise InputError(
      f'map is NaN in row {window[0].start + row}, column '
      f'{window[1].start + column}; all must be numbers'
    )
  return values


def _check(cell, out, threshold, seed_threshold, block_px):
  if len(cell.shape) != 2 or 0 in cell.shape or out.shape != cell.shape:
    raise InputError(
      f'map of shape {list(cell.shape)} into {list(out.shape)}; both must have '
      'the same shape [H, W], not empty'
    )
  if not np.issubdtype(out.dtype, np.signedinteger):
    raise InputError(f'out is {out.dtype}; it must be signed, such as int32')
  if block_px < 1:
    raise InputError(f'block_px={block_px} must be at least 1')
  if seed_threshold is not None and seed_threshold < threshold:
    raise InputError(
      f'seed_threshold={seed_threshold} must be at least the threshold, '
      f'{threshold}'
    )
