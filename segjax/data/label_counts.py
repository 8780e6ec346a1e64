# SPDX-License-Identifier: Apache-2.0
"""Counting the labels of a data set before a run trains on them.

Labels that give a class no pixel train to the end without an error: masks of 0
and 255, read with 255 ignored, have an object that no pixel shows.
"""

import concurrent.futures
from collections.abc import Mapping, Sequence

import numpy as np

from segjax.data.examples import IGNORE_LABEL, Dataset, list_some
from segjax.devices import processes
from segjax.errors import InputError

_THREADS = 4
_BLOCK = 256  # Examples in the queue of the threads, whatever their number.

# Settings that say how classes are stored; and which labels are read, beside
# those whose names begin with train or heldout.
_CODING = ('label_values', 'ignore_value', 'label_shift', 'class_names')
_SOURCE = ('dir', 'fold')


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
  ends = np.cumsum(sizes)
  heads = [
    dataset.class_names[end - size : end]
    for size, end in zip(sizes, ends, strict=True)
  ]
  counts = {}
  for split in ('train', 'heldout'):
    examples = getattr(dataset, split)
    counts[split] = count_labels(examples, len(heads))
    if not len(examples):
      continue
    for head, names in enumerate(heads):
      problem = _problem(counts[split][head], names, dataset.stored, split)
      if problem:
        which = f' ({head + 1} of {len(heads)} of a pixel)'
        raise InputError(
          f'{len(examples)} {"training" if split == "train" else "held-out"} '
          f'labels{which if len(heads) > 1 else ""}: {problem}'
          f'{_advice(counts[split][head], names, dataset.stored, settings)}'
          f'; see {_fields(settings, split)}'
        )
  return _summary(dataset, heads, counts['train'])


def _problem(counts, names, stored, split):
  """Returns what is wrong with the labels of a split, '' for nothing."""
  if not counts[: len(names)].any():
    problem = 'all pixels are ignored'
  elif split == 'train' and (missing := _missing(counts, names, stored)):
    classes = list_some(repr(names[k]) for k in missing)
    problem = f'no pixel is of class {classes}'
  else:
    return ''
  kinds = dict(enumerate(names)) | {IGNORE_LABEL: 'ignored'}
  values = dict(zip(kinds, stored, strict=False))
  found = list_some(
    f'{counts[k]:,} px {name}'
    + (f' (value {values[k]})' if k in values else '')
    for k, name in kinds.items()
    if counts[k]
  )
  return f'{problem}; they hold {found}'


def _missing(counts, names, stored):
  """Returns the classes without a pixel whose value is not the ignored one."""
  ignored = stored[len(names) :]
  return [
    k
    for k in range(len(names))
    if not counts[k] and not (ignored and stored[k] in ignored)
  ]


def _advice(counts, names, stored, settings):
  """Returns label_values that make the ignored value the only missing class."""
  missing = _missing(counts, names, stored)
  if settings['name'] != 'folder' or len(missing) != 1 or not stored:
    return ''
  if not counts[IGNORE_LABEL]:
    return ''
  values, ignored = list(stored[: len(names)]), stored[-1]
  values[missing[0]] = ignored
  return (
    f'; if {ignored} is {names[missing[0]]!r}, give '
    f'--config.data.label_values="({", ".join(map(str, values))})"'
  )


def _fields(settings, split):
  names = [name for name in _CODING if name in settings]
  names += [
    name for name in settings if name in _SOURCE or name.startswith(split)
  ]
  return ', '.join(f'data.{name}' for name in names)


def _summary(dataset, heads, counts):
  """Returns the shares of ignored pixels and of the rarest class."""
  shares = [
    (count / row.sum(), name)
    for row, names in zip(counts, heads, strict=True)
    for count, name in zip(row, names, strict=False)
    if count
  ]
  share, rarest = min(shares, default=(0, 'none'))
  ignored = counts[:, IGNORE_LABEL].sum() / max(counts.sum(), 1)
  return (
    f'labels: {len(dataset.train)} to train on, {len(dataset.heldout)} held '
    f'out; of the pixels to train on, {ignored:.2%} are ignored and '
    f'{share:.2%} are of the rarest class, {rarest}'
  )
