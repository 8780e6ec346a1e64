# SPDX-License-Identifier: Apache-2.0
"""A file or a folder is the old one or the new one, never a part."""

import errno
import os
import subprocess
import sys

import pytest
from commands import REPOSITORY, snapshot

from segjax import locks
from segjax.atomic import (
  check_absent,
  give_name,
  remove_leftovers,
  replacing,
  temporary_folder,
)
from segjax.errors import InputError


def write(file, text):
  with replacing(file) as temporary:
    temporary.write_text(text)


def test_a_failure_leaves_the_old_file_alone(tmp_path):
  file = tmp_path / 'a.txt'
  write(file, 'old')
  with pytest.raises(RuntimeError), replacing(file) as temporary:
    temporary.write_text('ne')
    raise RuntimeError
  assert file.read_text() == 'old'
  assert os.listdir(tmp_path) == ['a.txt']


def test_a_reader_keeps_the_old_file(tmp_path):
  file = tmp_path / 'a.txt'
  write(file, 'old')
  with file.open() as reader:
    write(file, 'new')
    assert reader.read() == 'old'
  assert file.read_text() == 'new'


def test_a_folder_appears_with_all_its_files(tmp_path):
  folder = tmp_path / 'a'
  for text in ('old', 'new'):
    with replacing(folder) as temporary:
      temporary.mkdir()
      (temporary / text).write_text(text)
      assert os.path.lexists(folder) == (text == 'new')
    assert os.listdir(folder) == [text]
  assert os.listdir(tmp_path) == ['a']


def test_a_failure_leaves_the_old_folder_alone(tmp_path, monkeypatch):
  folder = tmp_path / 'a'
  with replacing(folder) as temporary:
    temporary.mkdir()
    (temporary / 'b').write_text('old')
  with pytest.raises(RuntimeError), replacing(folder) as temporary:
    temporary.mkdir()
    (temporary / 'b').write_text('new')
    raise RuntimeError
  assert (folder / 'b').read_text() == 'old'

  rename = os.rename

  def fail_to_move_in(source, target):
    if os.path.exists(os.path.join(source, 'new')):
      raise OSError
    rename(source, target)

  monkeypatch.setattr(os, 'rename', fail_to_move_in)
  with pytest.raises(OSError), replacing(folder) as temporary:
    temporary.mkdir()
    (temporary / 'new').write_text('new')
  assert os.listdir(folder) == ['b']
  assert os.listdir(tmp_path) == ['a']


def make_file(path):
  path.write_text('mine')


def make_folder(path):
  path.mkdir()
  (path / 'mine').touch()


def make_dangling_link(path):
  path.symlink_to(path.with_name('nothing'))


@pytest.mark.parametrize('links', [True, False])
@pytest.mark.parametrize('is_folder', [False, True])
@pytest.mark.parametrize('make', [make_file, make_folder, make_dangling_link])
def test_what_appears_meanwhile_is_not_replaced(
  tmp_path, monkeypatch, make, is_folder, links
):
  def refuse(*unused):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))

  if not links:  # As on FAT.
    monkeypatch.setattr(os, 'link', refuse)
  path = tmp_path / 'a'

  def write(meanwhile):
    with replacing(path, overwrite=False) as temporary:
      if is_folder:
        temporary.mkdir()
      (temporary / 'new' if is_folder else temporary).write_text('new')
      meanwhile(path)

  with pytest.raises(InputError, match='a was made by somebody else during'):
    write(make)
  with pytest.raises(InputError, match='a exists; give --overwrite'):
    check_absent([path])
  assert os.listdir(tmp_path) == ['a']
  if make is make_file:
    assert path.read_text() == 'mine'
  elif make is make_folder:
    assert os.listdir(path) == ['mine']
  else:
    assert os.readlink(path) == str(tmp_path / 'nothing')
  os.rename(path, tmp_path / 'kept')
  write(lambda path: None)
  assert (path / 'new' if is_folder else path).read_text() == 'new'
  assert sorted(os.listdir(tmp_path)) == ['a', 'kept']


def test_a_file_never_replaces_a_folder(tmp_path):
  make_folder(tmp_path / 'a')
  with pytest.raises(IsADirectoryError), replacing(tmp_path / 'a') as temporary:
    temporary.write_text('new')
  assert os.listdir(tmp_path / 'a') == ['mine']


@pytest.mark.parametrize('is_away', [False, True])
def test_of_two_that_replace_a_folder_one_is_refused(
  is_away, tmp_path, monkeypatch
):
  folder, rename = tmp_path / 'a', os.rename

  def write(text):
    with replacing(folder) as temporary:
      temporary.mkdir()
      (temporary / 'b').write_text(text)

  def meet(source, target):
    monkeypatch.undo()
    rename(source, target)
    write('the other')
    if is_away:
      rename(folder, tmp_path / 'moved')
      try:
        rename(source, target)
      finally:
        rename(tmp_path / 'moved', folder)

  write('old')
  monkeypatch.setattr(os, 'rename', meet)
  with pytest.raises(InputError, match='is being replaced by another run'):
    write('new')
  assert (folder / 'b').read_text() == 'the other'
  assert os.listdir(tmp_path) == ['a']


# Writes argv[1] and is killed before it has its name, or once what was there
# has made room for it.
KILLED = """
import os, pathlib, sys
from segjax import atomic
def end(*unused):
  os._exit(9)
path = pathlib.Path(sys.argv[1])
with atomic.replacing(path) as temporary:
  if sys.argv[2] == 'file':
    temporary.write_text('half')
    end()
  temporary.mkdir()
  rename = os.rename
  os.rename = lambda old, new: end() if old == temporary else rename(old, new)
"""


def leave(path, kind):
  process = subprocess.run(
    [sys.executable, '-c', KILLED, path, kind], cwd=REPOSITORY
  )
  assert process.returncode == 9


def test_leftovers_of_killed_processes_are_removed_and_others_are_not(tmp_path):
  make_folder(tmp_path / 'a')
  before = snapshot(tmp_path / 'a')
  leave(tmp_path / 'b', 'file')
  leave(tmp_path / 'a', 'folder')
  assert not (tmp_path / 'a').exists()
  empty = tmp_path / '.segjax-01234567.tmp'  # Killed before it had its lock.
  empty.mkdir()
  mine = tmp_path / '.segjax-89abcdef.tmp'
  make_folder(mine)
  (tmp_path / '.segjax-00000000.tmp').symlink_to(mine)
  with temporary_folder(tmp_path) as live:
    (live / 'half').touch()
    assert len(os.listdir(tmp_path)) == 6
    remove_leftovers(tmp_path)
    kept = {'a', mine.name, '.segjax-00000000.tmp', live.name}
    assert {*os.listdir(tmp_path)} == kept
    assert {*os.listdir(live)} == {'half', locks.NAME}
  assert not live.exists()
  assert snapshot(tmp_path / 'a') == before
  assert os.listdir(mine) == ['mine']
  remove_leftovers(tmp_path / 'none')


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
  file = tmp_path / ('a' * 251 + '.txt')
  write(file, 'old')
  write(file, 'new')
  assert file.read_text() == 'new'


def test_a_finished_file_gets_its_name_in_one_step(tmp_path):
  (tmp_path / 'new').write_text('new')
  (tmp_path / 'a').write_text('old')
  with pytest.raises(InputError):
    give_name(tmp_path / 'new', tmp_path / 'a', overwrite=False)
  assert (tmp_path / 'new').read_text() == 'new'
  give_name(tmp_path / 'new', tmp_path / 'a', overwrite=True)
  assert (tmp_path / 'a').read_text() == 'new'
