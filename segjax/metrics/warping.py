# SPDX-License-Identifier: Apache-2.0
"""The warping error: how far a proposal splits and merges cells.

A label is first deformed towards the proposal as far as its topology allows
(Jain et al. 2010), so that a shifted membrane is no error. Pixels that still
differ are errors. The variant of the ISBI 2012 challenge, which is in Table 1
of the U-Net paper, counts those that split or merge cells. `stacks` defines
the input.
"""

import numpy as np

from segjax.metrics.stacks import THRESHOLDS, checked, components

# The challenge's warping error stops at 0.9.
_WARPING_THRESHOLDS = THRESHOLDS[:10]
# How far the challenge looks when it decides whether a pixel splits a cell.
_SPLIT_RADIUS_PX = 20
# Bits of a neighbourhood code: (row, column) steps around the pixel, edge
# neighbours at the even positions.
_RING = tuple(
  zip((-1, -1, 0, 1, 1, 1, 0, -1), (0, 1, 1, 1, 0, -1, -1, -1), strict=True)
)


def warping_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
  """Returns the share of pixels where a warped label splits or merges.

  The challenge's variant: only the mismatches that `split_or_merge` marks
  count, and the minimum over the thresholds 0, 0.1, ..., 0.9 is returned.
  Deleted cells are neither split nor merged, so a map that is all membrane at
  one threshold scores 0: read the score beside V_rand. Arguments and errors are
  those of `neuron.evaluate_stack`.

  >>> import numpy, segjax
  >>> labels = numpy.ones((1, 9, 9), int)
  >>> labels[:, 4] = 0  # A membrane between two cells.
  >>> merged = numpy.ones((1, 9, 9))  # A proposal without that membrane.
  >>> segjax.warping_error(labels, labels.astype(float))
  0.0
  >>> segjax.warping_error(labels, merged) > 0
  True
  """
  labels, probabilities = checked(labels, probabilities)
  best = labels.size
  # A threshold is given up as soon as it is no better than the best so far,
  # and the middle ones are the likely best.
  for threshold in sorted(_WARPING_THRESHOLDS, key=lambda t: abs(t - 0.5)):
    errors = 0
    for label, probability in zip(labels, probabilities, strict=True):
      warped = warp(label, probability, threshold)
      wrong = split_or_merge(warped, probability > threshold)
      errors += int(np.count_nonzero(wrong))
      if errors >= best:
        break
    best = min(best, errors)
  return best / labels.size


def warp(
  label: np.ndarray, probability: np.ndarray, threshold: float
) -> np.ndarray:
  """Returns a label deformed towards a proposal, with its topology kept.

  Pixels that differ are flipped one at a time, those whose probability is
  farthest from the threshold first (equal ones column by column), each only if
  it is a simple point at that moment (`is_simple`). Passes repeat until no
  pixel can be flipped. Outside the image is membrane.

  Args:
    label: bool[H,W], True inside cells.
    probability: float[H,W], probability of cell.
    threshold: the proposal is cell where the probability exceeds it.

  Returns:
    bool[H,W], the warped label.
  """
  # Transposed, so that flat order is column by column.
  probability = np.asarray(probability, np.float64).T
  target = np.pad(probability > threshold, 1)
  source = np.pad(label.T.astype(bool), 1)
  codes = np.zeros(source.shape, np.uint8)
  for bit, (row, column) in enumerate(_RING):
    neighbour = np.roll(source, (-row, -column), (0, 1))
    codes |= neighbour.astype(np.uint8) << bit
  # A neighbour sees this pixel in the opposite position, four bits further.
  neighbours = [
    (row * source.shape[1] + column, 1 << (bit + 4) % 8)
    for bit, (row, column) in enumerate(_RING)
  ]
  distance = np.pad(np.abs(probability - threshold), 1).astype(np.float32)
  differ = np.flatnonzero(source != target)
  farthest = np.argsort(-distance.ravel()[differ], kind='stable')
  pending = differ[farthest].tolist()
  codes = bytearray(codes.tobytes())
  simple = is_simple(np.arange(256)).tolist()
  while pending:
    kept = []
    for i in pending:
      if simple[codes[i]]:
        for offset, bit in neighbours:
          codes[i + offset] ^= bit
      else:
        kept.append(i)
    if len(kept) == len(pending):
      break
    pending = kept
  warped = target.copy()
  warped.ravel()[pending] ^= True
  return warped[1:-1, 1:-1].T


def is_simple(codes: np.ndarray) -> np.ndarray:
  """Returns which pixels can flip without a change of topology.

  A pixel is simple if its eight neighbours hold exactly one 4-connected piece
  of cell that touches it by an edge and exactly one 8-connected piece of
  membrane; 116 of the 256 neighbourhoods do. Computed as Yokoi's crossing
  number sum_k x_k (1 - x_(k+1) x_(k+2)) = 1 over the edge neighbours k.

  Args:
    codes: int[...] in 0..255, bit k set where the k-th neighbour is cell,
      counted around the pixel from an edge neighbour.

  Returns:
    bool[...].
  """
  x = [codes >> k & 1 for k in range(8)]
  crossings = [x[k] * (1 - x[k + 1] * x[(k + 2) % 8]) for k in range(0, 8, 2)]
  return np.sum(crossings, axis=0) == 1


def split_or_merge(warped: np.ndarray, proposal: np.ndarray) -> np.ndarray:
  """Returns the mismatches by which the proposal splits or merges cells.

  The eight neighbours of a mismatch in the warped label decide. A membrane
  pixel merges if they belong to two cells or more. A cell pixel splits if they
  do, or if they do once that pixel is removed, judged within 20 px. The other
  mismatches (holes, and objects added or deleted) are not marked.

  Args:
    warped: bool[H,W], a label after `warp`.
    proposal: bool[H,W], the proposal it was warped to.

  Returns:
    bool[H,W].
  """
  regions = np.pad(components(warped), 1)
  rows, columns = np.nonzero(warped != proposal)
  around = np.stack([regions[rows + 1 + r, columns + 1 + c] for r, c in _RING])
  wrong = _num_cells(around) > 1
  radius = _SPLIT_RADIUS_PX
  if radius > min(warped.shape):
    radius = max(warped.shape)
  for i in np.flatnonzero(~wrong & warped[rows, columns] & (around > 0).any(0)):
    top, left = max(rows[i] - radius, 0), max(columns[i] - radius, 0)
    window = warped[
      top : rows[i] + radius + 1, left : columns[i] + radius + 1
    ].copy()
    row, column = rows[i] - top, columns[i] - left
    window[row, column] = False
    parts = np.pad(components(window), 1)[row : row + 3, column : column + 3]
    wrong[i] = _num_cells(parts.reshape(-1, 1))[0] > 1
  marked = np.zeros(warped.shape, bool)
  marked[rows[wrong], columns[wrong]] = True
  return marked


def _num_cells(around: np.ndarray) -> np.ndarray:
  """Returns the number of distinct non-zero values in each column."""
  ordered = np.sort(around, axis=0)
  first = np.diff(ordered, axis=0, prepend=0) > 0
  return np.count_nonzero(first, axis=0)
