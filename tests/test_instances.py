# SPDX-License-Identifier: Apache-2.0
"""Instances, in one piece and block by block."""

import tracemalloc

import numpy as np
import pytest
import tifffile
from commands import run
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed

from segjax import instances
from segjax.data import images
from segjax.errors import InputError


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
  count = instances.label_blocks(cell, out, block_px=block_px, **options)
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
  assert_same_instances(instances.label_instances(cell), expected)


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
  assert_same_instances(instances.label_instances(cell, **options), expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), SHAPES, st.integers(1, 15))
def test_blocks_leave_no_trace_where_values_are_equal(seed, shape, block_px):
  cell = drawn_map(seed, shape, levels=6)
  options = dict(threshold=0.3, seed_threshold=0.6)
  expected = instances.label_instances(cell, **options)
  assert_same_instances(in_blocks(cell, block_px, **options), expected)


def test_a_snake_through_all_blocks_is_one():
  cell = np.zeros((9, 9))
  cell[::2] = 1
  cell[[1, 5], -1] = cell[[3, 7], 0] = 1
  assert set(np.unique(in_blocks(cell, 2))) == {0, 1}
  cell[5, -1] = 0
  assert set(np.unique(in_blocks(cell, 2))) == {0, 1, 2}
  # Touching by a corner is not enough.
  assert instances.label_instances(np.eye(4)).max() == 4


def test_seeds_cut_and_what_has_none_vanishes():
  cell = np.array(
    [
      [0.9, 0.8, 0.6, 0.7, 0.9, 0.0, 0.7],
      [0.9, 0.8, 0.6, 0.7, 0.9, 0.0, 0.7],
    ]
  )
  found = instances.label_instances(cell, seed_threshold=0.8)
  assert found.dtype == np.int32
  assert (found[:, [0, 1]] == found[0, 0]).all() and found[0, 0] > 0
  assert (found[:, [3, 4]] == found[0, 4]).all() and found[0, 4] > 0
  assert found[0, 0] != found[0, 4]
  assert (found[:, 2] > 0).all()
  assert (found[:, 5:] == 0).all()
  whole = instances.label_instances(cell)
  np.testing.assert_array_equal(whole[0], [1, 1, 1, 1, 1, 0, 2])


def test_a_label_map_has_components_too():
  label = np.array([[1, 1, 0, 1]], np.uint8)
  found = instances.label_instances(label, seed_threshold=0.5)
  np.testing.assert_array_equal(found, [[1, 1, 0, 2]])


def test_the_threshold_is_a_double():
  """As float32 0.3 is a little more than 0.3."""
  cell = np.float32([[0.3]])
  assert instances.label_instances(cell, threshold=0.3).max() == 1


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
  count = instances.label_blocks(source, out, 0.6, block_px=8)
  assert source.largest == 64
  expected, number = ndimage.label(cell > 0.6)
  assert count == number > 10
  assert_same_instances(np.asarray(out), expected)
  instances.label_blocks(source, out, 0.6, 0.7, block_px=2)
  sizes = [cell[box].size for box in ndimage.find_objects(expected)]
  assert source.largest == max(64, *sizes)


def test_memory_is_of_blocks_and_not_of_the_map(tmp_path):
  """The map is one cell, so that numbers of pieces don't matter."""

  def peak(height):
    source = np.broadcast_to(np.float32(1), (height, 256))
    file = tmp_path / f'{height}.npy'
    out = np.lib.format.open_memmap(file, 'w+', np.int32, source.shape)
    tracemalloc.start()
    assert instances.label_blocks(source, out, block_px=256) == 1
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
    instances.label_blocks(**arguments | {'block_px': 2} | change)


def checkerboard(size):
  return np.indices((size, size)).sum(0) % 2


def test_more_pieces_than_numbers():
  out = np.zeros((20, 20), np.int8)
  with pytest.raises(InputError, match='int8 cannot number all pieces'):
    instances.label_blocks(checkerboard(20), out, block_px=10)


def write_frames(folder, names):
  folder.mkdir()
  for i, name in enumerate(names):
    cell = drawn_map(i, (12, 15)).astype(np.float32)
    images.write_stack(folder / name, cell[None])
  return folder


def test_command_writes_results_of_the_challenge(tmp_path):
  source = write_frames(tmp_path / 'in', ['t000.tif', 't012.tif', 'tail.tif'])
  output = tmp_path / '01_RES'
  paths = f'--input={source}', f'--output={output}/'
  process = run('instances', *paths, '--seed_threshold=0.7')
  assert process.returncode == 0, process.stderr
  names = ['mask000.tif', 'mask012.tif', 'tail.tif']
  assert sorted(file.name for file in output.iterdir()) == names
  lines = process.stdout.splitlines()
  for i, name in enumerate(names):
    with tifffile.TiffFile(output / name) as file:
      written = file.asarray()
    assert written.dtype == np.uint16 and written.shape == (12, 15)
    cell = drawn_map(i, (12, 15)).astype(np.float32)
    expected = instances.label_instances(cell, seed_threshold=0.7)
    np.testing.assert_array_equal(written, expected)
    assert f'{output / name}: {expected.max()} instances' in lines
  again = run('instances', *paths)
  assert again.returncode == 2
  message = f'error: {output}/mask000.tif exists; give --overwrite to replace'
  assert again.stderr == f'{message} it\n'


def test_digits_are_those_of_the_frames(tmp_path):
  names = ['t0007.tif', 't07.tif', 't00007.tif', 'cat000.tif']
  source = write_frames(tmp_path / 'in', names)
  instances.label_files(source, tmp_path / 'out')
  written = sorted(file.name for file in (tmp_path / 'out').iterdir())
  expected = ['cat000.tif', 'mask0007.tif', 't00007.tif', 't07.tif']
  assert written == expected


def test_a_stack_stays_a_stack(tmp_path, capsys):
  labels = np.stack([checkerboard(3), np.ones((3, 3))]).astype(np.uint8)
  images.write_stack(tmp_path / 'in.tif', labels)
  output = tmp_path / 'out.tif'
  instances.label_files(tmp_path / 'in.tif', output)
  written = tifffile.imread(output)
  assert [page.max() for page in written] == [4, 1]
  assert capsys.readouterr().out == f'{output}: 5 instances\n'


def test_files_that_are_refused(tmp_path):
  source = write_frames(tmp_path / 'in', ['a.tif'])
  many = checkerboard(370).astype(np.uint8)
  images.write_stack(tmp_path / 'many.tif', many[None])
  images.write_stack(tmp_path / 'gray.png', 255 * many[None])
  images.write_stack(tmp_path / 'two.tif', np.zeros((1, 3, 3, 2), np.uint8))
  (tmp_path / 'file').write_text('')
  before = sorted(tmp_path.rglob('*'))
  for name, output, message in [
    ('many.tif', 'out.tif', '68450 instances on a page; 65535 fit'),
    ('gray.png', 'out.tif', r'values from 0 to 255; .* in \[0, 1\]'),
    ('two.tif', 'out.tif', r'has 2 channel\(s\)'),
    ('two.tif', 'out.png', 'out.png of a file must be a .tif'),
    ('two.tif', 'no/out.tif', 'there is no folder'),
    ('none.tif', 'out.tif', 'none.tif'),
    ('in', 'file', 'file cannot be made a folder'),
    ('in', 'no/out', 'out cannot be made a folder'),
  ]:
    with pytest.raises(InputError, match=message):
      instances.label_files(tmp_path / name, tmp_path / output)
  images.write_stack(source / 'a.png', many[None, :2, :2])
  with pytest.raises(InputError, match='a.tif would hold two inputs'):
    instances.label_files(source, tmp_path / 'out')
  (source / 'a.png').unlink()
  assert sorted(tmp_path.rglob('*')) == before
