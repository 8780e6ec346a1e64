# SPDX-License-Identifier: Apache-2.0
"""The ISBI 2012 EM challenge: finding and reading its files.

Serial-section transmission EM of the Drosophila first-instar ventral nerve
cord, 30 slices of 512 x 512 pixels, 4 x 4 x 50 nm. Labels of the test stack
are not public. Nothing is downloaded.
"""

from pathlib import Path

import numpy as np

from segjax.data import layout, stacks
from segjax.data.examples import Dataset
from segjax.errors import InputError
from segjax.images import files as image_files

FILES = ('train-volume.tif', 'train-labels.tif')


def load(
  dir: str, fold: int, gap: int, w0: float, sigma_px: float, balance: bool
) -> Dataset:
  """Returns the stack as a data set of two classes, membrane and cell.

  Args:
    dir: see `find`.
    fold: block of six slices that is held out; see `stacks.fold_split`.
    gap: slices next to it that train nothing.
    w0: height of the border weights; see `stacks.stack_dataset`.
    sigma_px: width of the border weights, in pixels.
    balance: whether the rare class weighs more.

  Raises:
    InputError: see `read` and `stacks.fold_split`.
  """
  return stacks.stack_dataset(
    *read(dir), fold=fold, gap=gap, w0=w0, sigma_px=sigma_px, balance=balance
  )


def find(data_dir: str = '') -> Path:
  """Returns the folder that holds the training stack, `FILES`.

  Args:
    data_dir: that folder or its parent; '' looks around, see
      `layout.find_folder`.

  Raises:
    InputError: no such folder; says where it looked and what would be right.
  """
  return layout.find_folder(
    'ISBI 2012',
    data_dir,
    FILES,
    'isbi2012',
    'expected '
    'train-volume.tif and train-labels.tif (255 or 1 cell, 0 membrane) in one '
    'folder, 30 gray uint8 pages of 512 x 512 each; '
    f'{layout.HOW_TO_PASS}, or try the '
    'demo, which needs no data: '
    'python -m segjax.main --config=configs/unet_isbi.py:demo',
  )


def read(data_dir: str = '') -> tuple[np.ndarray, np.ndarray]:
  """Returns the training stack.

  Args:
    data_dir: see `find`.

  Returns:
    images: uint8[N,H,W,1], as stored.
    labels: int32[N,H,W], 0 membrane, 1 cell.

  Raises:
    InputError: files missing or unreadable, images that are not gray uint8,
      images and labels of unequal number or size, or a stored label other
      than 0 and 255 (or 0 and 1 throughout).
  """
  folder = find(data_dir)
  images = _read_gray(folder / FILES[0])
  path = folder / FILES[1]
  stored = _read_gray(path)
  if stored.shape != images.shape:
    raise InputError(
      f'{path}: labels of {_size(stored)} for images of {_size(images)}; they '
      'must be equal'
    )
  labels = stored[..., 0]
  cell = 255 if (labels == 255).any() else 1
  wrong = (labels != 0) & (labels != cell)
  if wrong.any():
    at = np.unravel_index(np.argmax(wrong), wrong.shape)
    raise InputError(
      f'{path}: label {labels[at]} in page {at[0]}, row {at[1]}, column '
      f'{at[2]} (counted from 0); expected 0 membrane, 255 cell, or 0 and 1'
    )
  return images, (labels != 0).astype(np.int32)


def _read_gray(path):
  stack = image_files.read_stack(path)
  if stack.dtype != np.uint8 or stack.shape[-1] != 1:
    raise InputError(
      f'{path}: {stack.dtype} pages of {stack.shape[-1]} channels; expected '
      'uint8 of 1'
    )
  return stack


def _size(stack):
  num_pages, height, width, _ = stack.shape
  return f'{num_pages} pages {height} x {width}'
