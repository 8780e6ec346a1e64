# SPDX-License-Identifier: Apache-2.0
"""PNG and JPEG against what was stored, against Pillow and by hand."""

import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from inputs import png_of, random_stack
from PIL import Image, ImageCms

from segjax.errors import InputError
from segjax.images import files, png_jpeg, windows
from segjax.prediction.canvas_writer import finish_picture

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


def read(path):
  with files.open_rasters(path) as [page]:
    return page[slice(0, page.shape[0]), slice(0, page.shape[1])]


def assert_windows_equal(path, expected):
  expected = expected.reshape(HEIGHT, WIDTH, -1)
  with files.open_rasters(path) as [page]:
    assert page.shape == expected.shape
    assert page.dtype == expected.dtype
    for window in WINDOWS:
      values = page[window]
      assert values.dtype == expected.dtype
      np.testing.assert_array_equal(values, expected[window])
  [whole] = files.read_stack(path)
  assert whole.dtype == expected.dtype
  np.testing.assert_array_equal(whole, expected)


def assert_labels_equal(path, expected):
  [[label]] = np.moveaxis(files.read_labels(path), -1, 1)
  assert label.dtype == np.uint8
  np.testing.assert_array_equal(label, expected)


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


def test_png_windows_equal_what_was_stored(tmp_path):
  alpha = GRAY[::-1]
  for name, stored, expected in (
    ('gray', GRAY, GRAY),
    ('deep', DEEP, DEEP),
    ('rgb', COLOURS, COLOURS),
    ('rgba', np.dstack([COLOURS, alpha]), COLOURS),
    ('la', np.dstack([GRAY, alpha]), GRAY),
    ('bit', GRAY > 99, 255 * (GRAY > 99).astype(np.uint8)),
  ):
    Image.fromarray(stored).save(tmp_path / f'{name}.png')
    assert_windows_equal(tmp_path / f'{name}.png', expected)


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_few_bits_of_png(tmp_path, bits):
  values = GRAY >> (8 - bits)
  pixels = unfiltered(packed(values, bits))
  (tmp_path / 'gray.png').write_bytes(png_of(png_header(0, bits), pixels))
  scale = np.uint8(255 // (2**bits - 1))
  assert_windows_equal(tmp_path / 'gray.png', values * scale)
  assert_labels_equal(tmp_path / 'gray.png', values)
  # Of one colour for all indices, and with a transparent one.
  before = [(b'PLTE', bytes([7, 8, 9] * 2**bits)), (b'tRNS', bytes(2**bits))]
  indices = png_of(png_header(3, bits), pixels, before)
  (tmp_path / 'indices.png').write_bytes(indices)
  assert_labels_equal(tmp_path / 'indices.png', values)
  colours = np.broadcast_to(np.uint8([7, 8, 9]), (HEIGHT, WIDTH, 3))
  assert_windows_equal(tmp_path / 'indices.png', colours)


def test_transparent_colours_and_gamma_change_nothing(tmp_path):
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
def test_jpeg_windows_equal_pillow(tmp_path, name):
  (tmp_path / 'a.jpg').write_bytes(JPEGS[name])
  with Image.open(tmp_path / 'a.jpg') as picture:
    assert_windows_equal(tmp_path / 'a.jpg', np.asarray(picture))


def test_jpeg_is_turned_but_not_coloured(tmp_path):
  turned = Image.Exif()
  turned[0x0112] = 6
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('XYZ')).tobytes()
  data = jpeg(SMOOTH, subsampling=0, exif=turned, icc_profile=profile)
  (tmp_path / 'a.jpg').write_bytes(data)
  (tmp_path / 'b.jpg').write_bytes(JPEGS['4:4:4'])
  turned = np.rot90(read(tmp_path / 'b.jpg'), -1)
  np.testing.assert_array_equal(read(tmp_path / 'a.jpg'), turned)
  window = slice(3, 9), slice(60, 70)
  with files.open_rasters(tmp_path / 'a.jpg') as [page]:
    np.testing.assert_array_equal(page[window], turned[window])


OTHER_ORDERS = {
  'interlaced.png': interlaced_png(GRAY),
  'progressive.jpg': jpeg(SMOOTH, progressive=True),
  'gray.jpg': jpeg(SMOOTH[..., 0].copy(), progressive=True),
  'scans.jpg': several_scans(),
}


@pytest.mark.parametrize('name', OTHER_ORDERS)
def test_rows_that_do_not_come_in_turn(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(OTHER_ORDERS[name])
  with Image.open(path) as picture:
    assert_windows_equal(path, np.asarray(picture))
  if name == 'interlaced.png':
    assert_windows_equal(path, GRAY)


@pytest.mark.parametrize('name', ['a.png', 'a.jpg'])
def test_too_many_values_are_refused_at_the_header(tmp_path, monkeypatch, name):
  path = tmp_path / name
  Image.fromarray(COLOURS).save(path)
  monkeypatch.setattr(windows, 'MAX_PAGE_VALUES', COLOURS.size)
  read(path)
  monkeypatch.setattr(windows, 'MAX_PAGE_VALUES', COLOURS.size - 1)
  monkeypatch.setattr(png_jpeg, '_decode', None)
  for reading in (read, files.read_stack):
    with pytest.raises(
      InputError,
      match=rf'{name}: \[70, 83, 3\] are 17430 values .* at most 17429; '
      'save it as a tiled TIFF or Zarr',
    ):
      reading(path)


def test_opening_reads_the_header_and_a_window_all(tmp_path):
  path = tmp_path / 'a.png'
  Image.fromarray(COLOURS).save(path)
  whole = path.read_bytes()
  path.write_bytes(whole[:200])
  with files.open_rasters(path) as [page]:
    assert page.shape == (HEIGHT, WIDTH, 3)
    path.write_bytes(whole)
    np.testing.assert_array_equal(page[WINDOWS[2]], COLOURS[WINDOWS[2]])
    path.unlink()
    np.testing.assert_array_equal(page[WINDOWS[1]], COLOURS[WINDOWS[1]])
  with pytest.raises(InputError, match='a.png: no such file'):
    with files.open_rasters(path):
      pass


def test_threads_share_one_decoding(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  Image.fromarray(COLOURS).save(path)
  decoded = []
  decode = png_jpeg._decode

  def slow(file, page, source):
    decoded.append(source)
    time.sleep(0.1)
    return decode(file, page, source)

  monkeypatch.setattr(png_jpeg, '_decode', slow)
  with files.open_rasters(path) as [page], ThreadPoolExecutor(4) as pool:
    for window, values in zip(
      4 * WINDOWS, pool.map(page.__getitem__, 4 * WINDOWS), strict=True
    ):
      np.testing.assert_array_equal(values, COLOURS[window])
  assert decoded == [path]


@pytest.mark.parametrize('ending', ['png', 'jpg'])
def test_cut_pictures_are_refused(tmp_path, capfd, caplog, ending):
  path = tmp_path / f'a.{ending}'
  Image.fromarray(SMOOTH).save(path)
  data = path.read_bytes()
  ends = np.linspace(0, len(data) - 1, 21).astype(int).tolist()
  # Without its last two bytes, a JPEG still has all of its pixels.
  for end in [*ends[:-1], len(data) - 13, len(data) - 5, len(data) - 3]:
    path.write_bytes(data[:end])
    with pytest.raises(InputError, match=f'a.{ending}: truncated') as caught:
      read(path)
    assert '\n' not in str(caught.value)
  assert capfd.readouterr() == ('', '')
  assert not caplog.records


def test_wrong_checksums_of_png_are_refused(tmp_path):
  path = tmp_path / 'a.png'
  Image.fromarray(COLOURS).save(path)
  data = path.read_bytes()
  first = data.index(b'IDAT') + 4
  # The checksum of the header, that of the pixels, a pixel, and the last one.
  for position in (32, first - 10, first + 300, len(data) - 13, len(data) - 1):
    changed = bytearray(data)
    changed[position] ^= 1
    path.write_bytes(changed)
    with pytest.raises(InputError, match='a.png'):
      read(path)


@pytest.mark.parametrize('side', [64, 5824])
def test_jpeg_that_decoders_only_warn_of_is_read_whatever_its_size(
  tmp_path, capfd, side
):
  ramp = np.tile(np.arange(64, dtype=np.uint8), side * side // 64)
  data = jpeg(ramp.reshape(side, side), restart_marker_rows=1)
  with Image.open(io.BytesIO(data)) as picture:
    expected = np.asarray(picture)[..., None]
  marker = data.index(b'\xff\xd2')
  # Cameras append bytes; others leave some in front of a marker.
  for changed in (
    data + b'appended' * 9,
    data[:marker] + bytes(7) + data[marker:],
  ):
    path = tmp_path / 'a.jpg'
    path.write_bytes(changed)
    np.testing.assert_array_equal(read(path), expected)
    [whole] = files.read_stack(path)
    np.testing.assert_array_equal(whole, expected)
  assert capfd.readouterr() == ('', '')


def test_too_little_memory_is_said(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  Image.fromarray(COLOURS).save(path)

  def fail(*unused):
    raise MemoryError

  monkeypatch.setattr(png_jpeg, '_decode', fail)
  with pytest.raises(InputError, match='a.png: too large for the memory'):
    read(path)


def test_png_with_bytes_after_its_end_is_read(tmp_path):
  path = tmp_path / 'a.png'
  Image.fromarray(COLOURS).save(path)
  path.write_bytes(path.read_bytes() + bytes(2**17))
  assert_windows_equal(path, COLOURS)


def chunks(data):
  """Returns [(kind, data), ...] of a PNG, whose checksums are right."""
  found, at = [], 8
  while at < len(data):
    (size,) = struct.unpack_from('>I', data, at)
    (crc,) = struct.unpack_from('>I', data, at + 8 + size)
    assert zlib.crc32(data[at + 4 : at + 8 + size]) == crc
    found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
    at += 12 + size
  return found


@pytest.mark.parametrize('colours', [1, 5, 256])
def test_palette_is_kept_as_it_is(tmp_path, colours):
  palette = random_stack((colours, 3), seed=1)
  palette[-1] = palette[0]  # Equal colours stay two.
  page = (np.arange(HEIGHT * WIDTH) % colours).astype(np.uint8)
  page = page.reshape(HEIGHT, WIDTH)
  path = tmp_path / 'a.png'
  with open(path, 'wb') as file:
    png_jpeg.encode(file, page, palette)
  assert dict(chunks(path.read_bytes()))[b'PLTE'] == palette.tobytes()
  with Image.open(path) as picture:
    assert picture.mode == 'P'
    assert picture.getpalette() == palette.ravel().tolist()
  assert_labels_equal(path, page)


@pytest.mark.parametrize('channels', [(), (1,), (3,)])
def test_finished_picture_can_be_made_again(tmp_path, channels):
  stack = random_stack((1, 40, 50, *channels)) % 5
  colours = None if channels == (3,) else random_stack((5, 3))
  with files.open_canvas(tmp_path / 'a.npy', stack.shape, 'uint8') as canvas:
    canvas[0, slice(0, 40), slice(0, 50)] = stack[0]
  for _ in range(2):
    finish_picture(tmp_path, 'a.png', colours)
    read = files.read_labels(tmp_path / 'a.png')
    np.testing.assert_array_equal(read, stack.reshape(read.shape))
    (tmp_path / 'a.png').write_bytes(b'cut')
  finish_picture(tmp_path, 'a.png', colours)
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.mode == ('RGB' if colours is None else 'P')
    if colours is not None:
      assert picture.getpalette() == colours.ravel().tolist()
  finish_picture(tmp_path, 'other.npy')
  assert {file.name for file in tmp_path.iterdir()} == {'a.npy', 'a.png'}
