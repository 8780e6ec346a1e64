# SPDX-License-Identifier: Apache-2.0
"""Commands whose output nobody reads, on terminals of ASCII, and Ctrl-C."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import DEMO, QUICKLY, REPOSITORY
from test_train import saved_steps

from segjax.cli.terminal import drop_noise
from segjax.images.files import write_stack
from segjax.runs.integrity import read_record


def start(*args, **options):
  environment = os.environ | QUICKLY | options.pop('env', {})
  return subprocess.Popen(
    [sys.executable, '-m', *args],
    stderr=subprocess.PIPE,
    cwd=REPOSITORY,
    env=environment,
    **options,
  )


def write_maps(folder, names):
  folder.mkdir()
  cell = np.zeros((1, 8, 8, 1), np.uint8)
  cell[:, 2:4] = 1
  for name in names:
    write_stack(folder / name, cell)


@pytest.mark.parametrize(
  'command', [['segjax'], ['segjax.main', '--help'], ['segjax', 'plan', '-h']]
)
def test_help_that_nobody_reads(command):
  reader, writer = os.pipe()
  os.close(reader)
  process = start(*command, stdout=writer)
  os.close(writer)
  _, errors = process.communicate()
  assert (process.returncode, errors) == (0, b'')


def test_work_goes_on_when_nobody_reads(tmp_path):
  write_maps(tmp_path / 'maps', [f'{n}.tif' for n in range(3)])
  reader, writer = os.pipe()
  os.close(reader)
  process = start(
    'segjax.instances',
    f'--input={tmp_path / "maps"}',
    f'--output={tmp_path / "cells"}',
    stdout=writer,
  )
  os.close(writer)
  _, errors = process.communicate()
  assert (process.returncode, errors) == (0, b'')
  assert len(os.listdir(tmp_path / 'cells')) == 4


def test_a_full_disk_behind_the_output_is_one_line(tmp_path):
  write_maps(tmp_path / 'maps', ['a.tif'])
  with open('/dev/full', 'wb') as full:
    process = start(
      'segjax.instances',
      f'--input={tmp_path / "maps"}',
      f'--output={tmp_path / "cells"}',
      stdout=full,
    )
    _, errors = process.communicate()
  assert errors == b'error: cannot write a file: No space left on device\n'
  assert process.returncode == 1


@pytest.mark.parametrize('name', ['ü.tif', os.fsdecode(b'\xfc.tif')])
def test_names_that_a_terminal_cannot_show(name, tmp_path):
  write_maps(tmp_path / 'maps', [name])
  process = start(
    'segjax.instances',
    f'--input={tmp_path / "maps"}',
    f'--output={tmp_path / "cells"}',
    stdout=subprocess.PIPE,
    env={'LC_ALL': 'C', 'PYTHONIOENCODING': 'ascii'},
  )
  said, errors = process.communicate()
  assert (process.returncode, errors) == (0, b'')
  assert b'c.tif: 1 instance\n' in said.replace(b'\\xfc', b'\\udcfc')
  assert {*os.listdir(tmp_path / 'cells')} == {name, 'objects.csv'}


@pytest.mark.parametrize('seconds', [0.3, 0.8, 1.5, 3.0])
def test_ctrl_c_is_one_line_also_during_imports(seconds, tmp_path):
  script = """
import signal
from segjax.cli.command_line import run
# A suite in the background ignores Ctrl-C, and so would what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
print('begins', flush=True)
run('train')
"""
  process = subprocess.Popen(
    [
      *(sys.executable, '-c', script, *DEMO),
      '--config.num_train_steps=100000',
      f'--workdir={tmp_path}',
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=REPOSITORY,
    env=os.environ | QUICKLY,
  )
  assert process.stdout.readline() == 'begins\n'
  time.sleep(seconds)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate()
  assert process.returncode == 130
  *progress, line = errors.splitlines()
  assert line == 'error: interrupted; a run goes on with the same command'
  assert all(text.startswith(('compiling', 'step ')) for text in progress)


def test_float64_of_the_environment_changes_no_bit(tmp_path):
  records = []
  for name, env in (('a', {}), ('b', {'JAX_ENABLE_X64': '1'})):
    process = start(
      'segjax.main',
      *DEMO,
      f'--workdir={tmp_path / name}',
      stdout=subprocess.DEVNULL,
      env=env,
    )
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert saved_steps(tmp_path / name) == [2, 4]
    records.append(read_record(tmp_path / name / 'checkpoints', 4))
  assert records[0] == records[1]


def test_coroutines_that_nobody_awaits_end_without_a_traceback(monkeypatch):
  async def read():
    try:
      await asyncio.sleep(1)
    finally:
      raise ValueError('array')

  class Lock:
    def __del__(self):
      raise ValueError('lock')

  seen = []
  monkeypatch.setattr(sys, 'unraisablehook', lambda u: seen.append(u.exc_value))
  monkeypatch.setattr(logging.getLogger('asyncio'), 'level', logging.NOTSET)

  def drop_both():
    seen.clear()
    with contextlib.closing(asyncio.new_event_loop()) as loop:
      task = read()
      loop.call_soon(task.send, None)
      loop.call_soon(loop.stop)
      loop.run_forever()
    del task
    Lock()
    gc.collect()
    return sorted(str(error) for error in seen)

  assert drop_both() == ['array', 'lock']
  drop_noise()
  assert drop_both() == ['lock']
