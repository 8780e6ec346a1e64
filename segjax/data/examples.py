# SPDX-License-Identifier: Apache-2.0
"""The contract of data sets: an example, and sets of examples.

An example is a dict of arrays in the memory of the host:

    image   uint8, uint16 or f32 in [0, 1], [H, W, C]; colours in RGB order
    label   i32[H, W], class index, or `IGNORE_LABEL`; i32[H, W, T] for T heads
    weight  f32[H, W], loss weight of each pixel; without it all weigh 1
    name    str
    instances  integers [H, W], the number of the object in each pixel, 0 for
            the background; only for sets whose objects are scored

A batch has the same arrays with a leading axis B, without names and instances.
"""

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segjax.errors import InputError

IGNORE_LABEL = 255

_SAMPLE_BYTES = 4096  # Of each file, three times.
_THREADS = 4
_BLOCK = 64  # Items in the queue of the threads.


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Examples to train on and examples held out.

  Attributes:
    class_names: names of classes 0..K-1. With several heads, the classes of
      the first head come first.
    train: examples to train on.
    heldout: examples to evaluate on; may be empty.
    digest: checksum of the data (SHA-256, hexadecimal).
    palette: u8[K, 3], RGB colours of the classes in pictures; None for the
      colours of VOC.
    head_sizes: number of classes of each head; () for one head with all
      classes.
    stored: K or K + 1 values: those of the classes in label files, and that of
      ignored pixels. A value that occurs twice means ignored. () if messages
      need no such values.
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
    items: an item for each example.
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
    check_equal_size(label, item.files[-1], image, item.files[0])
    return {'image': image, 'label': label, 'name': item.name}

  def index_page(self, index: int) -> tuple[Path, int] | None:
    """Returns the label file and its page; a .mat has no pages: None."""
    file = self.items[index].files[-1]
    return None if file.suffix == '.mat' else (file, 0)


@dataclasses.dataclass(frozen=True)
class Chained(Sequence):
  """The examples of several sets in one sequence, read when asked for.

  Attributes:
    sets: the sets of examples, in their order.
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


def file_of(examples: Sequence[dict], index: int) -> Path | str:
  """Returns the image file of an example, or its name if it has no file."""
  items = getattr(examples, 'items', None)
  return items[index].files[0] if items else examples[index]['name']


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
  """Returns a data set of `FileExamples`.

  Args:
    class_names, palette, head_sizes: see `Dataset`.
    train: items to train on.
    heldout: items to evaluate on.
    read: see `FileExamples`.
    settings: values that decide what is read from the files; the digest
      depends on them, too.

  Raises:
    InputError: an example is both trained on and held out.
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


def map_in_threads(function: Callable, items: Sequence) -> Iterator[Any]:
  """Yields function(item) for each item, in order, computed by a few threads.

  Only a block of items is in the queue, so memory does not grow with them.
  """
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for start in range(0, len(items), _BLOCK):
      yield from pool.map(function, items[start : start + _BLOCK])


def check_disjoint(train: Iterable[Item], heldout: Iterable[Item]) -> None:
  """Raises InputError if an example is both trained on and held out."""
  trained = {item.name for item in train}
  for item in heldout:
    if item.name in trained:
      raise InputError(
        f'{item.name} is both trained on and held out; expected one of them'
      )


def digest_of_arrays(examples: Iterable[dict]) -> str:
  """Returns the checksum of all images and labels (SHA-256, hexadecimal)."""
  digest = hashlib.sha256()
  for example in examples:
    for name in ('image', 'label'):
      digest.update(np.ascontiguousarray(example[name]).data)
  return digest.hexdigest()


def digest_of_files(items: Iterable[Item], *settings: object) -> str:
  """Returns two checksums (SHA-256, hexadecimal) with a + between them.

  The first is that of the settings, of the names of all examples and of the
  sizes of their files; older runs have only this one, see
  `integrity.is_digest_of`. The second is that of the contents: of 4 KiB at the
  start, in the middle and at the end of each file, since reading a large set
  would take minutes.

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
  stored: np.ndarray,
  num_classes: int,
  file: Path | str,
  *,
  first: int = 0,
  ignored: Sequence[int] = (IGNORE_LABEL,),
) -> np.ndarray:
  """Returns a stored label as class indices 0..K-1 and `IGNORE_LABEL`, i32.

  Args:
    stored: integers of any shape.
    num_classes: K.
    file: file of the label, for messages.
    first: stored value of class 0; those of the other classes follow it.
    ignored: stored values of ignored pixels.

  Raises:
    InputError: a stored value is neither a class nor ignored.
  """
  is_ignored = np.isin(stored, ignored)
  known = is_ignored | ((stored >= first) & (stored < first + num_classes))
  values = ' or '.join(map(str, ignored))
  expected = f'{first}..{first + num_classes - 1}, or {values} for ignored'
  check_known(stored, known, file, expected)
  label = stored.astype(np.int64) - first
  label[is_ignored] = IGNORE_LABEL
  return label.astype(np.int32)


def check_equal_size(
  label: np.ndarray,
  label_file: Path,
  image: np.ndarray,
  image_file: Path,
  what: str = 'label',
) -> None:
  """Raises InputError unless a label, or `what`, has the size of its image."""
  if label.shape[:2] != image.shape[:2]:
    h, w, height, width = *label.shape[:2], *image.shape[:2]
    raise InputError(
      f'{label_file}: {what} of {h} x {w} px for an image of {height} x '
      f'{width} px ({image_file}); they must be equal'
    )


def check_known(
  label: np.ndarray, known: np.ndarray, file: Path | str, expected: str
) -> None:
  """Raises InputError for the first pixel that is not `known`.

  The message lists all values of the label if it has one channel.

  Args:
    label: [H, W] or [H, W, 3], as stored.
    known: bool[H, W].
    file: file of the label, for the message.
    expected: values that would be right, for the message.
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
  """Returns the first `most` texts in one line, and how many more there are."""
  texts = list(texts)
  more = f' and {len(texts) - most} more' if len(texts) > most else ''
  return ', '.join(texts[:most]) + more
