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
  path = tmp_path / locks.NAME
  path.write_text('process 7 on a host, killed, ' * 100)
  with locks.take(tmp_path):
    assert locks.take(tmp_path) is None
    ours = f'process {os.getpid()} on {socket.gethostname()} since '
    assert locks.holder(tmp_path).startswith(ours)
    assert path.read_text().startswith(ours)
    assert path.read_text().count('\n') == 1
  assert not path.exists()
  with locks.take(tmp_path):
    pass
  assert locks.holder(tmp_path / 'none') == 'another process'
  assert locks.take(tmp_path / 'none') is None


def test_a_folder_stays_locked_without_the_file_and_through_a_link(tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'run')
  with locks.take(tmp_path / 'link'):
    assert locks.take(tmp_path / 'run') is None
    (tmp_path / 'run' / locks.NAME).unlink()
    assert locks.take(tmp_path / 'run') is None
    assert os.listdir(tmp_path / 'run') == []
    (tmp_path / 'run' / locks.NAME).write_text('mine')
  assert (tmp_path / 'run' / locks.NAME).read_text() == 'mine'


def link_to_a_file(path):
  path.with_name('target').write_text('process of mine')
  path.symlink_to(path.with_name('target'))


@pytest.mark.parametrize(
  'make',
  [
    link_to_a_file,
    lambda path: path.symlink_to(path.with_name('nothing')),
    lambda path: path.write_text('mine'),
    lambda path: path.mkdir(),
    lambda path: os.mkfifo(path),
  ],
)
def test_what_is_no_lock_is_neither_written_nor_removed(tmp_path, make):
  make(tmp_path / locks.NAME)
  before = os.lstat(tmp_path / locks.NAME)
  with pytest.raises(InputError, match='is no lock of segjax') as error:
    with lock_workdir(tmp_path):
      pass
  assert '\n' not in str(error.value)
  assert os.lstat(tmp_path / locks.NAME) == before
  assert not (tmp_path / 'nothing').exists()
  if (tmp_path / 'target').exists():
    assert (tmp_path / 'target').read_text() == 'process of mine'


def test_a_file_of_mine_that_is_named_lock_stays(tmp_path):
  (tmp_path / 'lock').write_text('mine')
  with lock_workdir(tmp_path):
    pass
  assert (tmp_path / 'lock').read_text() == 'mine'


def test_what_is_refused_after_the_lock_changes_nothing(tmp_path):
  (tmp_path / locks.NAME).write_text('process 7 on a host')

  def refuse():
    raise InputError('wrong')

  before = snapshot(tmp_path)
  with pytest.raises(InputError, match='wrong'):
    locks.take(tmp_path, refuse)
  assert snapshot(tmp_path) == before
  with locks.take(tmp_path):
    pass


def test_on_windows_one_line_says_where_it_runs():
  script = """
import sys
sys.modules['fcntl'] = None
from segjax.cli.command_line import run
sys.argv[1:] = ['--input=a', '--output=b']
run('instances')
"""
  process = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
  )
  assert process.returncode == 2
  [line] = process.stderr.splitlines()
  assert line.startswith('error: segjax runs on Linux, macOS and WSL2')


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
  path = tmp_path
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


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_it_warns_and_goes_on(
  number, tmp_path, monkeypatch
):
  def refuse(*unused):
    raise OSError(number, os.strerror(number))

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
    assert f'no lock on {tmp_path}/run: {os.strerror(number)}' in message
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
    assert os.listdir(workdir) == [locks.NAME]
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
  monkeypatch.setattr('segjax.locks._SECONDS_BETWEEN_TRIES', 0)
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


@pytest.mark.parametrize('gone_before', [1, 2])  # Locks of folder and file.
def test_a_run_that_begins_while_another_is_refused_goes_on(
  tmp_path, monkeypatch, gone_before
):
  """It opened the lock, and the other removes lock and folder."""
  workdir = tmp_path / 'run'
  lock, calls = fcntl.flock, []

  def late(file, operation):
    calls.append(file)
    if len(calls) == gone_before:
      (workdir / locks.NAME).unlink(missing_ok=True)
      os.rmdir(workdir)
    lock(file, operation)

  monkeypatch.setattr(fcntl, 'flock', late)
  with lock_workdir(workdir):
    assert len(calls) == 2 + gone_before
    assert f'process {os.getpid()} ' in locks.holder(workdir)


# Enters as often as it can until a time, leaves without or with an error, and
# says how often it was in, and how often another was there, too.
RACE = """
import contextlib, os, random, sys, time
from segjax import locks
from segjax.runs import workdir
from segjax.errors import InputError
locks._SECONDS_BETWEEN_TRIES = 0
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
