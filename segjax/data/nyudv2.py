# SPDX-License-Identifier: Apache-2.0
"""NYUDv2: indoor scenes with depth, in 40 classes (Gupta et al. 2013).

In the layout of the FCN reference code. HHA encodes depth as horizontal
disparity, height and angle (Gupta et al. 2014):

    data/images/img_NNNN.png      colour
    data/depth/img_NNNN.png       depth, 16 bits, filled in everywhere
    data/hha/img_NNNN.png         HHA
    segmentation/img_NNNN.mat     `segmentation`, 1..40, 0 unlabelled
    train.txt  val.txt  test.txt  NNNN on each line: 381, 414 and 654

The paper trains on the 795 of train.txt and val.txt. Nothing is downloaded.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax.data import layout, matlab
from segjax.data.examples import (
  Dataset,
  check_equal_size,
  check_label,
  dataset_of_files,
)
from segjax.errors import InputError
from segjax.images import single_images

# In stored order, spelt as in data/nyud/classes.txt of the reference code.
CLASS_NAMES = (
  *('wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door'),
  *('window', 'bookshelf', 'picture', 'counter', 'blinds', 'desk', 'shelves'),
  *('curtain', 'dresser', 'pillow', 'mirror', 'floor mat', 'clothes'),
  *('ceiling', 'books', 'refridgerator', 'television', 'paper', 'towel'),
  *('shower curtain', 'box', 'whiteboard', 'person', 'night stand', 'toilet'),
  *('sink', 'lamp', 'bathtub', 'bag', 'otherstructure', 'otherfurniture'),
  'otherprop',
)

# Modality -> folders of the files that make its images.
MODALITIES = {
  'color': ('data/images',),
  'hha': ('data/hha',),
  'color_d': ('data/images', 'data/depth'),
  'color_hha': ('data/images', 'data/hha'),
}


def load(
  dir: str,
  modality: str,
  train_lists: Sequence[str],
  heldout_lists: Sequence[str],
) -> Dataset:
  """Returns NYUDv2 with one of four kinds of image.

  Args:
    dir: folder of the layout above, or the parent of a folder `nyud` with this
      layout; '' looks in the usual places (see `layout.find_folder`).
    modality: 'color': uint8[H,W,3], RGB. 'hha': uint8[H,W,3], channels as
      stored. 'color_d': f32[H,W,4], RGB / 255 and ln(depth) / 255, so that
      mean = m / 255 and std = 1 / 255 give the reference's ln(depth) - m.
      'color_hha': uint8[H,W,6], RGB and HHA.
    train_lists: list files in the folder, such as ('train.txt', 'val.txt').
    heldout_lists: list files such as ('test.txt',); () holds out none.

  Raises:
    InputError: `modality` is none of `MODALITIES`, the folder, a list file or a
      listed file is missing, or a name leads out of the folder. When an example
      is read: a file is damaged or of another kind, sizes differ, a label is
      out of range, or a depth is 0.
  """
  if modality not in MODALITIES:
    raise InputError(
      f'data.modality={modality!r} is not one of {tuple(MODALITIES)}'
    )
  patterns = [f'{folder}/img_{{}}.png' for folder in MODALITIES[modality]]
  patterns.append('segmentation/img_{}.mat')
  items = layout.listed_items(
    'NYUDv2', dir, 'nyud', patterns, train_lists, heldout_lists
  )
  read = functools.partial(_read, modality)
  return dataset_of_files(CLASS_NAMES, *items, read, settings=(modality,))


def _read(modality: str, *files: Path) -> tuple[np.ndarray, np.ndarray]:
  *inputs, file = files
  stored = matlab.read_label(file, 'segmentation')
  label = check_label(stored, len(CLASS_NAMES), file, first=1, ignored=(0,))
  image = single_images.read_image(inputs[0], ('uint8',), 3)
  if len(inputs) == 1:
    return image, label
  if modality == 'color_d':
    image = image.astype(np.float32) / 255
    more = _read_log_depth(inputs[1]) / 255
  else:
    more = single_images.read_image(inputs[1], ('uint8',), 3)
  check_equal_size(more, inputs[1], image, inputs[0], what='channels')
  return np.concatenate([image, more], axis=-1), label


def _read_log_depth(file: Path) -> np.ndarray:
  """Returns ln(depth), f32[H,W,1]."""
  depth = single_images.read_image(file, ('uint16',), 1)
  if not depth.all():
    row, column, _ = np.unravel_index(np.argmin(depth), depth.shape)
    raise InputError(
      f'{file}: the depth in row {row}, column {column} (counted from 0) is 0, '
      'which has no logarithm; expected depth with its holes filled in'
    )
  return np.log(depth.astype(np.float32))
