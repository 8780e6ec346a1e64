# SPDX-License-Identifier: Apache-2.0
"""Small files that lie about their sizes are refused in little memory and time.

`benchmarks/hostile.py` makes these and many more.
"""

import io
import struct
import time
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tensorstore
import tifffile
from commands import tiny_config
from PIL import Image

from benchmarks import hostile
from segjax import convert, experiment
from segjax.errors import InputError
from segjax.images import files
from segjax.weights.files import read_params


def zarr(side, chunk):
  """Returns the files of a Zarr v2 of one chunk in Blosc."""
  metadata = (
    f'{{"zarr_format": 2, "shape": [{side}, {side}], "chunks": [{side}, {side}]'
    ', "dtype": "|u1", "compressor": {"id": "blosc", "cname": "zstd", "clevel":'
    ' 5, "shuffle": 0}, "fill_value": 0, "order": "C", "filters": null}'
  )
  return {'.zarray': metadata.encode(), '0.0': chunk}


def h5(**how):
  h5py = pytest.importorskip('h5py')
  file = io.BytesIO()
  with h5py.File(file, 'w') as root:
    root.create_dataset('a/b', **how)
  return file.getvalue()


def described(text):
  return hostile.tiff(bytes(4096), t270=(2, text.encode() + b'\0'))


def endless():
  data = bytearray(hostile.tiff(bytes(4096)))
  data[-4:] = data[4:8]
  return bytes(data)


def shared_tags(pages):
  count = 20_000
  values = struct.pack('<I', 8) * count
  ones = struct.pack('<I', 1) * count
  return hostile.tiff(
    b'\0',
    pages=pages,
    shared=[
      (hostile.OFFSETS, 4, count, values),
      (hostile.COUNTS, 4, count, ones),
    ],
    t256=(4, [1]),
    t257=(4, [count]),
    t278=(4, [1]),
  )


BOMB = 'as in a decompression bomb'
# Name of a file -> what makes it, and what is said.
REFUSED = {
  'jpeg.tif': (
    lambda: hostile.tiff(hostile.jpeg_of(24_000), t259=(3, [7])),
    'a JPEG of 24000 x 24000 px in a strip or tile of 64 x 64',
  ),
  'png.tif': (
    lambda: hostile.tiff(hostile.png(24_000, 1, 1), t259=(3, [34933])),
    'codec PNG is not supported; save it uncompressed or with LZW',
  ),
  'jpeg2000.tif': (
    lambda: hostile.tiff(b'\xff\x4f', t259=(3, [34712])),
    'codec JPEG2000 is not supported',
  ),
  'strip.tif': (
    lambda: hostile.tiff(hostile.deflated(64), 12_000, t259=(3, [8])),
    BOMB,
  ),
  'stack.tif': (
    lambda: hostile.tiff(
      hostile.deflated(2**24), 4096, pages=20, t259=(3, [8])
    ),
    f'{BOMB}; files below 1048576 bytes may decode to 134217728',
  ),
  'endless.tif': (endless, 'page 1 is an earlier one'),
  'tags.tif': (
    lambda: shared_tags(1000),
    'tags of its first 105 pages are longer than the file',
  ),
  'planes.tif': (
    lambda: described(
      '<?xml version="1.0"?><OME><Image><Pixels SizeT="99999" SizeC="1" '
      'SizeZ="99999"/></Image></OME>'
    ),
    '9999800001 pages or more in',
  ),
  'bits.png': (lambda: hostile.png(11_600, 1), BOMB),
  'colours.png': (lambda: hostile.png(11_500, 8, kind=3), BOMB),
  'scans.jpg': (
    lambda: hostile.scans(Image.new('L', (1000, 1000)), 100),
    r'a JPEG of 1\d\d scans; expected at most 32',
  ),
  'frames.gif': (
    lambda: hostile.gif(1, 1, 3000),
    '3000 pages or more in .* bytes; expected at most 2048',
  ),
  'many.npy': (
    lambda: hostile.npy((3000, 1, 6), '|u1', bytes(18000)),
    '3000 pages or more in',
  ),
  'blosc.zarr': (
    lambda: zarr(64, imagecodecs.blosc_encode(bytes(2**27))),
    'a chunk inflates to 134217728 bytes; expected 4096',
  ),
  'chunk.zarr': (
    lambda: zarr(12_000, imagecodecs.blosc_encode(bytes(64))),
    BOMB,
  ),
  'letters.npz': (
    lambda: hostile.zipped(
      {f'{"a/" * 30_000}b.npy': hostile.npy((1,), '<f4', bytes(4))}
    ),
    'lies 30000 layers deep; expected at most 32',
  ),
  'claims.h5': (
    lambda: h5(shape=(2**40,), dtype='f4', chunks=(2**16,)),
    'a/b is too large for the size of the file',
  ),
  'external.h5': (
    lambda: h5(shape=(4,), dtype='f4', external=[('/etc/passwd', 0, 16)]),
    'a/b lies in another file',
  ),
  'zeros.keras': (
    lambda: hostile.zipped({'model.weights.h5': bytes(2**26)}),
    'would inflate to 67108864',
  ),
}


def read(path):
  if path.suffix in ('.npz', '.safetensors'):
    return read_params(path)
  if path.suffix in ('.h5', '.keras'):
    return convert.read_tensors(path)
  return files.read_stack(path)


@pytest.mark.parametrize('name', REFUSED)
def test_hostile_file_is_refused(name, tmp_path):
  make, message = REFUSED[name]
  path = tmp_path / name
  assert hostile.write(path, make()) < hostile.MOST_FILE_BYTES
  Path('/proc/self/clear_refs').write_text('5')  # Resets the peak of memory.
  before, start = hostile.status('VmRSS'), time.process_time()
  with pytest.raises(InputError, match=message) as caught:
    read(path)
  assert time.process_time() - start < hostile.MOST_SECONDS
  assert hostile.status('VmHWM') - before < hostile.MOST_BYTES
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize('location', ['start', 'end'])
def test_chunks_of_blosc_in_shards_are_read_and_bounded(tmp_path, location):
  array = np.random.default_rng(0).integers(0, 9, (8, 8)).astype(np.uint16)
  endian = {'name': 'bytes', 'configuration': {'endian': 'little'}}
  sharding = {
    'chunk_shape': [4, 4],
    'codecs': [endian, {'name': 'blosc', 'configuration': {'cname': 'zstd'}}],
    'index_location': location,
  }
  store = tensorstore.open(
    {
      'driver': 'zarr3',
      'kvstore': {'driver': 'file', 'path': f'{tmp_path}/'},
      'metadata': {
        'shape': [8, 8],
        'data_type': 'uint16',
        'codecs': [{'name': 'sharding_indexed', 'configuration': sharding}],
      },
    },
    create=True,
  ).result()
  store[:] = array
  np.testing.assert_array_equal(files.read_stack(tmp_path)[0, ..., 0], array)
  shard = tmp_path / 'c' / '0' / '0'
  data = bytearray(shard.read_bytes())
  index = data[: 4 * 16] if location == 'start' else data[-4 * 16 - 4 :]
  [third] = struct.unpack_from('<Q', index, 2 * 16)
  data[third + 4 : third + 8] = struct.pack('<I', 2**31 - 1)
  shard.write_bytes(data)
  with pytest.raises(InputError, match='inflates to 2147483647 .* expected 32'):
    files.read_stack(tmp_path)


def test_small_files_within_the_bounds_are_read(tmp_path):
  side = 2000
  path = tmp_path / 'a.tif'
  for strip, codec in (
    (hostile.deflated(side * side), 8),
    (imagecodecs.jpeg_encode(np.zeros((side, side), np.uint8)), 7),
  ):
    path.write_bytes(hostile.tiff(strip, side, 3, t259=(3, [codec])))
    assert not files.read_stack(path).any()
  for layout in ({'tile': (32, 48)}, {'rowsperstrip': 40}):
    gray = np.full((3, 100, 90), 99, np.uint8)
    tifffile.imwrite(
      path,
      gray,
      photometric='rgb',
      planarconfig='separate',
      compression='jpeg',
      **layout,
    )
    expected = np.moveaxis(tifffile.imread(path), 0, -1)[None]
    np.testing.assert_array_equal(files.read_stack(path), expected)
  # Is no OME-TIFF, and took minutes.
  path.write_bytes(described('<OME' * 100_000 + '</OME>'))
  start = time.process_time()
  assert files.read_stack(path).shape == (1, 64, 64, 1)
  assert time.process_time() - start < hostile.MOST_SECONDS


def test_a_file_that_is_not_small_may_decode_to_more(tmp_path, monkeypatch):
  monkeypatch.setattr('segjax.images.windows.MAX_SMALL_BYTES', 1000)
  path = tmp_path / 'a.png'
  Image.new('L', (40, 40)).save(path)
  with pytest.raises(InputError, match=r'1600 bytes in a file of \d+, as in a'):
    files.read_stack(path)
  monkeypatch.setattr('segjax.images.windows.MAX_SMALL_PAGES', 4)
  np.save(tmp_path / 'a.npy', np.zeros((5, 2, 2, 1), np.uint8))
  with pytest.raises(
    InputError, match='5 pages or more in 148 bytes; expected'
  ):
    files.read_stack(tmp_path / 'a.npy')
  monkeypatch.setattr('segjax.images.windows.SMALL_FILE_BYTES', 10)
  assert files.read_stack(path).shape == (1, 40, 40, 1)
  assert files.read_stack(tmp_path / 'a.npy').shape == (5, 2, 2, 1)


def test_more_classes_than_labels_can_hold_are_refused():
  config = tiny_config()
  config.batch_size = 8
  config.model.num_classes = 300
  with pytest.raises(InputError, match='num_classes=300; expected at most 255'):
    experiment.create_experiment(config)
