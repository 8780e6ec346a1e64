# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy import ndimage

from segjax.data import synthetic
from segjax.errors import InputError
from segjax.metrics import neuron


@pytest.fixture(scope='module')
def stack():
  return synthetic.neuron_stack(3, 256, 0)


@pytest.fixture(scope='module')
def drawn():
  """What the drawing of one slice knew: points, cells, region, label."""
  known = {}
  nearest_cell = synthetic._nearest_cell

  def record(points, cells, z):
    known['points'], known['cells'] = points, cells
    known['region'] = nearest_cell(points, cells, z)
    return known['region']

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(synthetic, '_nearest_cell', record)
    known['label'] = synthetic.neuron_stack(1, 200, 4)[1][0]
  return known


def components_per_slice(labels):
  return np.mean([ndimage.label(label)[1] for label in labels])


def test_shapes_dtypes_and_values(stack):
  images, labels = stack
  assert images.shape == labels.shape == (3, 256, 256)
  assert images.dtype == np.uint8
  assert labels.dtype == np.int32
  assert set(np.unique(labels)) == {0, 1}


def test_the_three_arguments_alone_decide():
  images, labels = synthetic.neuron_stack(2, 96, 7)
  others = synthetic.neuron_stack(2, 96, 8)
  assert (labels != others[1]).mean() > 0.1
  assert (images != others[0]).mean() > 0.5
  again = synthetic.neuron_stack(np.int64(2), 96, np.uint8(7))
  np.testing.assert_array_equal(again[0], images)
  np.testing.assert_array_equal(again[1], labels)


def test_looks_like_isbi_2012_in_numbers(stack):
  """Real slices: mean 126, std 44, membrane .17-.27, 88-137 cells a slice."""
  images, labels = stack
  assert 105 < images.mean() < 147
  assert 34 < images.std() < 54
  assert 0.15 < (labels == 0).mean() < 0.29
  assert 80 < components_per_slice(labels) * (512 / 256) ** 2 < 200
  membrane, cell = images[labels == 0], images[labels == 1]
  assert 40 < cell.mean() - membrane.mean() < 75


def test_cell_sizes_differ_by_far(stack):
  numbered = [ndimage.label(label)[0] for label in stack[1]]
  sizes = np.concatenate([np.bincount(n.ravel())[1:] for n in numbered])
  small, large = np.percentile(sizes, [10, 95])
  assert large > 20 * small
  assert sizes.min() >= 25


def test_pixels_of_different_cells_are_never_4_connected(drawn):
  region, cell = drawn['region'], drawn['label'] == 1
  for one, other in (
    (np.s_[1:], np.s_[:-1]),
    (np.s_[:, 1:], np.s_[:, :-1]),
  ):
    joined = cell[one] & cell[other]
    assert np.all((region[one] == region[other])[joined])
  num_cells = len(np.unique(region[cell]))
  assert num_cells > 10
  assert num_cells <= components_per_slice([cell]) < 1.3 * num_cells


def test_nearest_cell_equals_a_search_through_all_cells(drawn):
  points, cells = drawn['points'], drawn['cells']
  away = points[..., None] - cells.centre[0].T[:, None, None]
  y, x = (
    cells.stretch[:, i, 0] * away[0] + cells.stretch[:, i, 1] * away[1]
    for i in range(2)
  )
  expected = (np.sqrt(y**2 + x**2) - cells.radius[0]).argmin(axis=-1)
  np.testing.assert_array_equal(drawn['region'], expected)


def test_neighbouring_slices_show_the_same_cells(stack):
  def correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]

  _, labels = stack
  stranger = synthetic.neuron_stack(1, 256, 1)[1][0]
  near = correlation(labels[0], labels[1])
  assert 0.2 < near < 0.9
  assert abs(correlation(labels[0], stranger)) < 0.1


@pytest.mark.parametrize('blur_px', [0, 1, 2])
def test_a_threshold_does_badly(stack, blur_px):
  images, labels = stack
  blurred = ndimage.gaussian_filter(images / 255, (0, blur_px, blur_px))
  low, high = np.percentile(blurred, [2, 80])
  scores = neuron.evaluate_stack(
    labels, np.clip((blurred - low) / (high - low), 0, 1), warping=False
  )
  assert 0.3 < scores['v_rand'] < 0.8
  assert 0.06 < scores['pixel_error'] < 0.16


@pytest.mark.parametrize('seed', range(4))
def test_smallest_size(seed):
  images, labels = synthetic.neuron_stack(1, 32, seed)
  assert images.shape == labels.shape == (1, 32, 32)


def test_one_cell_may_fill_the_picture():
  rng = np.random.default_rng(0)
  region = np.zeros((40, 40), np.int32)
  distance, half_width, darkness = synthetic._borders(rng, region, None)
  assert synthetic._label(distance, half_width).all()
  assert np.isfinite(darkness).all()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((0, 64, 0), 'num_slices is 0.*>= 1'),
    ((1, 31, 0), 'size_px is 31.*>= 32'),
    ((1, 64, -1), 'seed is -1.*>= 0'),
    ((1.0, 64, 0), 'num_slices is 1.0'),
    ((1, '64', 0), "size_px is '64'"),
    ((1, 64, None), 'seed is None'),
  ],
)
def test_bad_arguments(arguments, message):
  with pytest.raises(InputError, match=message):
    synthetic.neuron_stack(*arguments)
