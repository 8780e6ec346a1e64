# SPDX-License-Identifier: Apache-2.0
"""Tests of SIFT Flow as its organisers distribute it."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from segjax.data import sift_flow
from segjax.errors import InputError

SCENES = 'spatial_envelope_256x256_static_8outdoorcategories'
SEMANTIC = np.array([[0, 1, 33], [28, 0, 2]])
GEOMETRIC = np.array([[-1, 3, 2], [1, 0, 3]])


def write_label(root, kind, name, stored, dtype, key='S'):
  folder = root / kind / SCENES
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'{name}.mat'
  scipy.io.savemat(path, {key: stored.astype(dtype)})
  return path


def write_image(root, name, colour):
  folder = root / 'Images' / SCENES
  folder.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (3, 2), colour).save(folder / f'{name}.jpg', quality=100)


@pytest.fixture
def root(tmp_path):
  root = tmp_path / 'sift-flow'
  for i, name in enumerate(('street_a2', 'coast_n1', 'forest_b3')):
    write_image(root, name, (200 - 90 * i, 30, 60))
    semantic = np.roll(SEMANTIC, i, axis=1)
    write_label(root, 'SemanticLabels', name, semantic, np.uint8)
    geometric = np.roll(GEOMETRIC, i, axis=1)
    write_label(root, 'GeoLabels', name, geometric, np.float64)
  (root / 'trainval.txt').write_text('street_a2\ncoast_n1\n')
  (root / 'test.txt').write_text('forest_b3')
  return root


def load(root, train_lists=('trainval.txt',), heldout_lists=('test.txt',)):
  return sift_flow.load(
    dir=str(root), train_lists=train_lists, heldout_lists=heldout_lists
  )


def read_first(root):
  return load(root).train[0]


def test_lists_give_the_split_in_their_order(root):
  dataset = load(root)
  assert [e['name'] for e in dataset.train] == ['street_a2', 'coast_n1']
  assert [e['name'] for e in dataset.heldout] == ['forest_b3']
  assert load(root.parent).digest == dataset.digest
  without = load(root, heldout_lists=())
  assert len(without.train) == 2 and not without.heldout
  assert without.digest != dataset.digest


def test_two_labels_start_at_0(root):
  label = read_first(root)['label']
  assert label.dtype == np.int32 and label.shape == (2, 3, 2)
  np.testing.assert_array_equal(
    label[..., 0], [[255, 0, 32], [27, 255, 1]], 'semantic'
  )
  np.testing.assert_array_equal(
    label[..., 1], [[255, 2, 1], [0, 255, 2]], 'geometric'
  )


def test_image_is_rgb(root):
  image = read_first(root)['image']
  assert image.dtype == np.uint8 and image.shape == (2, 3, 3)
  # JPEG rounds.
  expected = np.broadcast_to([200, 30, 60], image.shape)
  np.testing.assert_allclose(image.astype(int), expected, atol=2)


def test_names_of_both_heads_in_stored_order(root):
  names = load(root).class_names
  assert len(names) == 36
  semantic = names[:33]
  assert semantic == tuple(sorted(set(semantic)))
  # Of data/sift-flow/classes.txt.
  for number, name in ((1, 'awning'), (28, 'sky'), (33, 'window')):
    assert semantic[number - 1] == name
  assert names[33:] == ('sky', 'horizontal', 'vertical')


def test_missing_folder_says_what_is_expected(tmp_path):
  with pytest.raises(InputError, match=f'expected Images/{SCENES}') as caught:
    load(tmp_path / 'nowhere')
  assert str(tmp_path / 'nowhere') in str(caught.value)
  assert '--config.data.dir=DIR (eval' in str(caught.value)


def test_missing_list_and_no_list_are_refused(root):
  with pytest.raises(InputError, match='has no train.txt'):
    load(root, train_lists=('train.txt',))
  with pytest.raises(InputError, match='data.train_lists is empty'):
    load(root, train_lists=())


@pytest.mark.parametrize(
  'text, message',
  [
    ('\n', 'trainval.txt lists nothing'),
    ('/etc/passwd\n', "'/etc/passwd' leads out"),
    ('coast_n1\ncoast_n1\n', 'trainval.txt lists coast_n1 twice'),
    ('coast_n2\n', 'coast_n2: no such file .*coast_n2.jpg, which trainval'),
  ],
)
def test_lists_that_cannot_be_followed_are_refused(root, text, message):
  (root / 'trainval.txt').write_text(text)
  with pytest.raises(InputError, match=message):
    load(root)


def test_list_file_outside_the_folder_is_refused(root):
  (root.parent / 'test.txt').write_text('forest_b3\n')
  with pytest.raises(InputError, match="'../test.txt' leads out"):
    load(root, heldout_lists=('../test.txt',))


@pytest.mark.parametrize('kind', ['SemanticLabels', 'GeoLabels'])
def test_missing_and_cut_labels_are_refused(root, kind):
  path = root / kind / SCENES / 'street_a2.mat'
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(InputError, match=str(path)):
    read_first(root)
  path.unlink()
  with pytest.raises(InputError, match=f'street_a2: no such file {path}'):
    load(root)


def test_cut_image_is_refused(root):
  path = root / 'Images' / SCENES / 'street_a2.jpg'
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(InputError, match='street_a2.jpg'):
    read_first(root)


@pytest.mark.parametrize(
  'kind, value, expected',
  [
    ('SemanticLabels', 34, '1..33, or 0 for'),
    ('SemanticLabels', -1, '1..33, or 0 for'),
    ('GeoLabels', 4, '1..3, or -1 or 0 for'),
    ('GeoLabels', -2, '1..3, or -1 or 0 for'),
    ('GeoLabels', 256, '1..3, or -1 or 0 for'),
  ],
)
def test_labels_out_of_range_are_refused(root, kind, value, expected):
  stored = np.array([[1, 2, 3], [1, value, 2]])
  path = write_label(root, kind, 'street_a2', stored, np.int16)
  with pytest.raises(InputError) as caught:
    read_first(root)
  assert str(caught.value).startswith(
    f'{path}: label {value} in row 1, column 1 (counted from 0); expected '
    f'{expected} ignored; the values in this label are '
  )


def test_sizes_that_differ_are_refused(root):
  write_label(root, 'GeoLabels', 'street_a2', np.ones((3, 3)), np.uint8)
  with pytest.raises(InputError, match='3 x 3 px for an image of 2 x 3 px'):
    read_first(root)
  write_label(root, 'SemanticLabels', 'street_a2', np.ones((3, 3)), np.uint8)
  with pytest.raises(InputError, match='3 x 3 px for an image of 2 x 3 px'):
    read_first(root)


def test_gray_image_and_other_variable_are_refused(root):
  path = root / 'Images' / SCENES / 'street_a2.jpg'
  Image.new('L', (3, 2), 128).save(path)
  with pytest.raises(InputError, match='of 1 channels; expected uint8 of 3'):
    read_first(root)
  write_label(root, 'GeoLabels', 'street_a2', GEOMETRIC, np.int8, key='T')
  with pytest.raises(InputError, match='has no S'):
    read_first(root)
