# SPDX-License-Identifier: Apache-2.0
"""CamVid as prepared for SegNet: street scenes in 11 classes.

Badrinarayanan, Kendall, Cipolla: SegNet. PAMI 2017, after Brostow, Fauqueur,
Cipolla: Semantic object classes in video. 2009. Frames of 360 x 480 px with a
label image each, indices 0..10, and 11 for void, which is ignored.
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
from segjax.data.layout import (
  check_files,
  find_folder,
  read_list,
)
from segjax.errors import InputError
from segjax.images import single_images

CLASS_NAMES = (
  'sky',
  'building',
  'pole',
  'road',
  'pavement',
  'tree',
  'sign',
  'fence',
  'car',
  'pedestrian',
  'bicyclist',
)
_VOID = 11
# CamVid's own, which have no meaning in the label images: for pictures only.
PALETTE = np.array(
  [
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (0, 0, 192),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
  ],
  np.uint8,
)


def load(dir: str, heldout: str, scale: int) -> Dataset:
  """Returns the training frames, and those of 'val' or 'test' held out.

  Args:
    dir: folder with train.txt, val.txt or test.txt, which hold the paths of an
      image and its label image on each line, and the folders that these name.
      Of a path only folder and file name count, so that lists which begin
      with /SegNet/CamVid serve as they are. '' looks in the usual places (see
      `layout.find_folder`).
    heldout: 'val' or 'test'.
    scale: k, 1 for frames as they are. k > 1 makes height and width k times
      smaller: pixels of the image are means of k x k, rounded half up, those
      of the label the one of k x k in row and column k // 2.

  Raises:
    InputError: another `heldout` or `scale`; or files are missing, listed for
      training and held out, or damaged, or hold other labels, or their size
      is no multiple of `scale`.
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
    f'expected SegNet\'s {lists[0]} and {lists[1]}, with "image label" on each '
    'line, and the folders that they name; pass theirs with '
    '--config.data.dir=DIR or SEGJAX_DATA_DIR',
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
  label = check_label(label, _VOID + 1, label_file)
  label[label == _VOID] = IGNORE_LABEL
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
