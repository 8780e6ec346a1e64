# SPDX-License-Identifier: Apache-2.0
"""Tests of reading CamVid in SegNet's layout."""

import numpy as np
import pytest
from trees import cut, write_lines, write_picture

from segjax.data import camvid
from segjax.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = {
  name: RNG.integers(0, 256, (4, 6, 3), np.uint8) for name in ('a', 'b', 'c')
}
LABELS = {name: RNG.integers(0, 12, (4, 6)) for name in IMAGES}


@pytest.fixture
def folder(tmp_path):
  """Returns a folder that trains on a and b and holds out c, for val or test.

  Its training list is written as in SegNet's tutorial.
  """
  for split, names in (('train', 'ab'), ('val', 'c'), ('test', 'c')):
    for name in names:
      write_picture(tmp_path / split / f'{name}.png', IMAGES[name])
      write_picture(tmp_path / f'{split}annot' / f'{name}.png', LABELS[name])
    root = '/SegNet/CamVid/' if split == 'train' else ''
    lines = [
      f'{root}{split}/{name}.png {root}{split}annot/{name}.png'
      for name in names
    ]
    write_lines(tmp_path / f'{split}.txt', *lines)
  return tmp_path


def load(folder, heldout='val', scale=1):
  return camvid.load(dir=str(folder), heldout=heldout, scale=scale)


@pytest.mark.parametrize('heldout', ['val', 'test'])
def test_examples_are_as_stored_with_void_ignored(folder, heldout):
  dataset = load(folder, heldout)
  assert [example['name'] for example in dataset.train] == ['a', 'b']
  assert [example['name'] for example in dataset.heldout] == ['c']
  for example in (*dataset.train, *dataset.heldout):
    name = example['name']
    np.testing.assert_array_equal(example['image'], IMAGES[name])
    expected = [[255 if v == 11 else v for v in row] for row in LABELS[name]]
    np.testing.assert_array_equal(example['label'], expected)
    assert example['label'].dtype == np.int32
  assert len(dataset.class_names) == len(dataset.palette) == 11


@pytest.mark.parametrize('k', [1, 2])
def test_scale_is_a_mean_of_the_image_and_a_pixel_of_the_label(folder, k):
  example = load(folder, scale=k).heldout[0]
  assert example['image'].shape == (4 // k, 6 // k, 3)
  assert example['image'].dtype == np.uint8
  for row, column, channel in np.ndindex(example['image'].shape):
    rows, columns = (
      slice(row * k, row * k + k),
      slice(column * k, column * k + k),
    )
    mean = IMAGES['c'][rows, columns, channel].astype(float).mean()
    assert example['image'][row, column, channel] == np.floor(mean + 0.5)
    stored = LABELS['c'][row * k + k // 2, column * k + k // 2]
    assert example['label'][row, column] == (255 if stored == 11 else stored)


def test_scale_changes_the_digest(folder):
  assert load(folder).digest != load(folder, scale=2).digest


def test_split_changes_the_digest(folder):
  before = load(folder).digest
  line = 'train/{0}.png trainannot/{0}.png'
  write_lines(folder / 'train.txt', line.format('a'))
  write_lines(folder / 'val.txt', line.format('b'), 'val/c.png valannot/c.png')
  assert load(folder).digest != before


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(heldout='train'), "heldout='train'; expected 'val' or 'test'"),
    (dict(scale=0), 'scale=0'),
  ],
)
def test_other_arguments_are_refused(folder, options, message):
  with pytest.raises(InputError, match=message):
    load(folder, **options)


def test_size_that_is_no_multiple_of_scale_is_refused(folder):
  with pytest.raises(InputError, match='c.png: 4 x 6 px; .* data.scale=4'):
    load(folder, scale=4).heldout[0]


def test_missing_folder_is_refused(tmp_path):
  with pytest.raises(InputError, match='CamVid not found.*--config.data.dir'):
    load(tmp_path / 'none')


@pytest.mark.parametrize(
  'line, message',
  [
    ('', 'val.txt lists nothing'),
    ('val/c.png', 'val.txt: \'val/c.png\'; expected "image label"'),
    ('val/d.png valannot/d.png', 'd: no such file .*val/d.png'),
    ('val/c.png valannot/d.png', 'c: no such file .*valannot/d.png'),
    ('/SegNet/../c.png valannot/c.png', r'\.\./c.png.* leads out of the data'),
    ('/c.png valannot/c.png', "'/c.png' leads out of the data"),
    ('train/a.png trainannot/a.png', 'a is both trained on and held out'),
  ],
)
def test_other_lists_are_refused(folder, line, message):
  write_lines(folder / 'val.txt', line)
  with pytest.raises(InputError, match=message):
    load(folder)


def test_damaged_files_are_refused(folder):
  for kind in ('valannot', 'val'):
    cut(folder / kind / 'c.png')
    with pytest.raises(InputError, match=f'{kind}/c.png'):
      load(folder).heldout[0]


def test_label_outside_the_classes_is_refused(folder):
  label = LABELS['c'].copy()
  label[1, 2] = 12
  write_picture(folder / 'valannot' / 'c.png', label)
  with pytest.raises(InputError, match='c.png: label 12 in row 1, column 2 '):
    load(folder).heldout[0]


@pytest.mark.parametrize(
  'kind, array, message',
  [
    ('valannot', IMAGES['a'], 'of 3 channel.* expected class indices'),
    ('val', LABELS['a'], 'of 1 channel.* expected uint8 of 3'),
    ('valannot', LABELS['a'][:3], 'label of 3 x 6 px for an image of 4 x 6'),
  ],
)
def test_files_of_another_kind_are_refused(folder, kind, array, message):
  write_picture(folder / kind / 'c.png', array)
  with pytest.raises(InputError, match=message):
    load(folder).heldout[0]


def test_real_data(data_dir):
  if not (data_dir / 'camvid').is_dir():
    pytest.skip(f'no folder camvid in {data_dir}')
  dataset = load(data_dir)
  assert len(dataset.train) == 367 and len(dataset.heldout) == 101
  counts = np.zeros(256, int)
  for i in range(0, 367, 12):
    example = dataset.train[i]
    assert example['image'].shape == (360, 480, 3)
    counts += np.bincount(example['label'].ravel(), minlength=256)
  assert set(np.flatnonzero(counts)) == {*range(11), 255}
  share = dict(zip(dataset.class_names, counts / counts.sum(), strict=False))
  # Streets: road, building and sky are most of each picture, poles little.
  assert share['road'] + share['building'] + share['sky'] > 0.5
  assert share['pole'] < 0.03 and share['bicyclist'] < 0.03
  half = load(data_dir, scale=2).heldout[0]
  assert half['image'].shape == (180, 240, 3)
  assert half['label'].shape == (180, 240)
