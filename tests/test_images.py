# SPDX-License-Identifier: Apache-2.0
"""Tests of reading and writing picture files."""

import os

import numpy as np
import pytest
from inputs import random_stack, write_tiff
from PIL import Image

from segjax.errors import InputError
from segjax.images import files, png_jpeg
from segjax.images.palettes import complete_palette

pytestmark = pytest.mark.smoke

DTYPES = ('uint8', 'uint16', 'float32')


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('ending', ['.tif', '.tiff', '.npy'])
@pytest.mark.parametrize(
  'shape', [(3, 7, 5), (1, 1, 1), (2, 1, 5, 2), (3, 3, 3, 4)]
)
def test_what_is_written_is_read_back(tmp_path, shape, ending, dtype):
  stack = random_stack(shape, dtype)
  files.write_stack(tmp_path / f'a{ending}', stack)
  read = files.read_stack(str(tmp_path / f'a{ending}'))
  assert read.shape == (shape if len(shape) == 4 else (*shape, 1))
  assert read.dtype == dtype
  np.testing.assert_array_equal(read, stack.reshape(read.shape))


@pytest.mark.parametrize('channels', [1, 3])
def test_png_is_written_and_read_back(tmp_path, channels):
  stack = random_stack((1, 6, 5, channels))
  files.write_stack(tmp_path / 'a.png', stack)
  np.testing.assert_array_equal(files.read_stack(tmp_path / 'a.png'), stack)


def write_indexed(path, indices, palette):
  with open(path, 'xb') as file:
    png_jpeg.encode(file, indices, complete_palette(palette))


@pytest.mark.parametrize('shape', [(16, 16), (16, 16, 1)])
def test_palette_png_holds_indices_and_shows_colours(tmp_path, shape):
  indices = np.arange(256, dtype=np.uint8).reshape(shape)
  palette = random_stack((11, 3))
  write_indexed(tmp_path / 'a.png', indices, palette)
  read = files.read_labels(tmp_path / 'a.png')
  np.testing.assert_array_equal(read, indices.reshape(1, 16, 16, 1))
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.mode == 'P'
    shown = np.asarray(picture.convert('RGB')).reshape(256, 3)
  np.testing.assert_array_equal(shown[:11], palette)
  assert shown[15].tolist() == [192, 128, 128]  # VOC's.
  assert shown[255].tolist() == [224, 224, 192]


def test_few_indices_keep_their_whole_palette(tmp_path):
  zeros = np.zeros((2, 3), np.uint8)
  write_indexed(tmp_path / 'a.png', zeros, np.full((256, 3), 7, np.uint8))
  np.testing.assert_array_equal(
    files.read_labels(tmp_path / 'a.png')[0, ..., 0], zeros
  )
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.getpalette() == [7] * 768


@pytest.mark.parametrize('dtype', ['uint8', 'float32'])
def test_another_reader_sees_the_same_tiff_pages(tmp_path, dtype):
  stack = random_stack((3, 7, 5), dtype)
  files.write_stack(tmp_path / 'a.tif', stack)
  with Image.open(tmp_path / 'a.tif') as picture:
    assert picture.n_frames == 3
    for page in range(3):
      picture.seek(page)
      assert picture.mode == {'uint8': 'L', 'float32': 'F'}[dtype]
      np.testing.assert_array_equal(np.asarray(picture), stack[page])


@pytest.mark.parametrize('dtype', ['>u2', '>f4'])
def test_foreign_byte_order_becomes_native(tmp_path, dtype):
  stack = random_stack((2, 4, 6), np.dtype(dtype).name)
  write_tiff(tmp_path / 'a.tif', stack, byteorder='>', metadata=None)
  np.save(tmp_path / 'a.npy', stack.astype(dtype))
  files.write_stack(tmp_path / 'b.tif', stack.astype(dtype))
  for name in ('a.tif', 'a.npy', 'b.tif'):
    read = files.read_stack(tmp_path / name)
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
      files.read_stack(tmp_path / name)[..., 0], stack
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
    np.testing.assert_array_equal(files.read_stack(tmp_path / name), rgb)


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
    'palette': (palette, np.asarray(palette.convert('RGB'))),
    'bit': (Image.fromarray(gray > 99), 255 * (gray > 99).astype(np.uint8)),
  }
  for name, (picture, array) in expected.items():
    picture.save(tmp_path / f'{name}.png')
    read = files.read_stack(tmp_path / f'{name}.png')
    assert read.dtype == array.dtype, name
    np.testing.assert_array_equal(
      read, array.reshape(1, 4, 5, -1), err_msg=name
    )


def test_jpeg(tmp_path):
  ramp = np.add.outer(np.arange(24), np.arange(16)).astype(np.uint8) * 4
  Image.fromarray(ramp).save(tmp_path / 'a.jpg', quality=95)
  Image.fromarray(np.dstack([ramp] * 3)).save(tmp_path / 'b.JPEG', quality=95)
  gray, rgb = (
    files.read_stack(tmp_path / name) for name in ('a.jpg', 'b.JPEG')
  )
  assert gray.shape == (1, 24, 16, 1) and rgb.shape == (1, 24, 16, 3)
  np.testing.assert_allclose(gray[0, ..., 0], ramp, atol=6)
  np.testing.assert_allclose(rgb[0, ..., 1], ramp, atol=6)


def test_npy_shapes(tmp_path):
  array = random_stack((2, 3, 4, 6))
  for given, shape in (
    (array[0, ..., 0], (1, 3, 4, 1)),
    (array[..., 0, :], (2, 3, 6, 1)),
    (np.asfortranarray(array), (2, 3, 4, 6)),
  ):
    np.save(tmp_path / 'a.npy', given)
    read = files.read_stack(tmp_path / 'a.npy')
    assert read.shape == shape
    np.testing.assert_array_equal(read, given.reshape(shape))
    read[0, 0, 0, 0] += 1  # a copy of its own, not a view of the file


def test_list_images_sorts_naturally_and_skips_the_rest(tmp_path):
  expected = ['Slice1.PNG', 'slice2.tif', 'slice10.tif', 'slice10b.npy']
  for name in expected + ['notes.txt', '.slice3.tif', '._slice2.tif', 'a.npz']:
    (tmp_path / name).touch()
  (tmp_path / 'folder.tif').mkdir()
  assert [file.name for file in files.list_images(tmp_path)] == expected
  one = tmp_path / 'slice10.tif'
  assert files.list_images(str(one)) == [one]


def test_list_images_says_what_it_expected(tmp_path):
  (tmp_path / 'notes.txt').touch()
  for path in (tmp_path, tmp_path / 'missing', tmp_path / 'notes.txt'):
    with pytest.raises(InputError, match=r'\.tif \.tiff \.png') as caught:
      files.list_images(path)
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
    files.write_stack(tmp_path / name, np.zeros(shape, dtype))
  assert os.listdir(tmp_path) == [name]
  assert (tmp_path / name).read_bytes() == b'kept'


def test_png_of_too_many_values_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'MAX_PAGE_VALUES', 60)
  files.write_stack(tmp_path / 'a.png', np.zeros((1, 4, 5, 3), np.uint8))
  with pytest.raises(InputError, match='at most 60 values, use .tif'):
    files.write_stack(tmp_path / 'b.png', np.zeros((1, 61, 1), np.uint8))
  assert os.listdir(tmp_path) == ['a.png']


@pytest.mark.parametrize('ending', ['.tif', '.png', '.npy'])
@pytest.mark.parametrize(
  'error', [OSError(28, 'disk full'), KeyboardInterrupt()]
)
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, ending, error):
  path = tmp_path / f'a{ending}'
  files.write_stack(path, random_stack((1, 4, 5)))
  old = path.read_bytes()
  fsync = os.fsync

  def fail(descriptor):
    fsync(descriptor)
    assert len(os.listdir(tmp_path)) == 2
    raise error

  monkeypatch.setattr(os, 'fsync', fail)
  expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
  with pytest.raises(expected):
    files.write_stack(path, random_stack((1, 4, 5), seed=1))
  assert os.listdir(tmp_path) == [path.name]
  assert path.read_bytes() == old
  monkeypatch.undo()
  files.write_stack(path, random_stack((1, 4, 5), seed=1))
  assert path.read_bytes() != old


def test_write_to_an_impossible_place_is_refused(tmp_path):
  (tmp_path / 'folder.tif').mkdir()
  for path in (tmp_path / 'missing' / 'a.tif', tmp_path / 'folder.tif'):
    with pytest.raises(InputError, match='cannot be written') as caught:
      files.write_stack(path, random_stack((1, 4, 5)))
    assert str(path) in str(caught.value)
  assert os.listdir(tmp_path) == ['folder.tif']


def test_pixels_that_are_not_finite_are_named_by_page_and_position(tmp_path):
  stack = np.zeros((3, 4, 5, 2), np.float32)
  stack[1, 2, 3, 1] = np.nan
  path = tmp_path / 'a.npy'
  np.save(path, stack)
  position = 'pixel is nan in page 1, row 2, column 3, channel 1'
  with pytest.raises(InputError, match=position):
    files.read_stack(path)
  with pytest.raises(InputError, match=position):
    files.read_image_page(path, 1)
  assert not files.read_image_page(path, 2).any()
