# SPDX-License-Identifier: Apache-2.0
"""Files that are written by windows, in any order, and read back as written.

A canvas is a stack of N pages: `canvas[n, rows, columns] = values`, two slices,
writes [h, w] or [h, w, C]. A canvas that was begun is opened again and goes on
where it stopped; what was not written is 0.
"""

import contextlib
import dataclasses
import errno
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorstore
import tifffile

from segjax.errors import InputError

# Rows and columns of the chunks of a Zarr.
CHUNK = 512

ENDINGS = ('.tif', '.tiff', '.npy', '.zarr')


@dataclasses.dataclass(frozen=True)
class Canvas:
  """A stack that is written by windows.

  Attributes:
    write: (n, rows, columns, values) -> None.
    sync: () -> None; returns when all that was written is on the disk.
  """

  write: Callable[[int, slice, slice, np.ndarray], None]
  sync: Callable[[], None]

  def __setitem__(
    self, window: tuple[int, slice, slice], values: np.ndarray
  ) -> None:
    self.write(*window, values)


@contextlib.contextmanager
def open_canvas(
  path: str | os.PathLike,
  shape: tuple[int, ...],
  dtype: np.dtype,
) -> Iterator[Canvas]:
  """Yields a canvas, which is made if it doesn't exist.

  Args:
    path: with one of `ENDINGS`. TIFFs are uncompressed, one strip a page, as
      `files.write_stack` writes them (BigTIFF from 2 GiB on); Zarr is v3.
    shape: [N, H, W] or [N, H, W, C].
    dtype: uint8, uint16, float16 or float32.

  Raises:
    InputError: another ending.
    OSError: the file cannot be made or written.
  """
  path, dtype = Path(path), np.dtype(dtype)
  ending = path.suffix.lower()
  if ending not in ENDINGS:
    raise InputError(
      f'{path}: ending {ending!r} is none of {" ".join(ENDINGS)}'
    )
  if ending == '.zarr':
    yield _open_zarr(path, shape, dtype)
    return
  make, locate = (_make_npy, _npy_pages)
  if ending != '.npy':
    make, locate = (_make_tiff, _tiff_pages)
  if dtype.itemsize * math.prod(shape) > sys.maxsize:
    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
  if not path.exists():
    # Not by its name before all of it is there: it may be opened again.
    unfinished = path.with_name(f'.{path.name}.new')
    unfinished.unlink(missing_ok=True)
    make(unfinished, shape, dtype)
    os.replace(unfinished, path)
  offsets = locate(path)
  with open(path, 'r+b', buffering=0) as file:
    yield Canvas(
      lambda n, rows, columns, values: _write_rows(
        file, offsets[n], shape[1:], dtype, rows, columns, values
      ),
      lambda: os.fsync(file.fileno()),
    )


def _write_rows(file, offset, shape, dtype, rows, columns, values):
  """Writes a window of a page [H, W, ...] that begins at `offset`."""
  # By rows, not through a map: there a full disk kills the process.
  values = np.ascontiguousarray(values, dtype)
  pixel = dtype.itemsize * math.prod(shape[2:])
  if values.shape[1] == shape[1]:
    values = values.reshape(1, -1)
  for row, line in enumerate(values):
    first = (rows.start + row) * shape[1] + columns.start
    file.seek(offset + first * pixel)
    left = memoryview(line.tobytes())
    while left:
      left = left[file.write(left) :]


def _make_npy(path, shape, dtype):
  with open(path, 'xb') as file:
    header = {'descr': dtype.str, 'fortran_order': False, 'shape': tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    size = file.tell() + dtype.itemsize * math.prod(shape)
    file.truncate(size)


def _npy_pages(path):
  stored = np.lib.format.open_memmap(path, mode='r')
  page = stored.nbytes // len(stored)
  return [stored.offset + i * page for i in range(len(stored))]


def _make_tiff(path, shape, dtype):
  page = shape[1:]
  if len(page) == 3 and page[-1] == 1:
    page = page[:-1]
  axes = {'planarconfig': 'contig'} if len(page) == 3 else {}
  size = dtype.itemsize * math.prod(shape)
  with tifffile.TiffWriter(path, bigtiff=size > 2**31) as tif:
    for _ in range(shape[0]):
      tif.write(
        None,
        shape=page,
        dtype=dtype,
        rowsperstrip=page[0],
        photometric='minisblack',
        contiguous=False,
        metadata=None,
        **axes,
      )


def _tiff_pages(path):
  with tifffile.TiffFile(path, is_ome=False) as tif:
    return [page.dataoffsets[0] for page in tif.pages]


def _open_zarr(path, shape, dtype):
  chunk = [1, *(min(CHUNK, side) for side in shape[1:3]), *shape[3:]]
  store = tensorstore.open(
    {
      'driver': 'zarr3',
      'kvstore': {'driver': 'file', 'path': f'{path}/'},
      'metadata': {
        'shape': list(shape),
        'data_type': dtype.name,
        'chunk_grid': {
          'name': 'regular',
          'configuration': {'chunk_shape': chunk},
        },
        'codecs': [
          {'name': 'bytes', 'configuration': {'endian': 'little'}},
          {'name': 'zstd', 'configuration': {'level': 1}},
        ],
      },
    },
    open=True,
    create=True,
  ).result()

  def write(n, rows, columns, values):
    try:
      store[n, rows, columns].write(values).result()
    except ValueError as e:
      # tensorstore's of a full disk; a line without its links to the source.
      raise OSError(str(e).splitlines()[0].partition(' [')[0]) from e

  # A write returns when its chunks are on the disk.
  return Canvas(write, lambda: None)
