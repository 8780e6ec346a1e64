# SPDX-License-Identifier: Apache-2.0
"""A killed run of an FCN: momentum, dropout, drawn with replacement, padded.

`test_train` kills a U-Net, and benchmarks/faults.py many of them.
"""

import os
import signal
import time

from commands import run, start
from small_sets import write_voc

from segjax.runs.checkpoints import load_params
from segjax.runs.integrity import read_record

STEPS = 12
SETTINGS = {
  'model.width': 1 / 32,
  'model.fc_features': 8,
  'model.padding': 'same',
  'init.path': 'random',
  'batching.bucket_px': 32,
  'prediction.bucket_px': 32,
  'schedule.learning_rate': 1e-6,
  'num_train_steps': STEPS,
  'log_every_steps': 5,
  'evaluation.every_steps': 6,
  'checkpoints.every_steps': 1,
}


def test_killed_fcn_ends_as_an_unbroken_one(tmp_path):
  write_voc(tmp_path / 'voc')
  command = (
    'main',
    '--config=configs/fcn32s_voc.py',
    f'--config.data.dir={tmp_path / "voc"}',
    *(f'--config.{name}={value}' for name, value in SETTINGS.items()),
  )
  process = run(*command, f'--workdir={tmp_path / "unbroken"}')
  assert process.returncode == 0, process.stderr

  folder = tmp_path / 'broken' / 'checkpoints'
  command = (*command, f'--workdir={folder.parent}')
  process = start(*command)
  while process.poll() is None and newest(folder) < 3:
    time.sleep(0.005)
  process.kill()
  assert process.wait() == -signal.SIGKILL
  assert 3 <= newest(folder) < STEPS
  assert run(*command).returncode == 0

  unbroken = tmp_path / 'unbroken' / 'checkpoints'
  expected = read_record(unbroken, STEPS)
  assert {name.split('.')[0] for name in expected['sha256']} == {
    'step',
    'params',
    'opt_state',
    'key',
  }
  for directory in (unbroken, folder):
    load_params(directory, STEPS)  # Checks the digests.
    assert read_record(directory, STEPS) == expected
  # It learned: the end is not where it began.
  assert read_record(unbroken, STEPS - 1)['sha256'] != expected['sha256']


def newest(folder):
  names = os.listdir(folder) if folder.is_dir() else ()
  return max((int(name) for name in names if name.isdecimal()), default=0)
