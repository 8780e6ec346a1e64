# SPDX-License-Identifier: Apache-2.0
"""Instances, in one piece and block by block."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed

from segjax.errors import InputError
from segjax.prediction import components


def drawn_map(seed, shape, levels=None):
  """Blobs in [0, 1], of few levels if they are to be equal in places."""
  rng = np.random.default_rng(seed)
  values = ndimage.gaussian_filter(rng.random(shape), 1)
  values = (values - values.min()) / max(np.ptp(values), 1e-9)
  return values if levels is None else np.round(values * levels) / levels


def assert_same_instances(got, expected):
  """Equal up to the order of the numbers."""
  pairs = np.unique(np.stack([got.ravel(), expected.ravel()]), axis=1)
  for ids, there in zip(pairs, (got, expected), strict=True):
    assert len(np.unique(ids)) == len(ids) == len(np.unique(there)), pairs
  np.testing.assert_array_equal(got == 0, expected == 0)


def in_blocks(cell, block_px, **options):
  out = np.full(cell.shape, 77, np.int32)
  count = components.label_blocks(cell, out, block_px=block_px, **options)
  numbers = np.unique(out[out > 0])
  np.testing.assert_array_equal(numbers, np.arange(count) + 1)
  return out


SHAPES = st.tuples(st.integers(1, 14), st.integers(1, 14))


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), SHAPES, st.integers(1, 15))
def test_components_are_those_of_scipy(seed, shape, block_px):
  cell = drawn_map(seed, shape)
  expected, _ = ndimage.label(cell > 0.5)
  assert_same_instances(in_blocks(cell, block_px), expected)
  assert_same_instances(components.label_instances(cell), expected)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), SHAPES, st.integers(1, 15))
def test_watershed_is_that_of_the_whole_map(seed, shape, block_px):
  cell = drawn_map(seed, shape)
  seeds, _ = ndimage.label(cell > 0.6)
  expected = np.zeros(shape, int)
  if seeds.any():
    expected = watershed(-cell, seeds, mask=cell > 0.4)
  options = dict(threshold=0.4, seed_threshold=0.6)
  assert_same_instances(in_blocks(cell, block_px, **options), expected)
  assert_same_instances(components.label_instances(cell, **options), expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), SHAPES, st.integers(1, 15))
def test_blocks_leave_no_trace_where_values_are_equal(seed, shape, block_px):
  cell = drawn_map(seed, shape, levels=6)
  options = dict(threshold=0.3, seed_threshold=0.6)
  expected = components.label_instances(cell, **options)
  assert_same_instances(in_blocks(cell, block_px, **options), expected)


def test_a_snake_through_all_blocks_is_one():
  cell = np.zeros((9, 9))
  cell[::2] = 1
  cell[[1, 5], -1] = cell[[3, 7], 0] = 1
  assert set(np.unique(in_blocks(cell, 2))) == {0, 1}
  cell[5, -1] = 0
  assert set(np.unique(in_blocks(cell, 2))) == {0, 1, 2}
  # Touching by a corner is not enough.
  assert components.label_instances(np.eye(4)).max() == 4


def test_seeds_cut_and_what_has_none_vanishes():
  cell = np.array(
    [
      [0.9, 0.8, 0.6, 0.7, 0.9, 0.0, 0.7],
      [0.9, 0.8, 0.6, 0.7, 0.9, 0.0, 0.7],
    ]
  )
  found = components.label_instances(cell, seed_threshold=0.8)
  assert found.dtype == np.int32
  assert (found[:, [0, 1]] == found[0, 0]).all() and found[0, 0] > 0
  assert (found[:, [3, 4]] == found[0, 4]).all() and found[0, 4] > 0
  assert found[0, 0] != found[0, 4]
  assert (found[:, 2] > 0).all()
  assert (found[:, 5:] == 0).all()
  whole = components.label_instances(cell)
  np.testing.assert_array_equal(whole[0], [1, 1, 1, 1, 1, 0, 2])


def test_a_label_map_has_components_too():
  label = np.array([[1, 1, 0, 1]], np.uint8)
  found = components.label_instances(label, seed_threshold=0.5)
  np.testing.assert_array_equal(found, [[1, 1, 0, 2]])


def test_the_threshold_is_a_double():
  """As float32 0.3 is a little more than 0.3."""
  cell = np.float32([[0.3]])
  assert components.label_instances(cell, threshold=0.3).max() == 1


class Windows:
  """An array that only gives windows, as one on disk does."""

  def __init__(self, array):
    self._array, self.shape, self.largest = array, array.shape, 0

  def __getitem__(self, window):
    part = self._array[window]
    self.largest = max(self.largest, part.size)
    return part


def test_no_more_is_read_than_a_block_or_a_component(tmp_path):
  cell = drawn_map(3, (40, 60))
  source = Windows(cell)
  file = tmp_path / 'out.npy'
  out = np.lib.format.open_memmap(file, 'w+', np.int64, cell.shape)
  count = components.label_blocks(source, out, 0.6, block_px=8)
  assert source.largest == 64
  expected, number = ndimage.label(cell > 0.6)
  assert count == number > 10
  assert_same_instances(np.asarray(out), expected)
  components.label_blocks(source, out, 0.6, 0.7, block_px=2)
  sizes = [cell[box].size for box in ndimage.find_objects(expected)]
  assert source.largest == max(64, *sizes)


def test_memory_is_of_blocks_and_not_of_the_map(tmp_path):
  """The map is one cell, so that numbers of pieces don't matter."""

  def peak(height):
    source = np.broadcast_to(np.float32(1), (height, 256))
    file = tmp_path / f'{height}.npy'
    out = np.lib.format.open_memmap(file, 'w+', np.int32, source.shape)
    tracemalloc.start()
    assert components.label_blocks(source, out, block_px=256) == 1
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used

  peak(256)  # Imports.
  assert peak(32 * 256) < 1.2 * peak(2 * 256)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'cell': np.zeros((2, 3, 1))}, r'map of shape \[2, 3, 1\]'),
    ({'cell': np.zeros((0, 3)), 'out': np.zeros((0, 3), int)}, 'not empty'),
    ({'out': np.zeros((3, 2), int)}, r'into \[3, 2\]'),
    ({'out': np.zeros((2, 3), np.uint16)}, 'out is uint16; it must be signed'),
    ({'block_px': 0}, 'block_px=0 must be at least 1'),
    ({'seed_threshold': 0.4}, 'seed_threshold=0.4 .* threshold, 0.5'),
    ({'cell': np.float32([[0, 0, 0], [0, 0, np.nan]])}, 'row 1, column 2'),
  ],
)
def test_refuses(change, message):
  arguments = {'cell': np.zeros((2, 3)), 'out': np.zeros((2, 3), np.int32)}
  with pytest.raises(InputError, match=message):
    components.label_blocks(**arguments | {'block_px': 2} | change)


def checkerboard(size):
  return np.indices((size, size)).sum(0) % 2


def test_more_pieces_than_numbers():
  out = np.zeros((20, 20), np.int8)
  with pytest.raises(InputError, match='int8 cannot number all pieces'):
    components.label_blocks(checkerboard(20), out, block_px=10)
