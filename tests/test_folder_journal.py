# SPDX-License-Identifier: Apache-2.0
"""Folders of outputs that go on after a kill, and what is not theirs."""

import contextlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from commands import REPOSITORY, snapshot
from tiny_network import tiny_network

from segjax import instances, locks, predict
from segjax.errors import InputError
from segjax.images import files
from segjax.predict import predict_files
from segjax.prediction.folder_journal import FolderJournal

NETWORK = tiny_network()
SKIPPED = 'files are skipped; the same command finished them before'


def write_images(folder, count=3):
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(count):
    stack = rng.integers(0, 256, (1, 20 + 13 * i, 31), np.uint8)
    files.write_stack(folder / f'{i}.png', stack)
  return folder


def write_maps(folder, count=3):
  folder.mkdir()
  rng = np.random.default_rng(1)
  for i in range(count):
    stack = rng.random((1, 9 + i, 12), np.float32)
    files.write_stack(folder / f't00{i}.tif', stack)
  return folder


def contents(folder):
  return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def visible(folder):
  return {file.name: file.read_bytes() for file in folder.glob('[!.]*')}


def finish(folder, name, text='done', digest='of the input', command=('a',)):
  """Finishes an output as commands do."""
  folder.mkdir(exist_ok=True)
  written = folder / '.written'
  written.write_text(text)
  FolderJournal(folder, command).enter(folder / name, digest, written)
  os.replace(written, folder / name)
  return folder / name


def test_only_what_the_command_wrote_and_nobody_changed_is_finished(tmp_path):
  outputs = [finish(tmp_path / 'out', name) for name in 'abcdef']
  same = FolderJournal(tmp_path / 'out', ('a',))
  digests = ['of the input'] * 6
  assert same.find_finished(outputs, digests) == [True] * 6
  for command in (('b',), ('a', 1), ()):
    other = FolderJournal(tmp_path / 'out', command)
    assert not any(other.find_finished(outputs, digests))
  a, b, c, d, e, _ = outputs
  a.write_text('more than before')
  status = b.stat()
  b.write_text('mine')  # As long.
  assert b.stat().st_size == status.st_size
  os.utime(b, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
  c.unlink()
  d.unlink()
  d.mkdir()
  os.replace(e, tmp_path / 'e')
  digests[5] = 'of another input'
  assert same.find_finished(outputs, digests) == [False] * 6
  os.replace(tmp_path / 'e', e)  # As it was.
  digests[5] = 'of the input'
  assert same.find_finished(outputs, digests) == [False] * 4 + [True] * 2
  same.remove()
  assert not any(same.find_finished(outputs, digests))
  assert not list((tmp_path / 'out').glob('.*'))


def test_a_line_counts_whole_or_not_at_all(tmp_path):
  folder = tmp_path / 'out'
  outputs = [finish(folder, name) for name in 'abc']
  journal = FolderJournal(folder, ('a',))
  [file] = folder.glob('.unfinished.*')
  whole = file.read_bytes()
  starts = [whole.index(f'["{name}"'.encode()) for name in 'abc']
  ends = [whole.index(b'\n', start) for start in starts]

  def found(text):
    file.write_bytes(text)
    return journal.find_finished(outputs, ['of the input'] * 3)

  for length in range(len(whole) + 1):
    assert found(whole[:length]) == [end <= length for end in ends]
  for bit in range(8 * len(whole)):
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    expected = [
      not start - 1 <= bit // 8 <= end
      for start, end in zip(starts, ends, strict=True)
    ]
    assert found(damaged) == expected
  for damage in (b'', b'\xff\xfe\0', b'[' * 100_000, b'{"a": 1}\n'):
    assert not any(found(damage))
  # What is finished after a torn line has a line of its own.
  file.write_bytes(whole[: ends[1] - 1])
  finish(folder, 'c')
  assert found(file.read_bytes()) == [True, False, True]
  file.unlink()
  file.mkdir()
  assert not any(journal.find_finished(outputs, ['of the input'] * 3))


def stop_at(monkeypatch, number):
  """Makes `predict` end as by Ctrl-C when it begins that output, from 0."""
  opened = []
  open_partial = predict.open_partial

  def stop(path, *arguments):
    if len(opened) == number:
      raise KeyboardInterrupt
    opened.append(path)
    return open_partial(path, *arguments)

  monkeypatch.setattr(predict, 'open_partial', stop)


@pytest.mark.parametrize('kind', ['labels', 'overlay'])
def test_a_stopped_prediction_goes_on_and_is_then_complete(
  tmp_path, monkeypatch, capsys, kind
):
  source, output = write_images(tmp_path / 'in'), tmp_path / 'out'
  predict_files(NETWORK, source, tmp_path / 'whole', kind=kind)
  for number in (1, 2):  # The second goes on with --overwrite, too.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
      stop_at(patch, 1)
      predict_files(NETWORK, source, output, kind=kind, overwrite=number == 2)
  before = {f.name: f.stat().st_mtime_ns for f in output.glob('[!.]*')}
  assert sorted(before) == ['0.png', '1.png']
  capsys.readouterr()
  predict_files(NETWORK, source, output, kind=kind)
  said = capsys.readouterr().out.splitlines()
  assert said[0] == (f'{output}: 2 of 3 {SKIPPED} it was stopped')
  assert len(said) == 2 and said[1].startswith(f'{output}/2.png: {kind} of 1')
  for name, time in before.items():
    assert (output / name).stat().st_mtime_ns == time
  assert contents(output) == contents(tmp_path / 'whole')
  with pytest.raises(InputError, match='0.png exists; give --overwrite'):
    predict_files(NETWORK, source, output, kind=kind)
  predict_files(NETWORK, source, output, kind=kind, overwrite=True)
  assert len(capsys.readouterr().out.splitlines()) == 3
  assert contents(output) == contents(tmp_path / 'whole')


def other_params(source, output):
  network = tiny_network(num_classes=3)
  return network, source, {}


def other_preprocessing(source, output):
  network = tiny_network()
  network.config.preprocessing.mean = 0.4
  return network, source, {}


def other_tiles(source, output):
  network = tiny_network()
  network.config.prediction.max_tile_size_px = 30
  return network, source, {}


def other_contents(source, output):
  files.write_stack(source / '0.png', np.zeros((1, 20, 31), np.uint8))
  return NETWORK, source, {}


def other_folder(source, output):
  return NETWORK, write_images(source.with_name('other')), {}


def changed_by_hand(source, output):
  data = bytearray((output / '0.tif').read_bytes())
  data[-1] ^= 1
  (output / '0.tif').write_bytes(data)
  return NETWORK, source, {}


def copied(source, output):
  (output / '0.tif').write_bytes((output / '0.tif').read_bytes())
  return NETWORK, source, {}


def no_journal(source, output):
  [file] = output.glob('.unfinished.*')
  file.unlink()
  return NETWORK, source, {}


@pytest.mark.parametrize(
  'change',
  [
    other_params,
    other_preprocessing,
    other_tiles,
    other_contents,
    other_folder,
    changed_by_hand,
    copied,
    no_journal,
    lambda source, output: (NETWORK, source, {'kind': 'logits'}),
    lambda source, output: (NETWORK, source, {'dtype': 'float16'}),
    lambda source, output: (NETWORK, source, {'average': True}),
  ],
)
def test_what_another_command_wrote_is_neither_skipped_nor_replaced(
  tmp_path, monkeypatch, capsys, change
):
  source, output = write_images(tmp_path / 'in', 2), tmp_path / 'out'
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    stop_at(patch, 1)
    predict_files(NETWORK, source, output)
  network, source, options = change(source, output)
  before = snapshot(output)
  with pytest.raises(InputError, match='0.tif exists; give --overwrite'):
    predict_files(network, source, output, **options)
  assert snapshot(output) == before
  predict_files(network, source, output, overwrite=True, **options)
  predict_files(network, source, tmp_path / 'whole', **options)
  assert 'skipped' not in capsys.readouterr().out
  assert visible(output) == contents(tmp_path / 'whole')


def test_two_commands_that_fill_one_folder_go_on_each(tmp_path, monkeypatch):
  first, second = write_images(tmp_path / 'a', 2), write_images(tmp_path / 'b')
  for file in second.iterdir():
    file.rename(file.with_stem(f'b{file.stem}'))
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    stop_at(patch, 1)
    predict_files(NETWORK, first, tmp_path / 'out')
  predict_files(NETWORK, second, tmp_path / 'out')
  predict_files(NETWORK, first, tmp_path / 'out')
  names = ['0.tif', '1.tif', 'b0.tif', 'b1.tif', 'b2.tif']
  assert sorted(file.name for file in (tmp_path / 'out').iterdir()) == names


# Predicts argv[1] to argv[2] as argv[3] and is killed before argv[4:].
PREDICT = """
import sys
sys.path.insert(0, 'tests')
import kills, tiny_network
from segjax import predict
from segjax.prediction import partial
partial.RECORD_EVERY_SECONDS = 0
source, output, kind, event, words, count = sys.argv[1:]
network = tiny_network.tiny_network()
kills.kill_before(event, words, int(count))
predict.predict_files(network, source, output, kind=kind)
"""
# The moments of kills, each of a start that goes on after the last, and how
# many files of three it skips.
MOMENTS = {
  'probabilities': [
    ('open', '0.tif.partial/journal', 6, 0),  # Between its windows.
    ('open', '.unfinished.', 2, 0),  # The first is reading.
    ('os.link', "/out/0.tif'", 1, 0),
    ('os.remove', '0.tif.partial/0.tif', 1, 0),
    ('open', '1.tif.partial/1.tif', 1, 1),
    ('os.link', "/out/1.tif'", 1, 1),
    ('os.remove', '.unfinished.', 1, 1),
  ],
  'overlay': [
    ('open', '0.png.partial/0.png', 2, 0),  # It is written, and to be synced.
    ('os.link', "/out/0.png'", 1, 0),
    ('os.remove', '1.png.partial/1.png', 1, 0),
  ],
}


@pytest.mark.parametrize('kind', MOMENTS)
def test_a_prediction_killed_again_and_again(tmp_path, capsys, kind):
  source, output = write_images(tmp_path / 'in'), tmp_path / 'out'
  predict_files(NETWORK, source, tmp_path / 'whole', kind=kind)
  whole = contents(tmp_path / 'whole')
  for event, words, count, skipped in MOMENTS[kind]:
    process = subprocess.run(
      [sys.executable, '-c', PREDICT, source, output, kind]
      + [event, words, str(count)],
      capture_output=True,
      text=True,
      cwd=REPOSITORY,
      env=os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    said = f'{output}: {skipped} of 3 {SKIPPED}'
    assert (said in process.stdout) == bool(skipped)
    # What has its name is whole.
    for file in output.glob('[!.]*.???'):
      assert file.read_bytes() == whole[file.name]
  capsys.readouterr()
  predict_files(NETWORK, source, output, kind=kind)
  count = 3 if kind == 'probabilities' else 2
  assert f'{output}: {count} of 3 {SKIPPED}' in capsys.readouterr().out
  assert contents(output) == whole
  assert sorted(f.name for f in tmp_path.iterdir()) == ['in', 'out', 'whole']


# Starts `instances` of argv[1] in folders of argv[2], is killed before the n-th
# thing that it does to a file there, for every n, and starts it again.
INSTANCES = """
import os, sys
sys.path.insert(0, 'tests')
from pathlib import Path
import kills
from segjax import instances
source, folder = map(Path, sys.argv[1:])
def start(output, *moment):
  sys.stdout.flush()
  child = os.fork()
  if not child:
    if moment:
      kills.kill_before(*moment)
    instances.label_files(source, output)
    sys.stdout.flush()
    os._exit(0)
  return os.waitpid(child, 0)[1]
for event in ('open', 'os.link', 'os.remove', 'os.mkdir', 'os.rmdir'):
  status, count = 9, 0
  while status == 9:
    count += 1
    output = folder / f'{event}{count}' / 'out'
    output.parent.mkdir()
    status = start(output, event, f'{output.parent}/', count)
    finished = len(list(output.glob('*.tif')))
    is_done = finished == 3 and not list(output.glob('.unfinished.*'))
    if status == 9 and not is_done:
      print(f'{output}: {finished} finished')
      status = start(output) or 9
"""


def test_instances_killed_at_every_moment(tmp_path):
  source, folder = write_maps(tmp_path / 'in'), tmp_path / 'killed'
  instances.label_files(source, tmp_path / 'whole')
  whole = contents(tmp_path / 'whole')
  names = ['mask000.tif', 'mask001.tif', 'mask002.tif', 'objects.csv']
  assert sorted(whole) == names
  folder.mkdir()
  process = subprocess.run(
    [sys.executable, '-c', INSTANCES, source, folder],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
  )
  assert process.returncode == 0, process.stderr
  lines = process.stdout.splitlines()
  counts = {0: 0, 1: 0, 2: 0, 3: 0}
  for line, after in zip(lines, lines[1:], strict=False):
    output, _, said = line.partition(': ')
    if said.endswith(' finished'):
      count = int(said.split()[0])
      counts[count] += 1
      skipped = after.startswith(f'{output}: {count} of 3 {SKIPPED}')
      assert skipped == (count > 0), after
  assert min(counts.values()) > 0 and sum(counts.values()) > 30
  for place in folder.iterdir():
    assert visible(place / 'out') == whole
    assert os.listdir(place) == ['out']


def test_instances_of_another_threshold_are_not_skipped(tmp_path):
  source, output = write_maps(tmp_path / 'in'), tmp_path / 'out'
  files.write_stack(source / 't002.tif', np.ones((1, 3, 3, 2), np.uint8))
  with pytest.raises(InputError, match='2 channel'):
    instances.label_files(source, output)
  before = snapshot(output)
  for options in ({'threshold': 0.6}, {'seed_threshold': 0.7}):
    with pytest.raises(InputError, match='mask000.tif exists; give --over'):
      instances.label_files(source, output, **options)
  with pytest.raises(InputError, match='2 channel'):
    instances.label_files(source, output)
  assert snapshot(output) == before
  (source / 't002.tif').unlink()
  instances.label_files(source, output)
  names = ['mask000.tif', 'mask001.tif', 'objects.csv']
  assert sorted(file.name for file in output.iterdir()) == names


def predict_folder(source, output, **options):
  predict_files(NETWORK, source, output, **options)


def make_meanwhile(monkeypatch, path):
  """Lets somebody make a file while its output is computed."""
  open_partial, label_pages = predict.open_partial, instances._label_pages

  @contextlib.contextmanager
  def open_and_make(output, *arguments):
    with open_partial(output, *arguments) as partial:
      yield partial
      if output == path:
        path.write_text('mine')

  def label_and_make(file, target, *arguments):
    total = label_pages(file, target, *arguments)
    if target.name == path.name:
      path.write_text('mine')
    return total

  monkeypatch.setattr(predict, 'open_partial', open_and_make)
  monkeypatch.setattr(instances, '_label_pages', label_and_make)


COMMANDS = pytest.mark.parametrize(
  ('write', 'command', 'name'),
  [
    (write_images, predict_folder, '{}.tif'),
    (write_maps, instances.label_files, 'mask00{}.tif'),
  ],
)


@COMMANDS
def test_a_file_that_appears_meanwhile_is_not_replaced(
  tmp_path, monkeypatch, write, command, name
):
  source, output = write(tmp_path / 'in'), tmp_path / 'out'
  command(source, tmp_path / 'whole')
  second = output / name.format(1)
  with monkeypatch.context() as patch:
    make_meanwhile(patch, second)
    with pytest.raises(InputError, match=f'{second} was made by somebody else'):
      command(source, output)
  assert second.read_text() == 'mine'
  second.unlink()
  command(source, output)
  assert contents(output) == contents(tmp_path / 'whole')
  # Of a single file, too.
  [file, *_] = sorted(source.iterdir())
  single = tmp_path / 'single.tif'
  make_meanwhile(monkeypatch, single)
  with pytest.raises(InputError, match=f'{single} was made by somebody else'):
    command(file, single)
  assert single.read_text() == 'mine'
  command(file, single, overwrite=True)


@COMMANDS
def test_a_second_command_in_a_folder_is_refused_and_changes_nothing(
  tmp_path, monkeypatch, write, command, name
):
  monkeypatch.setattr(locks, '_SECONDS_BETWEEN_TRIES', 0)
  source, output = write(tmp_path / 'in', 1), tmp_path / 'out'
  message = f'output {output} has a run already: process {os.getpid()} on '
  with locks.hold(output):
    before = snapshot(output)
    for overwrite in (False, True):
      with pytest.raises(InputError, match=message):
        command(source, output, overwrite=overwrite)
    assert snapshot(output) == before
  assert not output.exists()
  command(source, output)
  before = snapshot(tmp_path)
  with pytest.raises(InputError, match='exists; give --overwrite'):
    command(source, output)
  assert snapshot(tmp_path) == before
  assert {*os.listdir(output)} - {'objects.csv'} == {name.format(0)}


@COMMANDS
def test_an_image_may_have_a_name_of_215_characters(
  tmp_path, write, command, name
):
  source, output = write(tmp_path / 'in', 1), tmp_path / 'out'
  [file] = source.iterdir()
  file.rename(file.with_stem('a' * 215))
  command(source, output)
  written = {*os.listdir(output)} - {'objects.csv'}
  assert written == {f'{"a" * 215}.tif'}


@COMMANDS
def test_a_link_to_nothing_is_an_output_that_exists(
  tmp_path, write, command, name
):
  source, output = write(tmp_path / 'in'), tmp_path / 'out'
  output.mkdir()
  link = output / name.format(1)
  link.symlink_to('nothing')
  with pytest.raises(InputError, match=f'{link} exists; give --overwrite'):
    command(source, output)
  assert os.listdir(output) == [link.name] and link.is_symlink()
