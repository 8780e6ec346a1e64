# SPDX-License-Identifier: Apache-2.0
"""Tests of reading variables of MATLAB files."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io

from segjax.data import matlab
from segjax.errors import InputError

LABEL = np.arange(12, dtype=np.uint16).reshape(3, 4)


@pytest.fixture
def mat(tmp_path):
  """Returns a function that writes a .mat file of the given variables."""

  def write(compressed=True, **variables):
    path = tmp_path / 'some.mat'
    scipy.io.savemat(path, variables, do_compression=compressed)
    return path

  return write


@pytest.mark.parametrize('compressed', [True, False])
def test_variable_and_field_are_as_stored(mat, compressed):
  path = mat(
    compressed, other=1.5, LabelMap=LABEL, GTcls={'Segmentation': LABEL + 1}
  )
  read = matlab.read_mat(path, 'LabelMap')
  assert read.dtype == np.uint16
  np.testing.assert_array_equal(read, LABEL)
  field = matlab.read_mat(path, 'GTcls.Segmentation')
  np.testing.assert_array_equal(field, LABEL + 1)


def test_cell_array_of_text(mat):
  names = np.array(['sky', 'sea and sand'], object)
  read = matlab.read_mat(mat(names=names), 'names')
  assert read.tolist() == ['sky', 'sea and sand']


def test_dimensions_of_length_1_are_dropped(mat):
  assert matlab.read_mat(mat(x=np.zeros((1, 3, 1))), 'x').shape == (3,)


@pytest.mark.parametrize('key', ['Labelmap', 'GTcls.Boundaries', 'LabelMap.x'])
def test_missing_variable_is_named(mat, key):
  path = mat(LabelMap=LABEL, GTcls={'Segmentation': LABEL})
  with pytest.raises(InputError, match=f'some.mat: has no {key}'):
    matlab.read_mat(path, key)


def test_what_is_no_array_is_refused(mat):
  ragged = np.empty(2, object)
  ragged[:] = [np.zeros(2), np.zeros((3, 3))]
  path = mat(ragged=ragged, text='word', struct={'a': LABEL})
  for key in ('ragged', 'text', 'struct'):
    with pytest.raises(InputError, match=f'some.mat: {key} is'):
      matlab.read_mat(path, key)


@pytest.mark.parametrize('compressed', [True, False])
def test_what_inflates_beyond_the_limit_is_refused(
  mat, monkeypatch, compressed
):
  path = mat(compressed, small=LABEL, large=np.zeros(500_000, np.uint8))
  assert matlab.read_mat(path, 'large').size == 500_000
  # With tags and names.
  monkeypatch.setattr(matlab, '_MOST_BYTES', 500_000)
  with pytest.raises(InputError, match='some.mat: large inflates to more than'):
    matlab.read_mat(path, 'large')
  matlab.read_mat(path, 'small')
  monkeypatch.setattr(matlab, '_MOST_BYTES', 501_000)
  matlab.read_mat(path, 'large')


def element(kind, data):
  return struct.pack('<II', kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind, count, content=b'', name=b'', size=None):
  """Returns an array of a class with count x 1 entries."""
  inner = element(6, struct.pack('<II', kind, 0))
  inner += element(5, struct.pack('<2i', count, 1))
  inner += element(1, name) + content
  return struct.pack('<II', 14, len(inner) if size is None else size) + inner


@pytest.fixture
def crafted(tmp_path):
  """Returns a function that writes a .mat file of one variable's bytes."""

  def write(variable, compressed=False):
    if compressed:
      data = zlib.compress(variable)
      variable = struct.pack('<II', 15, len(data)) + data
    path = tmp_path / 'some.mat'
    path.write_bytes(b''.ljust(124) + b'\0\1IM' + variable)
    return path

  return write


@pytest.mark.parametrize('compressed', [True, False])
def test_depth_and_claims_are_refused(crafted, compressed):
  nested = matrix(9, 2, element(2, b'ab'))
  for _ in range(30):
    nested = matrix(1, 1, nested)
  path = crafted(matrix(1, 1, nested, b'x'), compressed)
  np.testing.assert_array_equal(matlab.read_mat(path, 'x').ravel(), [97, 98])
  # Sizes that are not true, or the file would be large.
  head = matrix(1, 1, b'', size=10**6)
  path = crafted(matrix(1, 1, head * 20_000, b'x'), compressed)
  with pytest.raises(InputError, match='in each other more than 32 deep'):
    matlab.read_mat(path, 'x')
  fields = element(5, struct.pack('<i', 8)) + element(1, bytes(16))
  for kind, content in ((1, b''), (2, fields), (4, element(16, b''))):
    path = crafted(matrix(kind, 2**28, content, b'x'), compressed)
    with pytest.raises(InputError, match=r'array of \[268435456, 1\] has too'):
      matlab.read_mat(path, 'x')
  path = crafted(
    matrix(17, 2**28, b'', b'x') + matrix(9, 2, element(2, b'ab'), b'y')
  )
  np.testing.assert_array_equal(matlab.read_mat(path, 'y'), [97, 98])


def test_a_bomb_is_refused_before_it_fills_the_memory(mat, monkeypatch):
  monkeypatch.setattr(matlab, '_MOST_BYTES', 2**20)
  path = mat(LabelMap=LABEL)
  head = matrix(9, 1, name=b'bomb', size=2**26)
  data = zlib.compress(head + bytes(2**26))
  path.write_bytes(
    path.read_bytes()[:128] + struct.pack('<II', 15, len(data)) + data
  )
  tracemalloc.start()
  try:
    with pytest.raises(InputError, match='inflates to more than 1048576 bytes'):
      matlab.read_mat(path, 'bomb')
    assert tracemalloc.get_traced_memory()[1] < 2**23
  finally:
    tracemalloc.stop()


def test_missing_file_is_refused(tmp_path):
  with pytest.raises(InputError, match='none.mat: no such file'):
    matlab.read_mat(tmp_path / 'none.mat', 'x')


@pytest.mark.parametrize('compressed', [True, False])
def test_every_cut_is_refused(mat, compressed):
  path = mat(compressed, LabelMap=LABEL)
  whole = path.read_bytes()
  for size in range(len(whole)):
    path.write_bytes(whole[:size])
    with pytest.raises(InputError, match='some.mat'):
      matlab.read_label(path, 'LabelMap')


@pytest.mark.filterwarnings('ignore')  # What scipy says besides.
def test_changed_bytes_raise_nothing_but_input_errors(mat):
  path = mat(True, LabelMap=LABEL)
  whole = path.read_bytes()
  refused = 0
  for position in range(124, len(whole)):
    changed = bytearray(whole)
    changed[position] ^= 0x55
    path.write_bytes(changed)
    try:
      matlab.read_label(path, 'LabelMap')
    except InputError:
      refused += 1
  assert refused > 50


def test_label_of_doubles_becomes_integers(mat):
  label = matlab.read_label(mat(x=LABEL.astype(float)), 'x')
  assert label.dtype == np.int64
  np.testing.assert_array_equal(label, LABEL)


@pytest.mark.parametrize('value', [0.5, np.nan, np.inf])
def test_label_that_is_not_whole_is_refused(mat, value):
  label = LABEL.astype(float)
  label[2, 1] = value
  with pytest.raises(InputError, match=f'label {value} in row 2, column 1 '):
    matlab.read_label(mat(x=label), 'x')


@pytest.mark.parametrize(
  'array', [np.zeros((2, 3, 4)), np.zeros(0), np.array(['a', 'b'], object)]
)
def test_label_of_other_shape_or_kind_is_refused(mat, array):
  with pytest.raises(InputError, match=r'expected a label \[H, W\]'):
    matlab.read_label(mat(x=array), 'x')
