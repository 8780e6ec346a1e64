# SPDX-License-Identifier: Apache-2.0
"""Tests of the labels that are counted before a run trains on them."""

import re

import numpy as np
import pytest
from small_sets import write_folder
from trees import write_picture

from segjax.data import Dataset, create_dataset
from segjax.data.label_counts import check_labels, count_labels
from segjax.errors import InputError

NAMES = ('sea', 'land', 'ice')
FOLDER = {'name': 'folder', 'ignore_value': (), 'class_names': NAMES}


def examples_of(*labels):
  return [{'label': np.array(label, np.int32)} for label in labels]


def dataset_of(train, heldout=(), **fields):
  return Dataset(
    NAMES, examples_of(*train), examples_of(*heldout), 'digest', **fields
  )


@pytest.mark.parametrize('heads', [1, 2])
def test_counts_are_those_of_a_loop(heads):
  rng = np.random.default_rng(0)
  shapes = [(3 + i % 5, 7) for i in range(300)]  # More than a block.
  labels = [
    rng.choice([0, 1, 2, 254, 255], (*shape, heads)[: 1 + heads])
    for shape in shapes
  ]
  expected = np.zeros((heads, 256), np.int64)
  for label in labels:
    for index, value in np.ndenumerate(label):
      expected[index[2] if heads > 1 else 0, value] += 1
  counts = count_labels(examples_of(*labels), heads)
  assert counts.pixels.dtype == np.int64
  np.testing.assert_array_equal(counts.pixels, expected)
  with_254 = [(label == 254).any(axis=(0, 1)) for label in labels]
  np.testing.assert_array_equal(counts.images[:, 254], np.sum(with_254, 0))
  assert not count_labels([], heads).pixels.any()


@pytest.mark.parametrize('train_list', ['', 'train.txt'])
def test_a_class_that_the_draw_holds_out_is_told(train_list):
  data = dataset_of([[[0, 1]]], [[[2]]])
  settings = FOLDER | {'seed': 0, 'train_list': train_list}
  with pytest.raises(InputError, match="of class 'ice'") as error:
    check_labels(data, settings)
  assert ('another --config.data.seed' in str(error.value)) != bool(train_list)


def test_each_example_is_read_once_and_the_first_error_is_told():
  class Read(list):
    def __getitem__(self, index):
      read.append(index)
      if index in (3, 200, 270):
        raise InputError(f'label {index} is wrong')
      return super().__getitem__(index)

  labels = Read(examples_of(*300 * [[[0]]]))
  for _ in range(5):
    read = []
    with pytest.raises(InputError, match='label 3 is'):
      count_labels(labels)
    assert len({*read}) == len(read) < 270
  read = []
  assert count_labels(labels[:0] + labels[4:200]).pixels.sum() == 196


def test_an_absent_class_is_named_with_what_was_found():
  dataset = dataset_of([[[0, 0, 1]], [[255, 0, 0]]])
  message = (
    "2 training labels: no pixel is of class 'ice'; they hold 4 px sea, 1 px "
    'land, 1 px ignored; see data.dir'
  )
  with pytest.raises(InputError, match=f'^{re.escape(message)}$'):
    check_labels(dataset, {'name': 'isbi2012', 'dir': '', 'w0': 1})


@pytest.mark.parametrize('train', [[[[255, 255]]], 3 * [[[255]]]])
def test_training_labels_that_are_all_ignored_are_refused(train):
  with pytest.raises(
    InputError,
    match=rf'{len(train)} training labels: all pixels are ignored; .* ignored '
    r'\(value 9\); see data.ignore_value, data.class_names',
  ):
    check_labels(dataset_of(train, stored=(0, 1, 2, 9)), FOLDER)


def test_heldout_labels_need_a_pixel_but_not_every_class():
  train = [[[0, 1, 2]]]
  check_labels(dataset_of(train), FOLDER)
  check_labels(dataset_of(train, [[[255]], [[1]]]), FOLDER)
  with pytest.raises(InputError, match='2 held-out labels: all pixels are ign'):
    check_labels(dataset_of(train, [[[255]], [[255]]]), FOLDER)


def test_every_head_is_counted():
  def check(*labels):
    return check_labels(dataset_of(labels, head_sizes=(1, 2)), FOLDER)

  table = check([[[0, 0], [0, 1]]], [[[255, 1], [255, 1]]])
  rows = [line.split() for line in table.splitlines()[2:]]
  assert rows == [
    ['sea', '2', '50.00%', '1', '0', '0'],
    ['ignored', '2', '50.00%', '1', '0', '0'],
    ['land', '1', '25.00%', '1', '0', '0'],
    ['ice', '3', '75.00%', '2', '0', '0'],
  ]
  message = r"labels \(2 of 2 of a pixel\): no pixel is of class 'ice'; they ho"
  with pytest.raises(InputError, match=message + 'ld 2 px land'):
    check([[[0, 0], [0, 0]]])
  with pytest.raises(InputError, match=r'\(1 of 2 of a pixel\): all pixels'):
    check([[[255, 0], [255, 1]]])


def test_pixels_and_images_of_each_class_are_told():
  labels = [[0, 0, 0, 1, 1, 2, 255, 0]], [[0, 0, 2, 2]]
  table = check_labels(dataset_of(labels[:1], labels), FOLDER)
  first, *rows = table.splitlines()
  assert first == 'labels: 1 to train on, 2 held out'
  assert [row.split() for row in rows[1:]] == [
    ['sea', '4', '50.00%', '1', '6', '2'],
    ['land', '2', '25.00%', '1', '2', '1'],
    ['ice', '1', '12.50%', '1', '3', '2'],
    ['ignored', '1', '12.50%', '1', '1', '1'],
  ]


def test_a_class_that_the_settings_ignore_needs_no_pixel():
  train = [[[0, 1, 255]]]
  with pytest.raises(InputError, match="'ice'.* if 9 is 'ice', give .*0, 1, 9"):
    check_labels(dataset_of(train, stored=(0, 1, 2, 9)), FOLDER)
  check_labels(dataset_of(train, stored=(0, 1, 2, 2)), FOLDER)


@pytest.fixture
def masks(tmp_path):
  """Returns the settings of a folder of three masks of 0 and 255."""
  fields = write_folder(tmp_path)
  for file in (tmp_path / 'labels').iterdir():
    label = np.zeros((20, 24), np.uint8)
    label[5:9, 3:] = 255
    write_picture(file, label)
    write_picture(tmp_path / 'images' / file.name, np.zeros((20, 24, 3)))
  return fields | dict(
    name='folder',
    images='images',
    labels='labels',
    class_names=('background', 'object'),
    colours=(),
    ignore_value=(255,),
    train_list='',
    heldout_list='',
    seed=0,
  )


def test_masks_of_0_and_255_are_refused_with_the_setting_that_helps(masks):
  message = (
    "2 training labels: no pixel is of class 'object'; they hold 792 px "
    'background (value 0), 168 px ignored (value 255); if 255 is '
    '\'object\', give --config.data.label_values="(0, 255)"; see '
  )
  with pytest.raises(InputError, match=re.escape(message)):
    check_labels(create_dataset(masks), masks)
  # As the message says.
  masks['label_values'] = (0, 255)
  dataset = create_dataset(masks)
  rows = [line.split() for line in check_labels(dataset, masks).splitlines()]
  assert rows[-1] == ['object', '168', '17.50%', '2', '84', '1']
  expected = np.zeros((20, 24), int)
  expected[5:9, 3:] = 1
  np.testing.assert_array_equal(dataset.train[0]['label'], expected)
