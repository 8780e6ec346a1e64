# SPDX-License-Identifier: Apache-2.0
"""TIFF files: pages read by windows, and uncompressed files to write in place.

This is the only file that knows tifffile, which decodes LZW, JPEG and others
through imagecodecs.
"""

import contextlib
import functools
import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile

from segjax.errors import InputError
from segjax.images.windows import CACHE_BYTES, DTYPES, Raster, stored_dtype


@contextlib.contextmanager
def open_pages(path: Path) -> Iterator[list[Raster]]:
  """Yields the pages of a TIFF. Alpha is left out."""
  # Without OME: its metadata may send the reader to other files.
  with tifffile.TiffFile(path, is_ome=False) as tif:
    yield _rasters(path, tif)


def create(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
  """Makes an uncompressed TIFF of zeros, which takes no room on the disk yet.

  It has one strip a page; minimum is black; from 2 GiB on it is a BigTIFF.
  """
  page = shape[1:]
  if len(page) == 3 and page[-1] == 1:
    page = page[:-1]
  size = dtype.itemsize * math.prod(shape)
  with tifffile.TiffWriter(path, bigtiff=size > 2**31) as tif:
    for _ in range(shape[0]):
      # Not contiguous: every page gets a header, in front of its pixels, so
      # that every cut is noticed.
      tif.write(
        None,
        shape=page,
        dtype=dtype,
        rowsperstrip=page[0],
        photometric='minisblack',
        planarconfig='contig' if len(page) == 3 else None,
        contiguous=False,
        metadata=None,
      )


def page_offsets(path: Path) -> list[int]:
  """Returns the position of the first byte of each page of `create`."""
  with tifffile.TiffFile(path, is_ome=False) as tif:
    return [page.dataoffsets[0] for page in tif.pages]


def _rasters(path, tif):
  """Returns the pages of an open TIFF."""
  pages, shape = _pages(path, tif)
  is_mapped = all(page.is_memmappable for page in pages)
  segment_shape = (1,) if is_mapped else pages[0].chunks
  if pages[0].dtype is None:
    raise InputError(
      f'{path}: samples of {pages[0].bitspersample} bits in a format without a '
      f'dtype; expected {", ".join(DTYPES)}'
    )
  dtype = stored_dtype(path, shape, pages[0].dtype, segment_shape)
  count = max(1, CACHE_BYTES // (math.prod(segment_shape) * dtype.itemsize))
  decode = functools.lru_cache(count)(_decode_segment)

  def read_mapped(page, rows, columns):
    stored = np.memmap(
      path,
      np.dtype(page.dtype).newbyteorder(tif.byteorder),
      mode='r',
      offset=page.dataoffsets[0],
      shape=page.shape,
    )
    if page.axes == 'SYX':
      stored = np.moveaxis(stored, 0, -1)
    window = stored.reshape(*shape[:2], -1)[rows, columns]
    return window[..., : shape[-1]]

  def read_segments(page, rows, columns):
    length = page.tilelength if page.is_tiled else page.rowsperstrip
    width = page.tilewidth if page.is_tiled else page.imagewidth
    across = -(-shape[1] // width)
    down = -(-shape[0] // length)
    planes = page.samplesperpixel if page.axes == 'SYX' else 1
    window = np.empty(
      (rows.stop - rows.start, columns.stop - columns.start, shape[-1]), dtype
    )
    for plane in range(min(planes, shape[-1])):
      channels = slice(plane, plane + 1) if planes > 1 else slice(None)
      for i in range(rows.start // length, -(-rows.stop // length)):
        for j in range(columns.start // width, -(-columns.stop // width)):
          segment = decode(page, (plane * down + i) * across + j)
          _paste(
            window[..., channels],
            segment[..., : shape[-1]],
            (i * length - rows.start, j * width - columns.start),
          )
    return window

  read = read_mapped if is_mapped else read_segments
  return [Raster(shape, dtype, functools.partial(read, page)) for page in pages]


def _decode_segment(page, index):
  """Returns the strip or tile [h, w, C] of that index."""
  file = page.parent.filehandle
  with file.lock:
    file.seek(page.dataoffsets[index])
    data = file.read(page.databytecounts[index])
  tables = {}
  if page.jpegtables is not None or page.keyframe.jpegheader is not None:
    tables = {
      'jpegtables': page.jpegtables,
      'jpegheader': page.keyframe.jpegheader,
    }
  segment, _, shape = page.keyframe.decode(data, index, **tables)
  if segment is None:
    raise InputError(f'{file.path}: strip or tile {index} is empty')
  return segment.reshape(shape)[0]


def _paste(window, segment, at):
  """Copies the part of a segment that lies in the window.

  Args:
    window: [h, w, C].
    segment: a strip or tile.
    at: row and column of its first pixel, counted from that of the window.
  """
  into, of = [], []
  for first, size, length in zip(at, window.shape, segment.shape, strict=False):
    start, stop = max(first, 0), min(first + length, size)
    into.append(slice(start, stop))
    of.append(slice(start - first, stop - first))
  window[tuple(into)] = segment[tuple(of)]


def _pages(
  path: Path, tif: tifffile.TiffFile
) -> tuple[list[tifffile.TiffPage], tuple[int, int, int]]:
  """Returns the pages of a TIFF and the shape [H,W,C] of each, without alpha.

  Raises:
    InputError: the file is not whole, or the pages are unequal.
  """
  # All of them: a file has frames only where a caller asks tifffile for them.
  pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage)]
  _check_whole(path, tif, pages)
  first = pages[0]
  for i, page in enumerate(pages):
    kind = f'{page.axes} {page.dtype}{list(page.shape)}'
    expected = f'{first.axes} {first.dtype}{list(first.shape)}'
    if kind != expected or page.axes not in ('YX', 'YXS', 'SYX'):
      raise InputError(
        f'{path}: page {i} is {kind}, page 0 {expected}; pages must be equal '
        'and of axes YX, YXS or SYX'
      )
  # 1, 2: associated and unassociated alpha (TIFF 6.0, ExtraSamples).
  alpha = first.extrasamples[-1:] in ((1,), (2,))
  channels = first.samplesperpixel - alpha
  return pages, (first.imagelength, first.imagewidth, channels)


def _check_whole(
  path: Path, tif: tifffile.TiffFile, pages: Sequence[tifffile.TiffPage]
) -> None:
  """Raises InputError unless all that the headers name lies in the file.

  tifffile goes on without a page or tag that it cannot reach, and returns
  uninitialised memory for a strip that is not listed.
  """
  where = f'{path}: truncated or corrupt;'
  file = tif.filehandle
  following = [page.offset for page in pages[1:]] + [0]
  for i, page in enumerate(pages):
    num_tags, next_offset = _directory(file, tif.tiff, page.offset)
    if next_offset != following[i] or num_tags != len(page.tags):
      raise InputError(f'{where} page {i} or what follows it is out of reach')
    segments = zip(page.dataoffsets, page.databytecounts, strict=True)
    inside = sum(0 < a < a + n <= file.size for a, n in segments)
    if inside != math.prod(page.chunked):
      raise InputError(
        f'{where} {inside} of {math.prod(page.chunked)} strips or tiles of '
        f'page {i} lie within its {file.size} bytes'
      )
  # ImageJ writes one header for all pages of a file beyond 4 GiB.
  if sum(series.size for series in tif.series) > sum(p.size for p in pages):
    raise InputError(
      f'{path}: has more pages than the {len(pages)} with a header; save it as '
      'a plain multi-page TIFF'
    )


def _directory(file, sizes, offset):
  """Returns the tag count and the next page's offset, as the file states."""
  file.seek(offset)
  (num_tags,) = struct.unpack(sizes.tagnoformat, file.read(sizes.tagnosize))
  file.seek(num_tags * sizes.tagsize, os.SEEK_CUR)
  data = file.read(sizes.offsetsize)
  return num_tags, struct.unpack(sizes.offsetformat, data)[0]
