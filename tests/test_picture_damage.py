# SPDX-License-Identifier: Apache-2.0
"""Large PNG and JPEG that are damaged or lie; memory and temporary files."""

import os
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from inputs import png_of, random_stack
from PIL import Image

from segjax.errors import InputError, SaveFailed
from segjax.images import files, picture_windows, rasters
from segjax.prediction import partial

COLOURS = random_stack((70, 83, 3))
# A JPEG of noise is nearly all rounding.
SMOOTH = np.add.outer(np.arange(70), np.arange(83)).astype(np.uint8)


@pytest.fixture(autouse=True)
def by_rows(monkeypatch):
  """Calls small pictures large."""
  monkeypatch.setattr(picture_windows, 'MAX_WHOLE_VALUES', 0)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
  folder = tmp_path / 'temporary'
  folder.mkdir()
  monkeypatch.setenv('TMPDIR', str(folder))
  return folder


def files_of(folder):
  """Returns the files in a folder that are open or have a name there."""
  links = Path('/proc/self/fd').iterdir()
  targets = [os.readlink(link) for link in links if link.is_symlink()]
  opened = [target for target in targets if target.startswith(str(folder))]
  return opened + os.listdir(folder)


def read(path):
  with rasters.open_rasters(path) as [page]:
    return page[slice(0, page.shape[0]), slice(0, page.shape[1])]


def error_of(path):
  with pytest.raises(InputError) as caught:
    read(path)
  message = str(caught.value)
  assert '\n' not in message
  assert str(path) in message
  return message


def save(folder):
  """Writes a PNG and a JPEG and returns their paths."""
  paths = [folder / 'a.png', folder / 'a.jpg']
  Image.fromarray(COLOURS).save(paths[0])
  Image.fromarray(SMOOTH).save(paths[1])
  return paths


def test_temporary_file_ends_with_the_block(tmp_path, temporary):
  for path in save(tmp_path):
    with rasters.open_rasters(path) as [page]:
      assert files_of(temporary) == []
      page[slice(0, 1), slice(0, 1)]
      assert len(files_of(temporary)) == 1
      assert os.listdir(temporary) == []
    assert files_of(temporary) == []


def test_cut_pictures_are_refused(tmp_path, temporary, capfd, caplog):
  for path in save(tmp_path):
    data = path.read_bytes()
    read(path)
    ends = np.linspace(0, len(data) - 1, 21).astype(int).tolist()[:-1]
    # Without the last two bytes, a JPEG has all of its pixels.
    for end in [*ends, len(data) - 13, len(data) - 5, len(data) - 3]:
      path.write_bytes(data[:end])
      assert 'truncated' in error_of(path)
  assert files_of(temporary) == []
  assert capfd.readouterr() == ('', '')
  assert not caplog.records


def test_wrong_checksums_of_png_are_refused(tmp_path, temporary):
  path, _ = save(tmp_path)
  data = path.read_bytes()
  # Of the header, of the pixels, and the pixels.
  first = data.index(b'IDAT') + 4
  for position in (32, first - 10, first + 300, len(data) - 13):
    changed = bytearray(data)
    changed[position] ^= 1
    path.write_bytes(changed)
    error_of(path)
  assert files_of(temporary) == []


def test_jpeg_that_pillow_guesses_is_refused(tmp_path, temporary, capfd):
  _, path = save(tmp_path)
  data = bytearray(path.read_bytes())
  start = data.index(b'\xff\xda') + 10
  data[start + 100 : start + 140] = b'\xfe' * 40
  path.write_bytes(data)
  assert files.read_stack(path).shape == (1, 70, 83, 1)
  assert 'Corrupt JPEG data' in error_of(path)
  assert files_of(temporary) == []
  assert capfd.readouterr() == ('', '')


def test_header_that_lies_costs_no_memory(tmp_path, temporary, monkeypatch):
  room = SimpleNamespace(free=2**60)
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: room)
  png, jpeg = save(tmp_path)
  side = 60000
  header = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
  png.write_bytes(png_of(header, bytes(9 * (side + 1))))
  data = jpeg.read_bytes()
  size = struct.pack('>HH', 70, 83)
  assert data.count(size) == 1
  jpeg.write_bytes(data.replace(size, struct.pack('>HH', side, side)))
  pages = int(Path('/proc/self/statm').read_text().split()[0])
  limit = resource.getrlimit(resource.RLIMIT_AS)
  # A third of the pixels.
  memory = pages * os.sysconf('SC_PAGE_SIZE') + side**2 // 3
  for path in (png, jpeg):
    resource.setrlimit(resource.RLIMIT_AS, (memory, limit[1]))
    try:
      message = error_of(path)
    finally:
      resource.setrlimit(resource.RLIMIT_AS, limit)
    assert 'truncated' in message and 'emory' not in message
  assert files_of(temporary) == []


def saving_fails(path):
  with pytest.raises(SaveFailed) as caught:
    read(path)
  return str(caught.value)


def test_full_disk(tmp_path, temporary, monkeypatch):
  for path in save(tmp_path):
    needed = read(path).nbytes
    with monkeypatch.context() as patch:
      room = SimpleNamespace(free=needed - 1)
      patch.setattr(shutil, 'disk_usage', lambda folder, room=room: room)
      message = saving_fails(path)
    expected = f'{path}: its pixels, {needed} bytes, cannot be written to '
    assert message.startswith(f'{expected}{temporary}; No space left on device')
    assert message.endswith('; set TMPDIR to a folder with room')
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (needed - 1, limit[1]))
    try:
      message = saving_fails(path)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert message.startswith(f'{expected}{temporary}; File too large')
  assert files_of(temporary) == []
  monkeypatch.setenv('TMPDIR', str(tmp_path / 'missing'))
  assert 'No such file or directory; set TMPDIR' in saving_fails(path)


def test_full_disk_costs_no_finished_block(tmp_path, monkeypatch):
  path, _ = save(tmp_path)
  monkeypatch.setenv('TMPDIR', str(tmp_path / 'missing'))
  monkeypatch.setattr(partial, 'RECORD_EVERY_SECONDS', 0)
  output = tmp_path / 'out.npy'
  with pytest.raises(
    InputError,
    match='out.npy: cannot be written; .*a.png: its pixels, 17430 bytes, .*; '
    'set TMPDIR to a folder with room; the same command goes on from ',
  ):
    with partial.open_partial(output, {}) as begun:
      (begun.folder / output.name).touch()
      begun.record((0, 0), 9, lambda: None)
      read(path)
  with pytest.raises(RuntimeError, match='stopped'):
    with partial.open_partial(output, {}) as begun:
      assert begun.finished == {(0, 0): 9}
      raise RuntimeError('stopped')


MEMORY = """
import sys
from segjax.images import picture_windows, rasters
picture_windows.MAX_WHOLE_VALUES = 0
with rasters.open_rasters(sys.argv[1]) as [page]:
  for top in range(0, page.shape[0], 500):
    page[slice(top, top + 500), slice(0, page.shape[1])]
with open('/proc/self/status') as status:
  print([line.split()[1] for line in status if line.startswith('VmHWM')][0])
"""


@pytest.mark.parametrize('ending', ['png', 'jpg'])
def test_memory_does_not_grow_with_the_rows(tmp_path, ending):
  peaks = []
  for height in (2000, 40000):
    path = tmp_path / f'{height}.{ending}'
    # Noise, so that the file is large, too.
    rows = np.tile(random_stack((500, 1000)), (height // 500, 1))
    Image.fromarray(rows).save(path)
    process = subprocess.run(
      [sys.executable, '-c', MEMORY, path],
      # For so many threads libvips would keep all rows.
      env=os.environ | {'VIPS_CONCURRENCY': '500'},
      check=True,
      capture_output=True,
      text=True,
    )
    peaks.append(int(process.stdout))
  # In KiB; the larger picture has 38,000 more.
  assert peaks[1] - peaks[0] < 6000
