# SPDX-License-Identifier: Apache-2.0
"""Tests of finding, reading and splitting the ISBI 2012 stack."""

import json
import shlex

import numpy as np
import pytest
from commands import CONFIG, TINY_NET, run

from segjax.data import isbi2012
from segjax.errors import InputError
from segjax.images import files

pytestmark = pytest.mark.smoke


def write_isbi(folder, labels=None, volume=None):
  """Writes a small stack in the challenge's layout; returns what it wrote."""
  rng = np.random.default_rng(0)
  if volume is None:
    volume = rng.integers(0, 256, (3, 8, 6), dtype=np.uint8)
  if labels is None:
    labels = rng.choice(np.array([0, 255], np.uint8), (3, 8, 6))
  folder.mkdir(parents=True)
  files.write_stack(folder / 'train-volume.tif', volume)
  files.write_stack(folder / 'train-labels.tif', labels)
  files.write_stack(folder / 'test-volume.tif', volume[::-1])
  return volume, labels


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
  """Runs the test in an empty folder, without SEGJAX_DATA_DIR."""
  folder = tmp_path / 'a' / 'run'
  folder.mkdir(parents=True)
  monkeypatch.chdir(folder)
  monkeypatch.delenv('SEGJAX_DATA_DIR', raising=False)
  return folder


@pytest.mark.parametrize('cell', [1, 255])
def test_load_returns_images_and_labels_0_and_1(tmp_path, cell):
  stored = np.random.default_rng(1).integers(0, 2, (3, 8, 6), dtype=np.uint8)
  volume, _ = write_isbi(tmp_path / 'd', labels=stored * cell)
  read, labels = isbi2012.read(str(tmp_path / 'd'))
  assert read.dtype == np.uint8 and labels.dtype == np.int32
  np.testing.assert_array_equal(read, volume[..., np.newaxis])
  np.testing.assert_array_equal(labels, stored)


def test_stack_without_a_cell_is_all_0(tmp_path):
  write_isbi(tmp_path / 'd', labels=np.zeros((3, 8, 6), np.uint8))
  assert not isbi2012.read(str(tmp_path / 'd'))[1].any()


def test_find_takes_the_folder_or_its_parent(tmp_path):
  folder = tmp_path / 'isbi2012'
  write_isbi(folder)
  assert isbi2012.find(str(folder)) == folder
  assert isbi2012.find(str(tmp_path)) == folder


def test_find_searches_in_the_documented_order(nowhere, monkeypatch):
  environment = nowhere.parent.parent / 'elsewhere'
  monkeypatch.setenv('SEGJAX_DATA_DIR', str(environment))
  candidates = [
    environment / 'isbi2012',
    environment,
    nowhere.parent / 'shared' / 'data' / 'isbi2012',
    nowhere.parent / 'shared' / 'data',
    nowhere / 'data' / 'isbi2012',
    nowhere / 'data',
  ]
  for folder in reversed(candidates):
    folder.mkdir(parents=True, exist_ok=True)
    for name in isbi2012.FILES:
      (folder / name).touch()
    assert isbi2012.find('').resolve() == folder.resolve()


def test_given_folder_is_not_replaced_by_another(nowhere):
  write_isbi(nowhere / 'data')
  with pytest.raises(InputError, match='missing'):
    isbi2012.read(str(nowhere / 'missing'))


def test_not_found_says_where_what_and_how(nowhere, monkeypatch):
  monkeypatch.setenv('SEGJAX_DATA_DIR', '/set/by/user')
  (nowhere / 'data').mkdir()
  (nowhere / 'data' / 'train-volume.tif').touch()
  with pytest.raises(InputError) as caught:
    isbi2012.read('')
  message = str(caught.value)
  assert '\n' not in message
  for part in (
    '/set/by/user/isbi2012, /set/by/user,',
    str((nowhere.parent / 'shared' / 'data').resolve()),
    f'{(nowhere / "data").resolve()} (has no train-labels.tif)',
    *isbi2012.FILES,
    '30 gray uint8 pages of 512 x 512',
    '255 or 1 cell, 0 membrane',
    '--config.data.dir=DIR (evaluate: --data_dir=DIR) or SEGJAX_DATA_DIR',
    'python -m segjax.main --config=configs/unet_isbi.py:demo',
  ):
    assert part in message
  assert shlex.split(message.rsplit(': ', 1)[1])[:3] == [
    'python',
    '-m',
    'segjax.main',
  ]


@pytest.mark.parametrize(
  'values', [(0, 255, 7), (0, 1, 2), (0, 1, 255), (0, 254)]
)
def test_other_labels_are_refused(tmp_path, values):
  labels = np.zeros((3, 8, 6), np.uint8)
  labels[2, 5, : len(values)] = values
  write_isbi(tmp_path / 'd', labels=labels)
  with pytest.raises(InputError) as caught:
    isbi2012.read(str(tmp_path / 'd'))
  first_wrong = {
    (0, 255, 7): (7, 2),
    (0, 1, 2): (2, 2),
    (0, 1, 255): (1, 1),
    (0, 254): (254, 1),
  }
  value, column = first_wrong[values]
  expected = (
    f'train-labels.tif: label {value} in page 2, row 5, column {column} '
  )
  assert expected in str(caught.value)


@pytest.mark.parametrize('shape', [(2, 8, 6), (3, 6, 8)])
def test_labels_of_other_number_or_size_are_refused(tmp_path, shape):
  write_isbi(tmp_path / 'd', labels=np.zeros(shape, np.uint8))
  given = f'{shape[0]} pages {shape[1]} x {shape[2]}'
  with pytest.raises(InputError, match=f'{given} for images of 3 pages 8 x 6'):
    isbi2012.read(str(tmp_path / 'd'))


def test_images_that_are_not_gray_uint8_are_refused(tmp_path):
  for i, volume in enumerate(
    (np.zeros((3, 8, 6, 3), np.uint8), np.zeros((3, 8, 6), np.uint16))
  ):
    write_isbi(tmp_path / str(i), volume=volume)
    with pytest.raises(InputError, match='train-volume.tif'):
      isbi2012.read(str(tmp_path / str(i)))


def test_truncated_stack_is_refused(tmp_path):
  write_isbi(tmp_path / 'd')
  path = tmp_path / 'd' / 'train-labels.tif'
  path.write_bytes(path.read_bytes()[:-20])  # The end is spare.
  with pytest.raises(InputError, match='train-labels.tif'):
    isbi2012.read(str(tmp_path / 'd'))


def test_folds_of_thirty_slices():
  for fold in range(5):
    train, heldout = isbi2012.fold_split(30, fold)
    assert heldout.tolist() == list(range(6 * fold, 6 * fold + 6))
    assert train.tolist() == sorted(set(range(30)) - set(heldout.tolist()))


@pytest.mark.parametrize(
  'num_slices, num_folds', [(30, 5), (7, 3), (4, 4), (30, 7)]
)
def test_folds_partition_the_stack_into_even_blocks(num_slices, num_folds):
  blocks = [
    isbi2012.fold_split(num_slices, fold, num_folds)[1].tolist()
    for fold in range(num_folds)
  ]
  assert sum(blocks, []) == list(range(num_slices))
  sizes = [len(block) for block in blocks]
  assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize('gap', [0, 1, 3])
def test_gap_keeps_training_slices_away_from_the_block(gap):
  for fold in range(5):
    train, heldout = isbi2012.fold_split(30, fold, gap=gap)
    distance = np.abs(train[:, np.newaxis] - heldout[np.newaxis]).min()
    assert distance == gap + 1
    assert len(train) == 24 - gap * (1 if fold in (0, 4) else 2)


def test_fold_minus_one_trains_on_all():
  assert isbi2012.fold_split(1, -1)[0].tolist() == [0]
  train, heldout = isbi2012.fold_split(30, -1, gap=2)
  assert train.tolist() == list(range(30))
  assert heldout.shape == (0,)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ((30, 5), r'fold 5 is not in 0\.\.4'),
    ((30, -2), r'fold -2 is not in 0\.\.4'),
    ((30, 0, 1), 'expected at least 2'),
    ((4, 0, 5), 'expected at least 5 slices, or fold -1'),
    ((30, 0, 5, -1), 'gap -1'),
    ((30, 0, 5, 24), 'leaves none'),
  ],
)
def test_impossible_folds_are_refused(arguments, message):
  with pytest.raises(InputError, match=message):
    isbi2012.fold_split(*arguments)


def test_real_stack(data_dir):
  try:
    isbi2012.find(str(data_dir))
  except InputError as e:
    pytest.skip(str(e))
  volume, labels = isbi2012.read(str(data_dir))
  assert volume.shape == (30, 512, 512, 1) and labels.shape == (30, 512, 512)
  assert np.unique(labels).tolist() == [0, 1]
  assert abs((labels == 0).mean() * 100 - 21.96) < 0.01
  for step, lowest, highest in ((1, 0.05, 0.34), (2, 0.02, 0.18)):
    correlations = [
      np.corrcoef(volume[i].ravel(), volume[i + step].ravel())[0, 1]
      for i in range(30 - step)
    ]
    np.testing.assert_allclose(min(correlations), lowest, atol=0.005)
    np.testing.assert_allclose(max(correlations), highest, atol=0.005)


def test_a_heldout_slice_without_a_cell_is_left_out_and_said_once(tmp_path):
  rng = np.random.default_rng(0)
  volume = rng.integers(0, 256, (10, 64, 64), dtype=np.uint8)
  labels = np.full_like(volume, 255)
  labels[:, ::9] = 0
  labels[1] = 0  # Slices 0 and 1 are held out.
  write_isbi(tmp_path / 'd', labels, volume)
  process = run(
    'main',
    f'--config={CONFIG}',
    *TINY_NET,
    '--config.evaluation.every_steps=2',
    f'--config.data.dir={tmp_path / "d"}',
    f'--workdir={tmp_path / "run"}',
  )
  assert process.returncode == 0, process.stderr
  said = [line for line in process.stderr.splitlines() if 'slice' in line]
  assert len(said) == 1
  assert 'no cell pixel in the label of slice-01: left out of the' in said[0]
  text = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  rows = [
    row for row in map(json.loads, text.splitlines()) if 'heldout/v_rand' in row
  ]
  assert [row['step'] for row in rows] == [2, 4]
  assert all(0 < row['heldout/v_rand'] <= 1 for row in rows)
  assert all(0 <= row['heldout/v_info'] <= 1 for row in rows)
