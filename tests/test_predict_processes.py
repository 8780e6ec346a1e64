# SPDX-License-Identifier: Apache-2.0
"""Images predicted by two processes: the files that one process writes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
from commands import LAUNCHER, QUICKLY, REPOSITORY, launch
from tiny_network import tiny_network

from segjax.predict import predict_files

# Predicts argv[1] to all of argv[2:], and says how many windows it wrote. It
# rests for $PAUSE seconds after each.
PROGRAM = """
import os, sys, time
sys.path.insert(0, 'tests')
from segjax import predict
from segjax.cli import command_line
from segjax.devices import processes
from segjax.prediction import canvas_writer, partial
from tiny_network import tiny_network
partial.RECORD_EVERY_SECONDS = 0
source, *outputs = sys.argv[1:]
sys.argv[1:] = []
def main(_):
  processes.join()
  import jax
  count = 0
  write = canvas_writer.PageWriter.__setitem__
  def counted(*arguments):
    nonlocal count
    count += 1
    write(*arguments)
    time.sleep(float(os.environ.get('PAUSE', 0)))
  canvas_writer.PageWriter.__setitem__ = counted
  network = tiny_network()
  if MEMORY:
    network.config.prediction.tile_memory_mib = MEMORY
  for output in outputs:
    predict.predict_files(network, source, output)
    print(f'process {jax.process_index()} wrote {count};', flush=True)
    count = 0
command_line.run_command(main)
"""


def together(source, *outputs, memory_mib=0):
  program = PROGRAM.replace('MEMORY', str(memory_mib))
  return launch(2, sys.executable, '-c', program, source, *outputs)


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_two_processes_write_what_one_does(tmp_path):
  source = tmp_path / 'in.npy'
  np.save(source, noise(70, 83))
  names = ['out.tif', 'out.npy', 'out.zarr', 'out.png']
  for folder in ('one', 'two'):
    (tmp_path / folder).mkdir()
  outputs = [tmp_path / 'two' / name for name in names]
  process = together(source, *outputs)
  assert process.returncode == 0, process.stderr
  for output in outputs:
    expected = tmp_path / 'one' / output.name
    predict_files(tiny_network(), source, expected)
    files = sorted(file for file in expected.rglob('*') if file.is_file())
    for file in files or [expected]:
      written = output / file.relative_to(expected)
      assert written.read_bytes() == file.read_bytes(), written
  assert sorted(file.name for file in (tmp_path / 'two').iterdir()) == sorted(
    names
  )
  # Windows of 16 px: 5 x 6.
  said = process.stdout  # Of both, and so not in whole lines.
  for index in range(2):
    assert said.count(f'process {index} wrote 15;') == len(names), said
  for output in outputs:
    line = f'{output}: probabilities of 1 image, by tiles of 22 x 22 px'
    assert said.count(line) == 1


def test_pages_of_one_tile_are_shared_too(tmp_path):
  source, output = tmp_path / 'in.npy', tmp_path / 'out.npy'
  np.save(source, noise(5, 12, 13))
  process = together(source, output, memory_mib=1)
  assert process.returncode == 0, process.stderr
  assert 'process 0 wrote 3;' in process.stdout
  assert 'process 1 wrote 2;' in process.stdout
  predict_files(tiny_network(), source, tmp_path / 'one.npy')
  np.testing.assert_array_equal(np.load(output), np.load(tmp_path / 'one.npy'))


def test_what_fails_in_one_fails_in_both_and_leaves_nothing(tmp_path):
  source = tmp_path / 'in.npy'
  stack = noise(1, 16, 80).astype(np.float32) / 255
  stack[0, 3, 24] = np.nan  # In the second of five windows, and their margins.
  np.save(source, stack)
  process = together(source, tmp_path / 'out.tif')
  assert process.returncode == 2, process.stderr
  errors = [
    line for line in process.stderr.splitlines() if line.startswith('error: ')
  ]
  assert len(errors) == 1
  assert errors[0].startswith(f'error: {source}: pixel is nan in page 0, row 3')
  assert [file.name for file in tmp_path.iterdir()] == ['in.npy']


def start_slowly(source, output):
  program = PROGRAM.replace('MEMORY', '0')
  return subprocess.Popen(
    [LAUNCHER, '2', sys.executable, '-c', program, source, output],
    env=os.environ | QUICKLY | {'PAUSE': '0.3', 'JAX_NUM_CPU_DEVICES': '4'},
    cwd=REPOSITORY,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )


def test_both_skip_what_they_finished_before_a_kill(tmp_path):
  source, output = tmp_path / 'in', tmp_path / 'out'
  source.mkdir()
  for i in range(3):
    np.save(source / f'{i}.npy', noise(20 + i, 83))  # 2 x 6 windows each.
  predict_files(tiny_network(), source, tmp_path / 'one')
  killed = start_slowly(source, output)
  until = time.monotonic() + 120
  while not (output / '0.tif').exists():
    assert killed.poll() is None and time.monotonic() < until
    time.sleep(0.02)
  os.killpg(killed.pid, signal.SIGKILL)
  killed.wait()
  assert not (output / '2.tif').exists()
  time_of_first = (output / '0.tif').stat().st_mtime_ns
  process = together(source, output)
  assert process.returncode == 0, process.stderr
  assert process.stdout.count('1 of 3 files are skipped') == 1
  for index in range(2):
    said = f'process {index} wrote '
    assert 6 < int(process.stdout.split(said)[1].split(';')[0]) <= 12
  assert (output / '0.tif').stat().st_mtime_ns == time_of_first
  names = ['0.tif', '1.tif', '2.tif']
  assert sorted(file.name for file in output.iterdir()) == names
  for name in names:
    expected = (tmp_path / 'one' / name).read_bytes()
    assert (output / name).read_bytes() == expected


def test_both_go_on_after_a_kill(tmp_path):
  source, output = tmp_path / 'in.npy', tmp_path / 'out.npy'
  np.save(source, noise(70, 83))
  killed = start_slowly(source, output)
  folder = tmp_path / 'out.npy.partial'
  journals = [folder / 'journal', folder / 'journal.1']
  until = time.monotonic() + 120
  # Of 15 windows each; a line more, of the run, is in the first.
  while [j.exists() and j.read_text().count('\n') > 3 for j in journals] != [
    True,
    True,
  ]:
    assert killed.poll() is None and time.monotonic() < until
    time.sleep(0.02)
  os.killpg(killed.pid, signal.SIGKILL)
  killed.wait()
  assert not output.exists()
  done = [j.read_text().count('\n') - (j.suffix == '') for j in journals]
  process = together(source, output)
  assert process.returncode == 0, process.stderr
  for index in range(2):
    assert f'process {index} wrote {15 - done[index]};' in process.stdout
  assert 3 <= min(done) and max(done) < 15
  predict_files(tiny_network(), source, tmp_path / 'one.npy')
  np.testing.assert_array_equal(np.load(output), np.load(tmp_path / 'one.npy'))
