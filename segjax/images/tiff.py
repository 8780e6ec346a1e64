# SPDX-License-Identifier: Apache-2.0
"""TIFF files: read by windows, and created uncompressed to write by windows.

This is the only file that knows tifffile, which decodes LZW, JPEG and others
through imagecodecs. Axes count as the metadata of ImageJ, OME or tifffile name
them: C gives channels, any other axis gives pages, with T outside Z.
"""

import contextlib
import dataclasses
import functools
import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from segjax.errors import InputError
from segjax.images.calibration import Calibration, calibration_of
from segjax.images.png_jpeg import check_jpeg
from segjax.images.windows import (
  CACHE_BYTES,
  DTYPES,
  StoredPage,
  check_page_count,
  stored_dtype,
)

# Most other codecs have a header of their own, and their decoders trust the
# size in it. The decoders of CCITT return white where a strip ends early,
# without an error.
_CODECS = (
  *('NONE', 'LZW', 'DEFLATE', 'ADOBE_DEFLATE', 'PACKBITS', 'LZMA', 'ZSTD'),
  'JPEG',
)
# Limit of the values of all tags in a small file, whose pages may share values.
_MOST_TAG_BYTES = 2**24
# ResolutionUnit -> its name, and the most pixels per unit that count as the
# resolution of a print. Programs that know nothing of microscopes state these.
_PRINT_RESOLUTION = {2: ('inch', 1200), 3: ('centimeter', 1200 / 2.54)}
_COLOURS = ('MINISBLACK', 'MINISWHITE', 'PALETTE', 'RGB', 'LINEAR_RAW')


@contextlib.contextmanager
def open_pages(path: Path) -> Iterator[list[StoredPage]]:
  """Yields the pages of a TIFF, without pyramids and transparency masks."""
  with tifffile.TiffFile(path) as tif:
    uuids = _ome_uuids(path, tif.ome_metadata)
  # With `is_ome`, tifffile would open the other files that OME metadata name.
  is_ome = uuids is not None and len(uuids) < 2
  with tifffile.TiffFile(path, is_ome=is_ome) as tif:
    _check_tags(path, tif)
    if uuids and len(uuids) > 1 and len(tif.pages) > 1:
      raise InputError(
        f'{path}: is one of several files of an OME-TIFF, whose planes belong '
        'together; save them as one file'
      )
    yield _stored_pages(path, tif)


def create(
  path: Path,
  shape: tuple[int, ...],
  dtype: np.dtype,
  calibration: Calibration = Calibration(),
) -> None:
  """Makes an uncompressed TIFF of zeros, which takes no room on the disk yet.

  The shape is [N, H, W] or [N, H, W, C]. Every channel of an image is a page of
  one strip, and 0 is black. The first page describes the file for ImageJ. A
  file above 2 GiB is a BigTIFF with OME metadata, since ImageJ doesn't open a
  BigTIFF by itself. Neither description knows float16, so tifffile's own
  description names the axes of that.
  """
  axes = calibration.axes(shape)
  axes = {axis: axes[axis] for axis in 'tzcyx' if axis in axes}
  is_big = dtype.itemsize * math.prod(shape) > 2**31
  kind = 'shaped'
  if dtype.name in DTYPES:
    kind = 'ome' if is_big else 'imagej'
  micrometers = {
    axis: size
    for axis in 'xyz'
    if (size := calibration.size(axis, 'micrometer')) is not None
  }
  seconds = calibration.size('t', 'second')
  options: dict[str, Any] = {}
  metadata: dict[str, Any] = {'axes': ''.join(axes).upper()}
  if 'x' in micrometers and 'y' in micrometers:
    # Pixels per centimetre; in files for ImageJ, per micrometre.
    options['resolutionunit'] = 'NONE' if kind == 'imagej' else 'CENTIMETER'
    per = 1 if kind == 'imagej' else 10_000
    options['resolution'] = [per / micrometers[axis] for axis in 'xy']
    if kind == 'imagej':
      metadata['unit'] = 'um'
      if 'z' in micrometers:
        metadata['spacing'] = micrometers['z']
  if kind == 'imagej' and seconds is not None:
    metadata['finterval'] = seconds
  if kind == 'ome':
    for axis, size in micrometers.items():
      metadata[f'PhysicalSize{axis.upper()}'] = size
      metadata[f'PhysicalSize{axis.upper()}Unit'] = 'µm'
    if seconds is not None:
      metadata['TimeIncrement'] = seconds
      metadata['TimeIncrementUnit'] = 's'
  with tifffile.TiffWriter(
    path,
    bigtiff=is_big,
    imagej=kind == 'imagej',
    ome=kind == 'ome',
    shaped=kind == 'shaped',
  ) as tif:
    # tifffile puts the headers of all pages except the first behind the pixels,
    # which lie together as ImageJ expects. So a cut file is noticed.
    tif.write(
      None,
      shape=tuple(axes.values()),
      dtype=dtype,
      rowsperstrip=shape[1],
      photometric='minisblack',
      metadata=metadata,
      **options,
    )


def page_offsets(path: Path) -> list[int]:
  """Returns the position of the first byte of each page in a new file."""
  with tifffile.TiffFile(path, is_ome=False) as tif:
    return [page.dataoffsets[0] for page in tif.pages]


def _ome_uuids(path: Path, xml: str | None) -> set[str] | None:
  """Returns the UUIDs of this file and of the files that hold its planes.

  It returns None if there are no OME metadata that can be parsed.

  Raises:
    InputError: the metadata name too many planes in this file.
  """
  try:
    root = ElementTree.fromstring(xml or '')
  except ElementTree.ParseError:
    return None
  uuids, planes = {root.get('UUID')}, 0
  for element in root.iter():
    name = element.tag.rpartition('}')[2]
    if name == 'UUID':
      uuids.add(element.text)
    if name == 'Pixels':
      planes += math.prod(int(element.get(f'Size{a}', 1)) for a in 'TCZ')
  uuids = {uuid.strip() for uuid in uuids if uuid}
  if len(uuids) < 2:
    check_page_count(path, planes, path.stat().st_size)
  return uuids


def _stored_pages(path, tif):
  """Returns the pages of an open TIFF."""
  # tifffile returns pages of another type only if a caller asks for them.
  pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage)]
  _check_whole(path, tif, pages)
  full = [page for page in pages if not page.subfiletype & 5]
  pages = full or pages
  dtype = _checked_dtype(path, pages)
  first = pages[0]
  shape = first.imagelength, first.imagewidth, first.samplesperpixel
  is_mapped = all(page.is_memmappable for page in pages)
  segment_shape = (1,) if is_mapped else first.chunks
  dtype = stored_dtype(path, shape, dtype, segment_shape, tif.filehandle.size)
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
    return stored.reshape(shape)[rows, columns]

  def read_segments(page, rows, columns):
    length, width = _segment_size(page)
    across = -(-shape[1] // width)
    down = -(-shape[0] // length)
    planes = page.samplesperpixel if page.axes == 'SYX' else 1
    window = np.empty(
      (rows.stop - rows.start, columns.stop - columns.start, shape[-1]), dtype
    )
    for plane in range(planes):
      channels = slice(plane, plane + 1) if planes > 1 else slice(None)
      for i in range(rows.start // length, -(-rows.stop // length)):
        for j in range(columns.start // width, -(-columns.stop // width)):
          segment = decode(page, (plane * down + i) * across + j)
          _paste(
            window[..., channels],
            segment,
            (i * length - rows.start, j * width - columns.start),
          )
    return window

  read = read_mapped if is_mapped else read_segments
  stored = [
    StoredPage(shape, dtype, functools.partial(read, page), **_meaning(page))
    for page in pages
  ]
  groups = _page_groups(path, tif, pages)
  if groups is not None:
    stored = [_joined(path, [stored[i] for i in group]) for group in groups]
  calibration = _calibration(tif, len(stored))
  return [dataclasses.replace(p, calibration=calibration) for p in stored]


def _segment_size(page):
  """Returns rows and columns of a strip or tile."""
  if page.is_tiled:
    return page.tilelength, page.tilewidth
  return page.rowsperstrip, page.imagewidth


def _meaning(page):
  """Returns what the tags of a page say about its samples, for `StoredPage`."""
  orientation = page.tags.valueof('Orientation', 1)
  palette = None
  if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
    palette = page.colormap.T
    # The format asks for 16 bits, but some writers store bytes.
    palette = (palette >> (8 if palette.max() > 255 else 0)).astype(np.uint8)
  codec = tifffile.COMPRESSION(page.compression).name
  return {
    'bits': page.bitspersample,
    'palette': palette,
    'is_inverted': page.photometric == tifffile.PHOTOMETRIC.MINISWHITE,
    # 1, 2: associated and unassociated alpha (TIFF 6.0, ExtraSamples).
    'has_alpha': page.extrasamples[-1:] in ((1,), (2,)),
    'orientation': orientation if orientation in range(1, 9) else 1,
    'lossy': codec if codec == 'JPEG' else '',
  }


def _calibration(tif, count):
  """Returns the calibration that the first page states for `count` images."""
  page = tif.pages.first
  sizes = {}
  if len(tif.series) == 1:
    [series] = tif.series
    named = zip(series.axes.lower(), series.shape, strict=True)
    found = {axis: size for axis, size in named if axis not in 'cyxs'}
    # Pages along other axes count as pages without names.
    if {*found} <= {*'tz'} and math.prod(found.values()) == count:
      sizes = {axis: found[axis] for axis in 'tz' if axis in found}
  unit, coarse = _PRINT_RESOLUTION.get(page.resolutionunit, ('', math.inf))
  lengths = {}
  if min(page.resolution) > coarse:
    x, y = page.resolution
    lengths = {'x': (1 / x, unit), 'y': (1 / y, unit)}
  if page.is_ome:
    lengths |= _ome_lengths(page.description)
  elif page.is_imagej:
    lengths |= _imagej_lengths(page.resolution, tif.imagej_metadata or {})
  return calibration_of(sizes, lengths)


def _ome_lengths(xml):
  """Returns axis -> (distance between pixels, unit) from OME metadata."""
  try:
    elements = ElementTree.fromstring(xml).iter()
  except ElementTree.ParseError:
    return {}
  pixels = [e for e in elements if e.tag.rpartition('}')[2] == 'Pixels']
  lengths = {}
  for axis, name, unit in (
    *((a, f'PhysicalSize{a.upper()}', 'µm') for a in 'xyz'),
    ('t', 'TimeIncrement', 's'),
  ):
    with contextlib.suppress(KeyError, IndexError, ValueError):
      fields = pixels[0].attrib
      lengths[axis] = float(fields[name]), fields.get(f'{name}Unit', unit)
  return lengths


def _imagej_lengths(resolution, metadata):
  """Returns axis -> (distance between pixels, unit) from ImageJ metadata."""
  lengths = {}
  unit = str(metadata.get('unit', '')).replace('\\u00B5', 'µ')
  if unit not in ('', 'pixel'):
    steps = [1 / n if n > 0 else 0 for n in resolution]
    spacing = metadata.get('spacing', 0)
    # ImageJ states a negative spacing for a stack that goes down.
    steps.append(abs(spacing) if isinstance(spacing, int | float) else 0)
    lengths = {a: (step, unit) for a, step in zip('xyz', steps, strict=True)}
  if 'finterval' in metadata:
    lengths['t'] = metadata['finterval'], str(metadata.get('tunit', 'sec'))
  return lengths


def _page_groups(path, tif, pages):
  """Returns [N, C], numbers of the pages that hold the channels of each image.

  The images lie along t and then z, whatever the order in the file. It returns
  None if each page is an image and the order is that of the file.
  """
  if len(tif.series) != 1:
    return None
  [series] = tif.series
  sizes = dict(zip(series.axes, series.shape, strict=True))
  channels = sizes.get('C', 1)
  if channels > 1 and 'S' in sizes:
    raise InputError(
      f'{path}: axes {series.axes} of shape {list(series.shape)} have channels '
      'of several samples each; save it with one of the axes C and S'
    )
  outer = series.axes.removesuffix(pages[0].axes)
  is_named = {*outer} <= {*'TZC'}
  if outer == series.axes or not (channels > 1 or is_named):
    return None
  grid_shape = series.shape[: len(outer)]
  count = math.prod(grid_shape)
  numbers = {page.index: number for number, page in enumerate(pages)}
  order = [numbers.get(page and page.index) for page in series.pages]
  if channels > 1:
    if None in order or len(order) != count:
      raise InputError(
        f'{path}: its metadata name {count} planes of axes {series.axes}, of '
        f'which {len(pages)} are in the file'
      )
  elif count != len(pages):
    return None
  elif {*order} != {*range(count)}:
    # The metadata give no position to some pages: they lie as the axes say.
    order = [*range(count)]
  ranks = {'T': 0, 'Z': 1, 'C': 2} if is_named else {'C': 2}
  axes = sorted(range(len(outer)), key=lambda i: ranks.get(outer[i], 0))
  grid = np.array(order).reshape(grid_shape).transpose(axes)
  return grid.reshape(-1, channels)


def _joined(path, pages):
  """Returns pages of one channel each as one page."""
  first = pages[0]
  if len(pages) == 1:
    return first
  if first.palette is not None:
    raise InputError(
      f'{path}: {len(pages)} channels, each with a palette; save them as gray'
    )

  def read(rows, columns):
    return np.concatenate([page.read(rows, columns) for page in pages], axis=-1)

  shape = (*first.shape[:2], len(pages) * first.shape[2])
  return dataclasses.replace(first, shape=shape, read=read)


def _decode_segment(page, index):
  """Returns the strip or tile [h, w, C] of an index."""
  file = page.parent.filehandle
  with file.lock:
    file.seek(page.dataoffsets[index])
    data = file.read(page.databytecounts[index])
  tables = {}
  if page.compression == tifffile.COMPRESSION.JPEG:
    check_jpeg(data, file.path, _segment_size(page), page.jpegtables)
    tables = {'jpegtables': page.jpegtables}
  segment, _, shape = page.keyframe.decode(data, index, **tables)
  if segment is None:
    raise InputError(f'{file.path}: strip or tile {index} is empty')
  return segment.reshape(shape)[0]


def _paste(window, segment, at):
  """Copies the part of a strip or tile that lies in the window [h, w, C].

  Its first pixel lies at the row and column `at` of the window, or outside.
  """
  into, of = [], []
  for first, size, length in zip(at, window.shape, segment.shape, strict=False):
    start, stop = max(first, 0), min(first + length, size)
    into.append(slice(start, stop))
    of.append(slice(start - first, stop - first))
  window[tuple(into)] = segment[tuple(of)]


def _checked_dtype(path: Path, pages: Sequence[tifffile.TiffPage]) -> np.dtype:
  """Returns the dtype of the samples.

  Raises:
    InputError: the pages are unequal; or their colours or codec are not read.
  """
  first = pages[0]
  for i, page in enumerate(pages):
    kind, expected = _kind(page), _kind(first)
    if kind != expected or page.axes not in ('YX', 'YXS', 'SYX'):
      raise InputError(
        f'{path}: page {i} is {kind}, page 0 {expected}; pages must be equal '
        'and of axes YX, YXS or SYX'
      )
  if first.dtype is None or first.bitspersample > 8 * first.dtype.itemsize:
    raise InputError(
      f'{path}: samples of {first.bitspersample} bits in a format without a '
      'dtype; expected booleans, integers or floats of at most 64 bits'
    )
  colours = tifffile.PHOTOMETRIC(first.photometric).name
  codec = tifffile.COMPRESSION(first.compression).name
  # Decoders of JPEG turn YCbCr into RGB.
  if colours not in _COLOURS and (colours, codec) != ('YCBCR', 'JPEG'):
    raise InputError(
      f'{path}: colours are stored as {colours}; expected gray, a palette or '
      'RGB'
    )
  if codec not in _CODECS:
    raise InputError(
      f'{path}: codec {codec} is not supported; save it uncompressed or with '
      'LZW or DEFLATE'
    )
  return first.dtype


def _kind(page):
  photometric = tifffile.PHOTOMETRIC(page.photometric).name
  return f'{page.axes} {page.dtype}{list(page.shape)} {photometric}'


def _check_tags(path: Path, tif: tifffile.TiffFile) -> None:
  """Raises InputError for too many pages, or tags too long for the file.

  Pages may share the values of a tag, which are read anew for each page.
  """
  room = max(_MOST_TAG_BYTES, tif.filehandle.size)
  offsets = set()
  for i, page in enumerate(tif.pages):
    check_page_count(path, i + 1, tif.filehandle.size)
    offsets.add(page.offset)
    if len(offsets) <= i:
      raise InputError(f'{path}: corrupt; page {i} is an earlier one')
    if isinstance(page, tifffile.TiffPage):
      room -= sum(tag.valuebytecount for tag in page.tags)
    if room < 0:
      raise InputError(
        f'{path}: the tags of its first {i + 1} pages are longer than the file'
      )


def _check_whole(
  path: Path, tif: tifffile.TiffFile, pages: Sequence[tifffile.TiffPage]
) -> None:
  """Raises InputError unless all pages, tags and pixels lie in the file.

  tifffile leaves out a page or tag that it cannot reach, and returns
  uninitialised memory for a strip that is not listed.
  """
  where = f'{path}: truncated or corrupt;'
  file = tif.filehandle
  following = [page.offset for page in pages[1:]] + [0]
  for i, page in enumerate(pages):
    num_tags, next_offset = _directory(file, tif.tiff, page.offset)
    if next_offset != following[i] or num_tags != len(page.tags):
      raise InputError(f'{where} page {i}, or the next one, cannot be reached')
    segments = [*zip(page.dataoffsets, page.databytecounts, strict=True)]
    missing = segments.count((0, 0))
    if missing:
      raise InputError(
        f'{path}: {missing} of {len(segments)} strips or tiles of page {i} are '
        'not stored (a sparse TIFF); save it with all of them'
      )
    inside = sum(0 < a < a + n <= file.size for a, n in segments)
    if inside != math.prod(page.chunked):
      raise InputError(
        f'{where} {inside} of {math.prod(page.chunked)} strips or tiles of '
        f'page {i} lie within its {file.size} bytes'
      )
    stored = sum(page.databytecounts)
    if page.is_memmappable and stored < page.nbytes:
      raise InputError(
        f'{where} page {i} has {stored} bytes of the {page.nbytes} of its '
        'pixels'
      )
  # ImageJ writes one header for all pages of a file beyond 4 GiB.
  if sum(series.size for series in tif.series) > sum(p.size for p in pages):
    raise InputError(
      f'{path}: has more pages than the {len(pages)} with a header; save it as '
      'a multi-page TIFF with a header for each page'
    )


def _directory(file, sizes, offset):
  """Returns the number of tags and the offset of the next page in a header."""
  file.seek(offset)
  (num_tags,) = struct.unpack(sizes.tagnoformat, file.read(sizes.tagnosize))
  file.seek(num_tags * sizes.tagsize, os.SEEK_CUR)
  data = file.read(sizes.offsetsize)
  return num_tags, struct.unpack(sizes.offsetformat, data)[0]
