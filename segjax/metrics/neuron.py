# SPDX-License-Identifier: Apache-2.0
"""The metrics of the ISBI 2012 EM segmentation challenge.

V_rand and V_info after border thinning have ranked the challenge since 2016
(Arganda-Carreras et al. 2015). Pixel, Rand and warping error are the older
metrics, which the U-Net paper reports in its Table 1. All follow the
challenge's own scripts, which differ from the textbook definitions (and from
scikit-image's `adapted_rand_error`) where the docstrings say so.

`stacks` defines the input. Pixels outside the cells of the label count in the
pixel error and the warping error only. So a slice without a cell has no V_rand
and V_info (0 / 0) and no pair for the Rand error: it is left out of these
scores, like an absent class out of a mean IU. The pixel and warping errors pool
the pixels of all slices, and cells found in such a slice count as errors.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from skimage.segmentation import watershed

from segjax.errors import InputError
from segjax.metrics.stacks import THRESHOLDS, checked, components
from segjax.metrics.warping import warping_error


def evaluate_stack(
  labels: np.ndarray, probabilities: np.ndarray, *, warping: bool = True
) -> dict[str, float]:
  """Returns every score of the challenge for one stack.

  V_rand and V_info are means over the slices at each of `THRESHOLDS`, then
  the best over one threshold common to all slices. Slices whose label has no
  cell are left out of these means.

  Args:
    labels: [N,H,W], 0 membrane, 1 cell; at least one cell pixel in all slices.
    probabilities: float[N,H,W] in [0, 1], probability of cell. Values up to
      1e-6 outside, to which float32 averages round, are clipped.
    warping: whether to compute `warping_error`, the slowest score.

  Returns:
    `v_rand`, `v_info` (higher is better) and the thresholds of these values,
    `v_rand_threshold`, `v_info_threshold` (the lowest of several);
    `pixel_error`, `rand_error`, `warping_error` (lower is better).

  Raises:
    InputError: shapes differ or are not [N,H,W], a label is not 0 or 1, no
      slice has a cell, a probability is NaN or farther outside [0, 1].
  """
  labels, probabilities = checked(labels, probabilities)
  slices = np.full((len(labels), len(THRESHOLDS), 2), np.nan)
  for n in np.flatnonzero(labels.any(axis=(1, 2))):
    regions = components(labels[n])
    for t, cell in _distinct(probabilities[n]):
      table = _contingency(regions, thin(cell))
      # Later thresholds with the same binarisation keep this score.
      slices[n, t:] = _rand_scores(table)[0], _information_scores(table)[0]
  v_rands, v_infos = np.nanmean(slices, axis=0).T
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


def thin(cell: np.ndarray) -> np.ndarray:
  """Returns the cells grown until membranes are lines one pixel wide.

  A watershed floods the inverted binary map from the cells, 4-connected. The
  challenge thins a proposal so that the width of its membranes does not count.

  Args:
    cell: bool[H,W], True inside cells.

  Returns:
    int32[H,W], the grown cells numbered as by `components`, 0 on the lines.
    A map without any cell becomes one region, as in the challenge's watershed.
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
    label_components: int[H,W], cells numbered from 1, 0 where nothing counts.
    proposal_components: int[H,W], regions numbered from 1, 0 in no region; for
      the challenge's score, the output of `thin`.

  Raises:
    InputError: shapes differ, a number is negative, or there is no cell.

  >>> import numpy, segjax
  >>> cells = numpy.array([[1, 1, 2, 2]])
  >>> merged = numpy.array([[1, 1, 1, 1]])
  >>> score, precision, recall = segjax.v_rand(cells, merged)
  >>> precision, recall
  (0.5, 1.0)
  """
  return _rand_scores(_contingency(label_components, proposal_components))


def v_info(
  label_components: np.ndarray, proposal_components: np.ndarray
) -> tuple[float, float, float]:
  """Returns the information theoretic score: (f, precision, recall).

  precision = I(A;B) / H(A), recall = I(A;B) / H(B), f = harmonic mean, with
  entropies H and mutual information I of the cells A and the regions B over
  the pixels inside the cells. As in the challenge, a single cell gives
  (0, 0, 1), and several cells in a single region give (0, 1, 0): one cell in a
  slice scores 0 even if it is found exactly.

  Arguments, singletons, source and errors are those of `v_rand`.

  >>> import numpy, segjax
  >>> cells = numpy.array([[1, 1, 2, 2]])
  >>> split = numpy.array([[1, 2, 3, 3]])
  >>> score, precision, recall = segjax.v_info(cells, split)
  >>> round(precision, 4), round(recall, 4)
  (1.0, 0.6667)
  """
  table = _contingency(label_components, proposal_components)
  return _information_scores(table)


def pixel_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
  """Returns 1 - max F over `THRESHOLDS`; cell is the positive class.

  Counts are pooled over the stack. This is the challenge's "pixel error" in
  Table 1 of the U-Net paper: an F-score, not a share of wrong pixels. Arguments
  and errors are those of `evaluate_stack`.
  """
  labels, probabilities = checked(labels, probabilities)
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

  It counts pairs of pixels inside the cells of a slice. A pair is positive if
  both lie in one cell, and found if both lie in one 4-connected component of
  the binarised proposal (not thinned; its membrane pixels are in no pair).
  Counts are pooled over the stack, and the maximum is over `THRESHOLDS`. This
  is the challenge's "Rand error" in Table 1 of the U-Net paper. Arguments and
  errors are those of `evaluate_stack`.
  """
  labels, probabilities = checked(labels, probabilities)
  pairs = np.zeros((len(THRESHOLDS), 3), np.int64)
  for label, probability in zip(labels, probabilities, strict=True):
    if not label.any():
      continue
    regions = components(label)
    counts = np.empty_like(pairs)
    for t, cell in _distinct(probability):
      table = _contingency(regions, components(cell))
      counts[t:] = [
        _num_pairs(x) for x in (table.joint, table.proposal, table.label)
      ]
    pairs += counts
  return 1 - max(_f_score(*map(int, row)) for row in pairs)


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
  """Returns the F-score of `both` hits; 1 if all three numbers are 0."""
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
