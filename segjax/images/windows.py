# SPDX-License-Identifier: Apache-2.0
"""Pages that are read by windows, stacks that are written by windows.

A window is two slices, rows and columns, whose starts and stops are given. This
file also holds the rules that all formats share: which dtypes are read, how
many values are decoded at once, which axes an array may have.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from segjax.errors import InputError

# Most values that are decoded at once: 32768 x 32768 gray pixels. It also stops
# a small file that decodes to a huge page.
MAX_PAGE_VALUES = 2**30

# Bytes of decoded strips, tiles and chunks that a file keeps for the next
# window, which often needs them again.
CACHE_BYTES = 2**27

DTYPES = ('uint8', 'uint16', 'float32')


@dataclasses.dataclass(frozen=True)
class Raster:
  """A page that is read by windows: `page[rows, columns]` is [h, w, C].

  Attributes:
    shape: H, W, C.
    dtype: uint8, uint16 or float32.
    read: (rows, columns) -> [h, w, C] of that dtype.
  """

  shape: tuple[int, int, int]
  dtype: np.dtype
  read: Callable[[slice, slice], np.ndarray]

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    return self.read(*window)


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
    offsets: position of the first byte of each page.
    shape: [N, H, W] or [N, H, W, C].
    dtype: of the stored values.
  """
  pixel = dtype.itemsize * math.prod(shape[3:])
  with open(path, 'r+b', buffering=0) as file:

    def write(n, rows, columns, values):
      # Row by row and not through a memory map, through which a full disk kills
      # the process.
      values = np.ascontiguousarray(values, dtype)
      if values.shape[1] == shape[2]:
        values = values.reshape(1, -1)
      for row, line in enumerate(values, rows.start):
        file.seek(offsets[n] + (row * shape[2] + columns.start) * pixel)
        left = memoryview(line.tobytes())
        while left:
          left = left[file.write(left) :]

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
  """Returns the dtype of the pixels that are read from an array.

  Args:
    path: names the file in messages.
    shape: of the array, or of one page.
    dtype: as stored; booleans are read as uint8.
    decoded: shape of the part that is decoded at once.

  Raises:
    InputError: the array has no pixels, its dtype is none of `DTYPES`, or the
      part has more than `MAX_PAGE_VALUES` values.
  """
  if 0 in shape:
    raise InputError(f'{path}: shape {list(shape)} has no pixels')
  check_size(path, decoded)
  name = 'uint8' if dtype.kind == 'b' else dtype.name
  if name not in DTYPES:
    raise InputError(f'{path}: dtype {dtype}; expected {", ".join(DTYPES)}')
  return np.dtype(name)


def stack_shape(
  path: Path, shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
  """Returns [N,H,W,C] of an array file; raises InputError if it has none."""
  match shape:
    case (height, width):
      return 1, height, width, 1
    case (pages, height, width):
      return pages, height, width, 1
    case (pages, height, width, channels):
      return pages, height, width, channels
  raise InputError(
    f'{path}: shape {list(shape)}; expected [H,W], [N,H,W] or [N,H,W,C]'
  )
