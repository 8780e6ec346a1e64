# SPDX-License-Identifier: Apache-2.0
"""SIFT Flow: outdoor scenes with semantic and geometric labels.

As distributed, with D for spatial_envelope_256x256_static_8outdoorcategories:

    Images/D/NAME.jpg          colour
    SemanticLabels/D/NAME.mat  `S`, 1..33, 0 unlabelled
    GeoLabels/D/NAME.mat       `S`, 1..3, -1 unlabelled

Put the list files of the FCN reference code into the same folder: trainval.txt
(2486 names) and test.txt (200). They leave out two images without labels,
highway_bost181 and street_urb506. No test label has a cow, a desert or a moon.
Nothing is downloaded.
"""

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
from segjax.images import single_images

# Both in stored order, as in data/sift-flow/classes.txt of the reference code.
SEMANTIC_NAMES = (
  *('awning', 'balcony', 'bird', 'boat', 'bridge', 'building', 'bus', 'car'),
  *('cow', 'crosswalk', 'desert', 'door', 'fence', 'field', 'grass', 'moon'),
  *('mountain', 'person', 'plant', 'pole', 'river', 'road', 'rock', 'sand'),
  *('sea', 'sidewalk', 'sign', 'sky', 'staircase', 'streetlight', 'sun'),
  *('tree', 'window'),
)
GEOMETRIC_NAMES = ('sky', 'horizontal', 'vertical')

_SCENES = 'spatial_envelope_256x256_static_8outdoorcategories'
_PATTERNS = (
  f'Images/{_SCENES}/{{}}.jpg',
  f'SemanticLabels/{_SCENES}/{{}}.mat',
  f'GeoLabels/{_SCENES}/{{}}.mat',
)


def load(
  dir: str, train_lists: Sequence[str], heldout_lists: Sequence[str]
) -> Dataset:
  """Returns SIFT Flow with two labels for each pixel, i32[H,W,2].

  The first label is semantic, 0..32, the second geometric, 0..2. Images are
  uint8[H,W,3], RGB.

  Args:
    dir: folder of the layout above, or the parent of a folder `sift-flow` with
      this layout; '' looks in the usual places (see `layout.find_folder`).
    train_lists: list files in the folder, such as ('trainval.txt',), with a
      NAME on each line.
    heldout_lists: list files such as ('test.txt',); () holds out none.

  Raises:
    InputError: the folder, a list file or a listed file is missing, or a name
      leads out of the folder. When an example is read: a file is damaged or of
      another kind, sizes differ, or a label is out of range.
  """
  items = layout.listed_items(
    'SIFT Flow', dir, 'sift-flow', _PATTERNS, train_lists, heldout_lists
  )
  return dataset_of_files(
    (*SEMANTIC_NAMES, *GEOMETRIC_NAMES),
    *items,
    _read,
    head_sizes=(len(SEMANTIC_NAMES), len(GEOMETRIC_NAMES)),
  )


def _read(
  image_file: Path, semantic_file: Path, geometric_file: Path
) -> tuple[np.ndarray, np.ndarray]:
  semantic = _read_label(semantic_file, SEMANTIC_NAMES, (0,))
  # The reference reads 0 as unlabelled, too.
  geometric = _read_label(geometric_file, GEOMETRIC_NAMES, (-1, 0))
  image = single_images.read_image(image_file, ('uint8',), 3)
  check_equal_size(semantic, semantic_file, image, image_file)
  check_equal_size(geometric, geometric_file, image, image_file)
  return image, np.stack([semantic, geometric], axis=-1)


def _read_label(file, names, ignored):
  stored = matlab.read_label(file, 'S')
  return check_label(stored, len(names), file, first=1, ignored=ignored)
