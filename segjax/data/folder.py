# SPDX-License-Identifier: Apache-2.0
"""Anybody's data: a folder of images and a folder of label images.

An image and its label share a stem: images/a.jpg and labels/a.png. Each page
of a stack, a TIFF or .npy of several pages, is an example: a-0, a-1, ...
"""

import functools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from segjax.data.examples import (
  Dataset,
  FileExamples,
  Item,
  check_disjoint,
  digest_of_files,
)
from segjax.data.label_coding import LabelCoding
from segjax.data.layout import check_files, read_names
from segjax.errors import InputError
from segjax.images.files import list_images, read_stack


def load(
  dir: str,
  images: str,
  labels: str,
  class_names: Sequence[str],
  colours: Sequence[Sequence[int]],
  ignore_value: Sequence[int],
  train_list: str,
  heldout_list: str,
  heldout_fraction: float,
  seed: int,
  label_values: Sequence[int] = (),
) -> Dataset:
  """Returns the images with labels, split by lists or at random.

  Images are read when they are asked for; stacks at once, and kept in memory.

  Args:
    dir: the folder that all the others are in.
    images: folder of the images, in `dir`.
    labels: folder of the label images, in `dir`; no JPEG, which changes values.
    class_names: of classes 0..K-1.
    colours: colour of each class in label images in RGB, and in pictures; ()
      for label images that hold indices. See `LabelCoding`.
    ignore_value: what ignored pixels are stored as. See `LabelCoding`.
    train_list: file in `dir` with an image on each line: its stem, file name,
      or path below `dir`. Of a stack these are all pages; a-0 is one.
    heldout_list: the same for what is held out. '' for both draws instead.
    heldout_fraction: share of files to hold out where there are no lists, in
      [0, 1). All pages of a stack go together, since neighbours look alike.
    seed: of the draw. It depends on the names of the files alone.
    label_values: value of each class in label images that hold no indices,
      such as (0, 255) for masks of 0 and 255. See `LabelCoding`.

  Raises:
    InputError: a folder or file is missing, damaged, or without its partner; a
      split is empty or both have an example; a list names what is not there;
      labels are not as `colours`, `label_values` and `ignore_value` say; or an
      image is unlike the first in channels or type, or unlike its label in
      size.
  """
  coding = LabelCoding(len(class_names), colours, ignore_value, label_values)
  if bool(train_list) != bool(heldout_list):
    raise InputError(
      f'train_list={train_list!r} and heldout_list={heldout_list!r}; expected '
      "two files, or '' for both to draw heldout_fraction"
    )
  root = Path(dir).expanduser()
  pairs = _pairs(root, images, labels, need_all=not train_list)
  first = pairs[0].files[0]
  stack = read_stack(first)
  kind = stack.dtype, stack.shape[-1]
  expected = dict(coding=coding, first=first, kind=kind)
  groups, examples = [[pair] for pair in pairs], {}
  if len(stack) > 1:
    groups, examples = _read_stacks(pairs, **expected)
  if train_list:
    known = _known_names(groups, images)
    train, held = (
      _listed(root / file, known, f'with a label in {labels}')
      for file in (train_list, heldout_list)
    )
    check_disjoint(train, held)
  else:
    train, held = _drawn(groups, heldout_fraction, seed)

  def sequence(items):
    if examples:
      return [examples[item.name] for item in items]
    return FileExamples(items, functools.partial(_read_only_page, **expected))

  settings = [tuple(map(tuple, colours)), tuple(ignore_value)]
  if label_values:  # Older runs, which had none, keep their digest.
    settings.append(tuple(label_values))
  return Dataset(
    class_names=tuple(class_names),
    train=sequence(train),
    heldout=sequence(held),
    digest=digest_of_files(train + held, len(train), *settings),
    palette=np.array(colours, np.uint8) if colours else None,
    stored=coding.stored,
  )


def _pairs(root, images, labels, need_all):
  """Returns an item of each image with a label, slice2 before slice10."""
  for name in (images, labels):
    if not (root / name).is_dir():
      raise InputError(
        f'no folder {(root / name).resolve()}; expected images in {images} and '
        f'their labels in {labels} of the folder --config.data.dir=DIR'
      )
  image_files, label_files = _by_stem(root / images), _by_stem(root / labels)
  alone = sorted(image_files.keys() ^ label_files.keys())
  pairs = tuple(
    Item(stem, (file, label_files[stem]))
    for stem, file in image_files.items()
    if stem in label_files
  )
  if not pairs or (alone and need_all):
    raise InputError(
      f'{root}: {len(alone)} of the names in {images} and {labels} are not in '
      f'both: {", ".join(alone[:5])}; each image needs a label of its name, '
      'or list those that have one in train_list and heldout_list'
    )
  for pair in pairs:
    if pair.files[1].suffix.lower() in ('.jpg', '.jpeg'):
      raise InputError(
        f'{pair.files[1]}: JPEG changes values; expected labels in another '
        'format'
      )
  return pairs


def _by_stem(folder):
  files = {}
  for file in list_images(folder):
    if file.stem in files:
      raise InputError(
        f'{files[file.stem]} and {file.name} have one name; expected one of '
        'them'
      )
    files[file.stem] = file
  return files


def _read_pages(image_file, label_file, coding, first, kind):
  """Returns images [N, H, W, C] and labels i32[N, H, W]."""
  images, labels = read_stack(image_file), read_stack(label_file)
  if (images.dtype, images.shape[-1]) != kind:
    raise InputError(
      f'{image_file}: {images.dtype} of {images.shape[-1]} channel(s); '
      f'expected {kind[0]} of {kind[1]}, as {first} has'
    )
  if images.dtype == np.float32 and not (
    0 <= images.min() <= images.max() <= 1
  ):
    raise InputError(
      f'{image_file}: values from {images.min()} to {images.max()}; images of '
      'float32 must be in [0, 1]'
    )
  if images.shape[:3] != labels.shape[:3]:
    raise InputError(
      f'{label_file}: labels of {_size(labels)} for images of {_size(images)} '
      f'({image_file}); they must be equal'
    )
  where = [f'{label_file}, page {i}' for i in range(len(labels))]
  if len(labels) == 1:
    where = [label_file]
  return images, np.stack(list(map(coding.decode, labels, where)))


def _read_only_page(image_file, label_file, **expected):
  images, labels = _read_pages(image_file, label_file, **expected)
  if len(images) != 1:
    raise InputError(
      f'{image_file}: {len(images)} pages; expected 1, as '
      f'{expected["first"]} has'
    )
  return images[0], labels[0]


def _size(stack):
  num_pages, height, width, _ = stack.shape
  return f'{num_pages} page(s) {height} x {width}'


def _read_stacks(pairs, **expected):
  """Returns the pages of each pair as items, and as examples by name."""
  groups, examples = [], {}
  for pair in pairs:
    images, labels = _read_pages(*pair.files, **expected)
    group = [Item(f'{pair.name}-{i}', pair.files) for i in range(len(images))]
    for item, image, label in zip(group, images, labels, strict=True):
      examples[item.name] = {'image': image, 'label': label, 'name': item.name}
    groups.append(group)
  return groups, examples


def _known_names(groups, images):
  """Returns the items of each way to name an image, or a page, in a list."""
  known = {}
  for group in groups:
    file = group[0].files[0]
    path = str(PurePosixPath(images, file.name))
    ways = {file.stem: group, file.name: group, path: group}
    ways |= {item.name: [item] for item in group}
    for name in ways.keys() & known.keys():
      raise InputError(
        f'{name} names two images, one in {file}; expected other file names'
      )
    known |= ways
  return known


def _listed(file, known, needed):
  items = []
  for name in read_names(file):
    if name not in known:
      raise InputError(f'{file} lists {name}, which is no image {needed}')
    items += known[name]
  return check_files(items, file)


def _drawn(groups, fraction, seed):
  if not 0 <= fraction < 1:
    raise InputError(f'heldout_fraction={fraction}; expected 0 <= it < 1')
  num_heldout = round(fraction * len(groups))
  if fraction > 0 and num_heldout in (0, len(groups)):
    raise InputError(
      f'heldout_fraction={fraction} of {len(groups)} file(s) leaves no example '
      'to train on or to hold out; expected another, 0 to hold out none, or '
      'train_list and heldout_list'
    )
  order = np.random.default_rng(seed).permutation(len(groups))
  held = set(order[:num_heldout].tolist())
  split = [], []
  for i, group in enumerate(groups):
    split[i in held].extend(group)
  return tuple(map(tuple, split))
