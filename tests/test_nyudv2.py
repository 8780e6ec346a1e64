# SPDX-License-Identifier: Apache-2.0
"""Tests of NYUDv2 in the layout of the FCN reference code."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from segjax.data import nyudv2
from segjax.errors import InputError

COLOR = np.array([[[10, 20, 30], [40, 50, 60]], [[7, 8, 9], [0, 0, 255]]])
HHA = np.array([[[101, 102, 103], [1, 2, 3]], [[4, 5, 6], [200, 210, 220]]])
DEPTH = np.array([[1000, 2550], [1, 65535]])
STORED = np.array([[0, 1], [40, 17]])
LISTS = dict(train_lists=('train.txt', 'val.txt'), heldout_lists=('test.txt',))


def write_png(path, array, dtype=np.uint8):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array.astype(dtype)).save(path)


def write_label(root, name, stored=STORED, key='segmentation', dtype=np.uint8):
  (root / 'segmentation').mkdir(parents=True, exist_ok=True)
  path = root / 'segmentation' / f'img_{name}.mat'
  scipy.io.savemat(path, {key: stored.astype(dtype)})
  return path


@pytest.fixture
def root(tmp_path):
  """A set of four scenes, of which 5001 is as above."""
  root = tmp_path / 'nyud'
  for i, name in enumerate(('5001', '5002', '5003', '0004')):
    write_png(root / f'data/images/img_{name}.png', np.roll(COLOR, i, 0))
    write_png(root / f'data/hha/img_{name}.png', np.roll(HHA, i, 0))
    write_png(
      root / f'data/depth/img_{name}.png', np.roll(DEPTH, i, 0), np.uint16
    )
    write_label(root, name, np.roll(STORED, i, 0))
  (root / 'train.txt').write_text('5002\n5001\n')
  (root / 'val.txt').write_text('5003\n')
  (root / 'test.txt').write_text('0004\n')
  return root


def load(root, modality='color', **changed):
  return nyudv2.load(dir=str(root), modality=modality, **(LISTS | changed))


def read_first(root, modality='color'):
  return load(root, modality, train_lists=['train.txt']).train[1]


def test_lists_give_the_split_in_their_order(root):
  dataset = load(root)
  assert [e['name'] for e in dataset.train] == ['5002', '5001', '5003']
  assert [e['name'] for e in dataset.heldout] == ['0004']
  assert load(root.parent).digest == dataset.digest
  assert not load(root, heldout_lists=()).heldout
  assert load(root, heldout_lists=()).digest != dataset.digest


def test_color_is_rgb_and_labels_start_at_0(root):
  example = read_first(root)
  assert example['name'] == '5001'
  assert example['image'].dtype == np.uint8
  np.testing.assert_array_equal(example['image'], COLOR)
  assert example['label'].dtype == np.int32
  np.testing.assert_array_equal(example['label'], [[255, 0], [39, 16]])


def test_hha_has_the_channels_as_stored(root):
  image = read_first(root, 'hha')['image']
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, HHA)


def test_color_hha_has_rgb_then_hha(root):
  image = read_first(root, 'color_hha')['image']
  assert image.dtype == np.uint8 and image.shape == (2, 2, 6)
  np.testing.assert_array_equal(image[0, 0], [10, 20, 30, 101, 102, 103])
  np.testing.assert_array_equal(image[1, 1], [0, 0, 255, 200, 210, 220])


def test_color_d_gives_the_log_depth_of_the_reference(root):
  image = read_first(root, 'color_d')['image']
  assert image.dtype == np.float32 and image.shape == (2, 2, 4)
  mean = np.array([92.318, 97.203, 116.190, 7.844])
  seen = (image - mean / 255) / (1 / 255)
  np.testing.assert_allclose(seen[..., :3], COLOR - mean[:3], atol=1e-4)
  # ln 1000 = 6.907755, ln 2550 = 7.843849, ln 65535 = 11.090340.
  expected = [[-0.936245, -0.000151], [-7.844, 3.246340]]
  np.testing.assert_allclose(seen[..., 3], expected, atol=1e-4)


@pytest.mark.parametrize(
  'modality, needed',
  [
    ('color', ['images']),
    ('hha', ['hha']),
    ('color_d', ['images', 'depth']),
    ('color_hha', ['images', 'hha']),
  ],
)
def test_only_what_a_modality_shows_is_needed(root, modality, needed):
  for name in ('images', 'hha', 'depth'):
    if name not in needed:
      (root / 'data' / name).rename(root / f'no-{name}')
  assert load(root, modality).train[0]['label'].shape == (2, 2)
  (root / 'data' / needed[-1]).rename(root / 'gone')
  with pytest.raises(InputError, match=f'has no data/{needed[-1]}'):
    load(root, modality)


def test_forty_names_in_stored_order():
  names = nyudv2.CLASS_NAMES
  assert len(set(names)) == len(names) == 40
  # Of data/nyud/classes.txt, lines 1, 10, 20, 30 and 40.
  assert names[0] == 'wall' and names[9::10] == (
    'bookshelf',
    'floor mat',
    'whiteboard',
    'otherprop',
  )


def test_missing_folder_says_what_is_expected(tmp_path):
  with pytest.raises(InputError, match='segmentation/img_NAME.mat') as caught:
    load(tmp_path / 'nowhere')
  assert str(tmp_path / 'nowhere') in str(caught.value)
  assert '--config.data.dir=DIR (eval' in str(caught.value)


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'modality': 'rgbd'}, "'rgbd' is not one of .*'color_hha'"),
    ({'train_lists': ()}, 'data.train_lists is empty'),
    ({'train_lists': ('all.txt',)}, 'has no all.txt'),
    ({'train_lists': ('val.txt', 'val.txt')}, 'lists 5003 twice'),
    ({'heldout_lists': ('none.txt',)}, 'has no none.txt'),
  ],
)
def test_arguments_that_give_no_split_are_refused(root, changed, message):
  with pytest.raises(InputError, match=message):
    load(root, **changed)


def test_list_files_outside_the_folder_are_refused(root):
  (root.parent / 'test.txt').write_text('0004\n')
  for name in ('../test.txt', str(root.parent / 'test.txt')):
    with pytest.raises(InputError, match='leads out of the data folder'):
      load(root, heldout_lists=(name,))


@pytest.mark.parametrize(
  'text, message',
  [
    ('', 'test.txt lists nothing'),
    ('../0004\n', "test.txt: '../0004' leads out"),
    ('0004\n5001 5002\n', '5001 5002: no such file .*img_5001 5002.png'),
    ('0004\n0005\n', '0005: no such file .*img_0005.png, which test.txt'),
  ],
)
def test_lists_that_cannot_be_followed_are_refused(root, text, message):
  (root / 'test.txt').write_text(text)
  with pytest.raises(InputError, match=message):
    load(root)


def test_missing_label_is_refused(root):
  (root / 'segmentation/img_5003.mat').unlink()
  with pytest.raises(InputError, match='5003: no such file .*img_5003.mat'):
    load(root)


@pytest.mark.parametrize('value', [41, 255, 256])
def test_labels_out_of_range_are_refused(root, value):
  # 256 would turn into 255, ignored, when 1 is taken off.
  write_label(root, '5001', np.array([[0, 1], [value, 2]]), dtype=np.uint16)
  with pytest.raises(InputError) as caught:
    read_first(root)
  for part in (f'label {value} in row 1, column 0', 'expected 1..40, or 0 for'):
    assert part in str(caught.value)
  assert 'img_5001.mat' in str(caught.value)


def test_depth_0_is_refused_by_its_pixel(root):
  depth = DEPTH.copy()
  depth[1, 0] = 0
  path = root / 'data/depth/img_5001.png'
  write_png(path, depth, np.uint16)
  with pytest.raises(
    InputError, match='depth in row 1, column 0 .* is 0'
  ) as caught:
    read_first(root, 'color_d')
  assert str(path) in str(caught.value)


@pytest.mark.parametrize(
  'file, modality',
  [
    ('data/images/img_5001.png', 'color'),
    ('data/depth/img_5001.png', 'color_d'),
    ('data/hha/img_5001.png', 'color_hha'),
    ('segmentation/img_5001.mat', 'hha'),
  ],
)
def test_cut_file_is_refused(root, file, modality):
  path = root / file
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(InputError, match=path.name):
    read_first(root, modality)


@pytest.mark.parametrize('modality', ['color_d', 'color_hha'])
def test_streams_of_unequal_size_are_refused(root, modality):
  write_png(root / 'data/depth/img_5001.png', DEPTH[:1], np.uint16)
  write_png(root / 'data/hha/img_5001.png', HHA[:1])
  with pytest.raises(InputError, match='1 x 2 px for an image of 2 x 2 px'):
    read_first(root, modality)


def test_label_of_another_size_is_refused(root):
  write_label(root, '5001', np.ones((2, 3)))
  with pytest.raises(InputError, match='2 x 3 px for an image of 2 x 2 px'):
    read_first(root)


def test_other_kinds_of_file_are_refused(root):
  write_png(root / 'data/images/img_5001.png', DEPTH / 1000)
  with pytest.raises(InputError, match='uint8 of 1 channels; expected uint8'):
    read_first(root)
  write_png(root / 'data/images/img_5001.png', COLOR)
  write_png(root / 'data/depth/img_5001.png', DEPTH / 1000)
  with pytest.raises(InputError, match='depth.*expected uint16 of 1'):
    read_first(root, 'color_d')
  write_label(root, '5001', key='labels')
  with pytest.raises(InputError, match='has no segmentation'):
    read_first(root)
