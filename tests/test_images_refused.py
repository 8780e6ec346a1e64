# SPDX-License-Identifier: Apache-2.0
"""Tests of the picture files that are not read: cut, changed, foreign, huge."""

import functools
import gzip
import io
import lzma
import os
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tensorstore
import tifffile
from inputs import png_of, random_stack, write_tiff
from PIL import Image

from benchmarks import hostile
from segjax.errors import InputError
from segjax.images import files
from segjax.images.windows import MAX_PAGE_VALUES


def error_of(path):
  with pytest.raises(InputError) as caught:
    files.read_stack(path)
  message = str(caught.value)
  assert '\n' not in message
  assert str(path) in message
  return message


def save_cut_candidates(folder):
  stack = random_stack((3, 20, 17))
  files.write_stack(folder / 'ours.tif', stack)
  files.write_stack(
    folder / 'colour.tif', random_stack((2, 9, 9, 3), 'float32')
  )
  write_tiff(folder / 'series.tif', stack)
  write_tiff(folder / 'zlib.tif', stack, compression='zlib', rowsperstrip=7)
  # Without an end code a short LZW strip decodes to fewer rows, not an error.
  write_tiff(folder / 'lzw.tif', stack, compression='lzw', rowsperstrip=7)
  write_tiff(folder / 'big.tif', stack, bigtiff=True)
  # This writer puts the tags behind the pixels.
  Image.fromarray(random_stack((20, 17, 3))).save(
    folder / 'behind.tif', compression='tiff_lzw'
  )
  files.write_stack(folder / 'a.png', stack[:1])
  smooth = np.kron(stack[0], np.ones((3, 3), np.uint8))
  Image.fromarray(smooth).save(folder / 'a.jpg')
  Image.fromarray(smooth).save(folder / 'scans.jpg', progressive=True)
  files.write_stack(folder / 'a.npy', stack)
  return sorted(folder.iterdir())


def test_cut_file_is_refused(tmp_path, caplog):
  for whole in save_cut_candidates(tmp_path):
    data = whole.read_bytes()
    expected = files.read_stack(whole)
    cut = tmp_path / f'cut{whole.suffix}'
    ends = np.linspace(0, len(data) - 1, 41).astype(int).tolist()
    for end in ends + [len(data) - 4, len(data) - 2]:
      cut.write_bytes(data[:end])
      if whole.name in ('series.tif', 'big.tif', 'colour.tif', 'ours.tif'):
        # tifffile leaves unused bytes at the end of such a file.
        try:
          np.testing.assert_array_equal(files.read_stack(cut), expected)
          assert end > len(data) - 60
        except InputError:
          pass
      else:
        with pytest.raises(InputError, match=f'cut{whole.suffix}'):
          files.read_stack(cut)
          pytest.fail(f'{whole.name} cut at {end} of {len(data)} was read')
  assert not caplog.records  # nothing but the error is said


def test_stack_cut_at_any_byte_is_refused(tmp_path):
  stack = random_stack((3, 4, 5))
  files.write_stack(tmp_path / 'ours.tif', stack)
  first, *rest = map(Image.fromarray, stack)
  first.save(tmp_path / 'behind.tif', save_all=True, append_images=rest)
  # They end with bytes that nothing in them refers to.
  for whole, padding in (
    (tmp_path / 'ours.tif', 16),
    (tmp_path / 'behind.tif', 2),
  ):
    data = whole.read_bytes()
    np.testing.assert_array_equal(files.read_stack(whole)[..., 0], stack)
    for end in range(len(data) - padding):
      (tmp_path / 'cut.tif').write_bytes(data[:end])
      with pytest.raises(InputError, match='cut.tif'):
        files.read_stack(tmp_path / 'cut.tif')
        pytest.fail(f'{whole.name} cut at {end} of {len(data)} was read')


SIDE = 48
SMOOTH = np.add.outer(3 * np.arange(SIDE), np.arange(SIDE)).astype(np.uint8)
SMOOTH += random_stack((SIDE, SIDE)) % 8 + 1  # No pixel is 0.


def short_png(rows, passes=1):
  """Returns a PNG, interlaced if it has 7 passes, of the first rows alone."""
  header = struct.pack('>IIBBBBB', SIDE, SIDE, 8, 0, 0, 0, passes > 1)
  parts = [SMOOTH]
  if passes > 1:
    steps = ((8, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1))
    starts = ((0, 0), (0, 4), (4, 0), (0, 2), (2, 0), (0, 1), (1, 0))
    parts = [
      SMOOTH[i::down, j::across]
      for (i, j), (down, across) in zip(starts, steps, strict=True)
    ]
  filtered = [np.pad(part, [(0, 0), (1, 0)]) for part in parts]
  filtered[-1] = filtered[-1][:rows]
  return png_of(header, b''.join(part.tobytes() for part in filtered))


def short_gif(count):
  """Returns a GIF whose codes end after so many pixels, with a right end."""
  codes = [code for value in SMOOTH.ravel()[:count] for code in (256, value)]
  bits = np.array([*codes, 257])[:, None] >> np.arange(9) & 1
  data = np.packbits(bits.astype(np.uint8), bitorder='little').tobytes()
  blocks = [data[i : i + 255] for i in range(0, len(data), 255)]
  return b''.join(
    [
      b'GIF89a' + struct.pack('<HHBBB', SIDE, SIDE, 0xF7, 0, 0),
      bytes(i // 3 for i in range(768)),
      b',' + struct.pack('<HHHHBB', 0, 0, SIDE, SIDE, 0, 8),
      *(bytes([len(block)]) + block for block in blocks),
      b'\0;',
    ]
  )


def short_picture(share, **options):
  """Returns a JPEG, BMP or WebP of so many of its bytes, with a right end."""
  file = io.BytesIO()
  Image.fromarray(np.dstack(3 * [SMOOTH])).save(file, **options)
  data = bytearray(file.getvalue())
  if options['format'] == 'BMP':  # The header claims more rows.
    data[22:26] = struct.pack('<i', round(SIDE / share))
  elif share < 1:
    del data[round(share * len(data)) // 2 * 2 :]
  if options['format'] == 'JPEG' and share < 1:
    data += b'\xff\xd9'
  if options['format'] == 'WEBP':
    data[4:8] = struct.pack('<I', len(data) - 8)
    data[16:20] = struct.pack('<I', len(data) - 20)
  return bytes(data)


def short_tiff(rows, codec, encode=bytes, tags=()):
  """Returns a TIFF of one strip, of which the first rows are stored alone."""
  strip = encode(SMOOTH[:rows].tobytes())
  return hostile.tiff(strip, SIDE, t259=(3, [codec]), **dict(tags))


def jpeg_strip(share):
  """Returns a TIFF of one strip, a JPEG of so many of its bytes."""
  data = imagecodecs.jpeg_encode(SMOOTH)
  data = data[: int(share * len(data))]
  return hostile.tiff(data, SIDE, t259=(3, [7]))


def short_npy(rows, order='C'):
  file = io.BytesIO()
  np.save(file, np.asarray(SMOOTH, order=order))
  return file.getvalue()[: 128 + rows * SIDE]


# Name of a file -> what makes it of all its pixels, and without the last ones.
SHORT = {
  'a.png': (short_png, (SIDE,), (SIDE - 1,)),
  'interlaced.png': (short_png, (SIDE, 7), (3, 7)),
  'a.gif': (short_gif, (SIDE**2,), (SIDE**2 - 1,)),
  'a.npy': (short_npy, (SIDE,), (SIDE - 1,)),
  'fortran.npy': (short_npy, (SIDE, 'F'), (SIDE - 1, 'F')),
  'plain.tif': (short_tiff, (SIDE, 1), (SIDE - 1, 1)),
  **{
    f'{name}.tif': (
      functools.partial(short_tiff, codec=codec, encode=encode, tags=tags),
      (SIDE,),
      (SIDE - 1,),
    )
    for name, codec, encode, tags in (
      ('lzw', 5, imagecodecs.lzw_encode, {}),
      ('deflate', 8, zlib.compress, {}),
      ('predictor', 8, zlib.compress, {'t317': (3, [2])}),
      ('packbits', 32773, imagecodecs.packbits_encode, {}),
      ('lzma', 34925, lzma.compress, {}),
      ('zstd', 50000, imagecodecs.zstd_encode, {}),
    )
  },
  'jpeg.tif': (jpeg_strip, (1,), (0.9,)),
  **{
    name: (
      functools.partial(short_picture, format=name[-4:].strip('.').upper()),
      (1,),
      (0.9,),
    )
    for name in ('a.bmp', 'a.webp', 'a.jpeg')
  },
  'lossless.webp': (
    functools.partial(short_picture, format='WEBP', lossless=True),
    (1,),
    (0.9,),
  ),
  'scans.jpg': (
    functools.partial(short_picture, format='JPEG', progressive=True),
    (1,),
    (0.98,),
  ),
  'restarts.jpg': (
    functools.partial(short_picture, format='JPEG', restart_marker_rows=1),
    (1,),
    (0.9,),
  ),
}


@pytest.mark.parametrize('name', SHORT)
def test_pixels_that_end_early_are_refused(tmp_path, name):
  make, whole, short = SHORT[name]
  path = tmp_path / name
  path.write_bytes(make(*whole))
  [shown] = files.read_stack(path)
  if name.endswith('.bmp') or 'jp' in name or 'webp' in name:
    np.testing.assert_allclose(shown[..., 0], SMOOTH, atol=32)
  elif 'predictor' not in name:
    np.testing.assert_array_equal(shown[..., 0], SMOOTH)
  path.write_bytes(make(*short))
  error_of(path)
  with pytest.raises(InputError, match='truncated') as caught:
    with files.open_rasters(path) as [page]:
      page[slice(SIDE - 4, SIDE), slice(0, 9)]
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('version', [2, 3])
@pytest.mark.parametrize('codec', [None, 'gzip', 'blosc', 'zstd'])
def test_chunks_that_are_too_short_are_refused(tmp_path, version, codec):
  half = SIDE // 2
  grid = {'name': 'regular', 'configuration': {'chunk_shape': [half, half]}}
  metadata = {'shape': [SIDE, SIDE]}
  if version == 2:
    metadata |= {'chunks': [half, half], 'dtype': '|u1'}
    metadata |= {'compressor': codec and {'id': codec}}
  else:
    metadata |= {'chunk_grid': grid, 'data_type': 'uint8'}
    metadata |= {'codecs': ['bytes', codec] if codec else ['bytes']}
  kvstore = {'driver': 'file', 'path': f'{tmp_path}/'}
  spec = {'driver': 'zarr3' if version == 3 else 'zarr', 'kvstore': kvstore}
  store = tensorstore.open(spec | {'metadata': metadata}, create=True).result()
  store[:] = SMOOTH
  np.testing.assert_array_equal(files.read_stack(tmp_path)[0, ..., 0], SMOOTH)
  encode = {
    None: bytes,
    'gzip': gzip.compress,
    'blosc': imagecodecs.blosc_encode,
    'zstd': imagecodecs.zstd_encode,
  }
  chunk = tmp_path / ('1.1' if version == 2 else 'c/1/1')
  for data in (
    chunk.read_bytes()[: chunk.stat().st_size // 2],
    encode[codec](SMOOTH[: half - 1, :half].tobytes()),
  ):
    chunk.write_bytes(data)
    error_of(tmp_path)
    with pytest.raises(InputError, match='truncated'):
      with files.open_rasters(tmp_path) as [page]:
        page[slice(SIDE - 4, SIDE), slice(SIDE - 4, SIDE)]


def test_changed_png_is_refused_or_harmless(tmp_path):
  path = tmp_path / 'a.png'
  labels = random_stack((100, 100)) // 64
  Image.fromarray(labels).convert('P').save(path)
  data = path.read_bytes()
  expected = files.read_stack(path)
  for position in range(20, len(data), 50):
    changed = bytearray(data)
    changed[position] ^= 1
    path.write_bytes(changed)
    try:
      np.testing.assert_array_equal(files.read_stack(path), expected)
    except InputError:
      pass


def test_strip_that_is_not_listed_is_refused(tmp_path):
  path = tmp_path / 'a.tif'
  write_tiff(
    path, random_stack((1, 20, 17)), rowsperstrip=10, compression='lzw'
  )
  with tifffile.TiffFile(path, mode='r+b') as tif:
    tags = tif.pages[0].tags
    for name in ('StripOffsets', 'StripByteCounts'):
      tags[name].overwrite(tags[name].value[:1])
  assert '1 of 2 strips' in error_of(path)


def test_pages_without_header_are_refused(tmp_path):
  path = tmp_path / 'a.tif'
  write_tiff(path, random_stack((3, 20, 17)), truncate=True)
  assert 'more pages' in error_of(path)


def test_missing_and_misnamed_files_are_refused(tmp_path):
  assert 'no such file' in error_of(tmp_path / 'missing.tif')
  (tmp_path / 'folder.tif').mkdir()
  assert 'directory' in error_of(tmp_path / 'folder.tif')
  for name in ('a.heic', 'a', 'a.npz', '.png'):
    (tmp_path / name).write_bytes(b'x')
    assert 'ending' in error_of(tmp_path / name)
  np.savez(tmp_path / 'b.npz', random_stack((2, 2)))
  os.rename(tmp_path / 'b.npz', tmp_path / 'b.npy')
  for name in ('c.tif', 'c.png', 'c.jpg', 'c.npy'):
    (tmp_path / name).write_bytes(b'not an image at all\n')
    error_of(tmp_path / name)
  error_of(tmp_path / 'b.npy')


@pytest.mark.parametrize('ending', ['.tif', '.npy'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(tmp_path, ending, value):
  stack = random_stack((3, 4, 5, 2), 'float32')
  stack[1, 2, 3, 1] = value
  files.write_stack(tmp_path / f'a{ending}', stack)
  message = error_of(tmp_path / f'a{ending}')
  assert f'{value} in page 1, row 2, column 3, channel 1' in message


def test_complex_samples_are_refused(tmp_path):
  array = np.ones((2, 3, 5), 'complex64')
  write_tiff(tmp_path / 'a.tif', array)
  np.save(tmp_path / 'a.npy', array)
  for name in ('a.tif', 'a.npy'):
    assert 'dtype complex64; expected boo' in error_of(tmp_path / name)


def test_samples_without_a_dtype_are_refused(tmp_path):
  write_tiff(tmp_path / 'a.tif', random_stack((8, 8)))
  with tifffile.TiffFile(tmp_path / 'a.tif', mode='r+') as tif:
    tif.pages[0].tags['BitsPerSample'].overwrite(128)
  assert 'samples of 128 bits' in error_of(tmp_path / 'a.tif')


def test_objects_are_never_unpickled(tmp_path):
  np.save(tmp_path / 'a.npy', np.array([[{}]]), allow_pickle=True)
  error_of(tmp_path / 'a.npy')


def test_deep_colour_animation_and_cmyk_are_refused(tmp_path):
  colour = random_stack((1, 4, 5, 3))[0]
  Image.fromarray(colour).convert('CMYK').save(tmp_path / 'a.jpg')
  assert 'CMYK' in error_of(tmp_path / 'a.jpg')
  frames = [Image.fromarray(colour), Image.fromarray(255 - colour)]
  frames[0].save(tmp_path / 'a.png', save_all=True, append_images=frames[1:])
  assert 'animated' in error_of(tmp_path / 'a.png')
  header = struct.pack('>IIBBBBB', 1, 1, 16, 2, 0, 0, 0)
  (tmp_path / 'b.png').write_bytes(png_of(header, b'\0' + bytes(6)))
  assert '16-bit' in error_of(tmp_path / 'b.png')


def test_pages_of_unequal_shape_are_refused(tmp_path):
  for name, second in (
    ('a.tif', random_stack((4, 6))),
    ('b.tif', random_stack((4, 5, 3))),
    ('c.tif', random_stack((4, 5), 'uint16')),
  ):
    with tifffile.TiffWriter(tmp_path / name) as tif:
      for page in (random_stack((4, 5)), second):
        photometric = 'rgb' if page.ndim == 3 else 'minisblack'
        tif.write(page, photometric=photometric, metadata=None)
    assert 'page 1 is' in error_of(tmp_path / name)


def test_volumes_within_a_page_are_refused(tmp_path):
  write_tiff(
    tmp_path / 'a.tif',
    random_stack((16, 16, 16)),
    tile=(16, 16, 16),
    volumetric=True,
  )
  assert 'ZYX' in error_of(tmp_path / 'a.tif')


@pytest.mark.parametrize(
  'shape', [(0, 4), (4, 0), (0, 4, 5), (2, 0, 4, 1), (5,), ()]
)
def test_npy_of_no_pixel_or_other_rank_is_refused(tmp_path, shape):
  np.save(tmp_path / 'a.npy', np.zeros(shape, np.uint8))
  error_of(tmp_path / 'a.npy')


def test_huge_pages_are_refused_undecoded(tmp_path):
  side = 2**15 + 1
  header = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
  (tmp_path / 'a.png').write_bytes(png_of(header, bytes(9)))
  small = np.zeros((8, 8), np.uint8)
  Image.fromarray(small).save(tmp_path / 'a.jpg')
  data = (tmp_path / 'a.jpg').read_bytes()
  size = struct.pack('>HH', 8, 8)
  assert data.count(b'\x08' + size) == 1
  (tmp_path / 'a.jpg').write_bytes(
    data.replace(b'\x08' + size, b'\x08' + struct.pack('>HH', side, side))
  )
  write_tiff(tmp_path / 'a.tif', small, compression='zlib', metadata=None)
  with tifffile.TiffFile(tmp_path / 'a.tif', mode='r+b') as tif:
    for name in ('ImageWidth', 'ImageLength', 'RowsPerStrip'):
      tif.pages[0].tags[name].overwrite(side)
  with open(tmp_path / 'a.npy', 'wb') as file:
    np.lib.format.write_array_header_1_0(
      file, {'descr': '|u1', 'fortran_order': False, 'shape': (side, side)}
    )
    file.truncate(file.tell() + side * side)
  for name in ('a.png', 'a.jpg', 'a.tif', 'a.npy'):
    assert str(MAX_PAGE_VALUES) in error_of(tmp_path / name), name


@pytest.mark.parametrize('ending', ['.png', '.tif', '.npy', '.bmp'])
def test_an_empty_file_is_called_empty(tmp_path, ending):
  file = tmp_path / f'a{ending}'
  file.touch()
  with pytest.raises(InputError, match='0 bytes'):
    files.read_stack(file)
