# SPDX-License-Identifier: Apache-2.0
"""Tests of reading PASCAL-Context and of its map from 459 labels to 59."""

import numpy as np
import pytest
from trees import cut, image_of, write_lines, write_mat, write_picture

from segjax.data import pascal_context
from segjax.errors import InputError

# 459 invented labels, except the three that the 59 call otherwise; class k of
# the 59 is label 7 k, so that three of them are label 70, 77 and 84.
LABELS = {i: f'thing {i}' for i in range(1, 460)}
LABELS |= {70: 'table', 77: 'bedclothes', 84: 'cloth'}
CLASSES = {k: f'thing{7 * k}' for k in range(1, 60)}
CLASSES |= {10: 'diningtable', 11: 'bedcloth', 12: 'clothes'}
STORED = np.random.default_rng(0).permutation(460)[:459].reshape(27, 17)
LISTS = 'VOC2010/ImageSets/Main'


def numbered(names):
  return [f'{i}: {name}' for i, name in names.items()]


@pytest.fixture
def folder(tmp_path):
  """Returns a folder of VOC 2010 and annotations, of a and b, and of c."""
  write_lines(tmp_path / LISTS / 'train.txt', 'a', 'b')
  write_lines(tmp_path / LISTS / 'val.txt', 'c')
  for i, name in enumerate('abc'):
    file = tmp_path / 'VOC2010' / 'JPEGImages' / f'{name}.jpg'
    write_picture(file, image_of(ord(name), STORED.shape))
    stored = np.roll(STORED, i).astype(np.uint16)
    write_mat(
      tmp_path / 'context' / 'trainval' / f'{name}.mat', LabelMap=stored
    )
  write_lines(tmp_path / 'context' / 'labels.txt', *numbered(LABELS))
  write_lines(tmp_path / 'context' / '59.txt', *numbered(CLASSES))
  return tmp_path


def load(folder, **options):
  options = {'train_list': '', 'heldout_list': '', **options}
  return pascal_context.load(
    dir=str(folder),
    context_dir=str(folder / 'context'),
    classes_file='59.txt',
    **options,
  )


def test_every_seventh_label_is_a_class_and_all_others_background(folder):
  dataset = load(folder)
  assert [example['name'] for example in dataset.train] == ['a', 'b']
  assert [example['name'] for example in dataset.heldout] == ['c']
  for i, example in enumerate((*dataset.train, *dataset.heldout)):
    stored = np.roll(STORED, i)
    is_class = (stored % 7 == 0) & (stored <= 7 * 59)
    expected = np.where(is_class, stored // 7, 0)
    np.testing.assert_array_equal(example['label'], expected)
    assert example['label'].dtype == np.int32
    image = image_of(ord(example['name']), STORED.shape)
    np.testing.assert_array_equal(example['image'], image)
  assert dataset.class_names == ('background', *CLASSES.values())
  assert len(dataset.class_names) == 60


def test_background_may_be_listed(folder):
  before = load(folder)
  lines = ['0: background', *numbered(CLASSES)]
  write_lines(folder / 'context' / '59.txt', *lines)
  after = load(folder)
  assert after.class_names == before.class_names
  assert after.digest == before.digest


def test_classes_change_the_digest(folder):
  before = load(folder).digest
  swapped = CLASSES | {5: CLASSES[6], 6: CLASSES[5]}
  write_lines(folder / 'context' / '59.txt', *numbered(swapped))
  assert load(folder).digest != before


def test_lists_of_the_user(folder):
  write_lines(folder / 'mine.txt', 'c')
  write_lines(folder / 'yours.txt', 'b', 'a')
  dataset = load(
    folder,
    train_list=str(folder / 'mine.txt'),
    heldout_list=str(folder / 'yours.txt'),
  )
  assert [example['name'] for example in dataset.train] == ['c']
  assert [example['name'] for example in dataset.heldout] == ['b', 'a']


@pytest.mark.parametrize(
  'file, number, name, message',
  [
    ('59.txt', 59, None, '59.txt has 58 classes; expected 59'),
    ('59.txt', 60, 'thing 1', '59.txt has 60 classes; expected 59'),
    ('59.txt', 5, 'unheard', "class 'unheard' is not in .*labels.txt"),
    ('59.txt', 5, CLASSES[6], "59.txt has '6: thing42' twice"),
    ('59.txt', 61, CLASSES[5], "59.txt has '61: thing35' twice"),
    ('59.txt', 5, None, 'numbers 1 to 59 on 58 lines; expected 1, 2, 3'),
    ('59.txt', 5, '', '59.txt: \'5:\'; expected "number: name"'),
    ('labels.txt', 77, 'x', "class 'bedcloth' is not in .*as 'bedclothes'"),
    ('labels.txt', 9, None, 'numbers 1 to 459 on 458 lines'),
  ],
)
def test_other_class_files_are_refused(folder, file, number, name, message):
  names = dict(CLASSES if file == '59.txt' else LABELS)
  if name is None:
    del names[number]
  else:
    names[number] = name
  write_lines(folder / 'context' / file, *numbered(names))
  with pytest.raises(InputError, match=message):
    load(folder)


def test_a_line_without_a_number_is_refused(folder):
  write_lines(folder / 'context' / '59.txt', *CLASSES.values())
  with pytest.raises(InputError, match='59.txt: .*; expected "number: name"'):
    load(folder)


def test_missing_folders_are_refused(folder):
  (folder / 'context' / '59.txt').unlink()
  with pytest.raises(InputError, match='PASCAL-Context not found.*no 59.txt'):
    load(folder)
  (folder / 'VOC2010').rename(folder / 'VOC2012')
  with pytest.raises(InputError, match='VOC 2010 not found.*config.data.dir'):
    load(folder)


@pytest.mark.parametrize(
  'line, message',
  [
    ('', 'val.txt lists nothing'),
    ('d', 'd: no such file .*d.jpg'),
    ('/a', "'/a' leads out of the data folder"),
    ('b', 'b is both trained on and held out'),
  ],
)
def test_other_lists_are_refused(folder, line, message):
  write_lines(folder / LISTS / 'val.txt', line)
  with pytest.raises(InputError, match=message):
    load(folder)


def test_missing_label_is_refused(folder):
  (folder / 'context' / 'trainval' / 'c.mat').unlink()
  with pytest.raises(InputError, match='c: no such file .*c.mat'):
    load(folder)


@pytest.mark.parametrize(
  'file', ['VOC2010/JPEGImages/c.jpg', 'context/trainval/c.mat']
)
def test_damaged_files_are_refused(folder, file):
  cut(folder / file)
  with pytest.raises(InputError, match=file):
    load(folder).heldout[0]


def test_labels_that_are_not_listed_are_refused(folder):
  stored = STORED.copy()
  stored[3, 1] = 460
  write_mat(folder / 'context' / 'trainval' / 'c.mat', LabelMap=stored)
  message = 'c.mat: label 460 in row 3, column 1 .*expected 0..459'
  with pytest.raises(InputError, match=message):
    load(folder).heldout[0]
