# SPDX-License-Identifier: Apache-2.0
"""Two-dimensional sequences of the Cell Tracking Challenge, as distributed.

    01/tTTT.tif                 frame TTT of sequence 01, gray
    01_GT/SEG/man_segTTT.tif    gold truth of some frames, by hand: instance
                                ids, 0 background
    01_ST/SEG/man_segTTT.tif    silver truth of all frames, made by computer

Sequence 02 has the same files. TTT has three or four digits. The markers for
tracking in 01_GT/TRA are not read. Nothing is downloaded.

Gold truth may mark only some cells of a frame ("very limited cell instance
coverage", celltrackingchallenge.net/annotations). The others then count as
background.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from segjax.data import border_weights, layout
from segjax.data.examples import Dataset, FileExamples, Item, digest_of_arrays
from segjax.errors import InputError
from segjax.images import single_images

CLASS_NAMES = ('background', 'cell')
_GRAY = ('uint8', 'uint16')


def load(
  dir: str,
  dataset: str,
  truth: str,
  train_sequences: Sequence[str],
  heldout_sequences: Sequence[str],
  w0: float,
  sigma_px: float,
  balance: bool,
) -> Dataset:
  """Returns the annotated frames of whole sequences, with border weights.

  `border_weights.separate_touching` carves gaps between cells that touch. The
  label is 1 in the rest of the cells, and the weights are computed from it;
  `instances` are the cells of the truth without gaps. Frames whose truth marks
  no cell are left out with a warning. Frames of one sequence show the same
  cells, so whole sequences are held out. All frames are read here and kept in
  memory: 9 bytes a pixel, one more for images of 16 bits, and the truth.

  Args:
    dir: folder of the layout above, or the parent of a folder `dataset` with
      this layout; '' looks in the usual places (see `layout.find_folder`).
    dataset: name of the set, such as 'PhC-C2DH-U373'.
    truth: 'GT' for gold truth or 'ST' for silver truth.
    train_sequences: sequences to train on, such as ('01',).
    heldout_sequences: sequences to hold out, such as ('02',); () for none.
    w0, sigma_px: see `border_weights.border_weights`.
    balance: whether both classes get the same total weight over the training
      frames.

  Raises:
    InputError: a folder, frame or truth is missing, damaged, a volume, not gray
      or of unequal size; an argument is out of range; or no frame has a cell.
  """
  if truth not in ('GT', 'ST'):
    raise InputError(f"data.truth={truth!r}; expected 'GT' gold, 'ST' silver")
  if not train_sequences:
    raise InputError("data.train_sequences is empty; expected such as '01'")
  sequences = (*train_sequences, *heldout_sequences)
  for sequence in sequences:
    if not re.fullmatch('[0-9]{2}', sequence):
      raise InputError(f"sequence {sequence!r}; expected two digits as in '01'")
    if sequences.count(sequence) > 1:
      raise InputError(f'sequence {sequence} is named twice; expected once')
  root = layout.find_folder(
    f'{dataset} of the Cell Tracking Challenge',
    dir,
    [path for s in sequences for path in (s, f'{s}_{truth}/SEG')],
    dataset,
    'frames in 01 and their truth in 01_GT/SEG or 01_ST/SEG',
  )
  train = [e for s in train_sequences for e in _frames(root, s, truth)]
  heldout = [e for s in heldout_sequences for e in _frames(root, s, truth)]
  class_weights = None
  if balance:
    counts = [border_weights.class_counts(_cell(e['label']), 2) for e in train]
    class_weights = border_weights.class_balance(np.sum(counts, axis=0))

  for example in (*train, *heldout):
    example['weight'] = border_weights.border_weights(
      example['label'], w0=w0, sigma=sigma_px, class_weights=class_weights
    )
    example['label'] = _cell(example['label'])
  digest = digest_of_arrays((*train, *heldout))
  return Dataset(CLASS_NAMES, train, heldout, digest)


def _frames(root: Path, sequence: str, truth: str) -> list[dict]:
  """Returns examples whose `label` is `instances` that do not touch."""
  folder = root / f'{sequence}_{truth}' / 'SEG'
  numbered = {}
  for file in folder.glob('man_seg*.tif'):
    match = re.fullmatch(r'man_seg([0-9]{3,4})\.tif', file.name)
    if not match:
      raise InputError(
        f'{file}: expected man_segTTT.tif with three or four digits; '
        'man_seg_TTT_ZZZ.tif belongs to a volume; only 2-D sequences are read'
      )
    numbered[match[1]] = file
  items = layout.check_files(
    (
      Item(
        f'{sequence}-t{number}',
        (root / sequence / f't{number}.tif', numbered[number]),
      )
      for number in sorted(numbered, key=int)
    ),
    folder,
  )
  frames, empty = [], []
  for item, example in zip(items, FileExamples(items, _read), strict=True):
    instances = example['label']
    if instances.any():
      carved = border_weights.separate_touching(instances)
      frames.append({**example, 'label': carved, 'instances': instances})
    else:
      empty.append(item.files[1])
  if not frames:
    raise InputError(
      f'{folder} marks no cell in any frame: all pixels of {len(empty)} files '
      'are 0; expected numbers of cells'
    )
  for file in empty:
    logging.warning('%s marks no cell; left out', file)
  return frames


def _read(image: Path, truth: Path) -> tuple[np.ndarray, np.ndarray]:
  return single_images.read_image(image, _GRAY, 1), single_images.read_indices(
    truth
  )


def _cell(instances: np.ndarray) -> np.ndarray:
  """Returns i32, 0 background and 1 cell."""
  return (instances > 0).astype(np.int32)
