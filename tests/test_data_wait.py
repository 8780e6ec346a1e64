# SPDX-License-Identifier: Apache-2.0
"""What a run says of its wait for data, by a clock that is set here."""

import runpy
import time
import types

import pytest
from commands import REPOSITORY, tiny_config
from small_sets import write_camvid

from segjax import train
from segjax.runs import writers

READING, STEPPING = 3.0, 7.0  # Seconds that pass in each.


def isbi(folder):
  del folder
  config = tiny_config()
  config.data.fold = -1
  config.checkpoints.every_steps = 4
  return config


def camvid(folder):
  card = runpy.run_path(str(REPOSITORY / 'configs' / 'fcn8s_camvid.py'))
  config = card['get_config']('cpu')
  config.data.update(write_camvid(folder))
  config.model.update(width=1 / 64, fc_features=4)
  config.tile_size_px = 16
  config.init.path = 'random'
  config.update(num_train_steps=4, log_every_steps=1)
  config.schedule.warmup_steps = 0
  return config


@pytest.mark.parametrize('create_config', [isbi, camvid])
def test_a_slow_source_is_seen(create_config, tmp_path, monkeypatch, capsys):
  config = create_config(tmp_path / 'data')
  config.batch_size = 8
  now = 0.0

  def pass_by(seconds):
    nonlocal now
    now += seconds

  monkeypatch.setattr(
    writers,
    'time',
    types.SimpleNamespace(
      monotonic=lambda: now, time=time.time, time_ns=time.time_ns
    ),
  )
  create_batches, parallelize = train.create_batches, train.parallel.parallelize

  def slow_batches(*args, **options):
    for batch in create_batches(*args, **options):
      pass_by(READING)
      yield batch

  def slow_steps(*args, **mesh):
    run = parallelize(*args, **mesh)

    def step(state, batch):
      pass_by(STEPPING)
      return run.step(state, batch)

    return run._replace(step=step)

  monkeypatch.setattr(train, 'create_batches', slow_batches)
  monkeypatch.setattr(train.parallel, 'parallelize', slow_steps)
  train.train_and_evaluate(config, tmp_path / 'run')
  lines = [
    line
    for line in capsys.readouterr().err.splitlines()
    if line.startswith('step ')
  ]
  assert len(lines) == 4
  # The second and third are of one step each more than the line before.
  for line in lines[1:3]:
    assert f'{8 / (READING + STEPPING):.3g} images/s' in line
    assert f'data wait {READING / (READING + STEPPING):.1%}' in line
