# SPDX-License-Identifier: Apache-2.0
"""Reading prepared sets, those of others with whatever they store."""

import concurrent.futures
import pickle
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from prepared_sets import (
  CLASSES,
  FIELDS,
  assert_same,
  dataset_of,
  encode,
  example,
  load,
  write_foreign,
)

from segjax.data import create_dataset
from segjax.errors import InputError
from segjax.prepare import prepare

catalogue = pytest.importorskip('tensorflow_datasets')
features = catalogue.features

INDICES = np.uint8([[0, 1, 2], [2, 1, 0]])
GRAY = features.Image(shape=(None, None, 1))


@pytest.fixture(scope='module')
def made():
  return dataset_of(
    [example(i, size=(5 + i, 7)) for i in range(4)], [example(9)]
  )


@pytest.fixture(scope='module')
def data_dir(made, tmp_path_factory):
  output = tmp_path_factory.mktemp('prepared')
  prepare(made, output, 'streets')
  return output


def foreign(data_dir, image, label, image_feature=None, label_feature=GRAY):
  """Writes a set of one image and label, and returns its example as read."""
  kinds = {
    'image': image_feature or features.Image(),
    'label': label_feature,
    'id': features.Scalar(np.int64),
  }
  row = {'image': image, 'label': label, 'id': 12}
  write_foreign(catalogue, data_dir, kinds, row)
  fields = dict(set='foreign', heldout_split='', class_names=CLASSES)
  return load(data_dir, **fields).train[0]


def rgb(colour=(9, 8, 7)):
  return encode(Image.new('RGB', (3, 2), colour))


def test_what_is_written_is_read(made, data_dir):
  dataset = load(data_dir)
  assert dataset.class_names == CLASSES
  assert_same(dataset.train, made.train)
  assert_same(dataset.heldout, made.heldout)
  assert len(load(data_dir, train_split='train[:50%]').train) == 2
  by_name = create_dataset({'name': 'tfds', 'dir': str(data_dir), **FIELDS})
  assert by_name.digest == dataset.digest


def test_other_data_have_another_digest(data_dir, tmp_path):
  digests = [
    load(data_dir, **changed).digest
    for changed in (
      {},
      {'train_split': 'train[:3]'},
      {'train_split': 'train[1:]'},
      {'train_split': 'heldout', 'heldout_split': 'train'},
      {'train_split': 'train+heldout', 'heldout_split': ''},
      {'label_shift': -1},
      {'ignore_value': 2},
    )
  ]
  # Prepared from other data, which the sizes of files need not show; and not.
  for width, source in ((7, 'x'), (7, 'y'), (9, 'y')):
    made = dataset_of([example(0, size=(5, width))], (), source)
    prepare(made, tmp_path, 'streets', overwrite=True)
    digests.append(load(tmp_path, heldout_split='').digest)
  assert len(set(digests)) == len(digests) == 10
  prepare(made, tmp_path / 'elsewhere', 'streets')
  copy = load(tmp_path / 'elsewhere', heldout_split='')
  assert copy.digest == digests[-1]


def test_threads_read_what_one_reads(data_dir):
  alone = [e['image'].tobytes() for e in load(data_dir).train]
  for _ in range(4):
    train = load(data_dir).train  # Its files are not open yet.
    together = threading.Barrier(8)

    def read(i, train=train, together=together):
      together.wait()
      return [train[(i + k) % 4]['image'].tobytes() for k in range(8)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      for i, read_bytes in enumerate(pool.map(read, range(8))):
        assert read_bytes == [alone[(i + k) % 4] for k in range(8)]


def test_examples_are_a_sequence_that_pickles(data_dir):
  train = load(data_dir).train
  names = [e['name'] for e in train]
  assert len(set(names)) == 4
  assert (
    train[-1]['name'] == names[3] and train[np.int64(1)]['name'] == names[1]
  )
  for index in (4, -5):
    with pytest.raises(IndexError):
      train[index]
  assert_same(pickle.loads(pickle.dumps(train)), [*train])


def test_shift_and_ignored_value(data_dir):
  stored = load(data_dir).train[0]['label']
  changed = dict(ignore_value=0, label_shift=-1)
  # 255 is then a value as any other.
  with pytest.raises(InputError, match='label 255 .* 1..2, or 0 for ignored'):
    load(data_dir, **changed, class_names='ab').train[0]
  many = ('x',) * 255
  with pytest.raises(InputError, match='label 255 .* 0..254, or 0 for'):
    load(data_dir, ignore_value=0, label_shift=0, class_names=many).train[0]
  names = tuple(str(i) for i in range(255))
  got = load(data_dir, **changed, class_names=names)
  want = np.where(stored == 0, 255, stored - 1)
  np.testing.assert_array_equal(got.train[0]['label'], want)


@pytest.mark.parametrize('opencv', [True, False])
@pytest.mark.parametrize('kind', ['P', '1', 'L in RGB', 'tensor'])
def test_labels_are_indices_with_and_without_opencv(
  tmp_path, monkeypatch, kind, opencv
):
  if not opencv:
    monkeypatch.setattr(features.image_feature, 'cv2', None)
  feature, picture, expected = GRAY, Image.fromarray(INDICES), INDICES
  if kind == 'P':
    picture.putpalette([200, 0, 0, 0, 90, 0, 1, 1, 1])
  elif kind == '1':
    picture, expected = picture.convert('1', dither=0), INDICES * 0
    picture.putpixel((1, 0), 255)
    expected[0, 1] = 1
  elif kind == 'L in RGB':
    feature = features.Image()
  stored = encode(picture)
  if kind == 'tensor':
    feature = features.Tensor(
      shape=(None, None, 1), dtype=np.int64, encoding='zlib'
    )
    stored = INDICES[..., None].astype(np.int64)
  read = foreign(tmp_path, rgb(), stored, label_feature=feature)
  np.testing.assert_array_equal(read['label'], expected)
  assert read['label'].dtype == np.int32
  assert read['name'] == '12'


def test_images_have_the_channels_of_their_feature(tmp_path):
  label = encode(Image.fromarray(INDICES))
  gray = encode(Image.new('L', (3, 2), 5))
  read = foreign(tmp_path / 'gray', gray, label)
  np.testing.assert_array_equal(read['image'], np.full((2, 3, 3), 5, np.uint8))
  read = foreign(tmp_path / 'rgb', rgb(), label)
  np.testing.assert_array_equal(read['image'][1, 2], [9, 8, 7])
  with pytest.raises(InputError, match=r'12: image of \[2, 3, 3\] .*1 chan'):
    foreign(tmp_path / 'one', rgb(), label, GRAY)


@pytest.mark.parametrize(
  ('image', 'label', 'message'),
  [
    (rgb(), rgb(), r'12: label of shape \[2, 3, 3\]; .*no colours'),
    (
      rgb(),
      encode(Image.fromarray(INDICES), 'jpeg'),
      '12, label: JPEG changes values',
    ),
    (rgb(), b'text', '12, label: truncated, corrupt or misnamed'),
    (rgb()[:40], encode(Image.fromarray(INDICES)), '12, image: truncated'),
    (rgb(), encode(Image.new('L', (3, 3))), r'image of \[2, 3, 3\].*\[3, 3\]'),
  ],
)
def test_pictures_that_do_not_fit_are_refused(tmp_path, image, label, message):
  with pytest.raises(InputError, match=message):
    foreign(tmp_path, image, label)


@pytest.mark.parametrize(
  ('feature', 'stored'),
  [
    (features.Text(), 'x'),
    (features.ClassLabel(num_classes=3), 1),
    (features.Tensor(shape=(2, 3), dtype=np.float32), np.zeros((2, 3), 'f')),
    (features.Sequence(GRAY), []),
    (features.BBoxFeature(), features.BBox(0.0, 0.0, 1.0, 1.0)),
  ],
)
def test_features_that_are_no_picture_are_refused(tmp_path, feature, stored):
  label = encode(Image.fromarray(INDICES))
  with pytest.raises(InputError, match="label_key='label' .*; expected a pict"):
    foreign(tmp_path / 'a', rgb(), stored, label_feature=feature)
  with pytest.raises(InputError, match="image_key='image' .*; expected a pict"):
    foreign(tmp_path / 'b', stored, label, image_feature=feature)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'set': 'none'}, r"'none' is not prepared in .*builder\('none', data_dir"),
    ({'set': 'none'}, 'one of your own by python -m segjax.prepare'),
    ({'set': 'streets:2.0.0'}, 'not prepared'),
    ({'set': ''}, 'not prepared'),
    ({'train_split': 'trial'}, "Unknown split 'trial'.*'train', 'heldout'"),
    ({'train_split': ''}, 'Unrecognized split format'),
    ({'train_split': 'train[:9%'}, 'Unrecognized split format'),
    ({'train_split': 'train[:0%]'}, "'train.:0%.' of streets gives no example"),
    (
      {'heldout_split': 'train[3:]'},
      r'1 example\(s\) of streets-train.* both trained on and held out',
    ),
    (
      {'image_key': 'picture'},
      "image_key='picture' .*'image', 'label', 'name'",
    ),
    ({'label_key': 'mask'}, "label_key='mask' is no feature"),
    ({'class_names': ('x',) * 256}, '256 names of classes'),
  ],
)
def test_what_is_not_there_is_named(data_dir, changed, message):
  with pytest.raises(InputError, match=message):
    load(data_dir, **changed)


def test_splits_that_only_touch_are_apart(data_dir):
  dataset = load(
    data_dir, train_split='train[:3]', heldout_split='train[3:]+heldout'
  )
  assert (len(dataset.train), len(dataset.heldout)) == (3, 2)


def test_labels_outside_the_classes_are_refused(data_dir):
  with pytest.raises(InputError, match=r'label 2 .*expected 0\.\.1'):
    [*load(data_dir, class_names=('a', 'b')).train]
  with pytest.raises(InputError, match=r'label 0 .*1\.\.3, or 255 for ignored'):
    [*load(data_dir, label_shift=-1).train]


def test_sets_that_cannot_be_read_are_refused(tmp_path):
  prepare(dataset_of([example(0)]), tmp_path, 'streets')
  folder = tmp_path / 'streets' / '1.0.0'
  (file,) = folder.glob('*array_record*')
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(InputError, match='train-0 is damaged'):
    load(tmp_path, heldout_split='').train[0]
  file.unlink()
  with pytest.raises(InputError, match=f'no such file .*{file.name}'):
    load(tmp_path, heldout_split='')
  info = folder / 'dataset_info.json'
  text = info.read_text()
  info.write_text(text.replace('array_record', 'tfrecord'))
  with pytest.raises(
    InputError, match='stored as tfrecord, which needs Tensor'
  ):
    load(tmp_path)
  info.write_text(text[:50])
  with pytest.raises(InputError, match='is damaged, prepare it again'):
    load(tmp_path)


def test_only_the_package_is_asked_for(monkeypatch, data_dir):
  for package in ('tensorflow_datasets', 'importlib_resources'):
    with monkeypatch.context() as patch:
      patch.setitem(sys.modules, package, None)
      with pytest.raises(
        InputError, match='install tensorflow-datasets import'
      ):
        load(data_dir)
