# SPDX-License-Identifier: Apache-2.0
"""Pages that are read by windows, and stacks that are written by windows.

A window is two slices, rows and columns, whose starts and stops are numbers.
This file also holds the rules that all formats share: which dtypes are read,
how many values are decoded at once, which axes an array may have, and how a
page is turned.
"""

import contextlib
import dataclasses
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from segjax.errors import InputError
from segjax.images.calibration import Calibration

# Largest number of values that are decoded at once: 32768 x 32768 gray pixels.
MAX_PAGE_VALUES = 2**30

MAX_PAGES = 2**16

# So few columns of an array without named axes may as well be channels.
NARROWEST_PX = 5

# Lower limits for small files: a decompression bomb of a few kilobytes would
# take gigabytes. MAX_SMALL_BYTES are 11585 x 11585 gray pixels of uint8.
SMALL_FILE_BYTES = 2**20
MAX_SMALL_BYTES = 2**27
MAX_SMALL_PAGES = 2**11

# Number of values that are converted at once; their intermediates take 8 bytes
# each, or more.
_BAND_VALUES = 2**22

# Bytes of decoded strips, tiles and chunks that an open file keeps, since the
# next window often needs them again.
CACHE_BYTES = 2**27

DTYPES = ('uint8', 'uint16', 'float32')

_SAYING = threading.Lock()
_said: set[str] = set()  # Kinds of messages that have been printed.


@dataclasses.dataclass(frozen=True)
class Raster:
  """A page that is read by windows: `page[rows, columns]` is [h, w, C].

  Attributes:
    shape: H, W, C.
    dtype: uint8, uint16, or float32 for an image and int32 for a label.
    read: (rows, columns) -> [h, w, C] of that dtype.
  """

  shape: tuple[int, int, int]
  dtype: np.dtype
  read: Callable[[slice, slice], np.ndarray]

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    return self.read(*window)

  def read_all(self) -> np.ndarray:
    """Returns the whole page [H, W, C]."""
    return self.read(slice(0, self.shape[0]), slice(0, self.shape[1]))


@dataclasses.dataclass(frozen=True)
class StoredPage:
  """A page as its file stores it, and what the file says about its samples.

  `pixels.image_of` and `labels.label_of` decide what the samples mean.

  Attributes:
    shape: H, W, C; C counts all samples of a pixel, alpha included.
    dtype: booleans, integers or floats, in native byte order.
    read: (rows, columns) -> [h, w, C] of that dtype.
    bits: bits of a sample, fewer than its dtype has if the file packs them.
    palette: u8[K, 3], the colour of each value; None if there is no palette.
    is_inverted: whether 0 is white (MINISWHITE).
    has_alpha: whether the last sample is alpha.
    orientation: 1 to 8, as EXIF and TIFF number them; 1 is upright.
    lossy: name of the compression if it can change values, else ''.
    doubt: the other way to read an image of these axes, for a message; '' if
      there is only one.
    calibration: axes and pixel sizes that the file states.
  """

  shape: tuple[int, int, int]
  dtype: np.dtype
  read: Callable[[slice, slice], np.ndarray]
  bits: int
  palette: np.ndarray | None = None
  is_inverted: bool = False
  has_alpha: bool = False
  orientation: int = 1
  lossy: str = ''
  doubt: str = ''
  calibration: Calibration = Calibration()


def upright(page: StoredPage) -> StoredPage:
  """Returns the page turned and mirrored as its orientation asks for."""
  height, width, channels = page.shape
  is_transposed = page.orientation >= 5
  if is_transposed:
    height, width = width, height
  flips_rows = page.orientation in (3, 4, 7, 8)
  flips_columns = page.orientation in (2, 3, 6, 7)

  def read(rows, columns):
    if flips_rows:
      rows = slice(height - rows.stop, height - rows.start)
    if flips_columns:
      columns = slice(width - columns.stop, width - columns.start)
    if is_transposed:
      window = page.read(columns, rows).swapaxes(0, 1)
    else:
      window = page.read(rows, columns)
    return window[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1]

  shape = height, width, channels
  return dataclasses.replace(page, shape=shape, read=read, orientation=1)


def say_once(kind: str, text: str) -> None:
  """Prints a message, unless one of this kind was printed before."""
  # A late import: jax takes seconds, and most files need no message.
  from segjax.devices import processes

  with _SAYING:
    if kind in _said:
      return
    _said.add(kind)
  processes.say(text)


@dataclasses.dataclass(frozen=True)
class Canvas:
  """A stack that is written by windows: `canvas[n, rows, columns] = values`.

  Attributes:
    write: (n, rows, columns, values) -> None; values are [h, w] or [h, w, C].
    sync: () -> None; returns when everything written is on the disk.
  """

  write: Callable[[int, slice, slice, np.ndarray], None]
  sync: Callable[[], None]

  def __setitem__(
    self, window: tuple[int, slice, slice], values: np.ndarray
  ) -> None:
    self.write(*window, values)


@contextlib.contextmanager
def uncompressed_canvas(
  path: Path, offsets: Sequence[int], shape: tuple[int, ...], dtype: np.dtype
) -> Iterator[Canvas]:
  """Yields a canvas on a file that stores its pages as plain arrays.

  Args:
    path: the file, which exists.
    offsets: position of the first byte of each page; or of each channel of each
      page, if channels are stored apart.
    shape: [N, H, W] or [N, H, W, C].
    dtype: dtype of the stored values.
  """
  planes = len(offsets) // shape[0]
  pixel = dtype.itemsize * math.prod(shape[3:]) // planes
  with open(path, 'r+b', buffering=0) as file:

    def write(n, rows, columns, values):
      # Rows are written one by one. Through a memory map, a full disk would
      # kill the process.
      parts = [values] if planes == 1 else np.moveaxis(values, -1, 0)
      for part, offset in zip(parts, offsets[n * planes :], strict=False):
        part = np.ascontiguousarray(part, dtype)
        if part.shape[1] == shape[2]:
          part = part.reshape(1, -1)
        for row, line in enumerate(part, rows.start):
          at = offset + (row * shape[2] + columns.start) * pixel
          left = memoryview(line.tobytes())
          while left:
            count = os.pwrite(file.fileno(), left, at)
            left, at = left[count:], at + count

    yield Canvas(write, lambda: os.fsync(file.fileno()))


def by_bands(
  convert: Callable[[np.ndarray], np.ndarray], values: np.ndarray
) -> np.ndarray:
  """Returns `convert(values)`, computed for a few rows [h, w, C] at a time."""
  first, *others = bands(values)
  if not others:
    return convert(values)
  converted = convert(values[first])
  result = np.empty((len(values), *converted.shape[1:]), converted.dtype)
  result[first] = converted
  for band in others:
    result[band] = convert(values[band])
  return result


def bands(values: np.ndarray) -> list[slice]:
  """Returns slices of the rows of an array [h, ...], which are small parts."""
  height = len(values)
  rows = max(1, _BAND_VALUES * height // max(1, values.size))
  return [slice(start, start + rows) for start in range(0, height, rows)]


def bytes_of(path: Path) -> int:
  """Returns the bytes of a file, or of all files in a folder.

  Counting stops at `SMALL_FILE_BYTES`, from which on a folder is not small.
  """
  if not path.is_dir():
    return path.stat().st_size
  total = 0
  for file in path.rglob('*'):
    if file.is_file():
      total += file.stat().st_size
    if total >= SMALL_FILE_BYTES:
      break
  return total


def check_size(
  path: Path | str, shape: Sequence[int], dtype: np.dtype, file_bytes: int
) -> None:
  """Raises InputError if a file has too many values to decode at once."""
  count = math.prod(shape)
  if count > MAX_PAGE_VALUES:
    raise InputError(
      f'{path}: {list(shape)} are {count} values to decode at once; '
      f'expected at most {MAX_PAGE_VALUES}; save it as a tiled TIFF or Zarr '
      'for prediction, or cut it into smaller images'
    )
  check_small(path, shape, dtype, file_bytes)


def check_small(
  path: Path | str, shape: Sequence[int], dtype: np.dtype, file_bytes: int
) -> None:
  """Raises InputError if a small file decodes to too much; see `check_size`."""
  size = math.prod(shape) * dtype.itemsize
  if size > MAX_SMALL_BYTES and file_bytes < SMALL_FILE_BYTES:
    raise InputError(
      f'{path}: {list(shape)} of {dtype} are {size} bytes in a file of '
      f'{file_bytes}, as in a decompression bomb; files below '
      f'{SMALL_FILE_BYTES} bytes may decode to {MAX_SMALL_BYTES}; if the image '
      'is right, save it uncompressed'
    )


def check_page_count(path: Path | str, count: int, file_bytes: int) -> None:
  """Raises InputError if there are too many pages in a file of this size."""
  most = MAX_PAGES if file_bytes >= SMALL_FILE_BYTES else MAX_SMALL_PAGES
  if count > most:
    raise InputError(
      f'{path}: {count} pages or more in {file_bytes} bytes; expected at most '
      f'{most}'
    )


def stored_dtype(
  path: Path | str,
  shape: Sequence[int],
  dtype: np.dtype,
  decoded: Sequence[int],
  file_bytes: int,
) -> np.dtype:
  """Returns the dtype of stored samples, in native byte order.

  The part that is decoded at once has the shape `decoded`.

  Raises:
    InputError: the array has no pixels; its samples are not booleans, integers
      or floats of at most 64 bits; or `check_size` refuses the part.
  """
  if 0 in shape:
    raise InputError(f'{path}: shape {list(shape)} has no pixels')
  check_size(path, decoded, dtype, file_bytes)
  if dtype.kind not in 'biuf' or dtype.itemsize > 8:
    raise InputError(
      f'{path}: dtype {dtype}; expected booleans, integers or floats of at '
      'most 64 bits'
    )
  return dtype.newbyteorder('=')


def bits_of(dtype: np.dtype) -> int:
  """Returns the bits of a sample that uses its whole dtype; 1 for a boolean."""
  return 1 if dtype.kind == 'b' else 8 * dtype.itemsize


def stack_shape(
  path: Path, shape: tuple[int, ...]
) -> tuple[tuple[int, int, int, int], str]:
  """Returns the shape [N,H,W,C] of an array without named axes, and a doubt.

  The doubt is that of `StoredPage`.

  Raises:
    InputError: the array has not 2, 3 or 4 axes; or it has 3, of which the last
      may be channels.
  """
  match shape:
    case (height, width):
      return (1, height, width, 1), ''
    case (pages, height, width):
      if width <= NARROWEST_PX:
        raise InputError(
          f'{path}: shape {list(shape)} is one image [H,W,C] of {width} '
          f'channel(s), or {pages} page(s) [N,H,W] {width} px wide; save it as '
          f'{[1, *shape]} or {[*shape, 1]}, [N,H,W,C]'
        )
      doubt = ''
      if pages == 3:
        doubt = (
          f'shape {list(shape)} is 3 pages [N,H,W], or one image [C,H,W] of 3 '
          f'channels; save it as {[*shape, 1]} or {[1, height, width, 3]}, '
          '[N,H,W,C]'
        )
      return (pages, height, width, 1), doubt
    case (pages, height, width, channels):
      return (pages, height, width, channels), ''
  raise InputError(
    f'{path}: shape {list(shape)}; expected [H,W], [N,H,W] or [N,H,W,C]'
  )
