# SPDX-License-Identifier: Apache-2.0
"""The warping error against worked examples and plain loops."""

import numpy as np
import pytest
from inputs import LABEL, PROPOSALS, noisy_stack, random_cells
from scipy import ndimage

from segjax.metrics import stacks, warping


@pytest.mark.parametrize(
  ('name', 'mismatches', 'errors'),
  [
    ('identical', 0, 0),
    ('wall open', 1, 1),  # the wall pixel merges
    ('left cell cut', 1, 1),  # one of the two can be warped, one splits
    ('wall moved', 0, 0),
    ('all membrane', 2, 0),  # two objects deleted: neither split nor merge
    ('all cell', 5, 5),  # every wall pixel merges
  ],
)
def test_the_error_counts_only_splits_and_merges(name, mismatches, errors):
  proposal = PROPOSALS[name]
  warped = warping.warp(LABEL, proposal, 0.5)
  assert np.count_nonzero(warped != (proposal > 0.5)) == mismatches
  assert warping.warping_error(LABEL[None], proposal[None]) == errors / 25


def test_warping_error_stops_at_threshold_nine_tenths():
  # The last of `THRESHOLDS` alone would tell the wall from the cells.
  probabilities = np.where(LABEL, 1.0, 0.95)[None]
  assert warping.warping_error(LABEL[None], probabilities) == 5 / 25


def test_116_neighbourhoods_are_simple():
  places = [(0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0)]
  expected = []
  for code in range(256):
    patch = np.zeros((3, 3), int)
    for bit, place in enumerate(places):
      patch[place] = code >> bit & 1
    expected.append(_simple(patch))
  assert sum(expected) == 116
  simple = warping.is_simple(np.arange(256))
  np.testing.assert_array_equal(simple, expected)


def test_warping_equals_a_plain_loop():
  labels, probabilities = noisy_stack(np.random.default_rng(9), 16)
  for label, probability in zip(labels, probabilities, strict=True):
    for threshold in stacks.THRESHOLDS:
      expected = _plain_warp(label, probability, threshold)
      warped = warping.warp(label, probability, threshold)
      np.testing.assert_array_equal(warped, expected)


def test_warping_error_is_the_minimum_over_pooled_counts():
  labels, probabilities = noisy_stack(np.random.default_rng(11), 16)
  counts = []
  for threshold in stacks.THRESHOLDS[:10]:
    counts.append(0)
    for label, probability in zip(labels, probabilities, strict=True):
      warped = warping.warp(label, probability, threshold)
      counts[-1] += _plain_splits_and_merges(warped, probability > threshold)
  assert 0 < min(counts) and len(set(counts)) > 3
  error = warping.warping_error(labels, probabilities)
  assert error == pytest.approx(min(counts) / labels.size)


def test_warping_keeps_the_topology_and_ends_at_no_simple_point():
  rng = np.random.default_rng(10)
  label, other = random_cells(rng, 40), random_cells(rng, 40)
  warped = warping.warp(label, other.astype(float), 0.5)
  around = np.ones((3, 3))
  for before, after in (
    (label, warped),
    (~np.pad(label, 1), ~np.pad(warped, 1)),
  ):
    structure = None if before is label else around
    count = ndimage.label(before, structure)[1]
    assert ndimage.label(after, structure)[1] == count
  padded = np.pad(warped, 1).astype(int)
  assert (warped != label).sum() > 100
  for row, column in np.argwhere(warped != other):
    assert not _simple(padded[row : row + 3, column : column + 3])


@pytest.mark.parametrize(('size', 'splits'), [(21, False), (22, True)])
def test_a_split_is_judged_within_twenty_pixels(size, splits):
  # Opening a ring does not split it, but the far side of a larger one is out
  # of sight.
  ring = np.zeros((64, 64), bool)
  ring[1 : size + 1, 1 : size + 1] = True
  ring[2:size, 2:size] = False
  opened = ring.copy()
  opened[1, size // 2] = False
  marked = warping.split_or_merge(ring, opened)
  assert marked[1, size // 2] == splits
  assert marked.sum() == splits


def _simple(patch):
  """Simple point by definition, of the centre of int[3,3]."""
  patch = patch.copy()
  patch[1, 1] = 0
  cells = ndimage.label(patch)[0]
  touching = {cells[0, 1], cells[1, 0], cells[1, 2], cells[2, 1]} - {0}
  membrane = 1 - patch
  membrane[1, 1] = 0
  return len(touching) == 1 and ndimage.label(membrane, np.ones((3, 3)))[1] == 1


def _plain_warp(label, probability, threshold):
  source = np.pad(label, 1).astype(int)
  target = np.pad(probability > threshold, 1).astype(int)
  height, width = label.shape
  left = None
  while True:
    wrong = [
      (row, column)
      for column in range(1, width + 1)
      for row in range(1, height + 1)
      if source[row, column] != target[row, column]
    ]
    if len(wrong) == left:
      return source[1:-1, 1:-1] == 1
    left = len(wrong)
    wrong.sort(
      key=lambda at: (
        -np.float32(abs(probability[at[0] - 1, at[1] - 1] - threshold))
      )
    )
    for row, column in wrong:
      if _simple(source[row - 1 : row + 2, column - 1 : column + 2]):
        source[row, column] = 1 - source[row, column]


def _plain_splits_and_merges(warped, proposal):
  count = 0
  for row, column in np.argwhere(warped != proposal):
    without = warped.copy()
    without[row, column] = False
    # Taking a membrane pixel away changes nothing.
    count += any(
      len(set(_around(ndimage.label(cells)[0], row, column)) - {0}) > 1
      for cells in (warped, without)
    )
  return count


def _around(regions, row, column):
  patch = np.pad(regions, 1)[row : row + 3, column : column + 3].ravel()
  return np.delete(patch, 4).tolist()
