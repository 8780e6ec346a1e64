# SPDX-License-Identifier: Apache-2.0
"""CamVid as prepared for SegNet: street scenes in 11 classes.

Badrinarayanan, Kendall, Cipolla: SegNet. PAMI 2017, after Brostow, Fauqueur,
Cipolla: Semantic object classes in video. 2009. Each frame of 360 x 480 px has
a label image with indices 0..10, and 11 for void, which is ignored.
"""

import functools

import numpy as np

from segjax.data.examples import (
  IGNORE_LABEL,
  Dataset,
  Item,
  check_label,
  dataset_of_files,
)
from segjax.data.layout import check_files, find_folder, read_list
from segjax.errors import InputError
from segjax.images import single_images

# In stored order. The colours are CamVid's own; label images hold indices, so
# that only pictures show them.
_COLOURS = {
  'sky': (128, 128, 128),
  'building': (128, 0, 0),
  'pole': (192, 192, 128),
  'road': (128, 64, 128),
  'pavement': (0, 0, 192),
  'tree': (128, 128, 0),
  'sign': (192, 128, 128),
  'fence': (64, 64, 128),
  'car': (64, 0, 128),
  'pedestrian': (64, 64, 0),
  'bicyclist': (0, 128, 192),
}
CLASS_NAMES = tuple(_COLOURS)
PALETTE = np.array([*_COLOURS.values()], np.uint8)
_VOID = len(CLASS_NAMES)


def load(dir: str, heldout: str, scale: int) -> Dataset:
  """Returns CamVid: the training frames, and those of 'val' or 'test' held out.

  Args:
    dir: folder of the list files train.txt, and val.txt or test.txt, and of the
      files that they list: paths of an image and its label image on each line.
      Only the folder and the file name of a path count, so SegNet's own lists,
      which begin with /SegNet/CamVid, can be used. '' looks in the usual places
      (see `layout.find_folder`).
    heldout: 'val' or 'test'.
    scale: k; k > 1 makes height and width k times smaller. A pixel of the image
      is then the mean of k x k, rounded half up, and a pixel of the label is
      the one in row and column k // 2 of k x k.

  Raises:
    InputError: another `heldout` or `scale`; or files are missing, damaged, or
      listed twice, labels are no classes, or sizes are no multiples of `scale`.
  """
  if heldout not in ('val', 'test'):
    raise InputError(f"data.heldout={heldout!r}; expected 'val' or 'test'")
  if scale < 1:
    raise InputError(f'data.scale={scale}; expected 1, 2 (half the size), ...')
  lists = 'train.txt', f'{heldout}.txt'
  folder = find_folder(
    'CamVid',
    dir,
    lists,
    'camvid',
    f'{lists[0]} and {lists[1]} of SegNet, with "image label" on each line, '
    'and the folders that they name',
  )
  train, held = (_items(folder, name) for name in lists)
  read = functools.partial(_read, scale=scale)
  return dataset_of_files(
    CLASS_NAMES, train, held, read, settings=(scale,), palette=PALETTE
  )


def _items(folder, name):
  items = []
  for words in read_list(folder / name, tail=2):
    if len(words) != 2:
      raise InputError(
        f'{folder / name}: {" ".join(words)!r}; expected "image label" on each '
        'line'
      )
    image, label = (folder / word for word in words)
    items.append(Item(image.stem, (image, label)))
  return check_files(items, folder / name)


def _read(image_file, label_file, scale):
  image = single_images.read_rgb(image_file)
  label = single_images.read_indices(label_file)
  ignored = _VOID, IGNORE_LABEL
  label = check_label(label, _VOID, label_file, ignored=ignored)
  if scale == 1:
    return image, label
  height, width, _ = image.shape
  if height % scale or width % scale:
    raise InputError(
      f'{image_file}: {height} x {width} px; expected multiples of '
      f'data.scale={scale}'
    )
  shape = height // scale, scale, width // scale, scale, 3
  total = image.reshape(shape).sum(axis=(1, 3), dtype=np.int64)
  image = ((total + scale**2 // 2) // scale**2).astype(np.uint8)
  return image, label[scale // 2 :: scale, scale // 2 :: scale]
