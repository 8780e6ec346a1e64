# SPDX-License-Identifier: Apache-2.0
"""Counting the labels of a data set before a run trains on them.

Labels that give a class no pixel train to the end without an error: masks of 0
and 255, read with 255 ignored, have an object that no pixel shows.
"""

import concurrent.futures
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from segjax.data.examples import IGNORE_LABEL, Dataset, list_some
from segjax.data.label_colours import LabelColours
from segjax.devices import processes
from segjax.errors import InputError
from segjax.images.files import read_colours
from segjax.runs.writers import progress_bar, table

# Said wherever pixels of numbered objects are counted or scored.
CARVED = (
  'pixels count with gaps of background between objects that touch, as the '
  'network learns them'
)
_THREADS = 4
_BLOCK = 256  # Examples in the queue of the threads, whatever their number.

# Settings that say how classes are stored; and which labels are read, beside
# those whose names begin with train or heldout.
_CODING = ('label_values', 'ignore_value', 'label_shift', 'class_names')
_SOURCE = ('dir', 'fold')


class LabelCounts(NamedTuple):
  """What the labels of a split hold.

  Attributes:
    pixels: int64[T, 256], of each class, and of `IGNORE_LABEL` in its place.
    images: int64[T, 256], how many labels have such a pixel.
    colours: of the palettes of label files, of all processes.
  """

  pixels: np.ndarray
  images: np.ndarray
  colours: LabelColours


def count_labels(examples: Sequence[dict], num_heads: int = 1) -> LabelCounts:
  """Returns what all labels of a split hold, for each of T labels of a pixel.

  Reads each label once, in a few threads; the images, too, unless the examples
  have a method `label(index)`. If they have `index_page(index)`, palettes of
  these files are compared. Of P processes each reads one P-th of the examples,
  and all get the counts of all.

  Args:
    examples: as `segjax.data.examples` defines them.
    num_heads: T, labels of a pixel.

  Raises:
    InputError: an example cannot be read; it is the first one of the first
      process that has one. Or palettes differ, see `LabelColours`.
  """
  size = IGNORE_LABEL + 1
  label_of = getattr(examples, 'label', lambda i: examples[i]['label'])
  page_of = getattr(examples, 'index_page', lambda i: None)
  colours = LabelColours()

  def count(index):
    labels = label_of(index).reshape(-1, num_heads).T
    pixels = [np.bincount(label, minlength=size) for label in labels]
    counts = np.stack([pixels, np.sign(pixels)])
    if not (page := page_of(index)):
      return counts, None, None
    return counts, page[0], read_colours(*page)

  def count_own():
    own = [i for i in processes.share(len(examples)) if i < len(examples)]
    total = np.zeros((2, num_heads, size), np.int64)
    with (
      progress_bar(
        len(own),
        0,
        desc='reading labels',
        delay=1,
        # None disables it where there is no terminal.
        disable=None if processes.is_first() else True,
      ) as bar,
      concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
    ):
      for start in range(0, len(own), _BLOCK):
        for found in pool.map(count, own[start : start + _BLOCK]):
          counts, file, of_indices = found
          total += counts
          if file:
            colours.add(file, of_indices)
          bar.update()
    return total

  pixels, images = processes.gather(processes.together(count_own)).sum(0)
  return LabelCounts(pixels, images, colours.gathered())


def check_labels(dataset: Dataset, settings: Mapping) -> str:
  """Returns a table of the labels of a data set, all of them read.

  Args:
    dataset: the data set.
    settings: its name and the arguments of its loader, which messages point to.

  Raises:
    InputError: a label cannot be read; all pixels of the training labels, or of
      the held-out labels, are ignored; or a class has no pixel in the training
      labels, and `ignore_value` doesn't say so. Or palettes differ.
  """
  sizes = dataset.head_sizes or (len(dataset.class_names),)
  ends = np.cumsum(sizes)
  heads = [
    dataset.class_names[end - size : end]
    for size, end in zip(sizes, ends, strict=True)
  ]
  counts = {
    split: count_labels(getattr(dataset, split), len(heads))
    for split in ('train', 'heldout')
  }
  for split in counts:
    examples = getattr(dataset, split)
    if not len(examples):
      continue
    for head, names in enumerate(heads):
      pixels = counts[split].pixels[head]
      problem = _problem(pixels, names, dataset.stored, split)
      if problem:
        others = counts['heldout'].pixels[head]
        missing = _missing(pixels, names, dataset.stored)
        is_drawn = 'seed' in settings and not settings.get('train_list')
        if is_drawn and any(others[k] for k in missing):
          problem += (
            '; held-out labels have it: with another --config.data.seed others '
            'are held out'
          )
        which = f' ({head + 1} of {len(heads)} of a pixel)'
        raise InputError(
          f'{len(examples)} {"training" if split == "train" else "held-out"} '
          f'labels{which if len(heads) > 1 else ""}: {problem}'
          f'{_advice(pixels, names, dataset.stored, settings)}'
          f'; see {_fields(settings, split)}'
        )
  colours = counts['train'].colours.gathered([counts['heldout'].colours])
  table = _table(dataset, heads, counts['train'], counts['heldout'])
  doubt = colours.doubt()
  if settings.get('label_kind') == 'instances':
    table += f'\n{CARVED}'
  return table + (f'\npalettes: {doubt}' if doubt else '')


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


def _table(dataset, heads, train, heldout):
  """Returns a row for each class, and one for ignored pixels."""
  rows = []
  for head, names in enumerate(heads):
    total = max(train.pixels[head].sum(), 1)
    for k, name in (*enumerate(names), (IGNORE_LABEL, 'ignored')):
      pixels = train.pixels[head, k]
      if k == IGNORE_LABEL and not (pixels or heldout.pixels[head, k]):
        continue
      rows.append(
        (
          name,
          f'{pixels:,}'.rjust(15),
          f'{pixels / total:.2%}'.rjust(7),
          train.images[head, k],
          f'{heldout.pixels[head, k]:,}'.rjust(15),
          heldout.images[head, k],
        )
      )
  header = ('class', 'trained px'.rjust(15), 'share'.rjust(7), 'images')
  return (
    f'labels: {len(dataset.train)} to train on, {len(dataset.heldout)} held '
    f'out\n{table(rows, (*header, "held-out px".rjust(15), "images"))}'
  )
