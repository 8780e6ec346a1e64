# SPDX-License-Identifier: Apache-2.0
"""PNG as it is written, read by Pillow, by libvips and by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
from inputs import random_stack
from PIL import Image
from scipy import ndimage

from segjax.images import canvases, files, picture_windows, png, rasters
from segjax.prediction.pages import finish_picture


def written(page, palette=None):
  file = io.BytesIO()
  png.write_png(file, page, palette)
  return file.getvalue()


def chunks(data):
  """Returns [(kind, data), ...], whose checksums are right."""
  found, at = [], 8
  while at < len(data):
    (size,) = struct.unpack_from('>I', data, at)
    (crc,) = struct.unpack_from('>I', data, at + 8 + size)
    assert zlib.crc32(data[at + 4 : at + 8 + size]) == crc
    found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
    at += 12 + size
  return found


def read_by_rows(path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(picture_windows, 'MAX_WHOLE_VALUES', 0)
    patch.setattr(files, 'read_stack', None)
    with rasters.open_rasters(path) as [page]:
      return page[slice(0, page.shape[0]), slice(0, page.shape[1])]


@pytest.mark.parametrize('strip_values', [1, 100, 2**20])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'size', [(1, 1), (1, 300), (300, 1), (37, 41), (16, 16)]
)
def test_others_read_what_was_written(
  tmp_path, monkeypatch, size, channels, strip_values
):
  monkeypatch.setattr(png, '_STRIP_VALUES', strip_values)
  page = random_stack((*size, channels))
  path = tmp_path / 'a.png'
  path.write_bytes(written(page))
  with Image.open(path) as picture:
    assert picture.mode == {1: 'L', 3: 'RGB'}[channels]
    np.testing.assert_array_equal(np.asarray(picture).reshape(page.shape), page)
  np.testing.assert_array_equal(read_by_rows(path, monkeypatch), page)


@pytest.mark.parametrize('colours', [1, 5, 256])
def test_palette_is_kept_as_it_is(tmp_path, monkeypatch, colours):
  palette = random_stack((colours, 3), seed=1)
  palette[-1] = palette[0]  # Equal colours stay two.
  page = (np.arange(30 * 40) % colours).astype(np.uint8).reshape(30, 40, 1)
  data = written(page, palette)
  assert dict(chunks(data))[b'PLTE'] == palette.tobytes()
  path = tmp_path / 'a.png'
  path.write_bytes(data)
  with Image.open(path) as picture:
    assert picture.mode == 'P'
    assert picture.getpalette() == palette.ravel().tolist()
    np.testing.assert_array_equal(np.asarray(picture), page[..., 0])
  np.testing.assert_array_equal(read_by_rows(path, monkeypatch), page)


def test_bytes_are_differences_to_the_row_above(monkeypatch):
  monkeypatch.setattr(png, '_STRIP_VALUES', 5 * 7)
  page = random_stack((33, 7, 1))
  data = written(page)
  assert data.startswith(b'\x89PNG\r\n\x1a\n')
  kinds = [kind for kind, _ in chunks(data)]
  assert kinds[0] == b'IHDR' and set(kinds[1:-1]) == {b'IDAT'}
  assert chunks(data)[-1] == (b'IEND', b'')
  stored = b''.join(part for kind, part in chunks(data) if kind == b'IDAT')
  rows = np.frombuffer(zlib.decompress(stored), np.uint8).reshape(33, 8)
  assert (rows[:, 0] == 2).all()
  np.testing.assert_array_equal(
    np.cumsum(rows[:, 1:], axis=0) % 256, page[..., 0]
  )


class _Rows:
  """A page that keeps account of what is read of it."""

  def __init__(self, page):
    self._page, self.shape, self.heights = page, page.shape, []

  def __getitem__(self, window):
    rows, columns = window
    assert (columns.start, columns.stop) == (0, self.shape[1])
    self.heights.append(rows.stop - rows.start)
    return self._page[window]


def test_a_strip_of_rows_is_read_at_a_time(monkeypatch):
  monkeypatch.setattr(png, '_STRIP_VALUES', 8 * 30 + 29)
  page = random_stack((50, 10, 3))
  rows = _Rows(page)
  assert written(rows) == written(page)
  assert rows.heights == [8, 8, 8, 8, 8, 8, 2]


def test_files_are_about_as_small_as_pillows():
  rng = np.random.default_rng(0)
  smooth = ndimage.gaussian_filter(rng.normal(size=(5, 512, 512)), (0, 9, 9))
  scores = np.exp(40 * smooth)
  probabilities = np.round(255 * scores[0] / scores.sum(0)).astype(np.uint8)
  for values, palette in (
    (probabilities, None),
    (np.argmax(scores, axis=0).astype(np.uint8), random_stack((256, 3))),
  ):
    picture = Image.fromarray(values)
    if palette is not None:
      picture.putpalette(palette.tobytes())
    file = io.BytesIO()
    picture.save(file, 'PNG')
    assert len(written(values[..., None], palette)) < 1.15 * len(
      file.getvalue()
    )


@pytest.mark.parametrize('channels', [(), (1,), (3,)])
def test_finished_picture_can_be_made_again(tmp_path, channels):
  stack = random_stack((1, 40, 50, *channels)) % 5
  colours = None if channels == (3,) else random_stack((5, 3))
  with canvases.open_canvas(tmp_path / 'a.npy', stack.shape, 'uint8') as canvas:
    canvas[0, slice(0, 40), slice(0, 50)] = stack[0]
  for _ in range(2):
    finish_picture(tmp_path, 'a.png', colours)
    read = files.read_stack(tmp_path / 'a.png')
    np.testing.assert_array_equal(read, stack.reshape(read.shape))
    (tmp_path / 'a.png').write_bytes(b'cut')
  finish_picture(tmp_path, 'a.png', colours)
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.mode == ('RGB' if colours is None else 'P')
    if colours is not None:
      assert picture.getpalette() == colours.ravel().tolist()
  finish_picture(tmp_path, 'other.npy')
  assert {file.name for file in tmp_path.iterdir()} == {'a.npy', 'a.png'}
