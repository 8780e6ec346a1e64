# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest
from scipy import ndimage

from segjax.data import border_weights as bw
from segjax.errors import InputError


def two_blocks():
  """7 x 9 background with two 5 x 3 blocks one column apart."""
  instances = np.zeros((7, 9), np.int32)
  instances[1:6, 1:4] = 1
  instances[1:6, 5:8] = 2
  return instances


def random_cells(rng, shape, num_cells):
  """Voronoi cells with a background gap, ids neither ordered nor dense."""
  seeds = np.zeros(shape, bool)
  seeds.flat[rng.choice(seeds.size, num_cells, replace=False)] = True
  rows, columns = ndimage.distance_transform_edt(
    ~seeds, return_distances=False, return_indices=True
  )
  owner = rows * shape[1] + columns
  gap = ndimage.maximum_filter(owner, 3) != ndimage.minimum_filter(owner, 3)
  gap |= ndimage.gaussian_filter(rng.normal(size=shape), 3) > 0.08
  ids = rng.permutation(5 * seeds.size)[: seeds.size] + 1
  return np.where(gap, 0, ids[owner])


def naive_border(instances, w0, sigma):
  """Equation 2's second term from a whole-image EDT per instance."""
  stack = np.stack(
    [
      ndimage.distance_transform_edt(instances != i)
      for i in np.unique(instances[instances > 0])
    ]
  )
  first, second = np.sort(stack, axis=0)[:2]
  border = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
  return np.where(instances == 0, border, 0)


def test_values_computed_by_hand():
  weight = bw.border_weights(two_blocks()) - 1
  assert weight.dtype == np.float32
  assert weight[3, 4] == pytest.approx(10 * np.exp(-4 / 50), abs=1e-5)
  assert weight[3, 4] == pytest.approx(9.2312, abs=1e-4)
  assert weight[0, 4] == pytest.approx(8.5214, abs=1e-4)
  assert weight[6, 4] == pytest.approx(8.5214, abs=1e-4)
  assert weight[3, 0] == pytest.approx(4.8675, abs=1e-4)
  assert weight[0, 0] == pytest.approx(4.2808, abs=1e-4)
  assert np.all(weight[two_blocks() > 0] == 0)


@pytest.mark.parametrize('sigma', [1.5, 5.0, 40.0])
def test_equals_the_stack_of_whole_image_transforms(sigma):
  rng = np.random.default_rng(3)
  instances = random_cells(rng, (83, 121), 25)
  expected = 1 + naive_border(instances, 7.0, sigma)
  given = bw.border_weights(instances, w0=7.0, sigma=sigma)
  assert np.abs(given - expected).max() <= 7.0 * 1e-4
  assert given.max() > 1.5


def test_class_weights_and_ignored_pixels():
  instances = two_blocks()
  ignore = np.zeros(instances.shape, bool)
  ignore[3, 4] = ignore[2, 2] = True
  weight = bw.border_weights(instances, class_weights=(3, 0.5), ignore=ignore)
  assert np.all(weight[ignore] == 0)
  assert np.all(weight[(instances > 0) & ~ignore] == 0.5)
  assert weight[0, 4] == pytest.approx(3 + 8.5214, abs=1e-4)


@pytest.mark.parametrize('num_instances', [0, 1])
def test_fewer_than_two_instances_have_no_border_term(num_instances):
  instances = np.zeros((6, 8), np.uint8)
  instances[2:4, 3:6] = num_instances
  assert np.all(bw.border_weights(instances) == 1)
  assert bw.border_weights(np.zeros((0, 4), int)).shape == (0, 4)


def test_two_instances_without_any_background():
  instances = np.repeat([[1, 2]], 3, axis=0)
  assert np.all(bw.border_weights(instances) == 1)


def test_512_px_with_100_cells_is_fast():
  instances = random_cells(np.random.default_rng(0), (512, 512), 100)
  start = time.process_time()
  bw.border_weights(instances)
  assert time.process_time() - start < 1.0


def test_carving_example():
  instances = np.repeat([[1, 1, 2, 2]], 3, axis=0)
  expected = [[1, 1, 0, 2], [1, 0, 0, 2], [1, 0, 0, 2]]
  np.testing.assert_array_equal(bw.separate_touching(instances), expected)


def test_carving_equals_a_raster_scan_and_separates():
  rng = np.random.default_rng(1)
  instances = rng.integers(0, 4, (12, 14)).astype(np.uint16)
  instances = instances.repeat(4, axis=0).repeat(3, axis=1)
  expected = instances.copy()
  height, width = instances.shape
  for y in range(height):
    for x in range(width):
      for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
        if 0 <= y + dy and 0 <= x + dx < width:
          other = instances[y + dy, x + dx]
          if other and other != instances[y, x]:
            expected[y, x] = 0
  before = instances.copy()
  carved = bw.separate_touching(instances)
  np.testing.assert_array_equal(carved, expected)
  np.testing.assert_array_equal(instances, before)
  assert carved.dtype == np.uint16
  largest = ndimage.maximum_filter(carved, 3)
  smallest = ndimage.minimum_filter(np.where(carved, carved, 9), 3)
  assert np.all((largest == smallest)[carved > 0])


def test_carving_leaves_separate_instances_alone():
  np.testing.assert_array_equal(
    bw.separate_touching(two_blocks()), two_blocks()
  )


def test_instances_are_4_connected_components_of_the_cell_class():
  label = np.array([[1, 0, 1, 255], [0, 1, 1, 1], [1, 0, 0, 255]])
  expected = [[1, 0, 2, 0], [0, 2, 2, 2], [3, 0, 0, 0]]
  found = bw.find_instances(label)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, expected)


def test_counts_leave_out_ignored_pixels():
  label = np.array([[0, 1, 1], [255, 1, 255]], np.uint8)
  np.testing.assert_array_equal(bw.class_counts(label, 3), [1, 3, 0])


def test_balance_gives_every_present_class_the_same_total():
  counts = np.array([2196, 7804])
  weight = bw.class_balance(counts)
  np.testing.assert_allclose(weight, [1 / 0.4392, 1 / 1.5608], rtol=1e-6)
  np.testing.assert_allclose(weight * counts, [5000, 5000], rtol=1e-6)
  assert weight[counts.argmax()] <= 1


def test_absent_classes_weigh_1():
  np.testing.assert_allclose(bw.class_balance([6, 0, 2]), [2 / 3, 1, 2])
  np.testing.assert_allclose(bw.class_balance([0, 9]), [1, 1])


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: bw.border_weights(np.zeros((2, 2))), 'float64'),
    (lambda: bw.border_weights(np.zeros((2, 2, 1), int)), r'\[2, 2, 1\]'),
    (lambda: bw.border_weights(np.full((2, 2), -1)), '-1'),
    (lambda: bw.border_weights(two_blocks(), sigma=0), 'sigma is 0'),
    (lambda: bw.border_weights(two_blocks(), w0=-1), 'w0 is -1'),
    (lambda: bw.border_weights(two_blocks(), w0=np.nan), 'w0 is nan'),
    (lambda: bw.border_weights(two_blocks(), class_weights=[1]), 'class_we'),
    (
      lambda: bw.border_weights(two_blocks(), class_weights=[1, -1]),
      'class_weights',
    ),
    (
      lambda: bw.border_weights(two_blocks(), ignore=np.zeros((7, 8), bool)),
      r'bool\[7, 8\]',
    ),
    (lambda: bw.separate_touching(np.zeros(3, int)), r'\[3\]'),
    (lambda: bw.find_instances(np.zeros((2, 2))), 'float64'),
    (lambda: bw.class_counts(np.array([0, 2]), 2), 'value 2'),
    (lambda: bw.class_counts(np.array([0.0]), 2), 'float64'),
    (lambda: bw.class_balance([0, 0]), 'all 0'),
    (lambda: bw.class_balance([-1, 3]), '-1'),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(InputError, match=message):
    call()
