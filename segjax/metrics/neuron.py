# SPDX-License-Identifier: Apache-2.0
"""The metrics of the ISBI 2012 EM segmentation challenge.

V_rand and V_info after border thinning rank the challenge since 2016
(Arganda-Carreras et al. 2015); pixel, Rand and warping error are the older
ones that the U-Net paper reports in its Table 1. All follow the challenge's
own scripts, which differ from the textbook definitions (and from
scikit-image's `adapted_rand_error`) where the docstrings say so.

Contract: host numpy, one stack at a time. `labels` holds 0 (membrane) and
1 (cell), `probabilities` the probability of cell; both [N,H,W]. A pixel is
cell where its probability exceeds the threshold. Cells are 4-connected,
membranes 8-connected. Pixels outside the cells of the label never count,
except in the pixel and the warping error.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from segjax.errors import InputError

# The challenge's loop adds 0.1 to a double, so the last threshold is just
# below 1 and a probability of exactly 1 is cell at every threshold.
THRESHOLDS: tuple[float, ...] = tuple(
  itertools.accumulate([0.1] * 10, initial=0.0)
)
# The challenge's warping error stops at 0.9.
_WARPING_THRESHOLDS = THRESHOLDS[:10]
# How far the challenge looks when it decides whether a pixel splits a cell.
_SPLIT_RADIUS_PX = 20
# Bits of a neighbourhood code: (row, column) steps around the pixel, edge
# neighbours at the even places.
_RING = tuple(
  zip((-1, -1, 0, 1, 1, 1, 0, -1), (0, 1, 1, 1, 0, -1, -1, -1), strict=True)
)


def evaluate_stack(
  labels: np.ndarray, probabilities: np.ndarray, *, warping: bool = True
) -> dict[str, float]:
  """Returns every score of the challenge for one stack.

  V_rand and V_info are means over the slices at each of `THRESHOLDS`, then
  the best over one threshold common to all slices.

  Args:
    labels: [N,H,W], 0 membrane, 1 cell; at least one cell pixel a slice.
    probabilities: float[N,H,W] in [0, 1], probability of cell.
    warping: False leaves out `warping_error`, the slowest score.

  Returns:
    `v_rand`, `v_info` (higher is better) and the thresholds they were
    reached at, `v_rand_threshold`, `v_info_threshold` (the lowest of equals);
    `pixel_error`, `rand_error`, `warping_error` (lower is better).

  Raises:
    InputError: shapes differ or are not [N,H,W], a label is not 0 or 1, a
      slice has no cell, a probability is NaN or outside [0, 1].
  """
  labels, probabilities = _checked(labels, probabilities)
  slices = np.empty((len(labels), len(THRESHOLDS), 2))
  for n, (label, probability) in enumerate(
    zip(labels, probabilities, strict=True)
  ):
    regions = components(label)
    for t, cell in _distinct(probability):
      table = _contingency(regions, thin(cell))
      # Later thresholds with the same binarisation keep this score.
      slices[n, t:] = _rand_scores(table)[0], _information_scores(table)[0]
  v_rands, v_infos = slices.mean(axis=0).T
  scores = {
    'v_rand': float(v_rands.max()),
    'v_info': float(v_infos.max()),
    'v_rand_threshold': THRESHOLDS[v_rands.argmax()],
    'v_info_threshold': THRESHOLDS[v_infos.argmax()],
    'pixel_error': pixel_error(labels, probabilities),
    'rand_error': rand_error(labels, probabilities),
  }
  if warping:
    scores['warping_error'] = warping_error(labels, probabilities)
  return scores


def components(cell: np.ndarray) -> np.ndarray:
  """Numbers the 4-connected cells of bool[H,W] from 1; int32[H,W], 0 else."""
  return ndimage.label(cell)[0].astype(np.int32, copy=False)


def thin(cell: np.ndarray) -> np.ndarray:
  """Thins the membranes to watershed lines one pixel wide.

  Floods the inverted binary map from the cells, 4-connected. The challenge
  thins a proposal so that the width of its membranes does not count.

  Args:
    cell: bool[H,W], True inside cells.

  Returns:
    int32[H,W], the grown cells numbered as by `components`, 0 on the lines.
    A map without any cell is one plateau and becomes one region, as in the
    challenge's watershed.
  """
  markers = components(cell)
  if markers.max() <= 1:
    return np.ones_like(markers)
  membrane = (markers == 0).astype(np.uint8)
  return watershed(membrane, markers, connectivity=1, watershed_line=True)


def v_rand(
  label_components: np.ndarray, proposal_components: np.ndarray
) -> tuple[float, float, float]:
  """Returns the foreground-restricted Rand score: (f, precision, recall).

  With n_ij pixels in label cell i and proposal region j (i, j >= 1), a_i in
  cell i, b_j in region j and inside any cell, s inside a cell but in no region:

    precision = (sum n_ij^2 + s) / (sum b_j^2 + s), low where cells merge
    recall    = (sum n_ij^2 + s) / (sum a_i^2), low where cells split
    f         = harmonic mean of the two

  Each of the s pixels is a region of its own. Source: Arganda-Carreras et
  al. 2015, with the N^2 normalisation of the challenge.

  Args:
    label_components: int[H,W], cells from 1, 0 where nothing is scored.
    proposal_components: int[H,W], regions from 1, 0 in none; for the
      challenge's score the output of `thin`.

  Raises:
    InputError: shapes differ, a number is negative, or there is no cell.
  """
  return _rand_scores(_contingency(label_components, proposal_components))


def v_info(
  label_components: np.ndarray, proposal_components: np.ndarray
) -> tuple[float, float, float]:
  """Returns the information theoretic score: (f, precision, recall).

  precision = I(A;B) / H(A), recall = I(A;B) / H(B), f = harmonic mean, with
  entropies H and mutual information I of the cells A and the regions B over
  the pixels inside the cells. As in the challenge a single cell gives
  (0, 0, 1) and otherwise a single region (0, 1, 0): one cell in a slice
  scores 0 even if it is found exactly.

  Arguments, singletons, source and errors as for `v_rand`.
  """
  table = _contingency(label_components, proposal_components)
  return _information_scores(table)


def pixel_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
  """Returns 1 - max F over `THRESHOLDS`; cell is the positive class.

  Counts are pooled over the stack. An F-score, not a share of wrong pixels:
  the challenge's "pixel error" as in Table 1 of the U-Net paper. Arguments
  and errors as for `evaluate_stack`.
  """
  labels, probabilities = _checked(labels, probabilities)
  cells = int(labels.sum())
  best = 0.0
  for threshold in THRESHOLDS:
    proposal = probabilities > threshold
    hits = int(np.count_nonzero(proposal & labels))
    found = int(np.count_nonzero(proposal))
    best = max(best, _f_score(hits, found, cells))
  return 1 - best


def rand_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
  """Returns 1 - max F of the foreground-restricted Rand index.

  Counts pairs of pixels inside the cells of a slice, positive where both lie
  in one cell, found where both lie in one 4-connected component of the
  binarised proposal (not thinned; its membrane pixels are in no pair). Counts
  are pooled over the stack, the maximum is over `THRESHOLDS`: the
  challenge's "Rand error" as in Table 1 of the U-Net paper. Arguments and
  errors as for `evaluate_stack`.
  """
  labels, probabilities = _checked(labels, probabilities)
  pairs = np.zeros((len(THRESHOLDS), 3), np.int64)
  for label, probability in zip(labels, probabilities, strict=True):
    regions = components(label)
    counts = np.empty_like(pairs)
    for t, cell in _distinct(probability):
      table = _contingency(regions, components(cell))
      counts[t:] = [
        _num_pairs(x) for x in (table.joint, table.proposal, table.label)
      ]
    pairs += counts
  return 1 - max(_f_score(*map(int, row)) for row in pairs)


def warping_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
  """Returns the share of pixels where a warped label splits or merges.

  The challenge's variant: only the mismatches that `split_or_merge` marks
  count, and the minimum over the thresholds 0, 0.1, ..., 0.9 is returned.
  `warping_mismatch` is the original measure. Arguments and errors as for
  `evaluate_stack`.
  """
  labels, probabilities = _checked(labels, probabilities)
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


def warping_mismatch(
  labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5
) -> float:
  """Returns the share of pixels that no warping can make agree.

  All mismatches between the warped label and the proposal at one threshold
  count (Jain et al. 2010). Arguments and errors as for `evaluate_stack`.
  """
  labels, probabilities = _checked(labels, probabilities)
  mismatches = 0
  for label, probability in zip(labels, probabilities, strict=True):
    warped = warp(label, probability, threshold)
    mismatches += int(np.count_nonzero(warped != (probability > threshold)))
  return mismatches / labels.size


def warp(
  label: np.ndarray, probability: np.ndarray, threshold: float
) -> np.ndarray:
  """Deforms a label towards a proposal without changing its topology.

  Pixels that differ are flipped one at a time, those whose probability is
  farthest from the threshold first (equals column by column), each only
  if it is a simple point at that moment (`is_simple`). Passes repeat until
  none can be flipped. Outside the image is membrane.

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
  # A neighbour sees this pixel in the opposite place, four bits further.
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
  """Tells which pixels can flip without a change of topology.

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
  return (
    sum(x[k] * (1 - x[k + 1] * x[(k + 2) % 8]) for k in range(0, 8, 2)) == 1
  )


def split_or_merge(warped: np.ndarray, proposal: np.ndarray) -> np.ndarray:
  """Marks the mismatches by which the proposal splits or merges cells.

  Among the eight neighbours in the warped label: a membrane pixel merges if
  they belong to two cells or more. A cell pixel splits if they do, or if they
  do once that pixel is taken away, judged within 20 px. What is left (holes
  and objects added or deleted) is not marked.

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
  """Counts the distinct non-zero numbers of each column."""
  ordered = np.sort(around, axis=0)
  first = np.diff(ordered, axis=0, prepend=0) > 0
  return np.count_nonzero(first, axis=0)


class _Contingency(NamedTuple):
  """Pixels inside the cells of one label slice, by cell and region."""

  joint: np.ndarray  # int64[M], the non-zero n_ij, i and j >= 1
  label: np.ndarray  # int64[I], a_i > 0
  proposal: np.ndarray  # int64[J], b_j > 0
  singletons: int  # pixels in no region of the proposal


def _contingency(
  label_components: np.ndarray, proposal_components: np.ndarray
) -> _Contingency:
  label = np.asarray(label_components)
  proposal = np.asarray(proposal_components)
  if label.shape != proposal.shape:
    raise InputError(
      f'components differ in shape: label {label.shape}, proposal '
      f'{proposal.shape}; both must be the same [H,W]'
    )
  if label.max(initial=0) <= 0:
    raise InputError('the label has no cell pixel; its score is undefined')
  if min(label.min(), proposal.min()) < 0:
    raise InputError(
      f'component numbers go down to {min(label.min(), proposal.min())}; '
      'they must be >= 0'
    )
  inside = label > 0
  i, j = label[inside].astype(np.int64), proposal[inside].astype(np.int64)
  labels, proposals = np.bincount(i), np.bincount(j)
  found = j > 0
  keys = i[found] * len(proposals) + j[found]
  _, joint = np.unique(keys, return_counts=True)
  return _Contingency(
    joint=joint,
    label=labels[labels > 0],
    proposal=proposals[1:][proposals[1:] > 0],
    singletons=int(proposals[0]),
  )


def _rand_scores(table: _Contingency) -> tuple[float, float, float]:
  both = int((table.joint**2).sum()) + table.singletons
  found = int((table.proposal**2).sum()) + table.singletons
  true = int((table.label**2).sum())
  return _f_score(both, found, true), both / found, both / true


def _information_scores(table: _Contingency) -> tuple[float, float, float]:
  if len(table.label) == 1:
    return 0.0, 0.0, 1.0
  if len(table.proposal) + table.singletons == 1:
    return 0.0, 1.0, 0.0
  size = table.label.sum()

  # A singleton's x ln x is 0, so only its share of `size` matters.
  def entropy(counts):
    return np.log(size) - (counts * np.log(counts)).sum() / size

  label, proposal = entropy(table.label), entropy(table.proposal)
  # Rounding may leave a mutual information of 0 slightly below it.
  mutual = max(label + proposal - entropy(table.joint), 0.0)
  return (
    float(2 * mutual / (label + proposal)),
    float(mutual / label),
    float(mutual / proposal),
  )


def _f_score(both: int, found: int, true: int) -> float:
  """F-score of `both` hits among `found` and `true`; 1 if all are 0."""
  return 2 * both / (found + true) if found + true else 1.0


def _num_pairs(counts: np.ndarray) -> int:
  return int((counts * (counts - 1) // 2).sum())


def _distinct(probability: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (index, bool[H,W]) of the thresholds that change the binary map."""
  previous = -1
  for t, threshold in enumerate(THRESHOLDS):
    cell = probability > threshold
    # Binary maps shrink as the threshold grows: same size, same map.
    size = np.count_nonzero(cell)
    if size != previous:
      yield t, cell
    previous = size


def _checked(
  labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns bool labels and float64 probabilities, or says what is wrong."""
  labels = np.asarray(labels)
  # Thresholds are doubles: a float32 comparison would round them.
  probabilities = np.asarray(probabilities, np.float64)
  if labels.shape != probabilities.shape or labels.ndim != 3:
    raise InputError(
      f'labels have shape {labels.shape}, probabilities '
      f'{probabilities.shape}; both must be the same [N,H,W]'
    )
  if not labels.size:
    raise InputError(f'an empty stack {labels.shape} has no score')
  wrong = labels[(labels != 0) & (labels != 1)]
  if wrong.size:
    raise InputError(
      f'labels hold {wrong[0]}; must be 0 (membrane) or 1 (cell)'
    )
  # Written so that NaN fails it, too.
  inside = (probabilities >= 0) & (probabilities <= 1)
  if not inside.all():
    raise InputError(
      f'probabilities hold {probabilities[~inside][0]}; must be in [0, 1]'
    )
  empty = np.flatnonzero(~labels.any(axis=(1, 2)))
  if empty.size:
    raise InputError(
      f'slice {empty[0]} has no cell pixel; V_rand and V_info need one'
    )
  return labels.astype(bool, copy=False), probabilities
