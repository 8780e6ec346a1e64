# SPDX-License-Identifier: Apache-2.0
"""Pairs of image and label files, in the layouts that people have.

An image and its label have the same key: what a regular expression finds in
their paths or, without one, their file names without the ending (stems).
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
    key: the key of the files.
    image: the image file.
    labels: one label file, or a mask for each object.
  """

  key: str
  image: Path
  labels: tuple[Path, ...]


def find_pairs(
  root: Path, images: str, labels: str, match: str, need_all: bool
) -> list[Pair]:
  """Returns the pairs in natural order: slice2 comes before slice10.

  Args:
    root: folder of the set.
    images: folder of the images in `root`, or a pattern of their paths, such as
      '*/images/*'. Files that are labels are left out.
    labels: folder or pattern of the labels, such as 'labels', '*_mask.png' or
      '*/masks/*'.
    match: regular expression whose first group, found in the path of a file
      below `root`, is its key, such as '(.*)_mask'. '' takes the stem.
    need_all: whether an image without labels, or the other way round, is
      refused.

  Raises:
    InputError: no pair is found; `match` is no expression with a group, or is
      not found in a path; two images have one key; or as for `need_all`.
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
    folded = {key.casefold(): key for key in alone if key in keyed_labels}
    for key in alone:
      other = folded.get(key.casefold())
      if key in keyed_images and other:
        raise InputError(
          f'{keyed_images[key][0]} and {keyed_labels[other][0]}: the names '
          f'{key!r} and {other!r} differ in capital letters; expected one name'
        )
    raise InputError(
      f'{root}: {len(alone)} of the names in {images} and {labels} are not in '
      f'both: {list_some(alone, 5)}; each image needs a label of its name. '
      'Training takes those that two lists name: segjax.plan '
      '--train_list=FILE --heldout_list=FILE'
    )
  return pairs


def find_key(path: Path, root: Path, match: str) -> str:
  """Returns the key of a file; see `find_pairs`.

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
  # The same accent has two encodings, and macOS uses the other one.
  return unicodedata.normalize('NFC', found[1])


def list_files(root: Path, where: str) -> list[Path]:
  """Returns the image files in a folder of `root`, or those of a pattern."""
  folder = root / where
  if folder.is_dir():
    below = [f for f in sorted(folder.iterdir()) if f.is_dir()]
    if not images_in(folder) and any(map(images_in, below)):
      raise InputError(
        f"{folder}: its files lie in folders; give a pattern, '{folder}/*/*'"
      )
    return list_images(folder)
  if not is_pattern(where):
    raise InputError(
      f'no folder {(root / where).resolve()}; expected images and labels as '
      'folders, or as patterns, in the folder --config.data.dir=DIR'
    )
  found = {*root.glob(where)}
  # A folder that the pattern finds stands for its images.
  found |= {file for each in found if each.is_dir() for file in each.iterdir()}
  folders = sorted({file.parent for file in found})
  files = [f for d in folders for f in images_in(d) if f in found]
  if not files:
    raise InputError(f'{root}: no image is {where}')
  return files


def is_pattern(where: str) -> bool:
  """Returns whether a path is a pattern, which may find several files."""
  return any(sign in where for sign in '*?[')


def images_in(folder: Path) -> list[Path]:
  """Returns the image files in a folder; [] if there is none."""
  try:
    return list_images(folder)
  except InputError:
    return []


def _by_key(
  root: Path, files: Iterable[Path], match: str
) -> dict[str, list[Path]]:
  keyed: dict[str, list[Path]] = {}
  for file in files:
    keyed.setdefault(find_key(file, root, match), []).append(file)
  return keyed
