# SPDX-License-Identifier: Apache-2.0
"""Counts of the labels of a data set, checked before a run trains on them.

Training does not notice labels in which a class has no pixel, such as masks of
0 and 255 that are read with 255 as the ignored value.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from segjax.data.examples import (
  IGNORE_LABEL,
  Dataset,
  list_some,
  map_in_threads,
)
from segjax.data.label_colours import LabelColours
from segjax.devices import processes
from segjax.errors import InputError
from segjax.images.files import read_colours
from segjax.runs.writers import progress_bar, table

# Is said wherever pixels of numbered objects are counted or scored.
CARVED = (
  'pixels count with gaps of background between objects that touch, as the '
  'network learns them'
)

# Settings that say how classes are stored, and which labels are read. The names
# of others begin with train or heldout.
_CODING = ('label_values', 'ignore_value', 'label_shift', 'class_names')
_SOURCE = ('dir', 'fold')


class LabelCounts(NamedTuple):
  """Counts of the labels of a split.

  Attributes:
    pixels: int64[T, 256], number of pixels of each class and, at
      `IGNORE_LABEL`, of ignored pixels.
    images: int64[T, 256], number of labels that have such a pixel.
    colours: colours of indices in the palettes of the label files.
  """

  pixels: np.ndarray
  images: np.ndarray
  colours: LabelColours


def count_labels(examples: Sequence[dict], num_heads: int = 1) -> LabelCounts:
  """Returns the counts of all labels of a split, for each of T heads.

  Each label is read once, in a few threads, and its image only if the examples
  have no method `label(index)`. If they have `index_page(index)`, the palettes
  of these files are compared. Each of P processes reads one P-th of the
  examples, and all processes get the counts of all.

  Args:
    examples: see `segjax.data.examples`.
    num_heads: T, number of labels of a pixel.

  Raises:
    InputError: an example cannot be read, or palettes differ; see
      `LabelColours`.
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
    # With None, tqdm shows the bar only on a terminal.
    disable = None if processes.is_first() else True
    with progress_bar(
      len(own), 0, desc='reading labels', delay=1, disable=disable
    ) as bar:
      for counts, file, of_indices in map_in_threads(count, own):
        total += counts
        if file:
          colours.add(file, of_indices)
        bar.update()
    return total

  pixels, images = processes.gather(processes.together(count_own)).sum(0)
  return LabelCounts(pixels, images, colours.gathered())


def check_labels(dataset: Dataset, settings: Mapping) -> str:
  """Returns a table of all labels of a data set.

  Args:
    dataset: the data set.
    settings: its name and the arguments of its loader, for messages.

  Raises:
    InputError: a label cannot be read; all pixels of the training labels, or of
      the held-out labels, are ignored; a class has no pixel in the training
      labels, and `ignore_value` does not say so; or palettes differ.
  """
  sizes = dataset.head_sizes or (len(dataset.class_names),)
  ends = np.cumsum(sizes)
  heads = [
    dataset.class_names[end - size : end]
    for size, end in zip(sizes, ends, strict=True)
  ]
  train = count_labels(dataset.train, len(heads))
  heldout = count_labels(dataset.heldout, len(heads))
  for split, examples, counts in (
    ('training', dataset.train, train),
    ('held-out', dataset.heldout, heldout),
  ):
    for head, names in enumerate(heads if len(examples) else ()):
      pixels = counts.pixels[head]
      missing = _missing(pixels, names, dataset.stored)
      if not pixels[: len(names)].any():
        problem = 'all pixels are ignored'
      elif missing and split == 'training':
        classes = list_some(repr(names[k]) for k in missing)
        problem = f'no pixel is of class {classes}'
      else:
        continue
      problem += f'; they hold {_say_pixels(pixels, names, dataset.stored)}'
      is_drawn = 'seed' in settings and not settings.get('train_list')
      if is_drawn and heldout.pixels[head, missing].any():
        problem += (
          '; held-out labels have it: with another --config.data.seed others '
          'are held out'
        )
      which = f' ({head + 1} of {len(heads)} of a pixel)'
      raise InputError(
        f'{len(examples)} {split} labels{which if len(heads) > 1 else ""}: '
        f'{problem}{_advice(pixels, names, missing, dataset.stored, settings)}'
        f'; see {_fields(settings, "train" if counts is train else "heldout")}'
      )
  text = _table(dataset, heads, train, heldout)
  if settings.get('label_kind') == 'instances':
    text += f'\n{CARVED}'
  doubt = train.colours.gathered([heldout.colours]).doubt()
  return text + (f'\npalettes: {doubt}' if doubt else '')


def _say_pixels(counts, names, stored):
  """Returns the number of pixels of each class that has any, in words."""
  kinds = dict(enumerate(names)) | {IGNORE_LABEL: 'ignored'}
  values = dict(zip(kinds, stored, strict=False))
  return list_some(
    f'{counts[k]:,} px {name}'
    + (f' (value {values[k]})' if k in values else '')
    for k, name in kinds.items()
    if counts[k]
  )


def _missing(counts, names, stored):
  """Returns the classes without a pixel, except one whose value is ignored."""
  ignored = stored[len(names) :]
  return [
    k
    for k in range(len(names))
    if not counts[k] and not (ignored and stored[k] in ignored)
  ]


def _advice(counts, names, missing, stored, settings):
  """Returns the label_values that make the ignored value the missing class."""
  is_sole = len(missing) == 1 and counts[IGNORE_LABEL]
  if settings['name'] != 'folder' or not is_sole or not stored:
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
