# SPDX-License-Identifier: Apache-2.0
"""Folders for a model hub are networks again, and say whose they are."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_runs import make_run

import segjax
from segjax.errors import InputError
from segjax.export import _data_name, export_hub
from segjax.images.files import write_stack
from segjax.networks import load_run
from segjax.runs.checkpoints import Checkpoints
from segjax.weights.files import write_params


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hub') / 'run'
  make_run(folder)
  (folder / 'scores.txt').write_text('held-out\nv_rand 0.93\n')
  (folder / 'pictures').mkdir()
  write_stack(folder / 'pictures/a b.png', np.zeros((1, 5, 5), np.uint8))
  return folder


def export(run, output, **options):
  export_hub(load_run(run), output, workdir=run, **options)


def test_a_folder_is_the_network(run, tmp_path):
  export(run, tmp_path / 'net')
  model, params, config = segjax.load_run(tmp_path / 'net')
  expected = load_run(run)
  assert model == expected.model
  assert config == expected.config
  assert jax.tree.structure(params) == jax.tree.structure(expected.params)
  for a, b in zip(
    jax.tree.leaves(params), jax.tree.leaves(expected.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  # And one that is exported again.
  export_hub(load_run(tmp_path / 'net'), tmp_path / 'again')
  again = (tmp_path / 'again' / 'config.json').read_text()
  assert again == (tmp_path / 'net' / 'config.json').read_text()


def test_parameters_alone_are_those_of_run_hub_and_file(run, tmp_path):
  params = load_run(run).params
  export(run, tmp_path / 'net')
  write_params(tmp_path / 'net.npz', params)
  for source in (run, tmp_path / 'net', tmp_path / 'net.npz'):
    got = segjax.load_params(source)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, params))
  for wrong, message in (
    ('nothing', 'no file or folder .*nothing'),
    ('.', 'holds no parameters: no params.safetensors, and no checkpoint'),
    ('net/README.md', 'none of the endings .npz, .safetensors'),
  ):
    with pytest.raises(InputError, match=message):
      segjax.load_params(tmp_path / wrong)


def test_incomplete_and_changed_folders_are_refused(run, tmp_path):
  folder = tmp_path / 'net'
  export(run, folder)
  file = folder / 'params.safetensors'
  # As any other file: others may read it.
  assert file.stat().st_mode == (folder / 'config.json').stat().st_mode
  data = bytearray(file.read_bytes())
  data[-2] ^= 1
  file.write_bytes(data)
  for load in (segjax.load_run, segjax.load_params):
    with pytest.raises(InputError, match='do not have the SHA-256'):
      load(folder)
  config = (folder / 'config.json').rename(tmp_path / 'config.json')
  with pytest.raises(InputError, match='has params.safetensors, but no config'):
    segjax.load_run(folder)
  file.unlink()
  config.rename(folder / 'config.json')
  with pytest.raises(InputError, match='no params.safetensors, and no check'):
    segjax.load_run(folder)
  (folder / 'artifact.json').touch()
  with pytest.raises(InputError, match='an artifact, not a run; give --artif'):
    segjax.load_run(folder)


def test_the_latest_checkpoint_is_the_one_that_is_loaded(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  state = jax.tree.map(np.zeros_like, {'params': load_run(run).params})
  with Checkpoints(tmp_path / 'run' / 'checkpoints') as checkpoints:
    checkpoints.save(5, state)
  assert not jax.tree.reduce(
    lambda found, x: found or np.any(x),
    segjax.load_params(tmp_path / 'run'),
    False,
  )


def test_the_card(run, tmp_path):
  options = dict(authors=('Ada', 'Bo'), license_id='CC-BY-4.0')
  export(run, tmp_path / 'net', checkpoint='best', **options)
  card = (tmp_path / 'net' / 'README.md').read_text()
  _, header, text = card.split('---\n', 2)
  said = dict(line.split(': ', 1) for line in header.splitlines())
  said = {name: json.loads(value) for name, value in said.items()}
  assert said['library_name'] == 'segjax'
  assert said['license'] == 'cc-by-4.0'
  for words in (
    "segjax.load_run('net')",
    'v_rand 0.93',
    'checkpoint `best`',
    '![a b](<a b.png>)',
    'Authors: Ada, Bo',
    'membrane, cell',
    '`synthetic`',
    load_run(run).config.data_sha256,
  ):
    assert words in text
  assert (tmp_path / 'net' / 'a b.png').is_file()


def test_data_are_named_where_their_loader_takes_any():
  for data, name in (
    (dict(name='camvid', dir='sets/camvid'), 'camvid'),
    (dict(name='folder', dir='home/cells/'), 'folder cells'),
    (dict(name='tfds', dir='sets', set='pets'), 'tfds pets'),
    (dict(name='arrays', class_names=()), 'arrays'),
  ):
    assert _data_name(ConfigDict(data)) == name


def test_damage_is_said(run, tmp_path):
  export(run, tmp_path / 'net')
  config = tmp_path / 'net' / 'config.json'
  config.write_text(config.read_text().replace('0.495', '0.497'))
  with pytest.raises(InputError, match='its checksum does not match'):
    load_run(tmp_path / 'net')


def test_only_such_a_folder_is_replaced(run, tmp_path):
  export(run, tmp_path / 'net')
  with pytest.raises(InputError, match='net exists; give --overwrite'):
    export(run, tmp_path / 'net')
  export(run, tmp_path / 'net', overwrite=True)
  (tmp_path / 'net' / 'mine.txt').write_text('')
  with pytest.raises(InputError, match='something else than parameters'):
    export(run, tmp_path / 'net', overwrite=True)
  assert (tmp_path / 'net' / 'mine.txt').exists()
