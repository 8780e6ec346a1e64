# SPDX-License-Identifier: Apache-2.0
"""The ISBI 2012 EM challenge: its files, folds and border weights.

Serial-section transmission EM of the Drosophila first-instar ventral nerve
cord, 30 slices of 512 x 512 pixels, 4 x 4 x 50 nm. Labels of the test stack
are not public. Nothing is downloaded.
"""

from pathlib import Path

import numpy as np

from segjax.data import border_weights, layout
from segjax.data.examples import Dataset, digest_of_arrays
from segjax.errors import InputError
from segjax.images import files as image_files

CLASS_NAMES = ('membrane', 'cell')
FILES = ('train-volume.tif', 'train-labels.tif')


def load(
  dir: str, fold: int, gap: int, w0: float, sigma_px: float, balance: bool
) -> Dataset:
  """Returns the stack as a data set of two classes, membrane and cell.

  Args:
    dir: folder of the files; see `find`.
    fold, gap, w0, sigma_px, balance: see `stack_dataset`.
  """
  return stack_dataset(
    *read(dir), fold=fold, gap=gap, w0=w0, sigma_px=sigma_px, balance=balance
  )


def find(data_dir: str = '') -> Path:
  """Returns the folder that holds the training stack, `FILES`.

  Args:
    data_dir: the folder or its parent; '' looks in the usual places (see
      `layout.find_folder`).

  Raises:
    InputError: there is no such folder; the message says where it looked.
  """
  return layout.find_folder(
    'ISBI 2012',
    data_dir,
    FILES,
    'isbi2012',
    'train-volume.tif and train-labels.tif (255 or 1 cell, 0 membrane) in one '
    'folder, 30 gray uint8 pages of 512 x 512 each; the demo needs no data: '
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
    InputError: files are missing or damaged, images are not gray uint8, images
      and labels differ in number or size, or labels hold other values than 0
      and 255, or 0 and 1.
  """
  folder = find(data_dir)
  images = image_files.read_stack(folder / FILES[0])
  _check_gray(folder / FILES[0], images)
  path = folder / FILES[1]
  stored = image_files.read_labels(path)
  _check_gray(path, stored)
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


def stack_dataset(
  images: np.ndarray,
  labels: np.ndarray,
  *,
  fold: int,
  gap: int,
  w0: float,
  sigma_px: float,
  balance: bool,
) -> Dataset:
  """Returns a stack as a data set, split by slices, with border weights.

  The weights are computed here, once for each slice.

  Args:
    images: u8[N, H, W, C].
    labels: i[N, H, W], 0 membrane, 1 cell.
    fold: number of the block of slices that is held out; see `fold_split`.
    gap: number of slices next to the block that are left out of training.
    w0: height of the border weights; see `border_weights.border_weights`.
    sigma_px: width of the border weights, in pixels.
    balance: whether both classes get the same total weight over the training
      slices.
  """
  train, heldout = fold_split(len(images), fold, gap=gap)
  class_weights = None
  if balance:
    class_weights = border_weights.class_balance(
      border_weights.class_counts(labels[train], 2)
    )

  def example(index):
    instances = border_weights.find_instances(labels[index])
    return {
      'image': images[index],
      'label': labels[index].astype(np.int32),
      'weight': border_weights.border_weights(
        instances, w0=w0, sigma=sigma_px, class_weights=class_weights
      ),
      'name': f'slice-{index:02}',
    }

  train = [example(index) for index in train]
  heldout = [example(index) for index in heldout]
  digest = digest_of_arrays([*train, *heldout])
  return Dataset(CLASS_NAMES, train, heldout, digest)


def fold_split(
  num_slices: int, fold: int, num_folds: int = 5, gap: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the slices to train on and the block of slices held out.

  Block f holds slices floor(f n / F) to floor((f+1) n / F) - 1 of n slices in
  F blocks: of 30 slices fold 0 holds out 0-5 and trains on 6-29.

  Leakage: the slices next to the block (one at an end of the stack, two
  elsewhere) are trained on, and they are 50 nm away from a held-out slice. Gray
  values of neighbouring slices of the public stack correlate by .05 to .34, and
  two slices apart by .02 to .18. So held-out scores may be better than those on
  another stack. `gap` leaves such slices out of training.

  Args:
    num_slices: n.
    fold: f in [0, F), or -1 to train on all slices and hold out none.
    num_folds: F in [2, n]; not used if `fold` is -1.
    gap: number of slices on either side of the block that are left out of
      training.

  Returns:
    train, heldout: int64 indices in ascending order.

  Raises:
    InputError: `fold`, `num_folds` or `gap` is out of range, or no slice is
      left to train on.
  """
  if num_folds < 2:
    raise InputError(f'{num_folds} folds; expected at least 2')
  if fold != -1 and num_slices < num_folds:
    raise InputError(
      f'{num_folds} folds of {num_slices} slices; expected at least '
      f'{num_folds} slices, or fold -1, which trains on all'
    )
  if not -1 <= fold < num_folds:
    raise InputError(
      f'fold {fold} is not in 0..{num_folds - 1}, or -1 to hold out none'
    )
  if gap < 0:
    raise InputError(f'gap {gap} is negative; expected a number of slices')
  slices = np.arange(num_slices)
  if fold == -1:
    return slices, slices[:0]
  start = fold * num_slices // num_folds
  stop = (fold + 1) * num_slices // num_folds
  train = slices[(slices < start - gap) | (slices >= stop + gap)]
  if len(train) == 0:
    raise InputError(
      f'gap {gap} around slices {start}-{stop - 1} of {num_slices} leaves none '
      'to train on'
    )
  return train, slices[start:stop]


def _check_gray(path, stack):
  if stack.dtype != np.uint8 or stack.shape[-1] != 1:
    raise InputError(
      f'{path}: {stack.dtype} pages of {stack.shape[-1]} channels; expected '
      'uint8 of 1'
    )


def _size(stack):
  num_pages, height, width, _ = stack.shape
  return f'{num_pages} pages {height} x {width}'
