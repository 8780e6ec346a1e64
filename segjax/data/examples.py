# SPDX-License-Identifier: Apache-2.0
"""The contract that data sets share: examples, and the sets made of them.

An example is a dict of host arrays:

    image   uint8, uint16 or f32 in [0, 1], [H, W, C]; colours in RGB order
    label   i32[H, W], class index, or `IGNORE_LABEL`; i32[H, W, T] for T heads
    weight  f32[H, W], loss weight of each pixel; may be absent, which is 1
    name    str
    instances  unsigned [H, W], ids of objects to be scored by, 0 background;
            may be absent

A batch is the same with a leading B, and without names and instances.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from segjax.errors import InputError

IGNORE_LABEL = 255

_SAMPLE_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Examples to train on and examples held out.

  Attributes:
    class_names: names of classes 0..K-1; of several heads, one after another.
    train: examples to train on.
    heldout: examples to evaluate on; may be empty.
    digest: hexadecimal SHA-256 that other data would not have.
    palette: u8[K, 3], RGB colours of the classes in pictures; None is VOC's.
    head_sizes: how many of the classes each label of a pixel has; () is one
      label that has all.
    stored: K or K + 1 values that stand for the classes in label files, and
      then for ignored pixels; one that stands for both is ignored. () where
      messages need no such values.
  """

  class_names: tuple[str, ...]
  train: Sequence[dict]
  heldout: Sequence[dict]
  digest: str
  palette: np.ndarray | None = None
  head_sizes: tuple[int, ...] = ()
  stored: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Item:
  """The files of one example, in the order that its reader takes them."""

  name: str
  files: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class FileExamples(Sequence):
  """Examples that are read from files when they are asked for.

  Attributes:
    items: one an example.
    read: (*item.files) -> image [H, W, C], label i32[H, W] or [H, W, T].
  """

  items: tuple[Item, ...]
  read: Callable[..., tuple[np.ndarray, np.ndarray]]

  def __len__(self) -> int:
    return len(self.items)

  def __getitem__(self, index: int) -> dict:
    """Returns `image`, `label` and `name`.

    Raises:
      InputError: a file cannot be read, or image and label differ in size.
    """
    item = self.items[index]
    image, label = self.read(*item.files)
    if image.shape[:2] != label.shape[:2]:
      h, w, height, width = *label.shape[:2], *image.shape[:2]
      raise InputError(
        f'{item.files[-1]}: label of {h} x {w} px for an image of {height} x '
        f'{width} px ({item.files[0]}); they must be equal'
      )
    return {'image': image, 'label': label, 'name': item.name}

  def index_page(self, index: int) -> tuple[Path, int] | None:
    """Returns file and page that hold the label as indices; None of a .mat."""
    file = self.items[index].files[-1]
    return None if file.suffix == '.mat' else (file, 0)


@dataclasses.dataclass(frozen=True)
class Chained(Sequence):
  """The examples of several sets, one set after another, read when asked for.

  Attributes:
    sets: of examples.
  """

  sets: tuple[Sequence[dict], ...]

  def __len__(self) -> int:
    return sum(map(len, self.sets))

  def __getitem__(self, index: int) -> dict:
    for examples in self.sets:
      if index < len(examples):
        return examples[index]
      index -= len(examples)
    raise IndexError(index)


def dataset_of_files(
  class_names: Sequence[str],
  train: Sequence[Item],
  heldout: Sequence[Item],
  read: Callable[..., tuple[np.ndarray, np.ndarray]],
  *,
  settings: Sequence = (),
  palette: np.ndarray | None = None,
  head_sizes: tuple[int, ...] = (),
) -> Dataset:
  """Returns a data set whose examples are read when they are asked for.

  Args:
    class_names: as in `Dataset`.
    train: items to train on.
    heldout: items to evaluate on.
    read: as in `FileExamples`.
    settings: what changes images or labels and is not in the files; part of
      the digest.
    palette: as in `Dataset`.
    head_sizes: as in `Dataset`.

  Raises:
    InputError: an example is trained on and held out.
  """
  check_disjoint(train, heldout)
  return Dataset(
    class_names=tuple(class_names),
    train=FileExamples(tuple(train), read),
    heldout=FileExamples(tuple(heldout), read),
    digest=digest_of_files((*train, *heldout), len(train), *settings),
    palette=palette,
    head_sizes=head_sizes,
  )


def check_disjoint(train: Iterable[Item], heldout: Iterable[Item]) -> None:
  """Raises InputError if an example is trained on and held out."""
  trained = {item.name for item in train}
  for item in heldout:
    if item.name in trained:
      raise InputError(
        f'{item.name} is both trained on and held out; expected one of them'
      )


def digest_of_arrays(examples: Iterable[dict]) -> str:
  """Returns the SHA-256 of all images and labels, in hexadecimal."""
  digest = hashlib.sha256()
  for example in examples:
    for name in ('image', 'label'):
      digest.update(np.ascontiguousarray(example[name]).data)
  return digest.hexdigest()


def digest_of_files(items: Iterable[Item], *settings: object) -> str:
  """Returns two SHA-256 in hexadecimal, with a + between them.

  The first is of the names of all examples and the sizes of their files, and is
  all that older runs have; see `integrity.is_digest_of`. The second is of the
  contents: of 4 KiB at the start, in the middle and at the end of each file,
  since all of a large set would take minutes.

  Args:
    items: the examples.
    *settings: numbers, str and tuples that also decide what is read.

  Raises:
    InputError: a file cannot be read.
  """
  names = hashlib.sha256(repr(settings).encode() if settings else b'')
  contents = hashlib.sha256()
  for item in items:
    sizes = [file.stat().st_size for file in item.files]
    names.update(f'{item.name} {sizes}\n'.encode(errors='surrogateescape'))
    for path, size in zip(item.files, sizes, strict=True):
      try:
        with open(path, 'rb') as file:
          for start in (0, size // 2, max(size - _SAMPLE_BYTES, 0)):
            file.seek(start)
            contents.update(file.read(_SAMPLE_BYTES))
      except OSError as e:
        raise InputError(f'cannot read {path}: {e.strerror or e}') from e
  return f'{names.hexdigest()}+{contents.hexdigest()}'


def check_label(
  label: np.ndarray, num_classes: int, file: Path | str
) -> np.ndarray:
  """Returns the label as i32.

  Raises:
    InputError: a value is neither in 0..num_classes-1 nor `IGNORE_LABEL`.
  """
  known = (label == IGNORE_LABEL) | ((label >= 0) & (label < num_classes))
  expected = f'0..{num_classes - 1}, or {IGNORE_LABEL} for ignored'
  check_known(label, known, file, expected)
  return label.astype(np.int32)


def shift_label(
  stored: np.ndarray,
  num_classes: int,
  unlabelled: Sequence[int],
  file: Path | str,
) -> np.ndarray:
  """Returns a label stored as 1..num_classes as 0..num_classes-1, i32.

  Args:
    stored: integers of any shape.
    num_classes: K.
    unlabelled: the stored values that become `IGNORE_LABEL`.
    file: where it was stored, for the message.

  Raises:
    InputError: a value is neither in 1..num_classes nor unlabelled.
  """
  ignored = np.isin(stored, unlabelled)
  known = ignored | ((stored >= 1) & (stored <= num_classes))
  names = ' or '.join(map(str, unlabelled))
  expected = f'1..{num_classes}, or {names} for unlabelled'
  check_known(stored, known, file, expected)
  return np.where(ignored, IGNORE_LABEL, stored - 1).astype(np.int32)


def check_known(
  label: np.ndarray, known: np.ndarray, file: Path | str, expected: str
) -> None:
  """Raises InputError for the first pixel that is not `known`.

  The message lists the values of a label of one channel.

  Args:
    label: [H, W] or [H, W, 3], as stored.
    known: bool[H, W].
    file: where it is from, for the message.
    expected: what would be right, for the message.
  """
  if not known.all():
    row, column = np.unravel_index(np.argmin(known), known.shape)
    message = (
      f'{file}: label {label[row, column].tolist()} in row {row}, column '
      f'{column} (counted from 0); expected {expected}'
    )
    if label.ndim == 2:
      values = list_some(map(str, np.unique(label)))
      message += f'; the values in this label are {values}'
    raise InputError(message)


def list_some(texts: Iterable[str], most: int = 12) -> str:
  """Returns texts in one line, the first `most` of them."""
  texts = list(texts)
  more = f' and {len(texts) - most} more' if len(texts) > most else ''
  return ', '.join(texts[:most]) + more
