# SPDX-License-Identifier: Apache-2.0
"""Tests of reading PASCAL VOC and SBD as distributed."""

import numpy as np
import pytest
from trees import cut, image_of, write_lines, write_mat, write_picture

from segjax.data import voc
from segjax.errors import InputError

# Not VOC's, and none of its colours is a gray that could pass for its index.
PALETTE = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 9)], -1)
LISTS = 'VOC2011/ImageSets/Segmentation'
LABELS = {
  name: np.random.default_rng(i).choice([*range(21), 255], (4, 6))
  for i, name in enumerate('abcdef')
}


@pytest.fixture
def folder(tmp_path):
  """Returns a folder of VOC 2011, of a and b, c and d, and SBD, of a, c, e."""
  write_lines(tmp_path / LISTS / 'train.txt', 'a', 'b')
  write_lines(tmp_path / LISTS / 'val.txt', 'd', 'c', 'f')
  for name in 'abcdf':
    files = tmp_path / 'VOC2011'
    write_picture(files / 'JPEGImages' / f'{name}.jpg', image_of(ord(name)))
    write_picture(
      files / 'SegmentationClass' / f'{name}.png', LABELS[name], PALETTE
    )
  write_lines(tmp_path / 'sbd' / 'train.txt', 'e', 'a', 'c')
  for name in 'ace':
    write_picture(tmp_path / 'sbd' / 'img' / f'{name}.jpg', image_of(100))
    label = {'Segmentation': LABELS[name].astype(np.uint8)[::-1]}
    write_mat(tmp_path / 'sbd' / 'cls' / f'{name}.mat', GTcls=label)
  return tmp_path


def load(folder, sbd=False, **options):
  options = {'year': 2011, 'train_list': '', 'heldout_list': '', **options}
  sbd_dir = str(folder / 'sbd') if sbd else ''
  return voc.load(dir=str(folder), sbd_dir=sbd_dir, **options)


def names(examples):
  return [example['name'] for example in examples]


def test_palette_labels_are_indices(folder):
  dataset = load(folder)
  assert names(dataset.train) == ['a', 'b']
  assert names(dataset.heldout) == ['d', 'c', 'f']
  for example in (*dataset.train, *dataset.heldout):
    name = example['name']
    np.testing.assert_array_equal(example['image'], image_of(ord(name)))
    np.testing.assert_array_equal(example['label'], LABELS[name])
    assert example['label'].dtype == np.int32
  assert len(dataset.class_names) == 21


def test_training_on_sbd_holds_out_what_it_does_not_train_on(folder):
  dataset = load(folder, sbd=True)
  assert names(dataset.train) == ['e', 'a', 'c']
  assert names(dataset.heldout) == ['d', 'f']
  for example in dataset.train:
    # Upside down in SBD alone, so that its files are what was read.
    expected = LABELS[example['name']][::-1]
    np.testing.assert_array_equal(example['label'], expected)
    np.testing.assert_array_equal(example['image'], image_of(100))
  np.testing.assert_array_equal(dataset.heldout[1]['label'], LABELS['f'])


def test_lists_of_the_user(folder):
  write_lines(folder / 'mine.txt', 'a')
  write_lines(folder / 'seg11valid.txt', 'f', 'b')
  dataset = load(
    folder,
    sbd=True,
    train_list=str(folder / 'mine.txt'),
    heldout_list=str(folder / 'seg11valid.txt'),
  )
  assert names(dataset.train) == ['a']
  assert names(dataset.heldout) == ['f', 'b']
  np.testing.assert_array_equal(dataset.train[0]['image'], image_of(100))
  np.testing.assert_array_equal(dataset.heldout[1]['label'], LABELS['b'])


def test_seg11valid_is_the_difference_in_the_order_of_voc():
  rng = np.random.default_rng(0)
  val, train = (
    [f'2007_{i:06}' for i in rng.permutation(60)[:40]] for _ in range(2)
  )
  result = voc.seg11valid(val, iter(train))
  assert set(result) == set(val) - set(train)
  assert 0 < len(result) < 40
  assert result == sorted(result, key=val.index)


def test_other_years_are_refused(folder):
  with pytest.raises(InputError, match='year=2010; expected 2011 or 2012'):
    load(folder, year=2010)


def test_missing_folders_are_refused(folder):
  with pytest.raises(InputError, match='VOC 2012 not found.*VOCdevkit, which'):
    load(folder, year=2012)
  (folder / 'sbd' / 'cls').rename(folder / 'sbd' / 'instances')
  with pytest.raises(InputError, match='SBD not found.*has no cls.*sbd_dir'):
    load(folder, sbd=True)


@pytest.mark.parametrize(
  'lines, message',
  [
    ([''], 'val.txt lists nothing'),
    (['e'], 'e: no such file .*e.jpg, which .*val.txt'),
    (['../x/a'], r"'\.\./x/a' leads out of the data folder"),
    (['d', 'd'], 'val.txt.* lists d twice'),
    (['a', 'b'], 'val.txt, less the images trained on, gives no example'),
  ],
)
def test_other_lists_are_refused(folder, lines, message):
  write_lines(folder / LISTS / 'val.txt', *lines)
  with pytest.raises(InputError, match=message):
    load(folder)


def test_what_is_trained_on_is_not_held_out(folder):
  write_lines(folder / 'mine.txt', 'd', 'a')
  with pytest.raises(InputError, match='a is both trained on and held out'):
    load(folder, sbd=True, heldout_list=str(folder / 'mine.txt'))


def test_missing_label_is_refused(folder):
  (folder / 'sbd' / 'cls' / 'e.mat').unlink()
  with pytest.raises(InputError, match='e: no such file .*e.mat'):
    load(folder, sbd=True)


@pytest.mark.parametrize(
  'file',
  [
    'VOC2011/JPEGImages/d.jpg',
    'VOC2011/SegmentationClass/d.png',
    'sbd/img/e.jpg',
    'sbd/cls/e.mat',
  ],
)
def test_damaged_files_are_refused(folder, file):
  cut(folder / file)
  dataset = load(folder, sbd=True)
  examples = dataset.train if 'sbd' in file else dataset.heldout
  with pytest.raises(InputError, match=file):
    examples[0]


def test_labels_in_colours_are_refused(folder):
  file = folder / 'VOC2011' / 'SegmentationClass' / 'a.png'
  write_picture(file, np.uint8(PALETTE)[LABELS['a']])
  with pytest.raises(InputError, match='a.png: .*not one saved again in colou'):
    load(folder).train[0]


def test_labels_outside_the_classes_are_refused(folder):
  label = LABELS['a'].copy()
  label[3, 1] = 21
  file = folder / 'VOC2011' / 'SegmentationClass' / 'a.png'
  write_picture(file, label, PALETTE)
  with pytest.raises(InputError, match='a.png: label 21 in row 3, column 1 '):
    load(folder).train[0]
  file = folder / 'sbd' / 'cls' / 'e.mat'
  write_mat(file, GTcls={'Segmentation': label})
  with pytest.raises(InputError, match='e.mat: label 21 in row 3, column 1 '):
    load(folder, sbd=True).train[0]


def test_real_data(data_dir):
  if not (data_dir / 'voc').is_dir():
    pytest.skip(f'no folder voc in {data_dir}')
  dataset = load(data_dir / 'voc' / 'VOCdevkit', year=2012)
  found = set()
  for example in (*dataset.train, *dataset.heldout):
    assert example['image'].shape[:2] == example['label'].shape
    found |= set(np.unique(example['label']).tolist())
  assert found == {0, 1, 2, 15, 19, 20, 255}
  train = dataset.train[0]
  assert train['name'] == '2007_000032'
  present = set(np.unique(train['label']).tolist()) - {255}
  assert {dataset.class_names[k] for k in present} == {
    'background',
    'aeroplane',
    'person',
  }
