# SPDX-License-Identifier: Apache-2.0
"""Images predicted by two processes: the files that one process writes."""

import sys

import numpy as np
from commands import launch
from tiny_network import tiny_network

from segjax.predict import predict_files

# Predicts argv[1] to all of argv[2:], and says how many windows it wrote.
PROGRAM = """
import sys
sys.path.insert(0, 'tests')
from segjax import errors, page_streams, predict, processes
from tiny_network import tiny_network
source, *outputs = sys.argv[1:]
sys.argv[1:] = []
def main(_):
  processes.join()
  import jax
  count = 0
  write = page_streams.Page.__setitem__
  def counted(*arguments):
    nonlocal count
    count += 1
    write(*arguments)
  page_streams.Page.__setitem__ = counted
  network = tiny_network()
  if MEMORY:
    network.config.prediction.tile_memory_mib = MEMORY
  for output in outputs:
    predict.predict_files(network, source, output)
    print(f'process {jax.process_index()} wrote {count};', flush=True)
    count = 0
errors.run_command(main)
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
    line = f'{output}: probabilities of 1 images, by tiles of 22 x 22 px'
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
  assert len(errors) == 2
  for error in errors:
    assert error.startswith(f'error: {source}: pixel is nan in page 0, row 3')
  assert [file.name for file in tmp_path.iterdir()] == ['in.npy']
