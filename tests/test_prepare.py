# SPDX-License-Identifier: Apache-2.0
"""Writing sets: whole, exact, or not at all."""

import os
import subprocess
import sys

import numpy as np
import pytest
from commands import REPOSITORY, run
from prepared_sets import assert_same, dataset_of, example, load
from small_sets import write_folder

from segjax.data import folder
from segjax.data.examples import Dataset
from segjax.errors import InputError
from segjax.prepare import prepare

catalogue = pytest.importorskip('tensorflow_datasets')


def test_the_catalogues_own_reader_agrees(tmp_path, capsys):
  made = [example(i, size=(5 + i, 7)) for i in range(4)]
  assert prepare(dataset_of(made), tmp_path, 'streets') == (
    tmp_path / 'streets' / '1.0.0'
  )
  assert capsys.readouterr().out == ''
  source = catalogue.data_source('streets', data_dir=tmp_path, split='train')
  rows = {row['name'].decode(): row for row in source}
  assert len(rows) == len(source) == 4
  for expected in made:
    row = rows[expected['name']]
    np.testing.assert_array_equal(row['image'], expected['image'])
    np.testing.assert_array_equal(row['label'][..., 0], expected['label'])
    assert row['label'].dtype == np.uint8


def test_gray_images_no_heldout_and_255_classes(tmp_path):
  made = [example(0, channels=1)]
  made[0]['label'][0, 0] = 254
  names = tuple(map(str, range(255)))
  prepare(Dataset(names, made, (), ''), tmp_path, 'gray')
  read = load(tmp_path, set='gray', heldout_split='')
  assert_same(read.train, made)
  assert read.class_names == names
  assert len(read.heldout) == 0


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
  assert [file.name for file in tmp_path.iterdir()] == ['streets']


@pytest.mark.parametrize('beside', ['2.0.0', 'notes.txt', None])
def test_only_what_this_has_written_is_replaced(tmp_path, beside):
  made = dataset_of([example(0)])
  if beside:
    prepare(made, tmp_path, 'streets')
    kept = tmp_path / 'streets' / beside
  else:
    kept = tmp_path / 'streets' / '1.0.0'
    kept.parent.mkdir()
  kept.mkdir()
  with pytest.raises(InputError, match='no set that segjax.prepare wrote'):
    prepare(made, tmp_path, 'streets', overwrite=True)
  assert kept.is_dir()


def test_a_killed_run_leaves_no_set(tmp_path):
  program = f"""
import os
from prepared_sets import dataset_of, example
from segjax.prepare import prepare
class Fatal(list):
  def __iter__(self):
    yield from [example(0), example(1)]
    os._exit(9)
prepare(dataset_of(Fatal([example(0)])), {str(tmp_path)!r}, 'streets')
"""
  path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / 'tests')))
  process = subprocess.run(
    [sys.executable, '-c', program], env=os.environ | {'PYTHONPATH': path}
  )
  assert process.returncode == 9
  (left,) = tmp_path.iterdir()
  assert left.name.startswith('.segjax-')
  assert [*left.rglob('incomplete.*')]
  with pytest.raises(InputError, match='not prepared'):
    load(tmp_path)
  made = dataset_of([example(0)])
  prepare(made, tmp_path, 'streets')
  assert_same(load(tmp_path, heldout_split='').train, made.train)
  assert [file.name for file in tmp_path.iterdir()] == ['streets']


def label_of(value):
  return {'label': np.full((5, 7), value, np.int32)}


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'image': np.zeros((5, 7, 4), np.uint8)}, 'scene 1: .* 4 channels'),
    ({'image': np.zeros((5, 7, 1), np.uint8)}, '1 channels .*expected uint8'),
    ({'image': np.zeros((5, 7, 3), np.uint16)}, 'scene 1: image of uint16'),
    ({'image': np.zeros((5, 8, 3), np.uint8)}, 'label of .5, 7. for .* .5, 8,'),
    ({'label': np.zeros((5, 7, 2), np.int32)}, 'one label a pixel'),
    (label_of(256), r'scene 1: label 256 .*expected 0\.\.2'),
    (label_of(-1), 'label -1'),
    (label_of(3), 'label 3'),
    ({'name': 'scene 0'}, 'scene 0 names two examples'),
  ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, wrong, message):
  with pytest.raises(InputError, match=message):
    prepare(dataset_of([example(0)], [example(1) | wrong]), tmp_path, 'streets')
  assert not list(tmp_path.iterdir())


def test_sets_that_cannot_be_stored_are_refused(tmp_path):
  cases = (
    (dataset_of([]), 'no example to train on'),
    (dataset_of([example(0, channels=6)]), 'scene 0: image with 6 channels'),
    (Dataset(('x',) * 256, [example(0)], (), ''), '256 classes'),
    (dataset_of([example(0, size=(0, 7))]), 'one label a pixel'),
  )
  for dataset, message in cases:
    with pytest.raises(InputError, match=message):
      prepare(dataset, tmp_path, 'streets')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['../x', 'Streets', '', '9', 'voc', 'c4'])
def test_names_that_are_no_set_or_another_are_refused(tmp_path, name):
  with pytest.raises(InputError, match=f'name={name!r}'):
    prepare(dataset_of([example(0)]), tmp_path, name)
  assert not list(tmp_path.iterdir())


def test_an_impossible_place_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='streets cannot be written'):
    prepare(dataset_of([example(0)]), tmp_path / 'file', 'streets')


def test_reading_and_writing_import_no_tensorflow(tmp_path):
  program = """
import sys
from prepared_sets import dataset_of, example, load
from segjax.prepare import prepare
prepare(dataset_of([example(0)]), '~', 'streets')
for data_dir in ('~', ''):
  print(load(data_dir, heldout_split='').train[0]['name'])
print('tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules)
"""
  path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / 'tests')))
  places = {'HOME': str(tmp_path), 'TFDS_DATA_DIR': str(tmp_path)}
  process = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': path} | places,
  )
  lines = process.stdout.splitlines()
  assert lines == ['scene 0', 'scene 0', 'True False'], process.stderr


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
  process = run('prepare', *command, env=env)
  assert process.returncode == 0, process.stderr
  assert process.stdout.splitlines() == [
    f'{tmp_path}/prepared/mine/1.0.0: 2 to train on, 1 held out'
  ]
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
  process = run('prepare', *command, env=env)
  assert process.returncode == 2
  assert len(process.stderr.splitlines()) == 1
  assert 'mine exists; give --overwrite' in process.stderr
