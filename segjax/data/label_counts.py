# SPDX-License-Identifier: Apache-2.0
"""Counting the labels of a data set before a run trains on them.

Labels that give a class no pixel train to the end without an error: masks of 0
and 255, read with 255 ignored, have an object that no pixel shows.
"""

import concurrent.futures
from collections.abc import Mapping, Sequence

import numpy as np

from segjax import processes
from segjax.data.examples import IGNORE_LABEL, Dataset, list_some
from segjax.errors import InputError

_THREADS = 4
_BLOCK = 256  # Examples in the queue of the threads, whatever their number.

# Settings that decide which labels are read, and as which classes.
_REMEDIES = (
  *('label_values', 'ignore_value', 'label_shift', 'class_names'),
  *('train_list', 'train_lists', 'train_split', 'train_sequences', 'fold'),
  'dir',
)


def count_labels(examples: Sequence[dict], num_heads: int = 1) -> np.ndarray:
  """Returns how many pixels of all labels have each value.

  Reads each example once, images too, in a few threads. Of P processes each
  reads one P-th of the examples, and all get the counts of all.

  Args:
    examples: as `segjax.data.examples` defines them.
    num_heads: T, labels of a pixel.

  Returns:
    int64[T, 256]: pixels of each class, and of `IGNORE_LABEL` in its place.

  Raises:
    InputError: an example cannot be read; it is the first one of the first
      process that has one.
  """

  def count(index):
    labels = examples[index]['label'].reshape(-1, num_heads).T
    size = IGNORE_LABEL + 1
    return np.stack([np.bincount(label, minlength=size) for label in labels])

  def count_own():
    own = [i for i in processes.share(len(examples)) if i < len(examples)]
    total = np.zeros((num_heads, IGNORE_LABEL + 1), np.int64)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      for start in range(0, len(own), _BLOCK):
        for counts in pool.map(count, own[start : start + _BLOCK]):
          total += counts
    return total

  return processes.gather(processes.together(count_own)).sum(axis=0)


def check_labels(dataset: Dataset, settings: Mapping) -> str:
  """Returns a line that sums up the labels of a data set, all of them read.

  Args:
    dataset: the data set.
    settings: its name and the arguments of its loader, which messages point to.

  Raises:
    InputError: a label cannot be read; all pixels of the training labels, or of
      the held-out labels, are ignored; or a class has no pixel in the training
      labels, and `ignore_value` doesn't say so.
  """
  sizes = dataset.head_sizes or (len(dataset.class_names),)
  train = count_labels(dataset.train, len(sizes))
  heldout = count_labels(dataset.heldout, len(sizes))
  shares, first = [], 0
  for head, size in enumerate(sizes):
    names = dataset.class_names[first : first + size]
    first += size
    of = f' ({head + 1} of {len(sizes)} of a pixel)' if len(sizes) > 1 else ''
    missing = _missing(train[head], size, dataset.stored)
    for split, examples, counts in (
      ('training', dataset.train, train[head]),
      ('held-out', dataset.heldout, heldout[head]),
    ):
      if not len(examples):
        continue
      if not counts[:size].any():
        problem = 'all pixels are ignored'
      elif split == 'training' and missing:
        classes = list_some(repr(names[k]) for k in missing)
        problem = f'no pixel is of class {classes}'
      else:
        continue
      raise InputError(
        f'{len(examples)} {split} labels{of}: {problem}; they hold '
        f'{_found(counts, names, dataset.stored)}; '
        f'{_remedy(counts, names, dataset.stored, missing, settings)}'
      )
    shares += [
      (count / train[head].sum(), name)
      for count, name in zip(train[head, :size], names, strict=True)
      if count
    ]
  share, name = min(shares, default=(0, 'none'))
  ignored = train[:, IGNORE_LABEL].sum() / max(train.sum(), 1)
  return (
    f'labels: {len(dataset.train)} to train on, {len(dataset.heldout)} held '
    f'out; of the pixels to train on, {ignored:.2%} are ignored and '
    f'{share:.2%} are of the rarest class, {name}'
  )


def _missing(counts, num_classes, stored):
  """Returns the classes without a pixel whose value is not the ignored one."""
  is_ignored = [value in stored[num_classes:] for value in stored[:num_classes]]
  absent = np.flatnonzero(counts[:num_classes] == 0)
  return [k for k in absent if not (stored and is_ignored[k])]


def _found(counts, names, stored):
  """Returns the classes that have pixels, with their values in the files."""
  kinds = dict(enumerate(names)) | {IGNORE_LABEL: 'ignored'}
  values = dict(zip(kinds, stored, strict=False))
  return list_some(
    f'{counts[k]:,} px {name}'
    + (f' (value {values[k]})' if k in values else '')
    for k, name in kinds.items()
    if counts[k]
  )


def _remedy(counts, names, stored, missing, settings):
  """Returns what may be set otherwise."""
  fields = [f'data.{name}' for name in _REMEDIES if name in settings]
  advice = f'see {", ".join(fields)}'
  if not (
    settings['name'] == 'folder'
    and len(missing) == 1
    and counts[IGNORE_LABEL]
    and stored
  ):
    return advice
  [k], values, ignored = missing, list(stored[: len(names)]), stored[-1]
  values[k] = ignored
  return (
    f'if {ignored} is {names[k]!r}, give --config.data.label_values='
    f'"({", ".join(map(str, values))})"; {advice}'
  )
