# SPDX-License-Identifier: Apache-2.0
"""Windows of PNG and JPEG files, whose rows can only be decoded in turn.

A picture is decoded at its first window: a small one into memory by Pillow, a
large one by rows into a temporary file by libvips, which only this file knows.
Both give the same values, bit for bit.
"""

import contextlib
import errno
import functools
import io
import logging
import math
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segjax.errors import InputError, SaveFailed
from segjax.images import files, png_jpeg

# Of a picture that is decoded into memory though it could be by rows.
MAX_WHOLE_VALUES = 2**25

# libvips keeps about a thousand rows: 256 MiB. Those of a JPEG are shorter.
MAX_ROW_BYTES = 2**18

# Rows asked for at once. Twice as many, and it keeps twice as many.
_STRIP = 4

Read = Callable[[slice, slice], np.ndarray]


class _Header(NamedTuple):
  """Of a picture file: H, W, C and dtype, and which kind it is."""

  path: Path
  shape: tuple[int, int, int]
  dtype: np.dtype
  is_png: bool
  is_index: bool  # Palette or one bit, which libvips colours or scales.

  @property
  def row_bytes(self):
    return math.prod(self.shape[1:]) * self.dtype.itemsize


@contextlib.contextmanager
def open_picture(
  path: Path,
) -> Iterator[tuple[tuple[int, int, int], np.dtype, Read]]:
  """Yields the shape [H,W,C] and dtype of a picture, and what reads windows.

  That is (rows, columns) -> [h,w,C], of two slices, for any thread; the values
  are those of `files.read_stack`. Before the first window only the header is
  read. The temporary file is in $TMPDIR, or else in /var/tmp, and has no name,
  so that a crash leaves none. It grows as the bytes of the picture give rows,
  whatever its header says.

  Raises:
    InputError: the picture has more than `files.MAX_PAGE_VALUES` and is
      interlaced, progressive or has rows of more than `MAX_ROW_BYTES`. On
      damaged bytes the decoders raise whatever their parsers run into, here or
      at a window; of a large JPEG also where Pillow goes on with a guess.
    SaveFailed: at a window; the temporary file cannot be written.
  """
  with open(path, 'rb') as file:
    picture, shape, dtype = png_jpeg.open_picture(file, path)
  header = _Header(
    path, shape, dtype, picture.format == 'PNG', picture.mode in ('P', '1')
  )
  if math.prod(shape) <= MAX_WHOLE_VALUES or not _has_rows(header):
    files.stored_dtype(path, shape, dtype)
    decode = _once(lambda: files.read_stack(path)[0])
    yield shape, dtype, lambda rows, columns: decode()[rows, columns]
    return
  with contextlib.ExitStack() as stack:
    decode = _once(lambda: stack.enter_context(_decode(header)))

    def read(rows, columns):
      # Mapped anew for every window: pages of a map that lasts stay in memory.
      return np.memmap(decode(), dtype, mode='r', shape=shape)[rows, columns]

    yield shape, dtype, read


def _once(function):
  """Returns the function, of which all threads get what the first call gave."""
  lock = threading.Lock()
  cached = functools.cache(function)

  def call():
    with lock:
      return cached()

  return call


def _has_rows(header):
  """Whether libvips decodes the picture in the memory of some of its rows.

  Raises InputError if not and it is too large to be decoded whole.
  """
  if header.row_bytes > MAX_ROW_BYTES:
    why = f'rows of {header.row_bytes} bytes'
  else:
    with _loaded(header) as image:
      if not image.get_typeof('interlaced'):
        return True
    why = 'interlaced or progressive'
  if math.prod(header.shape) > files.MAX_PAGE_VALUES:
    raise InputError(
      f'{header.path}: {why}, of shape {list(header.shape)}; it would be '
      f'decoded whole, for which {files.MAX_PAGE_VALUES} values are the most; '
      'save it as a tiled TIFF'
    )
  return False


def _decode(header):
  """Returns a temporary file of the values [H,W,C] of a picture."""
  height, width, channels = header.shape
  folder = os.environ.get('TMPDIR') or '/var/tmp'
  size = height * header.row_bytes
  with _loaded(header) as image:
    scale = 1
    if header.is_index:
      scale = 255 // (2 ** image.get('bits-per-sample') - 1)
    region = _libvips().Region.new(image)
    try:
      if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        for top in range(0, height, _STRIP):
          count = min(_STRIP, height - top)
          rows = np.frombuffer(
            region.fetch(0, top, width, count), header.dtype
          ).reshape(count, width, -1)
          file.write(rows[..., :channels] // scale)
        file.flush()
        stack.pop_all()
        return file
    except OSError as e:
      raise SaveFailed(
        f'{header.path}: its pixels, {size} bytes, cannot be written to '
        f'{folder}; {e.strerror}; set TMPDIR to a folder with room'
      ) from e


@contextlib.contextmanager
def _loaded(header):
  """Yields the picture as a libvips image, to be read from top to bottom."""
  with open(header.path, 'rb') as file:
    begin = b''
    if header.is_png:
      # libvips is content with the last row.
      file.seek(max(0, os.path.getsize(header.path) - 2**16))
      if png_jpeg.PNG_END not in file.read():
        raise InputError(f'{header.path}: truncated; expected a whole image')
      file.seek(0)
    if header.is_index:
      # Indices are stored as gray values are, under another colour type. So the
      # signature and the header chunk are changed to say gray.
      begin = bytearray(file.read(33))
      begin[25] = 0
      begin[29:] = zlib.crc32(begin[12:29]).to_bytes(4)
    begin = io.BytesIO(begin)
    # Not by its name: libvips would map the file, and what it has read of it
    # would stay in memory.
    source = _libvips().SourceCustom()
    source.on_read(lambda size: begin.read(size) or file.read(size))
    image = _libvips().Image
    load = image.pngload_source if header.is_png else image.jpegload_source
    image = load(source, access='sequential', fail_on='warning')
    given = (image.height, image.width, image.bands, image.format)
    kind = {1: 'uchar', 2: 'ushort'}[header.dtype.itemsize]
    height, width, channels = header.shape
    # One band more is alpha.
    if given not in [(height, width, channels + a, kind) for a in (0, 1)]:
      raise InputError(
        f'{header.path}: corrupt; read as {given} and as {header.shape}'
      )
    yield image


@functools.cache
def _libvips():
  """Returns pyvips, whose import is left to the first picture that needs it."""
  import pyvips

  # Otherwise the last hundred pictures stay open.
  pyvips.cache_set_max(0)
  # It keeps rows for each thread that might ask; only one does.
  pyvips.concurrency_set(1)
  # What libvips warns of, it raises, too.
  logging.getLogger('pyvips').setLevel(logging.CRITICAL)
  return pyvips
