# SPDX-License-Identifier: Apache-2.0
"""Image files that are read and written by windows, against whole ones."""

import json
import os

import numpy as np
import pytest
import tensorstore
import tifffile
from PIL import Image

from segjax.errors import InputError
from segjax.images import files, ome_zarr, tiff
from segjax.images.labels import label_of
from segjax.images.pixels import image_of

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 2**16, (3, 70, 83), np.uint16)
COLOURS = RNG.integers(0, 256, (2, 70, 83, 3), np.uint8)
FLOATS = RNG.random((1, 70, 83), np.float32)
WINDOWS = [
  (slice(0, 70), slice(0, 83)),
  (slice(0, 1), slice(82, 83)),
  (slice(13, 47), slice(15, 64)),
  (slice(64, 70), slice(16, 32)),
]


def assert_windows_equal(path, expected, meaning=image_of):
  with files.open_rasters(path, meaning) as pages:
    assert len(pages) == len(expected)
    for page, whole in zip(pages, expected, strict=True):
      assert page.shape == whole.shape
      assert page.dtype == whole.dtype
      for window in WINDOWS:
        read = page[window]
        assert read.dtype == whole.dtype
        np.testing.assert_array_equal(read, whole[window])


@pytest.mark.parametrize(
  'array', [GRAY, COLOURS, FLOATS], ids=lambda a: a.dtype
)
@pytest.mark.parametrize(
  'options',
  [
    {},
    {'bigtiff': True},
    {'byteorder': '>'},
    {'rowsperstrip': 7},
    {'rowsperstrip': 7, 'compression': 'zlib'},
    {'tile': (16, 32)},
    {'tile': (32, 16), 'compression': 'lzw', 'predictor': True},
  ],
  ids=str,
)
def test_tiff_windows_equal_what_was_stored(tmp_path, array, options):
  options = dict(options)
  head = {
    key: options.pop(key) for key in ('bigtiff', 'byteorder') if key in options
  }
  with tifffile.TiffWriter(tmp_path / 'a.tif', **head) as tif:
    for page in array:
      photometric = 'rgb' if page.ndim == 3 else 'minisblack'
      tif.write(page, photometric=photometric, contiguous=False, **options)
  expected = array.reshape(*array.shape[:3], -1)
  assert_windows_equal(tmp_path / 'a.tif', expected)
  np.testing.assert_array_equal(files.read_stack(tmp_path / 'a.tif'), expected)


@pytest.mark.parametrize('options', [{}, {'tile': (16, 16)}], ids=str)
def test_planes_and_alpha_of_a_tiff(tmp_path, options):
  alpha = np.concatenate([COLOURS[0], COLOURS[1, ..., :1]], axis=-1)
  for planes, name in (
    (np.moveaxis(alpha, -1, 0), 'separate'),
    (alpha, 'contig'),
  ):
    tifffile.imwrite(
      tmp_path / 'a.tif',
      planes,
      photometric='rgb',
      planarconfig=name,
      extrasamples=['unassalpha'],
      **options,
    )
    assert_windows_equal(tmp_path / 'a.tif', COLOURS[:1])


def test_jpeg_tiles_and_single_bits_of_a_tiff_equal_read_stack(tmp_path):
  smooth = np.add.outer(np.arange(70), np.arange(83)).astype(np.uint8)
  tifffile.imwrite(
    tmp_path / 'j.tif', smooth, compression='jpeg', tile=(16, 32)
  )
  tifffile.imwrite(tmp_path / 'b.tif', smooth % 3 == 0, rowsperstrip=9)
  for name in 'jb':
    path = tmp_path / f'{name}.tif'
    assert_windows_equal(path, files.read_stack(path))


def test_npy_windows_in_either_order(tmp_path):
  for array in (COLOURS, np.asfortranarray(COLOURS)):
    np.save(tmp_path / 'a.npy', array)
    assert_windows_equal(tmp_path / 'a.npy', COLOURS)
  np.save(tmp_path / 'a.npy', GRAY[0].astype('>u2'))
  assert_windows_equal(tmp_path / 'a.npy', GRAY[:1, ..., None])


def test_png_is_read_as_read_stack_does(tmp_path):
  Image.fromarray(COLOURS[0]).save(tmp_path / 'a.png')
  assert_windows_equal(tmp_path / 'a.png', COLOURS[:1])


def zarr_by_hand(folder, version, array, chunk):
  """Writes an array in raw chunks and the metadata that the formats demand."""
  folder.mkdir(parents=True)
  counts = [-(-n // c) for n, c in zip(array.shape, chunk, strict=True)]
  pads = [
    (0, n * c - s) for n, c, s in zip(counts, chunk, array.shape, strict=True)
  ]
  padded = np.pad(array, pads)
  for index in np.ndindex(*counts):
    part = padded[
      tuple(
        slice(i * c, (i + 1) * c) for i, c in zip(index, chunk, strict=True)
      )
    ]
    names = list(map(str, index))
    file = (
      folder.joinpath('c', *names) if version == 3 else folder / '.'.join(names)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(part.tobytes())
  if version == 2:
    metadata = {
      'zarr_format': 2,
      'shape': array.shape,
      'chunks': chunk,
      'dtype': array.dtype.str,
      'compressor': None,
      'fill_value': 0,
      'order': 'C',
      'filters': None,
    }
    (folder / '.zarray').write_text(json.dumps(metadata))
  else:
    metadata = {
      'zarr_format': 3,
      'node_type': 'array',
      'shape': array.shape,
      'data_type': array.dtype.name,
      'chunk_grid': {
        'name': 'regular',
        'configuration': {'chunk_shape': chunk},
      },
      'chunk_key_encoding': {
        'name': 'default',
        'configuration': {'separator': '/'},
      },
      'fill_value': 0,
      'codecs': [{'name': 'bytes', 'configuration': {'endian': 'little'}}],
    }
    (folder / 'zarr.json').write_text(json.dumps(metadata))


@pytest.mark.parametrize('version', [2, 3])
@pytest.mark.parametrize('shape', [(70, 83), (3, 70, 83), (2, 70, 83, 3)])
def test_zarr_windows_equal_the_chunks(tmp_path, version, shape):
  array = COLOURS if len(shape) == 4 else GRAY[0] if len(shape) == 2 else GRAY
  zarr_by_hand(
    tmp_path / 'a.zarr',
    version,
    array,
    [1, 32, 16, 3][-len(shape) :] if len(shape) != 2 else [32, 16],
  )
  expected = {2: array[None, ..., None], 3: array[..., None], 4: array}[
    len(shape)
  ]
  # Three planes could be the channels of an image, not of labels.
  assert_windows_equal(tmp_path / 'a.zarr', expected, label_of)
  if shape[0] == 3:
    with pytest.raises(InputError, match='3 pages .* or one image'):
      files.read_stack(tmp_path / 'a.zarr')


@pytest.mark.parametrize('version', [2, 3])
def test_finest_scale_of_ome_zarr_with_its_axes(tmp_path, version):
  # Two times, three channels, of two scales.
  array = np.moveaxis(COLOURS, -1, 1)
  folder = tmp_path / 'a.zarr'
  zarr_by_hand(folder / '0', version, array, [1, 2, 32, 16])
  zarr_by_hand(
    folder / '1', version, array[..., ::2, ::2].copy(), [1, 3, 64, 64]
  )
  axes = [
    {'name': 't', 'type': 'time'},
    {'name': 'c', 'type': 'channel'},
    {'name': 'y'},
    {'name': 'x'},
  ]
  multiscales = [{'axes': axes, 'datasets': [{'path': '0'}, {'path': '1'}]}]
  if version == 2:
    (folder / '.zgroup').write_text('{"zarr_format": 2}')
    (folder / '.zattrs').write_text(json.dumps({'multiscales': multiscales}))
  else:
    (folder / 'zarr.json').write_text(
      json.dumps(
        {
          'zarr_format': 3,
          'node_type': 'group',
          'attributes': {'ome': {'version': '0.5', 'multiscales': multiscales}},
        }
      )
    )
  assert_windows_equal(folder, COLOURS)


def test_listing_takes_zarr_folders_in_natural_order(tmp_path):
  for name in ('s10.zarr', 's2.zarr', '.s.zarr', 'other'):
    (tmp_path / name).mkdir()

  def names():
    return [file.name for file in files.list_rasters(tmp_path)]

  assert names() == ['s2.zarr', 's10.zarr']
  Image.fromarray(COLOURS[0]).save(tmp_path / 's3.png')
  assert names() == ['s2.zarr', 's3.png', 's10.zarr']
  assert files.list_rasters(tmp_path / 's2.zarr') == [tmp_path / 's2.zarr']


def test_digest_follows_name_size_and_time(tmp_path):
  file = tmp_path / 'a.npy'
  np.save(file, GRAY)
  first = files.digest_of_rasters([file])
  assert files.digest_of_rasters([file]) == first
  os.utime(file, ns=(1, 1))
  assert files.digest_of_rasters([file]) != first


def test_a_window_does_not_decode_the_page(tmp_path, monkeypatch):
  tifffile.imwrite(
    tmp_path / 'a.tif', GRAY[0], tile=(16, 16), compression='zlib'
  )
  decoded = []
  decode = tiff._decode_segment
  monkeypatch.setattr(
    tiff,
    '_decode_segment',
    lambda page, index: (decoded.append(index), decode(page, index))[1],
  )
  with files.open_rasters(tmp_path / 'a.tif') as pages:
    pages[0][slice(16, 33), slice(0, 16)]
    pages[0][slice(20, 30), slice(0, 17)]
  # Six tiles across; of the second window, two of three are kept.
  assert decoded == [6, 12, 7]


def test_what_is_refused(tmp_path):
  tif = tmp_path / 'a.tif'
  tifffile.imwrite(tif, GRAY[0], rowsperstrip=8, compression='zlib')
  whole = tif.read_bytes()
  tif.write_bytes(whole[:-1])
  with pytest.raises(InputError, match='a.tif: truncated'):
    with files.open_rasters(tif):
      pass
  np.save(tmp_path / 'a.npy', GRAY[0])
  (tmp_path / 'a.npy').write_bytes((tmp_path / 'a.npy').read_bytes()[:-1])
  with pytest.raises(InputError, match='a.npy: truncated'):
    with files.open_rasters(tmp_path / 'a.npy'):
      pass
  np.save(tmp_path / 'b.npy', GRAY[0].astype(complex))
  with pytest.raises(InputError, match='b.npy: dtype complex128'):
    with files.open_rasters(tmp_path / 'b.npy'):
      pass
  (tmp_path / 'b.zarr').mkdir()
  with pytest.raises(InputError, match='b.zarr: no Zarr array'):
    with files.open_rasters(tmp_path / 'b.zarr'):
      pass
  np.save(tmp_path / 'c.npy', np.zeros((0, 5), np.uint8))
  with pytest.raises(InputError, match='no pixels|shape'):
    with files.open_rasters(tmp_path / 'c.npy'):
      pass


def read_by_others(path, shape):
  if path.suffix == '.npy':
    return np.load(path)
  if path.suffix == '.tif':
    with tifffile.TiffFile(path) as tif:
      planes = np.stack([page.asarray() for page in tif.pages])
  else:
    spec = {'driver': 'zarr3', 'kvstore': f'file://{path}/0/'}
    planes = tensorstore.open(spec).result().read().result()
  if path.suffix == '.zarr' and shape[0] > 1 and len(shape) == 4:
    planes = planes.swapaxes(0, 1)  # Its axes are c, z, y, x.
  planes = planes.reshape(shape[0], *shape[3:], *shape[1:3])
  return np.moveaxis(planes, 1, -1) if len(shape) == 4 else planes


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float16', 'float32'])
@pytest.mark.parametrize('shape', [(2, 40, 50), (1, 40, 50, 3), (3, 40, 50, 1)])
@pytest.mark.parametrize('ending', ['.tif', '.npy', '.zarr'])
def test_windows_in_two_openings_make_the_stack(
  tmp_path, ending, shape, dtype, monkeypatch
):
  monkeypatch.setattr(ome_zarr, 'CHUNK', 24)  # Windows share chunks.
  stack = (200 * np.random.default_rng(0).random(shape)).astype(dtype)
  path = tmp_path / f'a{ending}'
  for parity in (0, 1):
    with files.open_canvas(path, shape, dtype) as canvas:
      for page in range(shape[0]):
        for i, j in np.ndindex(3, 4):
          rows = slice(16 * i, min(16 * i + 16, 40))
          columns = slice(16 * j, min(16 * j + 16, 50))
          if (i + j) % 2 == parity:
            canvas[page, rows, columns] = stack[page, rows, columns]
      canvas.sync()
    written = read_by_others(path, shape)
    assert written.dtype == dtype
    # Of the first half, the others are 0 still.
    assert parity or not written[0, 0:16, 16:32].any()
  np.testing.assert_array_equal(written, stack)
  if ending == '.tif' and dtype != 'float16':
    files.write_stack(tmp_path / 'b.tif', stack)
    assert path.read_bytes() == (tmp_path / 'b.tif').read_bytes()


def test_large_tiff_is_a_bigtiff_and_costs_no_disk(tmp_path):
  path, shape = tmp_path / 'a.tif', (2, 40000, 40000)
  with files.open_canvas(path, shape, np.float32) as canvas:
    canvas[1, slice(39999, 40000), slice(39998, 40000)] = np.float32([[1, 2]])
  assert path.stat().st_blocks * 512 < 2**20
  with tifffile.TiffFile(path) as tif:
    assert tif.is_bigtiff and len(tif.pages) == 2
    end = tif.pages[1].dataoffsets[0] + tif.pages[1].nbytes
  assert np.fromfile(path, 'f4', 2, offset=end - 8).tolist() == [1, 2]


def test_unknown_ending_and_too_large(tmp_path):
  with pytest.raises(InputError, match="'.png' is none of .tif"):
    with files.open_canvas(tmp_path / 'a.png', (1, 2, 2), np.uint8):
      pass
  with pytest.raises(OSError, match='File too large'):
    with files.open_canvas(tmp_path / 'a.npy', (1, 2**31, 2**31), 'f4'):
      pass
