# SPDX-License-Identifier: Apache-2.0
"""SEG and average precision against hand counts, loops and CTC's package."""

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.errors import InputError
from segjax.metrics import cells
from segjax.scoring.classes import object_scores

# Two cells of 10 px with a wall of one column.
TRUTH = np.tile(np.array([1, 1, 0, 2, 2]), (5, 1))


def by_loops(labels, results):
  """SEG by its definition, object against object."""
  scores = []
  for label, result in zip(labels, results, strict=True):
    for i in set(label.ravel().tolist()) - {0}:
      score = 0.0
      for j in set(result.ravel().tolist()) - {0}:
        both = ((label == i) & (result == j)).sum()
        if both / (label == i).sum() > 0.5:
          score = both / ((label == i) | (result == j)).sum()
      scores.append(score)
  return np.mean(scores)


@st.composite
def frames(draw):
  seed = draw(st.integers(0, 2**32 - 1))
  rng = np.random.default_rng(seed)
  shape = rng.integers(1, 7, draw(st.integers(2, 3)))
  ids = np.array([0, 3, 7, 40_000])
  # Results are mostly right, or hardly an object would match.
  label = rng.choice(ids, shape)
  noise = rng.random(shape) < 0.3
  result = np.where(noise, rng.choice(ids, shape), 2 * label)
  return label.astype(np.uint16), result


def test_by_hand():
  opened = TRUTH.copy()
  opened[2, 2] = 1
  opened[opened == 2] = 1  # One object of 21 px.
  cut = TRUTH.copy()
  cut[2, :2] = 0
  cut[3:, :2] = 9  # Pieces of 4 px: neither is more than half of 10.
  moved = np.tile(np.array([1, 1, 1, 0, 2]), (5, 1))
  for result, expected in [
    (TRUTH, 1),
    (opened, 10 / 21),
    (cut, (0 + 1) / 2),
    (moved, (10 / 15 + 0) / 2),  # 5 of 10 px are not more than half.
    (np.zeros_like(TRUTH), 0),
    (np.ones_like(TRUTH), 10 / 25),
  ]:
    assert cells.seg([TRUTH], [result]) == pytest.approx(expected), result


def test_counts_come_by_increasing_id():
  label = np.array([[5, 5, 5, 2, 2, 0]])
  result = np.array([[8, 8, 0, 8, 1, 3]])
  expected = [[2, 0, 0], [3, 3, 2]]
  counts = cells.match_objects(label, result)
  np.testing.assert_array_equal(counts, expected)
  assert counts.dtype == np.int64


def test_objects_are_pooled_over_frames_of_any_size():
  """A mean of the frames' means would be (1 / 2 + 1 / 1) / 2."""
  one = np.zeros((3, 2), int)
  one[0] = 4
  empty = np.zeros((1, 1), int)
  result = np.where(TRUTH == 1, 1, 0)
  got = cells.seg([TRUTH, one, empty], [result, one, empty])
  assert got == pytest.approx((1 + 0 + 1) / 3)


def test_what_matches_nothing_costs_nothing():
  only_left = np.where(TRUTH == 1, 1, 0)
  assert cells.seg([only_left], [TRUTH]) == 1


@settings(deadline=None, max_examples=60)
@given(st.lists(frames(), min_size=1, max_size=3))
def test_equals_the_definition(drawn):
  labels, results = zip(*drawn, strict=True)
  if not any(label.any() for label in labels):
    return
  expected = by_loops(labels, results)
  assert cells.seg(labels, results) == pytest.approx(expected)


def test_equals_the_package_of_the_challenge(tmp_path):
  """It reads files, and takes the first id of a frame for background."""
  reason = 'needs py-ctcmetrics: 150 MB, and it installs a module named test'
  package = pytest.importorskip('ctc_metrics', reason=reason)
  from ctc_metrics.metrics.technical.seg import seg
  from ctc_metrics.utils.representations import match

  assert package
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 6, (4, 9, 2)).astype(np.uint16)
  labels = labels.repeat(3, axis=1).repeat(8, axis=2)
  results = np.roll(labels, (1, 2), axis=(1, 2))
  results[results == 3] = 4
  objects, ious = [], []
  for label, result in zip(labels, results, strict=True):
    label[0, 0] = result[-1, -1] = 0
    tifffile.imwrite(tmp_path / 'label.tif', label)
    tifffile.imwrite(tmp_path / 'result.tif', result)
    matched = match(str(tmp_path / 'label.tif'), str(tmp_path / 'result.tif'))
    objects.append(matched[0])
    ious.append(matched[4])
  expected = seg(objects, ious)
  assert 0.1 < expected < 0.9
  assert cells.seg(labels, results) == pytest.approx(expected)


@pytest.mark.parametrize(
  ('labels', 'results', 'message'),
  [
    ([TRUTH], [TRUTH[:4]], r'shape \(5, 5\), result \(4, 5\)'),
    ([TRUTH], [-TRUTH], 'result holds int64 down to -2'),
    ([TRUTH * 0.5], [TRUTH], 'label holds float64'),
    ([TRUTH, TRUTH], [TRUTH], '2 frames of labels and 1 of results'),
    ([0 * TRUTH], [TRUTH], 'no frame has a reference object'),
    ([], [], 'no frame has a reference object'),
  ],
)
def test_refuses(labels, results, message):
  with pytest.raises(InputError, match=message):
    cells.seg(labels, results)


def test_average_precision_is_that_of_a_loop_over_all_pairs():
  rng = np.random.default_rng(0)
  for _ in range(20):
    truth = np.kron(rng.integers(0, 9, (3, 3)), np.ones((6, 6), int))
    found = np.where(rng.random(truth.shape) < 0.25, 0, truth * 3)
    found[:3] = 50
    want = []
    ids = [i for i in np.unique(truth) if i], [j for j in np.unique(found) if j]
    for threshold in cells.THRESHOLDS:
      hits = 0
      for i in ids[0]:
        for j in ids[1]:
          a, b = truth == i, found == j
          hits += (a & b).sum() / (a | b).sum() > threshold
      want.append(hits / (len(ids[0]) + len(ids[1]) - hits))
    np.testing.assert_allclose(cells.average_precision(truth, found), want)
    assert want[0] > 0


def test_average_precision_at_its_edges():
  empty, one = np.zeros((4, 4), int), np.ones((4, 4), int)
  half = one.copy()
  half[:2] = 0
  assert np.isnan(cells.average_precision(empty, empty)).all()
  assert (cells.average_precision(empty, one) == 0).all()
  assert (cells.average_precision(one, one) == 1).all()
  assert cells.average_precision(one, half, [0.5]) == 0  # IoU is not above it.
  with pytest.raises(InputError, match='0.3'):
    cells.average_precision(one, one, [0.3])


def test_evaluation_averages_precision_over_images_with_objects():
  one, empty = np.ones((4, 4), int), np.zeros((4, 4), int)
  pairs = [(one, one), (empty, one), (empty, empty)]
  rows = [np.hstack(cells.count_hits(*p, cells.THRESHOLDS)) for p in pairs]
  scores = object_scores(np.zeros((0, 3), int), np.stack(rows))
  assert scores['ap/0.50'] == scores['ap/0.95'] == scores['mean_ap'] == 0.5
  assert (scores['objects/true'], scores['objects/predicted']) == (1, 2)
  assert 'mean_ap' not in object_scores(
    np.zeros((0, 3), int), np.stack(rows[2:])
  )
