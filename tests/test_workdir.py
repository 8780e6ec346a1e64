# SPDX-License-Identifier: Apache-2.0
import functools
import json
import os

import jax
import ml_collections
import numpy as np
import pytest
from commands import tiny_config
from small_runs import make_run

from segjax import train
from segjax.errors import InputError
from segjax.networks import load_run
from segjax.prediction.predictor import predict_stored
from segjax.runs import workdir
from segjax.settings.sections import read_prediction


def make_config(**changes):
  config = ml_collections.ConfigDict(
    {
      'num_train_steps': 100,
      'seed': 0,
      'model': {'name': 'unet', 'depth': 4, 'widths': (64, 128), 'norm': None},
      'data': {'name': 'isbi2012', 'fold': 0, 'options': {}},
      'learning_rate': 1e-3,
    }
  )
  config.update_from_flattened_dict(changes)
  return config


def read_given(folder, given):
  """The settings that were given; others have the values of old runs."""
  config = workdir.read_config(folder)
  return ml_collections.ConfigDict({name: config[name] for name in given})


def test_new_workdir_holds_the_config(tmp_path):
  workdir.claim_workdir(tmp_path / 'runs' / 'x', make_config())
  file = tmp_path / 'runs' / 'x' / 'config.json'
  text = file.read_text()
  assert json.loads(text)['model']['widths'] == [64, 128]
  assert text.index('"data"') < text.index('"model"') < text.index('"seed"')
  assert '\n  "seed": 0\n}\n' in text
  assert os.listdir(file.parent) == ['config.json']
  config = read_given(tmp_path / 'runs' / 'x', make_config())
  assert config == make_config()
  assert config.model.widths == (64, 128)
  assert isinstance(config.model, ml_collections.ConfigDict)


def test_no_flipped_bit_of_the_config_is_used(tmp_path):
  given = make_config()
  workdir.claim_workdir(tmp_path, given)
  file = tmp_path / 'config.json'
  whole = file.read_bytes()
  for bit in range(8 * len(whole)):
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    file.write_bytes(damaged)
    try:  # White space, and the name of the checksum, change no setting.
      config = read_given(tmp_path, given)
    except InputError:
      continue
    assert config == given, bit


def test_a_config_without_a_checksum_is_read(tmp_path):
  workdir.claim_workdir(tmp_path, make_config())
  file = tmp_path / 'config.json'
  settings = json.loads(file.read_text())
  settings['seed'] = 7
  file.write_text(json.dumps(settings))
  with pytest.raises(InputError, match='changed or damaged.*line "seal"'):
    workdir.read_config(tmp_path)
  del settings['seal']
  file.write_text(json.dumps(settings))
  assert workdir.read_config(tmp_path).seed == 7


def test_same_config_goes_on(tmp_path):
  workdir.claim_workdir(tmp_path, make_config())
  workdir.claim_workdir(tmp_path, make_config())
  workdir.claim_workdir(tmp_path, make_config(**{'model.widths': (64, 128)}))


def test_another_config_is_refused_and_nothing_written(tmp_path):
  workdir.claim_workdir(tmp_path, make_config())
  before = (tmp_path / 'config.json').read_text()
  other = make_config(
    **{'model.depth': 3, 'data.name': 'voc', 'num_train_steps': 9}
  )
  other.extra = True
  with pytest.raises(InputError) as error:
    workdir.claim_workdir(tmp_path, other, ('num_train_steps', 'dat'))
  assert str(error.value) == (
    f"workdir {tmp_path} was made with data.name='isbi2012', no extra, "
    "model.depth=4; this run has data.name='voc', extra=True, model.depth=3; "
    'use another --workdir, or the settings it was made with'
  )
  assert (tmp_path / 'config.json').read_text() == before


def test_mended_data_may_go_on_elsewhere(tmp_path):
  config = make_config()
  config.data_sha256 = 'names+contents'
  workdir.claim_workdir(tmp_path, config)

  def message():
    with pytest.raises(InputError) as error:
      workdir.claim_workdir(tmp_path, config)
    return str(error.value)

  config.data_sha256 = 'names+others'
  assert 'a file of the same size has other contents' in message()
  config.data_sha256 = 'others+contents'
  assert 'files were added, removed or changed in size' in message()
  assert 'If you mended them, go on in another --workdir' in message()
  assert f'--config.init.path={tmp_path} ' in message()
  config.data_sha256 = 'others'
  assert 'they have another checksum' in message()
  config.num_train_steps += 1
  assert 'this run has num_train_steps=' in message()
  assert 'data_sha256' not in message()
  assert ', and the images and labels differ, too; use another' in message()


def test_listed_settings_may_change(tmp_path):
  workdir.claim_workdir(tmp_path, make_config())
  changed = make_config(**{'num_train_steps': 9, 'data.fold': 2})
  workdir.claim_workdir(tmp_path, changed, ('num_train_steps', 'data'))
  assert read_given(tmp_path, changed) == changed


@pytest.mark.parametrize('text', ['{"seed": ', '[1]', '\xff\x00', ''])
def test_corrupt_config(tmp_path, text):
  (tmp_path / 'config.json').write_bytes(text.encode('latin1'))
  with pytest.raises(InputError, match=f'cannot read {tmp_path}/config.json'):
    workdir.read_config(tmp_path)
  with pytest.raises(InputError, match='cannot read'):
    workdir.claim_workdir(tmp_path, make_config())


def test_missing_config(tmp_path):
  with pytest.raises(InputError, match='no .*/a/config.json; train first'):
    workdir.read_config(tmp_path / 'a')


def test_unwritable_workdir(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot write to workdir .*file'):
    workdir.claim_workdir(tmp_path / 'file', make_config())
  with pytest.raises(InputError, match='cannot write to workdir .*file/x'):
    workdir.claim_workdir(tmp_path / 'file' / 'x', make_config())
  with pytest.raises(InputError, match='is a URL; mount'):
    workdir.claim_workdir('gs://bucket/run', make_config())


def test_unwritable_workdir_of_an_earlier_run(tmp_path, monkeypatch):
  workdir.claim_workdir(tmp_path, make_config())

  def refuse(*unused):
    raise PermissionError(13, 'Permission denied')

  # A superuser, as in containers, may write whatever the mode says.
  monkeypatch.setattr(workdir, 'write_text', refuse)
  with pytest.raises(InputError, match='Permission denied; give another'):
    workdir.claim_workdir(tmp_path, make_config())


def test_read_only_workdir_is_refused_before_anything_else(
  tmp_path, monkeypatch
):
  # As on a disk mounted read-only, which binds a superuser, too.
  monkeypatch.setattr(os, 'access', lambda path, mode: path != tmp_path)
  with pytest.raises(
    InputError, match=f'workdir .*run/a: {tmp_path} may not be written to'
  ):
    train.train_and_evaluate(None, tmp_path / 'run' / 'a')
  assert not (tmp_path / 'run').exists()


def test_a_run_from_before_a_setting_is_read_as_it_was(tmp_path):
  make_run(tmp_path / 'run')
  _, params, today = load_run(tmp_path / 'run')
  file = tmp_path / 'run' / 'config.json'
  settings = json.loads(file.read_text())
  for name in 'accumulate_steps', 'compilation_cache', 'mesh', 'profile_steps':
    del settings[name]
  settings.pop('seal', None)
  del settings['evaluation']['present_only']
  del settings['prediction']['tile_memory_mib']
  del settings['model']['remat']
  file.write_text(json.dumps(settings))

  model, same_params, config = load_run(tmp_path / 'run')
  assert config.mesh.to_dict() == {'space': 1}
  assert config.profile_steps == (0, 0)
  del today.prediction.tile_memory_mib
  del today.model.remat
  assert config == today
  jax.tree.map(np.testing.assert_array_equal, params, same_params)
  image = np.zeros((20, 30, 1), np.float32)
  probabilities = predict_stored(
    model, same_params, image, *read_prediction(config)
  )
  np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)


def test_a_run_with_the_old_setting_of_the_mesh_is_read_and_goes_on(tmp_path):
  """`mesh.data`, which followed from the number of devices."""
  today = tiny_config()
  claim = functools.partial(
    workdir.claim_workdir, tmp_path, may_change=train.MAY_CHANGE
  )
  claim(today)
  file = tmp_path / 'config.json'
  settings = json.loads(file.read_text())
  del settings['seal']
  settings['mesh'] = {'data': 4, 'space': 2}
  file.write_text(json.dumps(settings))
  assert workdir.read_config(tmp_path).mesh.to_dict() == {'space': 2}
  claim(today)
  assert json.loads(file.read_text())['mesh'] == {'space': 1}


def test_what_a_setting_did_before_it_was_there_goes_on(tmp_path):
  workdir.claim_workdir(tmp_path, make_config())
  added = {
    'accumulate_steps': 1,
    'mesh': {'space': 1},
    'loss': 'cross_entropy',
  }
  later = make_config()
  later.update(added)
  workdir.claim_workdir(tmp_path, later)
  assert read_given(tmp_path, later) == later
  later.data.label_values = ()
  workdir.claim_workdir(tmp_path, later)
  later.accumulate_steps = 2
  with pytest.raises(
    InputError, match='with accumulate_steps=1; this run has accumulate_st'
  ):
    workdir.claim_workdir(tmp_path, later)


@pytest.mark.parametrize(
  'name',
  [
    'data_sha256',
    'tile_size_px',
    'model.name',
    'preprocessing.std',
    'prediction.max_tile_size_px',
    'evaluation.average',
  ],
)
def test_a_run_that_lacks_a_setting_is_refused(name, tmp_path):
  settings = tiny_config().to_dict() | {'data_sha256': ''}
  place, _, last = name.rpartition('.')
  del (settings[place] if place else settings)[last]
  (tmp_path / 'config.json').write_text(json.dumps(settings))
  with pytest.raises(InputError, match=f'/config.json has no {name}: the run'):
    load_run(tmp_path)
