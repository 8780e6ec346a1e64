# SPDX-License-Identifier: Apache-2.0
"""PNG and JPEG that are decoded by rows, against what was stored and Pillow.

Small pictures are called large: by a limit of 0 values.
"""

import io
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from inputs import png_of, random_stack
from PIL import Image, ImageCms

from segjax.errors import InputError
from segjax.images import files, picture_windows, rasters

HEIGHT, WIDTH = 70, 83
WINDOWS = [
  (slice(0, HEIGHT), slice(0, WIDTH)),
  (slice(69, 70), slice(82, 83)),
  (slice(13, 47), slice(15, 64)),
  (slice(15, 17), slice(0, 1)),
]
GRAY = random_stack((HEIGHT, WIDTH))
DEEP = random_stack((HEIGHT, WIDTH), 'uint16')
COLOURS = random_stack((HEIGHT, WIDTH, 3))
# A JPEG of noise is nearly all rounding.
SMOOTH = np.stack(
  [
    127 + 100 * np.sin(np.add.outer(np.arange(HEIGHT) / a, np.arange(WIDTH)))
    for a in (3, 5, 7)
  ],
  axis=-1,
).astype(np.uint8)


@pytest.fixture
def large(monkeypatch):
  monkeypatch.setattr(picture_windows, 'MAX_WHOLE_VALUES', 0)


@pytest.fixture
def by_rows(large, monkeypatch):
  """Leaves Pillow only the headers."""

  def fail(*unused):
    raise AssertionError('decoded whole')

  monkeypatch.setattr(files, 'read_stack', fail)


def read(path):
  with rasters.open_rasters(path) as [page]:
    return page[slice(0, page.shape[0]), slice(0, page.shape[1])]


def assert_windows_equal(path, expected):
  expected = expected.reshape(HEIGHT, WIDTH, -1)
  with rasters.open_rasters(path) as [page]:
    assert page.shape == expected.shape
    assert page.dtype == expected.dtype
    for window in WINDOWS:
      values = page[window]
      assert values.dtype == expected.dtype
      np.testing.assert_array_equal(values, expected[window])


def png_header(kind, bits=8, interlaced=0, size=(HEIGHT, WIDTH)):
  return struct.pack('>IIBBBBB', *size[::-1], bits, kind, 0, 0, interlaced)


def unfiltered(rows):
  """Returns bytes [H, n] as a PNG holds them under filter 0."""
  return np.pad(rows, [(0, 0), (1, 0)]).tobytes()


def packed(values, bits):
  """Returns values [H, W] of few bits as the bytes [H, n] of a PNG."""
  single = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :]
  return np.packbits(single.reshape(len(values), -1), axis=1)


def interlaced_png(gray):
  passes = [
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
  ]
  pixels = b''.join(unfiltered(gray[a::c, b::d]) for a, b, c, d in passes)
  return png_of(png_header(0, interlaced=1), pixels)


def jpeg(array, **options):
  file = io.BytesIO()
  Image.fromarray(array).save(file, 'JPEG', **options)
  return file.getvalue()


def several_scans():
  """Returns a JPEG that is not progressive but stores one channel by one."""
  planes = [jpeg(np.ascontiguousarray(SMOOTH[..., i])) for i in range(3)]
  scans = [plane[plane.index(b'\xff\xda') : -2] for plane in planes]
  head = planes[0][: planes[0].index(b'\xff\xda')]
  at = head.index(b'\xff\xc0')
  # Length, bits, size and the channels: number, sampling and table of each.
  frame = b'\xff\xc0' + struct.pack('>HBHHB', 17, 8, HEIGHT, WIDTH, 3)
  frame += b''.join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
  head = head[:at] + frame + head[at + 13 :]
  # Marker, length, count, then the number of the channel.
  scans = [
    scan[:5] + bytes([number]) + scan[6:]
    for number, scan in enumerate(scans, 1)
  ]
  return b''.join([head, *scans, b'\xff\xd9'])


def test_png_windows_equal_what_was_stored(tmp_path, by_rows):
  alpha = GRAY[::-1]
  for name, stored, expected in (
    ('gray', GRAY, GRAY),
    ('deep', DEEP, DEEP),
    ('rgb', COLOURS, COLOURS),
    ('rgba', np.dstack([COLOURS, alpha]), COLOURS),
    ('la', np.dstack([GRAY, alpha]), GRAY),
    ('bit', GRAY > 99, (GRAY > 99).astype(np.uint8)),
  ):
    Image.fromarray(stored).save(tmp_path / f'{name}.png')
    assert_windows_equal(tmp_path / f'{name}.png', expected)


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_few_bits_of_png(tmp_path, by_rows, bits):
  values = GRAY >> (8 - bits)
  pixels = unfiltered(packed(values, bits))
  (tmp_path / 'gray.png').write_bytes(png_of(png_header(0, bits), pixels))
  # One bit is 0 and 1, more are scaled as Pillow does it.
  scale = 1 if bits == 1 else 255 // (2**bits - 1)
  assert_windows_equal(tmp_path / 'gray.png', values * np.uint8(scale))
  # Of one colour for all indices, and with a transparent one.
  before = [(b'PLTE', bytes([7] * 3 * 2**bits)), (b'tRNS', bytes(2**bits))]
  indices = png_of(png_header(3, bits), pixels, before)
  (tmp_path / 'indices.png').write_bytes(indices)
  assert_windows_equal(tmp_path / 'indices.png', values)


def test_transparent_colours_and_gamma_change_nothing(tmp_path, by_rows):
  for kind, array in ((0, GRAY), (2, COLOURS.reshape(HEIGHT, -1))):
    key = array[0, : kind + 1].astype('>u2').tobytes()
    before = [(b'gAMA', struct.pack('>I', 30000)), (b'tRNS', key)]
    data = png_of(png_header(kind), unfiltered(array), before)
    (tmp_path / 'a.png').write_bytes(data)
    assert_windows_equal(tmp_path / 'a.png', array)


JPEGS = {
  '4:4:4': jpeg(SMOOTH, subsampling=0),
  '4:2:2': jpeg(SMOOTH, subsampling=1),
  '4:2:0': jpeg(SMOOTH, subsampling=2, quality=30),
  'gray': jpeg(SMOOTH[..., 0].copy()),
}


@pytest.mark.parametrize('name', JPEGS)
def test_jpeg_windows_equal_pillow(tmp_path, by_rows, name):
  (tmp_path / 'a.jpg').write_bytes(JPEGS[name])
  with Image.open(tmp_path / 'a.jpg') as picture:
    assert_windows_equal(tmp_path / 'a.jpg', np.asarray(picture))


def test_jpeg_is_neither_turned_nor_coloured(tmp_path, by_rows):
  turned = Image.Exif()
  turned[0x0112] = 6
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('XYZ')).tobytes()
  data = jpeg(SMOOTH, subsampling=0, exif=turned, icc_profile=profile)
  (tmp_path / 'a.jpg').write_bytes(data)
  (tmp_path / 'b.jpg').write_bytes(JPEGS['4:4:4'])
  assert_windows_equal(tmp_path / 'a.jpg', read(tmp_path / 'b.jpg'))


WHOLE = {
  'interlaced.png': interlaced_png(GRAY),
  'progressive.jpg': jpeg(SMOOTH, progressive=True),
  'gray.jpg': jpeg(SMOOTH[..., 0].copy(), progressive=True),
  'scans.jpg': several_scans(),
}


@pytest.mark.parametrize('name', WHOLE)
def test_what_has_no_rows_in_turn_is_decoded_whole(
  tmp_path, large, monkeypatch, name
):
  path = tmp_path / name
  path.write_bytes(WHOLE[name])
  with monkeypatch.context() as patch:
    patch.setattr(picture_windows, '_decode', None)
    with Image.open(path) as picture:
      assert_windows_equal(path, np.asarray(picture))
  if name == 'interlaced.png':
    assert_windows_equal(path, GRAY)
  monkeypatch.setattr(files, 'MAX_PAGE_VALUES', 1000)
  with pytest.raises(
    InputError,
    match=r'interlaced or progressive, of shape \[70, 83, [13]\]; .* 1000 '
    'values are the most; save it as a tiled TIFF',
  ):
    read(path)


def test_long_rows_are_decoded_whole(tmp_path, large, monkeypatch):
  path = tmp_path / 'a.png'
  Image.fromarray(DEEP).save(path)
  monkeypatch.setattr(picture_windows, 'MAX_ROW_BYTES', 2 * WIDTH)
  with monkeypatch.context() as patch:
    patch.setattr(files, 'read_stack', None)
    assert_windows_equal(path, DEEP)
  monkeypatch.setattr(picture_windows, 'MAX_ROW_BYTES', 2 * WIDTH - 1)
  with monkeypatch.context() as patch:
    patch.setattr(picture_windows, '_decode', None)
    assert_windows_equal(path, DEEP)
  monkeypatch.setattr(files, 'MAX_PAGE_VALUES', 1000)
  with pytest.raises(InputError, match='a.png: rows of 166 bytes, of shape'):
    read(path)


@pytest.mark.parametrize('name', ['a.png', 'a.jpg'])
def test_no_limit_to_what_has_rows(tmp_path, by_rows, monkeypatch, name):
  Image.fromarray(SMOOTH).save(tmp_path / name)
  expected = read(tmp_path / name)
  monkeypatch.setattr(files, 'MAX_PAGE_VALUES', 10)
  assert_windows_equal(tmp_path / name, expected)


def test_opening_reads_the_header_and_small_pictures_need_no_libvips(tmp_path):
  path = tmp_path / 'a.png'
  Image.fromarray(COLOURS).save(path)
  whole = path.read_bytes()
  path.write_bytes(whole[:200])
  with rasters.open_rasters(path) as [page]:
    assert page.shape == (HEIGHT, WIDTH, 3)
    path.write_bytes(whole)
    np.testing.assert_array_equal(page[WINDOWS[2]], COLOURS[WINDOWS[2]])
    path.unlink()
    np.testing.assert_array_equal(page[WINDOWS[1]], COLOURS[WINDOWS[1]])
  with pytest.raises(InputError, match='a.png: no such file'):
    with rasters.open_rasters(path):
      pass


def test_threads_share_one_decoding(tmp_path, large, monkeypatch):
  path = tmp_path / 'a.png'
  Image.fromarray(COLOURS).save(path)
  decoded = []
  decode = picture_windows._decode

  def slow(header):
    decoded.append(header)
    time.sleep(0.1)
    return decode(header)

  monkeypatch.setattr(picture_windows, '_decode', slow)
  with rasters.open_rasters(path) as [page], ThreadPoolExecutor(4) as pool:
    for window, values in zip(
      4 * WINDOWS, pool.map(page.__getitem__, 4 * WINDOWS), strict=True
    ):
      np.testing.assert_array_equal(values, COLOURS[window])
  assert len(decoded) == 1
