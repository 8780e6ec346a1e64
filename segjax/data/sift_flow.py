# SPDX-License-Identifier: Apache-2.0
"""SIFT Flow: outdoor scenes with semantic and geometric labels, as distributed.

With D for spatial_envelope_256x256_static_8outdoorcategories:

    Images/D/NAME.jpg          colour
    SemanticLabels/D/NAME.mat  `S`, 1..33, 0 unlabelled
    GeoLabels/D/NAME.mat       `S`, 1..3, -1 unlabelled

The lists of the FCN reference code, trainval.txt (2486 names) and test.txt
(200), come from its repository and go in the same folder; they leave out two
images without labels, highway_bost181 and street_urb506. Cow, desert and moon
occur in no test label. Nothing is downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax.data import layout, matlab
from segjax.data.examples import (
  Dataset,
  dataset_of_files,
  shift_label,
)
from segjax.errors import InputError
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
_FOLDERS = tuple(
  f'{kind}/{_SCENES}' for kind in ('Images', 'SemanticLabels', 'GeoLabels')
)


def load(
  dir: str, train_lists: Sequence[str], heldout_lists: Sequence[str]
) -> Dataset:
  """Returns SIFT Flow with two labels a pixel, i32[H,W,2].

  The first is semantic, 0..32, the second geometric, 0..2; `class_names` has
  the 33 of the first, then the 3 of the second. Images are uint8[H,W,3], RGB.

  Args:
    dir: the folder of the layout above, or the parent of a folder `sift-flow`
      that is it; '' looks as `layout.find_folder` says.
    train_lists: list files in that folder, such as ('trainval.txt',), a NAME
      on each line.
    heldout_lists: such as ('test.txt',); () holds out none.

  Raises:
    InputError: the folder, a list or a file that it asks for is missing, or a
      list leads out of the folder. When an example is read: a file that is
      damaged or of another kind, sizes that differ, or a label out of range.
  """
  if not train_lists:
    raise InputError(
      "data.train_lists is empty; expected such as 'trainval.txt'"
    )
  root = layout.find_folder(
    'SIFT Flow',
    dir,
    [*_FOLDERS, *train_lists, *heldout_lists],
    'sift-flow',
    f'expected {", ".join(_FOLDERS)} and the list files in one folder; pass it '
    'with --config.data.dir=DIR or SEGJAX_DATA_DIR',
  )
  endings = ('.jpg', '.mat', '.mat')
  patterns = [
    folder + '/{}' + ending
    for folder, ending in zip(_FOLDERS, endings, strict=True)
  ]
  train = layout.list_items(root, train_lists, patterns)
  heldout = layout.list_items(root, heldout_lists, patterns)
  return dataset_of_files(
    (*SEMANTIC_NAMES, *GEOMETRIC_NAMES),
    train,
    heldout,
    _read,
    head_sizes=(len(SEMANTIC_NAMES), len(GEOMETRIC_NAMES)),
  )


def _read(
  image: Path, semantic: Path, geometric: Path
) -> tuple[np.ndarray, np.ndarray]:
  stored = matlab.read_label(semantic, 'S')
  first = shift_label(stored, len(SEMANTIC_NAMES), (0,), semantic)
  stored = matlab.read_label(geometric, 'S')
  # The reference reads 0 as unlabelled, too.
  second = shift_label(stored, len(GEOMETRIC_NAMES), (-1, 0), geometric)
  if first.shape != second.shape:
    h, w, height, width = *second.shape, *first.shape
    raise InputError(
      f'{geometric}: label of {h} x {w} px for one of {height} x {width} px '
      f'({semantic}); they must be equal'
    )
  return single_images.read_image(image, ('uint8',), 3), np.stack(
    [first, second], axis=-1
  )
