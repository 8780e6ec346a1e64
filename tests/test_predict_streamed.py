# SPDX-License-Identifier: Apache-2.0
"""Files predicted by windows: kills, full disks, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import tifffile
from commands import QUICKLY
from tiny_network import tiny_network

from segjax.errors import InputError
from segjax.images import files
from segjax.predict import predict_files

NETWORK = tiny_network()
STACK = np.random.default_rng(0).integers(0, 256, (2, 70, 83), np.uint8)


def start(source, output, pause=0.0, limit='unlimited'):
  """Starts a prediction; `limit`: of a file, in KiB."""
  environment = os.environ | QUICKLY
  environment |= {
    'SOURCE': str(source),
    'OUTPUT': str(output),
    'PAUSE': str(pause),
    'PYTHONPATH': str(Path(__file__).parents[1]),
  }
  program = Path(__file__).with_name('tiny_network.py')
  return subprocess.Popen(
    [
      'bash',
      '-c',
      f'ulimit -f {limit}; exec "$@"',
      '',
      sys.executable,
      program,
    ],
    env=environment,
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
  )


def read(path):
  with files.open_rasters(path) as pages:
    return np.stack([page[slice(0, 70), slice(0, 83)] for page in pages])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A TIFF, and what a process that nobody disturbs predicts of it."""
  folder = tmp_path_factory.mktemp('whole')
  files.write_stack(folder / 'in.tif', STACK)
  process = start(folder / 'in.tif', folder / 'out.npy')
  assert process.communicate()[1] == ''
  return folder / 'in.tif', read(folder / 'out.npy')


@pytest.mark.parametrize('ending', ['.tif', '.npy', '.zarr'])
def test_killed_prediction_goes_on_to_the_same_output(whole, tmp_path, ending):
  source, second = whole
  broken = tmp_path / f'broken{ending}'
  process = start(source, broken, pause=0.1)
  journal = tmp_path / f'broken{ending}.partial/journal'
  until = time.monotonic() + 120
  # Of 60 windows, some of the first page.
  while not journal.exists() or journal.read_text().count('\n') < 9:
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < until
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not broken.exists()
  # Bytes that a second pass would overwrite show that there is none.
  done = journal.read_text().count('\n') - 1
  if ending == '.npy':
    canvas = np.load(journal.with_name(broken.name), mmap_mode='r+')
    assert 0 < np.count_nonzero(canvas) < canvas.size
    canvas[0, 0, 0] = 0.125
    canvas.flush()
  process = start(source, broken)
  assert process.communicate()[1] == ''
  assert process.returncode == 0
  assert done >= 8 and not journal.parent.exists()
  first = read(broken)
  if ending == '.npy':
    assert first[0, 0, 0] == 0.125
    first[0, 0, 0] = second[0, 0, 0]
  np.testing.assert_array_equal(first, second)
  assert np.ptp(second) > 0.01


@pytest.mark.parametrize('ending', ['.tif', '.npy', '.zarr'])
def test_full_disk_ends_with_one_line(tmp_path, ending):
  source, output = tmp_path / 'in.tif', tmp_path / f'out{ending}'
  files.write_stack(source, STACK)
  # Of a Zarr, the metadata fit and a chunk doesn't.
  process = start(source, output, limit=2)
  message = process.communicate()[1]
  assert process.returncode == 2, message
  assert message.startswith(f'error: {output}: cannot be written; ')
  assert 'File too large' in message
  assert message.count('\n') == 1
  assert not output.exists()
  predict_files(NETWORK, source, output)
  assert read(output).shape[1:3] == (70, 83)


@pytest.mark.parametrize(
  ('dtype', 'ending', 'tolerance'),
  [
    ('float16', '.tif', 5e-4),
    ('uint8', '.npy', 1 / 510),
    ('float16', '.zarr', 5e-4),
  ],
)
def test_smaller_dtypes_are_the_rounded_probabilities(
  tmp_path, dtype, ending, tolerance
):
  source = tmp_path / 'in.npy'
  np.save(source, STACK)
  predict_files(NETWORK, source, tmp_path / 'full.npy')
  output = tmp_path / f'small{ending}'
  predict_files(NETWORK, source, output, dtype=dtype)
  if ending == '.tif':
    with tifffile.TiffFile(output) as tif:
      stored = np.stack([page.asarray() for page in tif.pages])
  elif ending == '.npy':
    stored = np.load(output)
  else:
    stored = (
      tensorstore.open({'driver': 'zarr3', 'kvstore': f'file://{output}/0/'})
      .result()
      .read()
      .result()
    )
  assert stored.dtype == dtype
  values = stored.astype(float) / (255 if dtype == 'uint8' else 1)
  np.testing.assert_allclose(
    values, np.load(tmp_path / 'full.npy'), atol=tolerance
  )


def test_changed_input_is_not_gone_on_with(tmp_path):
  source, output = tmp_path / 'in.npy', tmp_path / 'out.npy'
  np.save(source, STACK)
  predict_files(NETWORK, source, output)
  folder = tmp_path / 'out.npy.partial'
  folder.mkdir()
  (folder / 'journal').write_text(json.dumps({'input': 'x'}) + '\n0 0 256\n')
  output.unlink()
  with pytest.raises(
    InputError, match='begun with other parameters, settings, input'
  ):
    predict_files(NETWORK, source, output)
  predict_files(NETWORK, source, output, overwrite=True)
  assert not folder.exists()


def test_an_image_in_the_folder_of_the_unfinished_is_spared(tmp_path):
  """Which --overwrite would begin anew."""
  source = tmp_path / 'out.npy.partial' / 'out.npy'
  source.parent.mkdir()
  np.save(source, STACK)
  with pytest.raises(InputError, match='out.npy.partial holds the input'):
    predict_files(NETWORK, source, tmp_path / 'out.npy', overwrite=True)
  np.testing.assert_array_equal(np.load(source), STACK)


def write_zarr(path, shape):
  """Writes an array of one chunk; the others are missing."""
  path.mkdir()
  (path / '0.0').write_bytes(bytes(64 * 64))
  (path / '.zarray').write_text(
    json.dumps(
      {
        'zarr_format': 2,
        'shape': shape,
        'chunks': [64, 64],
        'dtype': '|u1',
        'compressor': None,
        'fill_value': 0,
        'order': 'C',
        'filters': None,
      }
    )
  )


def cut(path):
  tifffile.imwrite(path, STACK[0], tile=(16, 16), compression='zlib')
  path.write_bytes(path.read_bytes()[:-200])


def with_nan(path):
  stack = STACK[:1].astype(np.float32) / 255
  stack[0, 60, 70] = np.nan
  np.save(path, stack)


BAD = {
  'truncated': ('in.tif', cut, 'out.tif', 'in.tif: truncated'),
  'channels': (
    'in.npy',
    lambda path: np.save(path, np.zeros((1, 8, 9, 3), np.uint8)),
    'out.npy',
    'in.npy has 3 channels; the network takes model.in_channels=1',
  ),
  'empty': (
    'in.npy',
    lambda path: np.save(path, np.zeros((1, 0, 9), np.uint8)),
    'out.npy',
    r'in.npy: shape \[1, 0, 9\] has no pixels',
  ),
  'nan': (
    'in.npy',
    with_nan,
    'out.npy',
    'nan in page 0, row 60, column 70, channel 0',
  ),
  'overflow': (
    'in.zarr',
    lambda path: write_zarr(path, [2**40, 2**40]),
    'out.zarr',
    'image of 1099511627776 x .* pixels; sides are at most 2147483647',
  ),
  'larger than a file can be': (
    'in.zarr',
    lambda path: write_zarr(path, [2**31 - 1, 2**31 - 1]),
    'out.npy',
    'out.npy: cannot be written; File too large',
  ),
  'not writable': (
    'in.npy',
    lambda path: np.save(path, STACK),
    'file/out.npy',
    'there is no folder',
  ),
  'no such filesystem': (
    'in.npy',
    lambda path: np.save(path, STACK),
    '/proc/out.npy',
    '/proc/out.npy: cannot be written',
  ),
  'the input itself': (
    'in.npy',
    lambda path: np.save(path, STACK),
    'in.npy',
    'output .*/in.npy is the input .*/in.npy; give another',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_leaves_nothing(name, tmp_path):
  source, make, output, message = BAD[name]
  make(tmp_path / source)
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(InputError, match=message) as error:
    predict_files(NETWORK, tmp_path / source, tmp_path / output)
  assert '\n' not in str(error.value)
  assert sorted(tmp_path.rglob('*')) == before
