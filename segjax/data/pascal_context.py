# SPDX-License-Identifier: Apache-2.0
"""PASCAL-Context: whole scenes, 59 classes and a background.

Mottaghi et al.: The role of context for object detection and semantic
segmentation in the wild. CVPR 2014. The images are those of PASCAL VOC 2010;
the labels are .mat files of 459 classes. FCN learns the 59 most frequent ones.
All other pixels are background, and none is ignored.
"""

import functools
from pathlib import Path

import numpy as np

from segjax.data import matlab
from segjax.data.examples import Dataset, check_known, dataset_of_files
from segjax.data.layout import find_folder, named_items, read_names
from segjax.errors import InputError
from segjax.images import single_images

# Three of the 59 have another name among the 459 (published code of FCN).
RENAMES = {'diningtable': 'table', 'bedcloth': 'bedclothes', 'clothes': 'cloth'}


def load(
  dir: str,
  context_dir: str,
  classes_file: str,
  train_list: str,
  heldout_list: str,
) -> Dataset:
  """Returns images to train on and images held out, labels 0..59.

  Args:
    dir: folder VOCdevkit, which holds VOC2010. '' looks in the usual places
      (see `layout.find_folder`).
    context_dir: folder of the annotations. It holds labels.txt, with lines from
      "1: accordion" to "459: wool", and trainval, with the .mat files.
    classes_file: file in `context_dir` that lists the 59 classes in such lines:
      59_labels.txt, or classes-59.txt, whose "0: background" is left out.
    train_list: file with the name of an image, such as 2008_000002, on each
      line; '' takes VOC2010/ImageSets/Main/train.txt.
    heldout_list: file with the names of images to hold out; '' takes val.txt of
      the same folder.

  Raises:
    InputError: folders or files are missing or damaged, an image is both
      trained on and held out, or labels are not in labels.txt; or the classes
      are not 59, or one is not in labels.txt.
  """
  lists, images = 'VOC2010/ImageSets/Main', 'VOC2010/JPEGImages'
  voc = find_folder(
    'PASCAL VOC 2010',
    dir,
    [images],
    'voc/VOCdevkit',
    'VOCdevkit, which holds VOC2010, as distributed',
  )
  context = find_folder(
    'PASCAL-Context',
    context_dir,
    ['labels.txt', classes_file, 'trainval'],
    'pascal_context',
    f'labels.txt, {classes_file} and trainval, which has the .mat files, in '
    'one folder',
    field='context_dir',
  )
  classes, table = class_table(context / 'labels.txt', context / classes_file)
  files = voc / images / '{}.jpg', context / 'trainval/{}.mat'
  train, held = (
    named_items(read_names(source), files, source)
    for source in (
      Path(train_list or voc / lists / 'train.txt'),
      Path(heldout_list or voc / lists / 'val.txt'),
    )
  )
  read = functools.partial(_read, table=table)
  return dataset_of_files(
    ('background', *classes), train, held, read, settings=table.tolist()
  )


def class_table(
  labels_file: Path, classes_file: Path
) -> tuple[tuple[str, ...], np.ndarray]:
  """Returns the names of classes 1..59, and the class of each stored label.

  A class is the label of the same name without spaces, or of the name in
  `RENAMES`.

  Returns:
    names: 59 str.
    table: i32[1 + number of labels], 0 for labels that are none of the 59.

  Raises:
    InputError: a file cannot be read, its lines are not numbered 1, 2, 3, ...
      without a gap, a name occurs twice, or a class is not among the labels.
  """
  labels = _numbered_names(labels_file)
  classes = _numbered_names(classes_file)
  if len(classes) != 59:
    raise InputError(f'{classes_file} has {len(classes)} classes; expected 59')
  number = {name: i for i, name in enumerate(labels, 1)}
  table = np.zeros(len(labels) + 1, np.int32)
  for k, name in enumerate(classes, 1):
    stored = RENAMES.get(name, name)
    if stored not in number:
      raise InputError(
        f'{classes_file}: class {name!r} is not in {labels_file} (as '
        f'{stored!r})'
      )
    table[number[stored]] = k
  return classes, table


def _numbered_names(file):
  """Returns the names of lines 1: NAME, 2: NAME, ..., without spaces."""
  names = {}
  for line in read_names(file):
    number, colon, name = line.partition(':')
    name = name.replace(' ', '')
    if not (number.strip().isdecimal() and colon and name):
      raise InputError(f'{file}: {line!r}; expected "number: name"')
    if int(number) in names or name in names.values():
      raise InputError(f'{file} has {line!r} twice, the number or the name')
    names[int(number)] = name
  if names.get(0) == 'background':
    del names[0]
  if sorted(names) != list(range(1, len(names) + 1)):
    raise InputError(
      f'{file}: numbers {min(names)} to {max(names)} on {len(names)} lines; '
      'expected 1, 2, 3 ... without a gap'
    )
  return tuple(names[i] for i in sorted(names))


def _read(image_file, label_file, table):
  stored = matlab.read_label(label_file, 'LabelMap')
  known = (stored >= 0) & (stored < len(table))
  check_known(stored, known, label_file, f'0..{len(table) - 1}')
  return single_images.read_rgb(image_file), table[stored]
