# SPDX-License-Identifier: Apache-2.0
"""Tests of sequences of the Cell Tracking Challenge."""

import numpy as np
import pytest
import tifffile

from segjax.data import cell_tracking
from segjax.errors import InputError

ARGUMENTS = dict(
  dataset='PhC-C2DH-U373',
  truth='GT',
  train_sequences=('01',),
  heldout_sequences=('02',),
  w0=10.0,
  sigma_px=5.0,
  balance=False,
)


def blocks(shape=(7, 9)):
  """Two cells of 5 x 3 px, one column apart."""
  instances = np.zeros(shape, np.uint16)
  instances[1:6, 1:4] = 7
  instances[1:6, 5:8] = 300
  return instances


def touching():
  """Two cells of 3 x 2 px that touch, in the corner."""
  instances = np.zeros((7, 9), np.uint16)
  instances[:3, :2] = 1
  instances[:3, 2:4] = 2
  return instances


def write(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  tifffile.imwrite(path, array, photometric='minisblack')
  return path


def frame(number, dtype=np.uint8):
  return np.arange(63, dtype=dtype).reshape(7, 9) + dtype(number)


@pytest.fixture
def root(tmp_path):
  """Frames 0, 2, 10 of 01 and 5 of 02; frame 0 has no gold truth."""
  root = tmp_path / 'PhC-C2DH-U373'
  for sequence, number in (('01', 0), ('01', 2), ('01', 10), ('02', 5)):
    write(root / sequence / f't{number:03}.tif', frame(number))
    write(root / f'{sequence}_ST/SEG/man_seg{number:03}.tif', blocks())
  write(root / '01_GT/SEG/man_seg002.tif', blocks())
  write(root / '01_GT/SEG/man_seg010.tif', touching())
  write(root / '01_GT/TRA/man_track000.tif', blocks())
  write(root / '02_GT/SEG/man_seg005.tif', touching())
  return root


def load(root, **changed):
  return cell_tracking.load(dir=str(root), **(ARGUMENTS | changed))


def names(examples):
  return [example['name'] for example in examples]


def test_annotated_frames_are_split_by_sequence(root):
  dataset = load(root)
  assert dataset.class_names == ('background', 'cell')
  assert names(dataset.train) == ['01-t002', '01-t010']
  assert names(dataset.heldout) == ['02-t005']
  np.testing.assert_array_equal(
    dataset.train[1]['image'], frame(10)[..., np.newaxis]
  )
  assert dataset.train[1]['image'].dtype == np.uint8
  assert load(root.parent).digest == dataset.digest
  both = load(root, train_sequences=('02', '01'), heldout_sequences=())
  assert names(both.train) == ['02-t005', '01-t002', '01-t010']
  assert not both.heldout and both.digest != dataset.digest


def test_silver_truth_has_all_frames(root):
  train = load(root, truth='ST').train
  assert names(train) == ['01-t000', '01-t002', '01-t010']


def test_label_is_1_in_cells_that_are_carved_apart(root):
  label = load(root).train[1]['label']
  assert label.dtype == np.int32
  expected = np.zeros((7, 9))
  expected[:3, :4] = [[1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1]]
  np.testing.assert_array_equal(label, expected)
  np.testing.assert_array_equal(load(root).train[0]['label'], blocks() > 0)


def test_instances_are_those_of_the_truth(root):
  first, second = load(root).train
  np.testing.assert_array_equal(first['instances'], blocks())
  np.testing.assert_array_equal(second['instances'], touching())


def test_weights_are_those_of_the_instances(root):
  weight = load(root).train[0]['weight']
  assert weight.dtype == np.float32
  np.testing.assert_array_equal(weight[blocks() > 0], 1)
  assert weight[3, 4] == pytest.approx(1 + 10 * np.exp(-(2**2) / 50), abs=1e-4)
  assert weight[3, 0] == pytest.approx(1 + 10 * np.exp(-(6**2) / 50), abs=1e-4)
  weight = load(root, w0=3.0, sigma_px=2.0).train[0]['weight']
  assert weight[3, 4] == pytest.approx(1 + 3 * np.exp(-(2**2) / 8), abs=1e-4)
  # Carved: (2, 2) is 1 px from the right cell, and 2 from (2, 0).
  carved = load(root).train[1]['weight']
  assert carved[2, 2] == pytest.approx(1 + 10 * np.exp(-9 / 50), abs=1e-4)


def test_two_pieces_of_one_cell_are_one_instance(root):
  """As components they would be two, with a border between them."""
  instances = blocks()
  instances[instances > 0] = 7
  write(root / '01_GT/SEG/man_seg002.tif', instances)
  np.testing.assert_array_equal(load(root).train[0]['weight'], 1)


def test_balance_counts_the_pixels_to_train_on(root):
  dataset = load(root, balance=True, w0=0.0)
  # 30 pixels of cells in one frame and 7 of 12 in the carved one, of 126.
  cell, background = 126 / (2 * 37), 126 / (2 * 89)
  for example in (*dataset.train, *dataset.heldout):
    expected = np.where(example['label'] == 1, cell, background)
    np.testing.assert_allclose(example['weight'], expected, rtol=1e-6)


def test_four_digits_and_16_bits(root):
  write(root / '03/t999.tif', 1000 + frame(0, np.uint16))
  write(root / '03/t1000.tif', 1000 + frame(1, np.uint16))
  write(root / '03_GT/SEG/man_seg1000.tif', blocks())
  write(root / '03_GT/SEG/man_seg999.tif', blocks().astype(np.uint8))
  train = load(root, train_sequences=('03',)).train
  assert names(train) == ['03-t999', '03-t1000']
  assert train[1]['image'].dtype == np.uint16
  assert train[1]['image'][0, 0, 0] == 1001
  arrays = [array for name, array in train[1].items() if name != 'name']
  assert sum(array.nbytes for array in arrays) == (10 + 2) * 7 * 9


def test_frames_without_a_cell_are_left_out(root, caplog):
  path = write(root / '01_GT/SEG/man_seg010.tif', 0 * blocks())
  with caplog.at_level('WARNING'):
    assert names(load(root).train) == ['01-t002']
  assert f'{path} marks no cell; left out' in caplog.text
  write(root / '01_GT/SEG/man_seg002.tif', 0 * blocks())
  caplog.clear()
  with pytest.raises(
    InputError, match='01_GT/SEG marks no cell .* all pixels of 2 files are 0'
  ):
    load(root)
  assert not caplog.text


def test_missing_folder_says_what_is_expected(tmp_path):
  with pytest.raises(InputError, match='expected frames in 01') as caught:
    load(tmp_path / 'nowhere')
  for part in (
    'PhC-C2DH-U373 of the Cell Tracking Challenge not found',
    str(tmp_path / 'nowhere' / 'PhC-C2DH-U373'),
    '--config.data.dir=DIR (evaluate: --data_dir=DIR) or SEGJAX_DATA_DIR',
  ):
    assert part in str(caught.value)


def test_sequence_without_that_truth_is_refused(root):
  (root / '02_ST').rename(root / 'gone')
  with pytest.raises(InputError, match='has no 02_ST/SEG'):
    load(root, truth='ST')


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'truth': 'TRA'}, "data.truth='TRA'; expected 'GT' gold, 'ST' silver"),
    ({'train_sequences': ()}, 'data.train_sequences is empty'),
    ({'train_sequences': '01'}, "sequence '0'; expected two digits"),
    ({'heldout_sequences': ('../02',)}, "sequence '../02'; expected two"),
    ({'heldout_sequences': ('01',)}, 'sequence 01 is named twice'),
    ({'w0': -1.0}, 'w0 is -1'),
    ({'sigma_px': 0.0}, 'sigma is 0'),
  ],
)
def test_arguments_out_of_range_are_refused(root, changed, message):
  with pytest.raises(InputError, match=message):
    load(root, **changed)


def test_truth_without_frame_and_no_truth_are_refused(root):
  (root / '01/t010.tif').unlink()
  with pytest.raises(InputError, match='01-t010: no such file .*t010.tif'):
    load(root)
  for file in (root / '01_GT/SEG').iterdir():
    file.unlink()
  with pytest.raises(InputError, match='01_GT/SEG gives no example'):
    load(root)


@pytest.mark.parametrize('file', ['01/t002.tif', '01_GT/SEG/man_seg002.tif'])
def test_cut_volume_and_colour_files_are_refused(root, file):
  path = root / file
  data = path.read_bytes()
  path.write_bytes(data[:-1])
  with pytest.raises(InputError, match=path.name):
    load(root)
  write(path, np.stack([blocks()] * 4))
  with pytest.raises(InputError, match=f'{path.name}: 4 pages, a stack or vol'):
    load(root)
  tifffile.imwrite(path, np.zeros((7, 9, 3), np.uint8), photometric='rgb')
  with pytest.raises(InputError, match=r'uint8 of 3 channel.*; expected '):
    load(root)
  write(path, np.full((7, 9), 0.5, np.float32))
  with pytest.raises(InputError, match='float32 of 1 channels|label 0.5'):
    load(root)


@pytest.mark.parametrize('name', ['man_seg_002_011.tif', 'man_seg02.tif'])
def test_truth_of_volumes_is_refused(root, name):
  write(root / '01_GT/SEG' / name, blocks())
  with pytest.raises(InputError, match=f'{name}: .*only 2-D sequences'):
    load(root)


def test_truth_of_another_size_is_refused(root):
  write(root / '01_GT/SEG/man_seg002.tif', blocks((7, 8)))
  with pytest.raises(InputError, match='7 x 8 px for an image of 7 x 9 px'):
    load(root)
