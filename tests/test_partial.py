# SPDX-License-Identifier: Apache-2.0
"""Outputs in the making, and going on after a crash."""

import fcntl
import os
import shutil
import subprocess
import sys

import pytest
from commands import snapshot

from segjax import locks
from segjax.errors import InputError
from segjax.prediction.partial import open_partial, remove_leftover


def test_partial_goes_on_and_is_dropped_only_where_told(tmp_path, monkeypatch):
  monkeypatch.setattr('segjax.prediction.partial.RECORD_EVERY_SECONDS', 0)
  output = tmp_path / 'out.npy'
  identity = {'input': 'a', 'settings': 'b'}
  synced = []

  def begin(identity=identity, overwrite=False, fail=KeyboardInterrupt):
    with open_partial(output, identity, overwrite) as partial:
      found.append(dict(partial.finished))
      (partial.folder / 'out.npy').write_text('done')
      partial.record((0, len(found)), 7, lambda: synced.append(len(found)))
      if fail:
        raise fail('on purpose')

  found = []
  with pytest.raises(KeyboardInterrupt):
    begin()
  assert not output.exists()
  # A crash in the middle of an entry.
  journal = tmp_path / 'out.npy.partial/journal'
  journal.write_text(journal.read_text() + '0 9')
  with pytest.raises(
    InputError, match='out.npy: cannot be written; on purpose; the same'
  ):
    begin(fail=OSError)
  with pytest.raises(
    InputError, match='begun with other settings; give --over'
  ):
    begin({**identity, 'settings': 'c'})
  begin(fail=None)
  assert found == [{}, {(0, 1): 7}, {(0, 1): 7, (0, 2): 7}]
  assert synced == [1, 2, 3]
  assert output.read_text() == 'done'
  assert os.listdir(tmp_path) == ['out.npy']
  with pytest.raises(KeyboardInterrupt):
    begin()
  begin({**identity, 'settings': 'c'}, overwrite=True, fail=None)
  assert found[-1] == {}
  with pytest.raises(InputError, match='on purpose'):
    begin(fail=InputError)
  assert os.listdir(tmp_path) == ['out.npy']


def test_two_runs_at_once_are_refused(tmp_path):
  output = tmp_path / 'out.npy'
  identity = {'settings': 'a'}
  message = f'out.npy: another run is writing it, .*; process {os.getpid()} on '
  with open_partial(output, identity) as partial:
    for other, overwrite in (({'settings': 'b'}, True), (identity, False)):
      with pytest.raises(InputError, match=message):
        with open_partial(output, other, overwrite):
          pass
    (partial.folder / 'out.npy').write_text('first')
  assert output.read_text() == 'first'
  assert os.listdir(tmp_path) == ['out.npy']


def test_the_rest_of_a_removal_that_was_killed_is_no_obstacle(tmp_path):
  output, folder = tmp_path / 'out.npy', tmp_path / 'out.npy.partial'

  def begin():
    with open_partial(output, {'a': '1'}) as begun:
      assert not begun.finished
      (begun.folder / 'out.npy').write_text('whole')

  for use in (begin, lambda: remove_leftover(output, {'a': '1'})):
    folder.mkdir()
    (folder / locks.NAME).touch()  # It goes last.
    use()
    assert not folder.exists()
    assert output.read_text() == 'whole'


def test_the_lock_of_a_dead_run_is_none(tmp_path):
  output = tmp_path / 'out.npy'
  script = (
    'import os, sys; from segjax.prediction import partial; '
    'partial.RECORD_EVERY_SECONDS = 0; '
    'opened = partial.open_partial(sys.argv[1], {}); '
    'begun = opened.__enter__(); (begun.folder / "out.npy").touch(); '
    'begun.record((0, 3), 5, lambda: None); os._exit(9)'
  )
  process = subprocess.run([sys.executable, '-c', script, output])
  assert process.returncode == 9
  assert (tmp_path / 'out.npy.partial' / locks.NAME).exists()
  with open_partial(output, {}) as partial:
    assert partial.finished == {(0, 3): 5}
    (partial.folder / 'out.npy').write_text('second')
  assert output.read_text() == 'second'


def test_a_run_that_begins_while_another_ends_is_refused(tmp_path, monkeypatch):
  """It locks a file that was removed meanwhile."""
  output = tmp_path / 'out.npy'
  lock = fcntl.flock

  folder = output.with_name('out.npy.partial')

  def late(file, operation):
    shutil.rmtree(folder)
    lock(file, operation)

  folder.mkdir()
  (folder / 'journal').write_text('{}\n')
  monkeypatch.setattr('fcntl.flock', late)
  with pytest.raises(InputError, match='another run is writing'):
    with open_partial(output, {}):
      pass


def test_the_journals_of_all_processes_are_read(tmp_path):
  output = tmp_path / 'out.npy'
  with pytest.raises(KeyboardInterrupt):
    with open_partial(output, {}) as partial:
      (partial.folder / 'out.npy').write_text('some')
      (partial.folder / 'journal.1').write_text('0 1 16\n2 4 9\n')
      # Of a process that was killed while it wrote.
      (partial.folder / 'journal.12').write_text('0 7 16\n0 1')
      raise KeyboardInterrupt
  with open_partial(output, {}) as partial:
    assert partial.finished == {(0, 1): 16, (2, 4): 9, (0, 7): 16}
    assert (partial.folder / 'journal.12').read_text() == '0 7 16\n'
    (partial.folder / 'out.npy').write_text('all')
  assert os.listdir(tmp_path) == ['out.npy']


def test_nothing_is_finished_without_a_canvas(tmp_path, monkeypatch):
  """Killed when the output had its name and its folder was not yet removed."""
  monkeypatch.setattr('segjax.prediction.partial.RECORD_EVERY_SECONDS', 0)
  monkeypatch.setattr('segjax.prediction.partial._remove', lambda *_: None)
  output = tmp_path / 'out.npy'
  with open_partial(output, {'input': 'a'}) as partial:
    (partial.folder / 'out.npy').write_text('first')
    (partial.folder / 'journal.1').write_text('0 1 16\n')
    partial.record((0, 0), 7, lambda: None)
  assert output.read_text() == 'first' and partial.folder.is_dir()
  with open_partial(output, {'input': 'a'}, overwrite=True) as again:
    assert again.finished == {}
    (again.folder / 'out.npy').write_text('second')
    again.record((0, 2), 7, lambda: None)
    journals = sorted(again.folder.glob('journal*'))
    lines = [journal.read_text() for journal in journals]
  assert lines == ['{"input": "a"}\n0 2 7\n', '']
  assert output.read_text() == 'second'


@pytest.mark.parametrize('name', ['journal.npy', 'journal-2.tif', 'lock.npy'])
def test_an_output_may_have_the_name_of_a_journal(tmp_path, name):
  output = tmp_path / name
  with pytest.raises(KeyboardInterrupt):
    with open_partial(output, {}) as partial:
      (partial.folder / name).write_bytes(b'\xff\n')
      (partial.folder / 'journal.1').write_text('0 1 16\n')
      raise KeyboardInterrupt
  with open_partial(output, {}) as partial:
    assert partial.finished == {(0, 1): 16}
  assert output.read_bytes() == b'\xff\n'
  assert os.listdir(tmp_path) == [name]


def make_foreign_folder(path):
  path.mkdir()
  (path / 'photo.tif').write_text('mine')


def make_foreign_journal(path):
  path.mkdir()
  (path / 'journal').write_text('Dear diary,\n')


def make_foreign_numbers(path):
  path.mkdir()
  (path / 'journal').write_text('[1, 2]\n')


def make_foreign_link(path):
  make_foreign_folder(path.with_name('elsewhere'))
  path.symlink_to(path.with_name('elsewhere'))


@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize(
  'make',
  [
    make_foreign_folder,
    make_foreign_journal,
    make_foreign_numbers,
    make_foreign_link,
    lambda path: path.write_text('mine'),
    lambda path: path.symlink_to(path.with_name('nothing')),
  ],
)
def test_what_segjax_did_not_leave_is_not_removed(tmp_path, make, overwrite):
  output = tmp_path / 'out.npy'
  make(output.with_name('out.npy.partial'))
  before = snapshot(tmp_path)
  with pytest.raises(InputError, match='out.npy.partial, .*did not make'):
    with open_partial(output, {'a': '1'}, overwrite):
      pass
  remove_leftover(output, {'a': '1'})
  assert snapshot(tmp_path) == before


def test_a_file_that_somebody_put_into_the_folder_stays(tmp_path):
  output = tmp_path / 'out.npy'
  with open_partial(output, {'a': '1'}) as partial:
    (partial.folder / 'out.npy').write_text('whole')
    (partial.folder / 'notes.txt').write_text('mine')
  assert output.read_text() == 'whole'
  assert os.listdir(partial.folder) == ['notes.txt']


def test_what_is_refused_changes_nothing_in_the_folder(tmp_path):
  output = tmp_path / 'out.npy'
  with pytest.raises(KeyboardInterrupt):
    with open_partial(output, {'a': '1'}) as partial:
      (partial.folder / 'out.npy').write_text('some')
      (partial.folder / 'journal.1').write_text('0 1 16\n')
      raise KeyboardInterrupt
  (partial.folder / locks.NAME).write_text('process 7 on a host\n')
  before = snapshot(tmp_path)
  with pytest.raises(InputError, match='was begun with other a; give'):
    with open_partial(output, {'a': '2'}):
      pass
  assert snapshot(tmp_path) == before


@pytest.mark.parametrize('make', [str, make_foreign_folder])
def test_an_output_that_appears_meanwhile_is_not_replaced(
  tmp_path, monkeypatch, make
):
  """What was computed stays, and goes on once there is room for it."""
  monkeypatch.setattr('segjax.prediction.partial.RECORD_EVERY_SECONDS', 0)
  output = tmp_path / 'out.npy'
  with pytest.raises(InputError, match='out.npy was made by somebody else'):
    with open_partial(output, {}) as partial:
      (partial.folder / 'out.npy').write_text('ours')
      partial.record((0, 0), 7, lambda: None)
      if make is str:
        output.write_text('mine')
      else:
        make(output)
  kept = output if make is str else output / 'photo.tif'
  assert kept.read_text() == 'mine'
  os.rename(output, tmp_path / 'kept')
  with open_partial(output, {}) as partial:
    assert partial.finished == {(0, 0): 7}
  assert output.read_text() == 'ours'
  assert sorted(os.listdir(tmp_path)) == ['kept', 'out.npy']


def test_a_folder_that_is_no_array_is_not_replaced(tmp_path):
  output = tmp_path / 'out.npy'
  make_foreign_folder(output)
  with pytest.raises(InputError, match='is a folder and no Zarr array'):
    with open_partial(output, {}, overwrite=True) as partial:
      (partial.folder / 'out.npy').write_text('ours')
  assert os.listdir(output) == ['photo.tif']


def test_the_canvas_of_a_run_killed_at_its_end_is_not_the_output(
  tmp_path, monkeypatch
):
  """It has two names then, and to write to one would change the other."""
  output = tmp_path / 'out.npy'
  monkeypatch.setattr('segjax.prediction.partial._remove', lambda *_: None)
  with open_partial(output, {}) as partial:
    (partial.folder / 'out.npy').write_text('first')
  with pytest.raises(KeyboardInterrupt):
    with open_partial(output, {}, overwrite=True) as partial:
      (partial.folder / 'out.npy').write_text('half')
      raise KeyboardInterrupt
  assert output.read_text() == 'first'


def test_a_name_of_215_characters_is_no_obstacle(tmp_path):
  output = tmp_path / f'{"a" * 215}.tiff'
  with open_partial(output, {}) as partial:
    (partial.folder / output.name).write_text('whole')
  assert os.listdir(tmp_path) == [output.name]
