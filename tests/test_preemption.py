# SPDX-License-Identifier: Apache-2.0
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import jax
import numpy as np
import pytest
from commands import DEMO, QUICKLY, REPOSITORY

from segjax.devices import preemption
from segjax.runs.checkpoints import load_params


def test_true_after_the_first_signal_and_undone_at_the_end():
  before = signal.getsignal(signal.SIGTERM)
  with preemption.notice() as is_preempted:
    assert not is_preempted(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert is_preempted(2) and is_preempted(3)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  assert signal.getsignal(signal.SIGTERM) == before


def test_handler_is_undone_after_an_error():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(KeyError), preemption.notice():
    assert signal.getsignal(signal.SIGTERM) != before
    raise KeyError
  assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_is_never_told():
  answers = []

  def ask():
    with preemption.notice() as is_preempted:
      answers.append(is_preempted(1))

  thread = threading.Thread(target=ask)
  thread.start()
  thread.join()
  assert answers == [False]


def test_second_signal_ends_at_once_and_keeps_the_last_checkpoint(tmp_path):
  script = """
    import os, signal, sys
    import jax.numpy as jnp
    from segjax.devices import preemption
    from segjax.runs import checkpoints
    with checkpoints.Checkpoints(sys.argv[1]) as c:
      c.save(1, {'params': jnp.ones(9)})
      c.wait()
      with preemption.notice() as is_preempted:
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_preempted(2)
        c.save(2, {'params': jnp.ones((2000, 2000))})
        os.kill(os.getpid(), signal.SIGTERM)
        print('not reached')
  """
  process = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(script), str(tmp_path)],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
  )
  assert process.returncode == -signal.SIGTERM, process.stderr
  assert process.stdout == ''
  assert '1' in os.listdir(tmp_path)
  assert load_params(tmp_path, 1).tolist() == 9 * [1]


def test_two_processes_agree_on_a_step():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  script = """
    import sys, time
    import jax
    from jax.experimental import multihost_utils
    from segjax.devices import preemption
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    with preemption.notice() as is_preempted:
      multihost_utils.sync_global_devices('start')
      print('ready', flush=True)
      step = 1
      while not is_preempted(step) and step < 3000:
        time.sleep(0.01 if sys.argv[2] == '0' else 0.02)
        step += 1
    print(f'ended at {step};', flush=True)
  """
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(script), address, str(i)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=REPOSITORY,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    for i in range(2)
  ]
  try:
    for process in processes:  # Gloo speaks on the same stream, at any time.
      assert any('ready' in line for line in iter(process.stdout.readline, ''))
    processes[1].send_signal(signal.SIGTERM)
    ended = [p.communicate(timeout=120) for p in processes]
  finally:
    for process in processes:
      process.kill()
  assert [p.returncode for p in processes] == [0, 0], ended
  first, second = (
    int(re.search(r'ended at (\d+);', out)[1]) for out, _ in ended
  )
  assert first == second < 3000


def launch(workdir):
  """Starts a run in two processes of one device each, as a person would."""
  env = {k: v for k, v in os.environ.items() if k != 'SEGJAX_DATA_DIR'}
  return subprocess.Popen(
    [
      str(REPOSITORY / 'launch' / 'local_processes.sh'),
      '2',
      *(sys.executable, '-m', 'segjax.main', *DEMO),
      '--config.batch_size=2',
      '--config.num_train_steps=6',
      '--config.evaluation.every_steps=6',
      '--config.evaluation.average=False',
      '--config.checkpoints.every_steps=1000',
      f'--workdir={workdir}',
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=REPOSITORY,
    env=env | QUICKLY,
  )


def test_a_run_of_two_processes_saves_a_step_and_goes_on(tmp_path):
  process = launch(tmp_path / 'run')
  for line in process.stdout:
    if 'from step 0 to 6' in line:
      break
  process.send_signal(signal.SIGTERM)  # The launcher passes it on.
  out, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors  # Of both.
  saved = os.listdir(tmp_path / 'run' / 'checkpoints')
  [step] = [name for name in saved if name.isdecimal()]
  assert 0 < int(step) < 6
  assert f'SIGTERM: saved step {step}; run again to go on' in out

  for name in ('run', 'unbroken'):
    process = launch(tmp_path / name)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f'from step {step if name == "run" else 0} to 6' in out
  resumed, unbroken = (
    load_params(tmp_path / name / 'checkpoints', 6)
    for name in ('run', 'unbroken')
  )
  for a, b in zip(*map(jax.tree.leaves, (resumed, unbroken)), strict=True):
    np.testing.assert_array_equal(a, b)
