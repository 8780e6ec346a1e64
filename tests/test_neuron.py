# SPDX-License-Identifier: Apache-2.0
"""The ISBI 2012 metrics against worked examples, loops and known scores."""

import os
import pathlib
import types

import numpy as np
import pytest
import tifffile
from inputs import LABEL, PROPOSALS, noisy_stack, random_cells
from scipy import ndimage

from segjax.data import Dataset
from segjax.errors import InputError
from segjax.metrics import neuron, stacks, warping
from segjax.scoring.best_metric import check_metric


@pytest.mark.parametrize(
  ('name', 'pixels', 'rand', 'info'),
  [
    ('identical', 0, (1, 1, 1), (1, 1, 1)),
    ('wall open', 0.04, (0.666667, 0.5, 1), (0, 1, 0)),
    ('left cell cut', 0.08, (0.802395, 1, 0.67), (0.699065, 1, 0.537356)),
    ('wall moved', 0.4, (0.787879, 1, 0.65), (0.649249, 1, 0.480658)),
    ('all membrane', 0.8, (0.181818, 1, 0.1), (0.375804, 1, 0.231378)),
    ('all cell', 0.2, (0.666667, 0.5, 1), (0, 1, 0)),
  ],
)
def test_worked_examples(name, pixels, rand, info):
  proposal = PROPOSALS[name]
  assert np.mean(LABEL != proposal) == pytest.approx(pixels)
  cells = neuron.components(LABEL), neuron.components(proposal)
  assert neuron.v_rand(*cells) == pytest.approx(rand, abs=1e-6)
  assert neuron.v_info(*cells) == pytest.approx(info, abs=1e-6)


def test_thinning_the_cut_cell_gives_its_wall_pixel_to_the_other_cell():
  thinned = neuron.thin(PROPOSALS['left cell cut'] > 0)
  assert thinned[2, 2] == thinned[2, 3] > 0
  assert thinned[2, 0] == thinned[2, 1] == thinned[0, 2] == 0
  cells = neuron.components(LABEL)
  assert neuron.v_rand(cells, thinned)[0] == pytest.approx(0.802395, abs=1e-6)
  assert neuron.v_info(cells, thinned)[0] == pytest.approx(0.699065, abs=1e-6)


def test_a_map_without_cells_thins_to_one_region():
  thinned = neuron.thin(PROPOSALS['all membrane'] > 0)
  np.testing.assert_array_equal(thinned, np.ones((5, 5)))
  np.testing.assert_array_equal(thinned, neuron.thin(LABEL >= 0))
  score = neuron.v_rand(neuron.components(LABEL), thinned)[0]
  assert score == pytest.approx(0.666667, abs=1e-6)


def test_thinning_keeps_cells_and_leaves_thin_lines():
  rng = np.random.default_rng(3)
  cell = random_cells(rng, 40)
  before, after = neuron.components(cell), neuron.thin(cell)
  np.testing.assert_array_equal(after[before > 0], before[before > 0])
  # Regions never touch by an edge.
  for one, other in ((after[1:], after[:-1]), (after[:, 1:], after[:, :-1])):
    assert ((one == other) | (one == 0) | (other == 0)).all()
  # The lines are thin: each pixel keeps two regions apart.
  padded = np.pad(after, 1)
  for row, column in np.argwhere(after == 0):
    cross = padded[
      [row, row + 2, row + 1, row + 1],
      [column + 1, column + 1, column, column + 2],
    ]
    assert len(set(cross[cross > 0])) != 1


def test_thresholds_are_accumulated_doubles():
  assert len(neuron.THRESHOLDS) == 11
  assert neuron.THRESHOLDS[0] == 0
  assert neuron.THRESHOLDS[10] == 0.9999999999999999


@pytest.mark.parametrize(
  ('cell', 'membrane'),
  [
    # Only a last threshold below 1 tells these apart.
    (1.0, 0.95),
    # As doubles 0.3 < float32(0.3), as float32 they are equal.
    (np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(0))),
  ],
)
def test_thresholds_are_compared_as_doubles(cell, membrane):
  probabilities = np.where(LABEL, cell, membrane).astype(np.float32)[None]
  scores = neuron.evaluate_stack(LABEL[None], probabilities, warping=False)
  assert scores['pixel_error'] == scores['rand_error'] == 0
  assert scores['v_rand'] == 1


def test_overshoot_by_rounding_is_clipped():
  overshoot = np.float32([-1e-6, 1 + 1e-6])[LABEL[None]]
  assert overshoot.min() < 0 and overshoot.max() > 1
  _, probabilities = stacks.checked(LABEL[None], overshoot)
  np.testing.assert_array_equal(probabilities, LABEL[None])
  assert neuron.evaluate_stack(LABEL[None], overshoot)['v_rand'] == 1


def test_a_stack_scores_perfectly_against_itself():
  rng = np.random.default_rng(4)
  labels = np.stack([random_cells(rng, 40), random_cells(rng, 40)])
  scores = neuron.evaluate_stack(labels, labels.astype(np.float32))
  assert scores.pop('v_info') == pytest.approx(1, abs=1e-12)
  assert scores == {
    'v_rand': 1,
    'v_rand_threshold': 0,
    'v_info_threshold': 0,
    'pixel_error': 0,
    'rand_error': 0,
    'warping_error': 0,
  }


def test_v_rand_equals_a_loop_over_pairs_of_pixels():
  rng = np.random.default_rng(5)
  for _ in range(5):
    label, proposal = rng.integers(0, 4, (2, 6, 5))
    both, found, true = _pairs(label, proposal, with_itself=True)
    expected = 2 * both / (found + true), both / found, both / true
    assert neuron.v_rand(label, proposal) == pytest.approx(expected)


def test_v_info_equals_entropies_over_clusters():
  rng = np.random.default_rng(6)
  for _ in range(5):
    label, proposal = rng.integers(0, 4, (2, 6, 5))
    pixels = [
      (a, b if b else -1 - k)  # every zero is a cluster of its own
      for k, (a, b) in enumerate(zip(label.flat, proposal.flat, strict=True))
      if a
    ]
    first, second = zip(*pixels, strict=True)
    mutual = _entropy(first) + _entropy(second) - _entropy(pixels)
    precision, recall = mutual / _entropy(first), mutual / _entropy(second)
    f = 2 * precision * recall / (precision + recall)
    assert neuron.v_info(label, proposal) == pytest.approx(
      (f, precision, recall)
    )


def test_independent_partitions_have_no_information_in_common():
  rows, columns = np.indices((4, 4)) // 2 + 1
  assert neuron.v_info(rows, columns) == pytest.approx((0, 0, 0), abs=1e-12)
  # A single cell is a special case, even when it is found.
  assert neuron.v_info(rows * 0 + 1, columns * 0 + 1) == (0, 0, 1)


def test_rand_and_pixel_error_pool_counts_before_the_best_threshold():
  rng = np.random.default_rng(7)
  labels, probabilities = noisy_stack(rng, 20)
  pixel_f, rand_f = [], []
  for threshold in neuron.THRESHOLDS:
    proposals = probabilities > threshold
    hits = (proposals & labels).sum()
    pixel_f.append(2 * hits / (proposals.sum() + labels.sum()))
    pairs = np.zeros(3)
    for label, proposal in zip(labels, proposals, strict=True):
      pairs += _pairs(ndimage.label(label)[0], ndimage.label(proposal)[0])
    rand_f.append(2 * pairs[0] / (pairs[1] + pairs[2]))
  assert 0 < np.argmax(rand_f) < 10
  pixel_error = neuron.pixel_error(labels, probabilities)
  assert pixel_error == pytest.approx(1 - max(pixel_f))
  rand_error = neuron.rand_error(labels, probabilities)
  assert rand_error == pytest.approx(1 - max(rand_f))


def test_stack_scores_are_slice_means_at_one_common_threshold():
  rng = np.random.default_rng(8)
  labels = np.stack([random_cells(rng, 32), random_cells(rng, 32)])
  # The second slice is darker: its best threshold is another one.
  probabilities = labels * 0.5 + 0.45 * rng.random(labels.shape)
  probabilities[1] *= 0.6
  tables = []
  for label, probability in zip(labels, probabilities, strict=True):
    cells = ndimage.label(label)[0]
    thinned = [neuron.thin(probability > t) for t in neuron.THRESHOLDS]
    tables.append(
      [[score(cells, x)[0] for x in thinned] for score in SCORES.values()]
    )
  means = np.mean(tables, axis=0)
  scores = neuron.evaluate_stack(labels, probabilities, warping=False)
  assert 'warping_error' not in scores
  for name, row in zip(SCORES, means, strict=True):
    assert scores[name] == pytest.approx(row.max())
    assert scores[f'{name}_threshold'] == neuron.THRESHOLDS[row.argmax()]
  assert means.max() < np.max(tables, axis=2).mean(axis=0).max()


def test_a_slice_without_a_cell_is_left_out_of_the_means():
  rng = np.random.default_rng(9)
  labels, probabilities = noisy_stack(rng, 24)
  without = neuron.evaluate_stack(labels, probabilities)
  labels = np.insert(labels, 1, 0, axis=0)
  probabilities = np.insert(probabilities, 1, rng.random((24, 24)), axis=0)
  scores = neuron.evaluate_stack(labels, probabilities)
  for name in ('v_rand', 'v_info', 'v_rand_threshold', 'v_info_threshold'):
    assert scores[name] == without[name]
  assert scores['rand_error'] == without['rand_error']  # No pair inside cells.
  # What is found there is wrong, and the pixels of all slices are pooled.
  fs = [
    2 * (found & labels).sum() / (found.sum() + labels.sum())
    for found in (probabilities > t for t in neuron.THRESHOLDS)
  ]
  assert scores['pixel_error'] == pytest.approx(1 - max(fs))
  assert scores['pixel_error'] > without['pixel_error']
  assert scores['warping_error'] == pytest.approx(
    without['warping_error'] * 2 / 3
  )


SCORES = {'v_rand': neuron.v_rand, 'v_info': neuron.v_info}


@pytest.mark.parametrize(
  ('labels', 'probabilities', 'message'),
  [
    (np.ones((1, 2, 2)), np.ones((1, 2, 3)), r'\(1, 2, 2\).*\(1, 2, 3\)'),
    (np.ones((2, 2)), np.ones((2, 2)), r'must be the same \[N,H,W\]'),
    (np.ones((0, 2, 2)), np.ones((0, 2, 2)), 'an empty stack'),
    (np.full((1, 2, 2), 255), np.ones((1, 2, 2)), 'labels hold 255'),
    (np.ones((1, 2, 2)), np.full((1, 2, 2), 1.5), 'probabilities hold 1.5'),
    (np.ones((1, 2, 2)), np.full((1, 2, 2), -0.1), 'probabilities hold -0.1'),
    (np.ones((1, 2, 2)), np.full((1, 2, 2), np.nan), 'probabilities hold nan'),
    (np.ones((1, 2, 2)), np.full((1, 2, 2), 1.000002), 'hold 1.000002'),
    (np.ones((1, 2, 2)), np.full((1, 2, 2), -2e-6), 'hold -2e-06'),
    (np.zeros((3, 1, 1)), np.ones((3, 1, 1)), r'no cell pixel in .* of 3 sli'),
  ],
)
def test_bad_stacks_are_refused(labels, probabilities, message):
  for score in (
    neuron.evaluate_stack,
    neuron.pixel_error,
    neuron.rand_error,
    warping.warping_error,
  ):
    with pytest.raises(InputError, match=message):
      score(labels, probabilities)


@pytest.mark.parametrize(
  ('label', 'proposal', 'message'),
  [
    ([[1, 2]], [[1], [2]], 'components differ in shape'),
    ([[0, 0]], [[1, 2]], 'no cell pixel'),
    ([[1, 2]], [[1, -2]], 'go down to -2'),
  ],
)
def test_bad_components_are_refused(label, proposal, message):
  for score in SCORES.values():
    with pytest.raises(InputError, match=message):
      score(np.array(label), np.array(proposal))


def test_blurred_raw_intensity_scores_what_is_known_for_it():
  root = pathlib.Path(__file__).parents[1]
  data = os.environ.get('SEGJAX_DATA_DIR', root.parent / 'shared' / 'data')
  folder = pathlib.Path(data) / 'isbi2012'
  if not (folder / 'train-volume.tif').is_file():
    pytest.skip(f'no ISBI 2012 stack in {folder}; set SEGJAX_DATA_DIR')
  images = tifffile.imread(folder / 'train-volume.tif')
  labels = tifffile.imread(folder / 'train-labels.tif') > 0
  scores = []
  for image, label in zip(images, labels, strict=True):
    blurred = ndimage.gaussian_filter(image / 255, 2)
    cells = neuron.components(label), neuron.thin(blurred > 0.5)
    scores.append([score(*cells)[0] for score in SCORES.values()])
  assert len(scores) == 30
  assert np.mean(scores, axis=0) == pytest.approx([0.7785, 0.9004], abs=1e-3)


def _pairs(label, proposal, with_itself=False):
  """Counts pairs in one cell and one region, in one region, in one cell."""
  cells, regions = label[label > 0], proposal[label > 0]
  same_cell = cells[:, None] == cells
  same_region = (regions[:, None] == regions) & (regions > 0)
  itself = np.eye(len(cells), dtype=bool)
  counts = []
  for same in (same_cell & same_region, same_region, same_cell):
    same = same | itself if with_itself else same & ~itself
    counts.append(same.sum())
  return np.array(counts)


def _entropy(clusters):
  sizes = [clusters.count(x) for x in set(clusters)]
  shares = np.array(sizes) / len(clusters)
  return -np.sum(shares * np.log(shares))


def test_ignored_pixels_of_a_stack_are_refused_at_the_start():
  model = types.SimpleNamespace(head_names=('',), num_classes=2)
  label = np.ones((4, 5), np.int32)
  ignoring = label.copy()
  ignoring[2, 3] = 255
  examples = [
    {'name': f'slice {i}', 'label': label}
    for i, label in enumerate([label] * 2)
  ]
  dataset = Dataset(('membrane', 'cell'), examples, examples, '')
  check_metric(model, dataset, 'v_rand')
  examples[1]['label'] = ignoring
  check_metric(model, dataset, 'mean_iu')
  with pytest.raises(InputError, match='labels of slice 1 have pixels of 255'):
    check_metric(model, dataset, 'v_rand')
