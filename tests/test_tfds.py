# SPDX-License-Identifier: Apache-2.0
"""Prepared sets: what is written is what is read, without TensorFlow."""

import concurrent.futures
import shutil
import sys

import numpy as np
import pytest
from commands import run
from small_sets import write_folder

from segjax.data import create_dataset, folder, tfds
from segjax.data.examples import Dataset
from segjax.data.prepare import prepare
from segjax.errors import InputError

catalogue = pytest.importorskip('tensorflow_datasets')

CLASSES = ('road', 'tree', 'car')
FIELDS = dict(
  set='streets',
  train_split='train',
  heldout_split='heldout',
  image_key='image',
  label_key='label',
  class_names=(),
  ignore_value=-1,
  label_shift=0,
)


def example(seed, channels=3, size=(5, 7)):
  rng = np.random.default_rng(seed)
  label = rng.choice(np.int32([0, 1, 2, 255]), size)
  image = rng.integers(0, 256, (*size, channels), dtype=np.uint8)
  return {'image': image, 'label': label, 'name': f'scene {seed}'}


def dataset_of(train, heldout=()):
  return Dataset(CLASSES, train, heldout, 'digest')


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


def load(data_dir, **changed):
  return tfds.load(dir=str(data_dir), **(FIELDS | changed))


def assert_same(read, made):
  read = {e['name']: e for e in read}
  assert read.keys() == {e['name'] for e in made}
  for expected in made:
    got = read[expected['name']]
    np.testing.assert_array_equal(got['image'], expected['image'])
    np.testing.assert_array_equal(got['label'], expected['label'])
    assert got['image'].dtype == np.uint8 and got['label'].dtype == np.int32


def test_what_is_written_is_read(made, data_dir):
  dataset = load(data_dir)
  assert dataset.class_names == CLASSES
  assert_same(dataset.train, made.train)
  assert_same(dataset.heldout, made.heldout)
  assert len(load(data_dir, train_split='train[:50%]').train) == 2
  digests = {
    load(data_dir, **changed).digest
    for changed in ({}, {'train_split': 'train[:3]'}, {'label_shift': -1})
  }
  assert len(digests) == 3 and load(data_dir).digest in digests
  by_name = create_dataset({'name': 'tfds', 'dir': str(data_dir), **FIELDS})
  assert by_name.digest == dataset.digest


def test_the_catalogues_own_reader_agrees(made, data_dir):
  builder = catalogue.builder('streets', data_dir=str(data_dir))
  rows = {row['name'].decode(): row for row in builder.as_data_source('train')}
  for expected in made.train:
    row = rows[expected['name']]
    np.testing.assert_array_equal(row['image'], expected['image'])
    np.testing.assert_array_equal(row['label'][..., 0], expected['label'])


def test_threads_read_what_one_reads(data_dir):
  train = load(data_dir).train
  alone = [example['label'].sum() for example in train]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    sums = [*pool.map(lambda i: train[i % 4]['label'].sum(), range(64))]
  assert sums == alone * 16


def test_shift_and_ignored_value(data_dir):
  stored = load(data_dir).train[0]['label']
  shifted = load(data_dir, ignore_value=0, label_shift=-1, class_names='ab')
  with pytest.raises(InputError, match='label 254|label -1'):
    shifted.train[0]  # 255 is then a value as any other.
  names = tuple(str(i) for i in range(256))
  got = load(data_dir, ignore_value=0, label_shift=-1, class_names=names)
  want = np.where(stored == 0, 255, stored - 1)
  np.testing.assert_array_equal(got.train[0]['label'], want)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'set': 'none'}, "'none' is not prepared in .*segjax.data.prepare"),
    ({'set': 'streets:2.0.0'}, 'not prepared'),
    ({'train_split': 'trial'}, "Unknown split 'trial'.*'train', 'heldout'"),
    (
      {'image_key': 'picture'},
      "image_key='picture' .*'image', 'label', 'name'",
    ),
    ({'label_key': 'mask'}, "label_key='mask' is no feature"),
  ],
)
def test_what_is_not_there_is_named(data_dir, changed, message):
  with pytest.raises(InputError, match=message):
    load(data_dir, **changed)


def test_labels_that_are_none_are_refused(data_dir):
  with pytest.raises(InputError, match=r'label 2 .*expected 0\.\.1'):
    [*load(data_dir, class_names=('a', 'b')).train]
  with pytest.raises(InputError, match='no colours'):
    load(data_dir, label_key='image').train[0]


def test_gray_images_and_no_heldout(tmp_path):
  made = dataset_of([example(0, channels=1)])
  prepare(made, tmp_path, 'gray')
  read = load(tmp_path, set='gray', heldout_split='')
  assert_same(read.train, made.train)
  assert not len(read.heldout)


def test_an_existing_set_stays_unless_replaced_by_a_whole_one(tmp_path):
  first, second = dataset_of([example(0)]), dataset_of([example(1)])
  prepare(first, tmp_path, 'streets')
  with pytest.raises(InputError, match='streets exists; give --overwrite'):
    prepare(second, tmp_path, 'streets')
  wrong = example(2) | {'image': np.zeros((5, 7, 3), np.float32)}
  broken = dataset_of([example(1), wrong])
  with pytest.raises(InputError, match='scene 2: image of float32'):
    prepare(broken, tmp_path, 'streets', overwrite=True)
  assert [file.name for file in tmp_path.iterdir()] == ['streets']
  read = load(tmp_path, heldout_split='')
  assert_same(read.train, first.train)
  prepare(second, tmp_path, 'streets', overwrite=True)
  assert_same(load(tmp_path, heldout_split='').train, second.train)


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'image': np.zeros((5, 7, 6), np.uint8)}, 'with 6 channels'),
    ({'image': np.zeros((5, 7, 1), np.uint8)}, '1 channels .*expected 3'),
    ({'label': np.zeros((5, 7, 2), np.int32)}, 'one label a pixel'),
  ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, wrong, message):
  with pytest.raises(InputError, match=message):
    prepare(dataset_of([example(0), example(1) | wrong]), tmp_path, 'streets')
  assert not list(tmp_path.iterdir())


def test_names_that_are_no_set_are_refused(tmp_path):
  with pytest.raises(InputError, match="name='../x'"):
    prepare(dataset_of([example(0)]), tmp_path, '../x')


def test_a_missing_package_is_named(monkeypatch, data_dir):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(InputError, match=r'pip install segjax\[tfds\]'):
    load(data_dir)


def test_the_command_writes_a_folder_without_tensorflow(tmp_path):
  fields = write_folder(tmp_path / 'raw')
  command = (
    '--config=configs/fcn8s_folder.py',
    f'--config.data.dir={fields["dir"]}',
    f'--output={tmp_path / "prepared"}',
    '--name=mine',
  )
  # A file of this name would be imported in place of the package.
  (tmp_path / 'tensorflow.py').write_text('raise SystemExit("imported")')
  env = {'PYTHONPATH': str(tmp_path)}
  process = run('data.prepare', *command, env=env)
  assert process.returncode == 0, process.stderr
  assert process.stdout.splitlines()[-1].endswith(
    'mine/1.0.0: 2 examples to train on, 1 held out'
  )
  config = dict(
    images='images',
    labels='labels',
    class_names=('background', 'object'),
    colours=(),
    ignore_value=(255,),
    train_list='',
    heldout_list='',
    heldout_fraction=0.2,
    seed=0,
  )
  raw = folder.load(**config | {'dir': fields['dir']})
  read = load(tmp_path / 'prepared', set='mine')
  assert_same(read.train, [*raw.train])
  assert_same(read.heldout, [*raw.heldout])
  process = run('data.prepare', *command, env=env)
  assert process.returncode == 2
  assert len(process.stderr.splitlines()) == 1
  assert 'mine exists; give --overwrite' in process.stderr
  shutil.rmtree(tmp_path / 'prepared')
