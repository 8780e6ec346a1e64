# SPDX-License-Identifier: Apache-2.0
"""The eight turns and flips of an image, for test-time augmentation.

Predictions of the turned images, turned back, are averaged.

A transform is (quarter turns, flip): the columns are reversed first, then the
image is turned counter-clockwise.
"""

import itertools

import numpy as np

Transform = tuple[int, bool]

# The symmetries of the pixel grid.
DIHEDRAL_GROUP = tuple(itertools.product(range(4), (False, True)))


def turned(array: np.ndarray, turns: int, flip: bool) -> np.ndarray:
  """Returns a view of [H, W, ...], flipped left to right, then turned.

  It can be written to: `turned(total, *t)[...] += output` adds the output for
  `turned(image, *t)`, turned back.
  """
  return np.rot90(array[:, ::-1] if flip else array, turns)


def restored(array: np.ndarray, turns: int, flip: bool) -> np.ndarray:
  """Returns a view of [H, W, ...] that undoes `turned`."""
  array = np.rot90(array, -turns)
  return array[:, ::-1] if flip else array


def turned_shape(
  shape: tuple[int, int], turns: int, flip: bool
) -> tuple[int, int]:
  """Returns the height and width of a turned array of height and width."""
  del flip
  height, width = shape
  return (width, height) if turns % 2 else (height, width)


def is_reversed(turns: int, flip: bool) -> tuple[bool, bool]:
  """Returns whether `turned` reverses the rows, and the columns, of an array.

  Rows are those of the array before, whichever axis they become.
  """
  turns %= 4
  return turns in (2, 3), (turns in (1, 2)) != bool(flip)
