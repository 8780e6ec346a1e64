# SPDX-License-Identifier: Apache-2.0
"""Tests of reading and writing picture files."""

import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax.data import images
from segjax.errors import InputError

DTYPES = ('uint8', 'uint16', 'float32')


def random_stack(shape, dtype='uint8', seed=0):
  rng = np.random.default_rng(seed)
  if dtype == 'float32':
    return rng.normal(size=shape).astype(dtype)
  return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def write_tiff(path, stack, photometric='minisblack', **options):
  tifffile.imwrite(path, stack, photometric=photometric, **options)


def error_of(path):
  with pytest.raises(InputError) as caught:
    images.read_stack(path)
  message = str(caught.value)
  assert '\n' not in message
  assert str(path) in message
  return message


def png_of(header, pixels):
  def chunk(kind, data):
    crc = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + crc

  return b''.join(
    [
      b'\x89PNG\r\n\x1a\n',
      chunk(b'IHDR', header),
      chunk(b'IDAT', zlib.compress(pixels)),
      chunk(b'IEND', b''),
    ]
  )


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('ending', ['.tif', '.tiff', '.npy'])
@pytest.mark.parametrize(
  'shape', [(3, 7, 5), (1, 1, 1), (2, 1, 5, 2), (3, 3, 3, 4)]
)
def test_what_is_written_is_read_back(tmp_path, shape, ending, dtype):
  stack = random_stack(shape, dtype)
  images.write_stack(tmp_path / f'a{ending}', stack)
  read = images.read_stack(str(tmp_path / f'a{ending}'))
  assert read.shape == (shape if len(shape) == 4 else (*shape, 1))
  assert read.dtype == dtype
  np.testing.assert_array_equal(read, stack.reshape(read.shape))


@pytest.mark.parametrize('channels', [1, 3])
def test_png_is_written_and_read_back(tmp_path, channels):
  stack = random_stack((1, 6, 5, channels))
  images.write_stack(tmp_path / 'a.png', stack)
  np.testing.assert_array_equal(images.read_stack(tmp_path / 'a.png'), stack)


@pytest.mark.parametrize('dtype', ['uint8', 'float32'])
def test_another_reader_sees_the_same_tiff_pages(tmp_path, dtype):
  stack = random_stack((3, 7, 5), dtype)
  images.write_stack(tmp_path / 'a.tif', stack)
  with Image.open(tmp_path / 'a.tif') as picture:
    assert picture.n_frames == 3
    for page in range(3):
      picture.seek(page)
      assert picture.mode == {'uint8': 'L', 'float32': 'F'}[dtype]
      np.testing.assert_array_equal(np.asarray(picture), stack[page])


@pytest.mark.parametrize('dtype', ['>u2', '>f4'])
def test_foreign_byte_order_becomes_native(tmp_path, dtype):
  stack = random_stack((2, 4, 5), np.dtype(dtype).name)
  write_tiff(tmp_path / 'a.tif', stack, byteorder='>', metadata=None)
  np.save(tmp_path / 'a.npy', stack.astype(dtype))
  images.write_stack(tmp_path / 'b.tif', stack.astype(dtype))
  for name in ('a.tif', 'a.npy', 'b.tif'):
    read = images.read_stack(tmp_path / name)
    assert read.dtype.isnative
    np.testing.assert_array_equal(read[..., 0], stack)


@pytest.mark.parametrize('compression', ['zlib', 'lzw', 'packbits'])
def test_compressed_and_tiled_tiff(tmp_path, compression):
  stack = random_stack((2, 40, 35))
  for name, options in (
    ('s.tif', {'rowsperstrip': 7}),
    ('t.tif', {'tile': (16, 16)}),
  ):
    write_tiff(tmp_path / name, stack, compression=compression, **options)
    np.testing.assert_array_equal(
      images.read_stack(tmp_path / name)[..., 0], stack
    )


def test_channels_of_tiff(tmp_path):
  rgb = random_stack((1, 4, 5, 3))
  write_tiff(tmp_path / 'rgb.tif', rgb, photometric='rgb')
  write_tiff(
    tmp_path / 'planes.tif',
    np.moveaxis(rgb[0], -1, 0),
    photometric='rgb',
    planarconfig='separate',
  )
  alpha = random_stack((4, 5, 1), seed=1)
  rgba = np.concatenate([rgb[0], alpha], -1)
  Image.fromarray(rgba).save(tmp_path / 'rgba.tif')
  for name in ('rgb.tif', 'planes.tif', 'rgba.tif'):
    np.testing.assert_array_equal(images.read_stack(tmp_path / name), rgb)


def test_modes_of_png(tmp_path):
  gray = random_stack((4, 5))
  rgb = random_stack((4, 5, 3), seed=1)
  deep = random_stack((4, 5), 'uint16')
  indices = np.arange(20, dtype=np.uint8).reshape(4, 5)
  palette = Image.fromarray(indices).convert('P')
  palette.putdata(list(range(20)))
  palette.putpalette(random_stack(768, seed=2).tobytes())
  expected = {
    'gray': (Image.fromarray(gray), gray),
    'rgb': (Image.fromarray(rgb), rgb),
    'rgba': (Image.fromarray(np.dstack([rgb, gray])), rgb),
    'gray_alpha': (Image.fromarray(np.dstack([gray, gray + 1])), gray),
    'deep': (Image.fromarray(deep), deep),
    'palette': (palette, indices),
    'bit': (Image.fromarray(gray > 99), (gray > 99).astype(np.uint8)),
  }
  for name, (picture, array) in expected.items():
    picture.save(tmp_path / f'{name}.png')
    read = images.read_stack(tmp_path / f'{name}.png')
    assert read.dtype == array.dtype, name
    np.testing.assert_array_equal(
      read, array.reshape(1, 4, 5, -1), err_msg=name
    )


def test_one_bit_tiff_and_bool_npy_are_0_and_1(tmp_path):
  bits = random_stack((4, 11)) > 99
  Image.fromarray(bits).save(tmp_path / 'a.tif')
  np.save(tmp_path / 'a.npy', bits)
  for name in ('a.tif', 'a.npy'):
    read = images.read_stack(tmp_path / name)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read[0, ..., 0], bits.astype(np.uint8))


def test_jpeg(tmp_path):
  ramp = np.add.outer(np.arange(24), np.arange(16)).astype(np.uint8) * 4
  Image.fromarray(ramp).save(tmp_path / 'a.jpg', quality=95)
  Image.fromarray(np.dstack([ramp] * 3)).save(tmp_path / 'b.JPEG', quality=95)
  gray, rgb = (
    images.read_stack(tmp_path / name) for name in ('a.jpg', 'b.JPEG')
  )
  assert gray.shape == (1, 24, 16, 1) and rgb.shape == (1, 24, 16, 3)
  np.testing.assert_allclose(gray[0, ..., 0], ramp, atol=6)
  np.testing.assert_allclose(rgb[0, ..., 1], ramp, atol=6)


def test_npy_shapes(tmp_path):
  array = random_stack((2, 3, 4, 5))
  for given, shape in (
    (array[0, ..., 0], (1, 3, 4, 1)),
    (array[..., 0], (2, 3, 4, 1)),
    (np.asfortranarray(array), (2, 3, 4, 5)),
  ):
    np.save(tmp_path / 'a.npy', given)
    read = images.read_stack(tmp_path / 'a.npy')
    assert read.shape == shape
    np.testing.assert_array_equal(read, given.reshape(shape))
    read[0, 0, 0, 0] += 1  # a copy of its own, not a view of the file


def save_cut_candidates(folder):
  stack = random_stack((3, 20, 17))
  images.write_stack(folder / 'ours.tif', stack)
  images.write_stack(
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
  images.write_stack(folder / 'a.png', stack[:1])
  smooth = np.kron(stack[0], np.ones((3, 3), np.uint8))
  Image.fromarray(smooth).save(folder / 'a.jpg')
  Image.fromarray(smooth).save(folder / 'scans.jpg', progressive=True)
  images.write_stack(folder / 'a.npy', stack)
  return sorted(folder.iterdir())


def test_cut_file_is_refused(tmp_path, caplog):
  for whole in save_cut_candidates(tmp_path):
    data = whole.read_bytes()
    expected = images.read_stack(whole)
    cut = tmp_path / f'cut{whole.suffix}'
    ends = np.linspace(0, len(data) - 1, 41).astype(int).tolist()
    for end in ends + [len(data) - 4, len(data) - 2]:
      cut.write_bytes(data[:end])
      if whole.name in ('series.tif', 'big.tif'):
        # tifffile leaves unused bytes at the end of such a file.
        try:
          np.testing.assert_array_equal(images.read_stack(cut), expected)
          assert end > len(data) - 60
        except InputError:
          pass
      else:
        with pytest.raises(InputError, match=f'cut{whole.suffix}'):
          images.read_stack(cut)
          pytest.fail(f'{whole.name} cut at {end} of {len(data)} was read')
  assert not caplog.records  # nothing but the error is said


def test_stack_cut_at_any_byte_is_refused(tmp_path):
  stack = random_stack((3, 4, 5))
  images.write_stack(tmp_path / 'ours.tif', stack)
  first, *rest = map(Image.fromarray, stack)
  first.save(tmp_path / 'behind.tif', save_all=True, append_images=rest)
  # Pillow ends such a file with two bytes of padding.
  for whole, padding in (
    (tmp_path / 'ours.tif', 0),
    (tmp_path / 'behind.tif', 2),
  ):
    data = whole.read_bytes()
    np.testing.assert_array_equal(images.read_stack(whole)[..., 0], stack)
    for end in range(len(data) - padding):
      (tmp_path / 'cut.tif').write_bytes(data[:end])
      with pytest.raises(InputError, match='cut.tif'):
        images.read_stack(tmp_path / 'cut.tif')
        pytest.fail(f'{whole.name} cut at {end} of {len(data)} was read')


def test_changed_png_is_refused_or_harmless(tmp_path):
  path = tmp_path / 'a.png'
  labels = random_stack((100, 100)) // 64
  Image.fromarray(labels).convert('P').save(path)
  data = path.read_bytes()
  expected = images.read_stack(path)
  for position in range(20, len(data), 50):
    changed = bytearray(data)
    changed[position] ^= 1
    path.write_bytes(changed)
    try:
      np.testing.assert_array_equal(images.read_stack(path), expected)
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
  for name in ('a.bmp', 'a', 'a.npz', '.png'):
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
  images.write_stack(tmp_path / f'a{ending}', stack)
  message = error_of(tmp_path / f'a{ending}')
  assert f'{value} in page 1, row 2, column 3, channel 1' in message


@pytest.mark.parametrize(
  'dtype', ['int8', 'int16', 'int32', 'float64', 'complex64']
)
def test_other_dtypes_are_refused(tmp_path, dtype):
  array = np.ones((2, 3, 4), dtype)
  write_tiff(tmp_path / 'a.tif', array)
  np.save(tmp_path / 'a.npy', array)
  for name in ('a.tif', 'a.npy'):
    message = error_of(tmp_path / name)
    assert dtype in message and 'uint8, uint16, float32' in message


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
  side = 2**14 + 1
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
    assert str(images.MAX_PAGE_VALUES) in error_of(tmp_path / name), name


def test_list_images_sorts_naturally_and_skips_the_rest(tmp_path):
  expected = ['Slice1.PNG', 'slice2.tif', 'slice10.tif', 'slice10b.npy']
  for name in expected + ['notes.txt', '.slice3.tif', '._slice2.tif', 'a.npz']:
    (tmp_path / name).touch()
  (tmp_path / 'folder.tif').mkdir()
  assert [file.name for file in images.list_images(tmp_path)] == expected
  one = tmp_path / 'slice10.tif'
  assert images.list_images(str(one)) == [one]


def test_list_images_says_what_it_expected(tmp_path):
  (tmp_path / 'notes.txt').touch()
  for path in (tmp_path, tmp_path / 'missing', tmp_path / 'notes.txt'):
    with pytest.raises(InputError, match=r'\.tif \.tiff \.png') as caught:
      images.list_images(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
  'name, shape, dtype',
  [
    ('a.jpg', (1, 4, 5), 'uint8'),
    ('a', (1, 4, 5), 'uint8'),
    ('a.tif', (4, 5), 'uint8'),
    ('a.tif', (0, 4, 5), 'uint8'),
    ('a.npy', (1, 4, 5, 0), 'uint8'),
    ('a.npy', (1, 1, 4, 5, 1), 'uint8'),
    ('a.tif', (1, 4, 5), 'float64'),
    ('a.npy', (1, 4, 5), 'int32'),
    ('a.npy', (1, 4, 5), 'object'),
    ('a.png', (2, 4, 5), 'uint8'),
    ('a.png', (1, 4, 5), 'float32'),
    ('a.png', (1, 4, 5), 'uint16'),
    ('a.png', (1, 4, 5, 2), 'uint8'),
  ],
)
def test_write_refuses_before_it_writes(tmp_path, name, shape, dtype):
  (tmp_path / name).write_bytes(b'kept')
  with pytest.raises(InputError, match=name):
    images.write_stack(tmp_path / name, np.zeros(shape, dtype))
  assert os.listdir(tmp_path) == [name]
  assert (tmp_path / name).read_bytes() == b'kept'


@pytest.mark.parametrize('ending', ['.tif', '.png', '.npy'])
@pytest.mark.parametrize(
  'error', [OSError(28, 'disk full'), KeyboardInterrupt()]
)
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, ending, error):
  path = tmp_path / f'a{ending}'
  images.write_stack(path, random_stack((1, 4, 5)))
  old = path.read_bytes()
  fsync = os.fsync

  def fail(descriptor):
    fsync(descriptor)
    assert len(os.listdir(tmp_path)) == 2
    raise error

  monkeypatch.setattr(os, 'fsync', fail)
  expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
  with pytest.raises(expected):
    images.write_stack(path, random_stack((1, 4, 5), seed=1))
  assert os.listdir(tmp_path) == [path.name]
  assert path.read_bytes() == old
  monkeypatch.undo()
  images.write_stack(path, random_stack((1, 4, 5), seed=1))
  assert path.read_bytes() != old


def test_write_to_an_impossible_place_is_refused(tmp_path):
  (tmp_path / 'folder.tif').mkdir()
  for path in (tmp_path / 'missing' / 'a.tif', tmp_path / 'folder.tif'):
    with pytest.raises(InputError, match='cannot be written') as caught:
      images.write_stack(path, random_stack((1, 4, 5)))
    assert str(path) in str(caught.value)
  assert os.listdir(tmp_path) == ['folder.tif']
