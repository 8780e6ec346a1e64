# SPDX-License-Identifier: Apache-2.0
"""The eight turns and flips of an image, for test-time augmentation.

The image is turned and predicted, each prediction is turned back, and the mean
is taken. A transform is (quarter turns, flip): the flip reverses the columns
first, then the image is turned counter-clockwise.
"""

import itertools

import numpy as np

Transform = tuple[int, bool]

# The symmetries of the pixel grid.
DIHEDRAL_GROUP = tuple(itertools.product(range(4), (False, True)))


def turned(array: np.ndarray, turns: int, flip: bool) -> np.ndarray:
  """Returns a view of [H, W, ...], flipped left to right, then turned.

  The view can be written to: `turned(total, *t)[...] += output` turns the
  output for `turned(image, *t)` back and adds it.
  """
  return np.rot90(array[:, ::-1] if flip else array, turns)


def restored(array: np.ndarray, turns: int, flip: bool) -> np.ndarray:
  """Returns a view of [H, W, ...] that undoes `turned`."""
  array = np.rot90(array, -turns)
  return array[:, ::-1] if flip else array


def turned_shape(
  shape: tuple[int, int], turns: int, flip: bool
) -> tuple[int, int]:
  """Returns the height and width that an array of `shape` has when turned."""
  del flip
  height, width = shape
  return (width, height) if turns % 2 else (height, width)


def is_reversed(turns: int, flip: bool) -> tuple[bool, bool]:
  """Returns whether `turned` reverses the rows of an array, and the columns.

  Rows and columns are those before the turn.
  """
  turns %= 4
  return turns in (2, 3), (turns in (1, 2)) != bool(flip)
