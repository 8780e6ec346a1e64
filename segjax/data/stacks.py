# SPDX-License-Identifier: Apache-2.0
"""Stacks of membranes and cells: folds of slices, and border weights.

What the ISBI 2012 stack and the drawn one share once they are arrays.
"""

import numpy as np

from segjax.data import border_weights, synthetic
from segjax.data.examples import Dataset, digest_of_arrays
from segjax.errors import InputError

CLASS_NAMES = ('membrane', 'cell')


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
  """Returns a stack split into train and held-out, with border weights.

  The weights are computed here, once for each image.

  Args:
    images: u8[N, H, W, C].
    labels: i[N, H, W], 0 membrane, 1 cell.
    fold: see `fold_split`.
    gap: see `fold_split`.
    w0: height of the border weights, see `border_weights.border_weights`.
    sigma_px: their width, in pixels.
    balance: whether both classes weigh the same in total, over the training
      slices.

  Raises:
    InputError: see `fold_split`.
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


def load_synthetic(
  num_slices: int,
  size_px: int,
  seed: int,
  fold: int,
  gap: int,
  w0: float,
  sigma_px: float,
  balance: bool,
) -> Dataset:
  """Returns a drawn stack as a data set: `synthetic`, then `stack_dataset`."""
  images, labels = synthetic.neuron_stack(num_slices, size_px, seed)
  return stack_dataset(
    images[..., np.newaxis],
    labels,
    fold=fold,
    gap=gap,
    w0=w0,
    sigma_px=sigma_px,
    balance=balance,
  )


def fold_split(
  num_slices: int, fold: int, num_folds: int = 5, gap: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the slices to train on and the block of slices held out.

  Block f holds slices floor(f n / F) to floor((f+1) n / F) - 1 of n slices in
  F blocks: of 30 slices fold 0 holds out 0-5 and trains on 6-29.

  Leakage: the slices next to the block, one at an end of the stack and two
  elsewhere, are 50 nm away from a held-out slice and are trained on. Gray
  values of neighbouring slices correlate by .05 to .34 on the public stack
  (two slices apart .02 to .18), so held-out scores may flatter compared with
  those on another stack. `gap` leaves such slices out, at the cost of data.

  Args:
    num_slices: n.
    fold: f in [0, F), or -1 to train on all and hold out none.
    num_folds: F in [2, n].
    gap: slices next to the block, on either side, to leave out of training.

  Returns:
    train, heldout: int64 indices in ascending order.

  Raises:
    InputError: fold, num_folds or gap out of range, or nothing left to train.
  """
  if not 2 <= num_folds <= num_slices:
    raise InputError(
      f'{num_folds} folds of {num_slices} slices; expected 2 to {num_slices}'
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
