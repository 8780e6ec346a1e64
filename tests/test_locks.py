# SPDX-License-Identifier: Apache-2.0
"""Lock files, and the lock of a workdir."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from commands import REPOSITORY, snapshot

from segjax import locks
from segjax.errors import InputError
from segjax.runs.workdir import lock_workdir


def run_script(script, *args):
  return subprocess.Popen(
    [sys.executable, '-c', script, *map(str, args)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=REPOSITORY,
  )


def test_one_holder_which_the_file_names(tmp_path):
  path = tmp_path / 'lock'
  path.write_text('of a killed process, ' * 100)
  with locks.take(path):
    assert locks.take(path) is None
    ours = f'process {os.getpid()} on {socket.gethostname()} since '
    assert locks.holder(path).startswith(ours)
    assert path.read_text().startswith(ours)
    assert path.read_text().count('\n') == 1
  with locks.take(path):
    pass
  assert locks.holder(tmp_path / 'none') == 'another process'


def test_a_killed_process_holds_nothing_nor_do_its_children(tmp_path):
  script = """
import subprocess, sys, time
from segjax import locks
lock = locks.take(sys.argv[1])
sleeper = subprocess.Popen(['sleep', '300'], stdout=subprocess.DEVNULL,
                           close_fds=False)
print(sleeper.pid, flush=True)
time.sleep(300)
"""
  path = tmp_path / 'lock'
  process = run_script(script, path)
  sleeper = int(process.stdout.readline())
  try:
    assert locks.take(path) is None
    assert f'process {process.pid} on ' in locks.holder(path)
    process.kill()
    process.communicate()
    with locks.take(path):
      assert f'process {os.getpid()} on ' in locks.holder(path)
  finally:
    os.kill(sleeper, signal.SIGKILL)


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP, None])
def test_where_there_are_no_locks_it_warns_and_goes_on(
  number, tmp_path, monkeypatch
):
  def refuse(*unused):
    raise OSError(number, os.strerror(number))

  if number is None:  # As on Windows.
    monkeypatch.setattr(locks, 'fcntl', None)
  else:
    monkeypatch.setattr(fcntl, 'flock', refuse)
  said = []
  monkeypatch.setattr(
    locks.logging,
    'log_first_n',
    lambda level, text, n, *args: said.append((n, text % args)),
  )
  with lock_workdir(tmp_path / 'run'):
    [(most, message)] = said
    assert most == 1
    reason = os.strerror(number) if number else 'has no flock'
    assert f'no lock on {tmp_path}/run: ' in message and reason in message
    with lock_workdir(tmp_path / 'run'):
      pass


def test_another_error_is_one(tmp_path, monkeypatch):
  def refuse(*unused):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with pytest.raises(InputError, match='cannot write to workdir .*output er'):
    with lock_workdir(tmp_path / 'run'):
      pass


def test_a_new_workdir_that_stays_empty_is_removed(tmp_path):
  workdir = tmp_path / 'a' / 'b'
  with pytest.raises(KeyError), lock_workdir(workdir):
    assert os.listdir(workdir) == ['lock']
    raise KeyError
  assert os.listdir(tmp_path) == []
  with lock_workdir(workdir):
    (workdir / 'config.json').touch()
  assert os.listdir(workdir) == ['config.json']


def test_a_workdir_in_which_nothing_is_done_is_as_it_was(tmp_path):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'metrics.jsonl').write_text('rows')
  os.utime(workdir, (1, 1))
  before = snapshot(tmp_path)
  with lock_workdir(workdir):
    assert snapshot(tmp_path) != before
  assert snapshot(tmp_path) == before
  with lock_workdir(workdir):
    time.sleep(0.05)  # Beyond the clock of the file system.
    (workdir / 'scores.txt').touch()
  assert workdir.stat().st_mtime > 1


def test_a_second_run_is_refused_and_changes_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr('segjax.runs.workdir._SECONDS_BETWEEN_TRIES', 0)
  with lock_workdir(tmp_path):
    before = snapshot(tmp_path)
    with pytest.raises(InputError) as error, lock_workdir(tmp_path):
      pass
    assert snapshot(tmp_path) == before
  assert str(error.value).startswith(
    f'workdir {tmp_path} has a run already: process {os.getpid()} on '
    f'{socket.gethostname()} since 2'
  )
  assert '\n' not in str(error.value)


def test_a_run_that_begins_while_another_is_refused_goes_on(
  tmp_path, monkeypatch
):
  """It opened the lock, and the other removes lock and folder."""
  workdir = tmp_path / 'run'
  lock, calls = fcntl.flock, []

  def late(file, operation):
    calls.append(file.name)
    if len(calls) == 1:
      os.unlink(file.name)
      os.rmdir(workdir)
    lock(file, operation)

  monkeypatch.setattr(fcntl, 'flock', late)
  with lock_workdir(workdir):
    assert len(calls) == 2
    assert f'process {os.getpid()} ' in locks.holder(workdir / 'lock')


# Enters as often as it can until a time, leaves without or with an error, and
# says how often it was in, and how often another was there, too.
RACE = """
import contextlib, os, random, sys, time
from segjax.runs import workdir
from segjax.errors import InputError
workdir._SECONDS_BETWEEN_TRIES = 0
folder, end = sys.argv[1], time.monotonic() + 3
entered = met = 0
while time.monotonic() < end:
  with contextlib.suppress(InputError), workdir.lock_workdir(folder):
    entered += 1
    try:
      os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
      met += 1
      continue
    time.sleep(random.random() / 1000)
    os.unlink(sys.argv[2])
    if random.random() < 0.5:
      raise InputError('wrong')
print(entered, met)
"""


def test_never_two_at_once_while_folders_come_and_go(tmp_path):
  args = (tmp_path / 'runs' / 'run', tmp_path / 'inside')
  processes = [run_script(RACE, *args) for _ in range(3)]
  counts = [
    [int(number) for number in process.communicate()[0].split()]
    for process in processes
  ]
  assert [met for _, met in counts] == 3 * [0]
  assert min(entered for entered, _ in counts) > 10
