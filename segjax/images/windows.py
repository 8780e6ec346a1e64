# SPDX-License-Identifier: Apache-2.0
"""Pages that are read by windows, stacks that are written by windows.

A window is two slices, rows and columns, whose starts and stops are given. This
file also holds the rules that all formats share: which dtypes are read, how
many values are decoded at once, which axes an array may have, how a page is
turned.
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

# Most values that are decoded at once: 32768 x 32768 gray pixels. It also stops
# a small file that decodes to a huge page.
MAX_PAGE_VALUES = 2**30

# Bytes of decoded strips, tiles and chunks that a file keeps for the next
# window, which often needs them again.
CACHE_BYTES = 2**27

DTYPES = ('uint8', 'uint16', 'float32')

_SAYING = threading.Lock()
_said: set[str] = set()  # Kinds of texts that have been printed.


@dataclasses.dataclass(frozen=True)
class Raster:
  """A page that is read by windows: `page[rows, columns]` is [h, w, C].

  Attributes:
    shape: H, W, C.
    dtype: uint8, uint16, or float32 of an image and int32 of a label.
    read: (rows, columns) -> [h, w, C] of that dtype.
  """

  shape: tuple[int, int, int]
  dtype: np.dtype
  read: Callable[[slice, slice], np.ndarray]

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    return self.read(*window)


@dataclasses.dataclass(frozen=True)
class StoredPage:
  """A page as its file stores it, and what the file says about its samples.

  `pixels.image_of` and `labels.label_of` decide what the samples mean.

  Attributes:
    shape: H, W, C; C counts all samples of a pixel, also alpha.
    dtype: booleans, integers or floats, in native byte order.
    read: (rows, columns) -> [h, w, C] of that dtype.
    bits: bits of a sample, fewer than its dtype has if the file packs them.
    palette: u8[K, 3], the colour of each value; None if there is no palette.
    is_inverted: whether 0 is white (MINISWHITE).
    has_alpha: whether the last sample is alpha.
    orientation: 1 to 8, as EXIF and TIFF number them; 1 is upright.
    lossy: name of the compression if it can change values, else ''.
    doubt: says how else an image of these axes could be read, else ''.
    calibration: of the file.
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
  """Prints a text, the first one of its kind alone."""
  # Imported late: jax takes seconds, and most files need no word.
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
      page, if they are stored apart.
    shape: [N, H, W] or [N, H, W, C].
    dtype: of the stored values.
  """
  planes = len(offsets) // shape[0]
  pixel = dtype.itemsize * math.prod(shape[3:]) // planes
  with open(path, 'r+b', buffering=0) as file:

    def write(n, rows, columns, values):
      # Row by row and not through a memory map, through which a full disk kills
      # the process.
      parts = [values] if planes == 1 else np.moveaxis(values, -1, 0)
      for part, offset in zip(parts, offsets[n * planes :], strict=False):
        part = np.ascontiguousarray(part, dtype)
        if part.shape[1] == shape[2]:
          part = part.reshape(1, -1)
        for row, line in enumerate(part, rows.start):
          at = offset + (row * shape[2] + columns.start) * pixel
          left = memoryview(line).cast('B')
          while left:
            count = os.pwrite(file.fileno(), left, at)
            left, at = left[count:], at + count

    yield Canvas(write, lambda: os.fsync(file.fileno()))


def check_size(path: str | os.PathLike, shape: Sequence[int]) -> None:
  """Raises InputError if there are too many values to be decoded at once."""
  if math.prod(shape) > MAX_PAGE_VALUES:
    raise InputError(
      f'{path}: {list(shape)} are {math.prod(shape)} values to decode at once; '
      f'at most {MAX_PAGE_VALUES} are; save it as a tiled TIFF or Zarr for '
      'prediction, or cut it into smaller images'
    )


def stored_dtype(
  path: str | os.PathLike,
  shape: Sequence[int],
  dtype: np.dtype,
  decoded: Sequence[int] = (),
) -> np.dtype:
  """Returns the dtype of stored samples, in native byte order.

  Args:
    path: names the file in messages.
    shape: of the array, or of one page.
    dtype: as stored.
    decoded: shape of the part that is decoded at once.

  Raises:
    InputError: the array has no pixels, its samples are neither booleans nor
      integers nor floats of at most 64 bits, or the part has more than
      `MAX_PAGE_VALUES` values.
  """
  if 0 in shape:
    raise InputError(f'{path}: shape {list(shape)} has no pixels')
  check_size(path, decoded)
  if dtype.kind not in 'biuf' or dtype.itemsize > 8:
    raise InputError(
      f'{path}: dtype {dtype}; expected booleans, integers or floats of at '
      'most 64 bits'
    )
  return dtype.newbyteorder('=')


def bits_of(dtype: np.dtype) -> int:
  """Returns the bits of a sample that uses all of its dtype; 1 of a boolean."""
  return 1 if dtype.kind == 'b' else 8 * dtype.itemsize


def stack_shape(
  path: Path, shape: tuple[int, ...]
) -> tuple[tuple[int, int, int, int], str]:
  """Returns [N,H,W,C] of an array without named axes, and what is doubtful.

  Raises:
    InputError: another number of axes; or three, of which the last may be
      channels.
  """
  doubt = ''
  match shape:
    case (height, width):
      return (1, height, width, 1), doubt
    case (pages, height, width):
      if width in (3, 4):
        raise InputError(
          f'{path}: shape {list(shape)} is one image [H,W,C] of {width} '
          f'channels, or {pages} pages [N,H,W] {width} pixels wide; save it as '
          f'{[1, *shape]} or {[*shape, 1]}, [N,H,W,C]'
        )
      if pages == 3:
        doubt = (
          f'shape {list(shape)} is 3 pages [N,H,W], or one image [C,H,W] of 3 '
          f'channels; save it as {[*shape, 1]} or {[1, height, width, 3]}, '
          '[N,H,W,C]'
        )
      return (pages, height, width, 1), doubt
    case (pages, height, width, channels):
      return (pages, height, width, channels), doubt
  raise InputError(
    f'{path}: shape {list(shape)}; expected [H,W], [N,H,W] or [N,H,W,C]'
  )
