# SPDX-License-Identifier: Apache-2.0
"""Pairs of image and label files, in the layouts that people have.

An image and its label have one key. It is what a regular expression finds in
their paths, or else their stem: the file name without its ending.
"""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from segjax.data.examples import list_some
from segjax.errors import InputError
from segjax.images.files import list_images


class Pair(NamedTuple):
  """An image file and the label files of the same key.

  Attributes:
    key: what their names have in common.
    image: the image file.
    labels: one, or a mask for each object.
  """

  key: str
  image: Path
  labels: tuple[Path, ...]


def find_pairs(
  root: Path, images: str, labels: str, match: str, need_all: bool
) -> list[Pair]:
  """Returns each image with its labels, slice2 before slice10.

  Args:
    root: the folder of the set.
    images: a folder in it, or a pattern of paths such as '*/images/*'. What is
      a label is no image.
    labels: the same for labels, such as 'labels', '*_mask.png' or '*/masks/*'.
    match: a regular expression that is found in the path of each file below
      `root`; its first group is the key, such as '(.*)_mask'. '' takes the
      stem.
    need_all: whether an image or a label alone is an error.

  Raises:
    InputError: nothing is there; `match` is no expression with a group, or is
      not found in a path; two images have one key; or as `need_all` says.
  """
  label_files = list_files(root, labels)
  taken = {*label_files}
  image_files = [file for file in list_files(root, images) if file not in taken]
  if not image_files:
    raise InputError(
      f'{root}: no image in {images} beside the labels in {labels}'
    )
  keyed_images, keyed_labels = (
    _by_key(root, files, match) for files in (image_files, label_files)
  )
  for key, files in keyed_images.items():
    if len(files) > 1:
      raise InputError(
        f'{files[0]} and {files[1].name} have one name, {key!r}; expected one '
        'of them, or another match'
      )
  alone = sorted(keyed_images.keys() ^ keyed_labels.keys())
  pairs = [
    Pair(key, image, tuple(keyed_labels[key]))
    for key, [image] in keyed_images.items()
    if key in keyed_labels
  ]
  if not pairs or (alone and need_all):
    raise InputError(
      f'{root}: {len(alone)} of the names in {images} and {labels} are not in '
      f'both: {list_some(alone, 5)}; each image needs a label of its name; to '
      'train on those that have one, list them in two files, --train_list=FILE '
      'and --heldout_list=FILE of segjax.plan'
    )
  return pairs


def find_key(path: Path, root: Path, match: str) -> str:
  """Returns the first group of `match` in a path below `root`, or the stem.

  Raises:
    InputError: `match` is no expression with a group, or is not found.
  """
  if not match:
    return unicodedata.normalize('NFC', path.stem)
  try:
    pattern = re.compile(match)
  except re.error as e:
    raise InputError(f'{match!r} is no regular expression: {e}') from e
  if not pattern.groups:
    raise InputError(
      f'{match!r} has no group; expected one in parentheses, such as '
      r"'(\d+)_.*'"
    )
  below = path.relative_to(root).as_posix()
  found = pattern.search(below)
  if found is None or found[1] is None:
    raise InputError(f'{match!r} is not found in {below}')
  # macOS and others write accents in two ways.
  return unicodedata.normalize('NFC', found[1])


def list_files(root: Path, where: str) -> list[Path]:
  """Returns the image files of a folder, or those that a pattern finds."""
  folder = root / where
  if folder.is_dir():
    below = [f for f in sorted(folder.iterdir()) if f.is_dir()]
    if not _images_in(folder) and any(map(_images_in, below)):
      raise InputError(
        f"{folder}: its files lie in folders; give a pattern, '{folder}/*/*'"
      )
    return list_images(folder)
  if not any(sign in where for sign in '*?['):
    raise InputError(
      f'no folder {(root / where).resolve()}; expected images and labels in '
      'folders, or as patterns, of the folder --config.data.dir=DIR'
    )
  found = {*root.glob(where)}
  # A folder that the pattern finds stands for its images.
  found |= {file for each in found if each.is_dir() for file in each.iterdir()}
  folders = sorted({file.parent for file in found})
  files = [f for d in folders for f in _images_in(d) if f in found]
  if not files:
    raise InputError(f'{root}: no image is {where}')
  return files


def _images_in(folder: Path) -> list[Path]:
  try:
    return list_images(folder)
  except InputError:  # Has none.
    return []


def _by_key(
  root: Path, files: Iterable[Path], match: str
) -> dict[str, list[Path]]:
  keyed: dict[str, list[Path]] = {}
  for file in files:
    keyed.setdefault(find_key(file, root, match), []).append(file)
  return keyed
