# SPDX-License-Identifier: Apache-2.0
"""NumPy's .npy files: read through memory maps, and created of zeros."""

import contextlib
import functools
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segjax.images.calibration import Calibration
from segjax.images.windows import (
  StoredPage,
  bits_of,
  check_page_count,
  stack_shape,
  stored_dtype,
)

_PARSING = threading.Lock()


@contextlib.contextmanager
def open_pages(path: Path) -> Iterator[list[StoredPage]]:
  """Yields the pages of a .npy of shape [H,W], [N,H,W] or [N,H,W,C]."""
  stored = _map(path)
  size = path.stat().st_size
  dtype = stored_dtype(path, stored.shape, stored.dtype, (), size)
  shape, doubt = stack_shape(path, stored.shape)
  order = 'C' if stored.flags.c_contiguous else 'F'
  check_page_count(path, shape[0], size)

  def read(number, rows, columns):
    # Every window makes a new map, since a map keeps in memory what it read.
    mapped = np.memmap(
      path, stored.dtype, 'r', stored.offset, stored.shape, order
    )
    return mapped.reshape(shape)[number, rows, columns]

  yield [
    StoredPage(
      shape[1:],
      dtype,
      functools.partial(read, i),
      bits_of(dtype),
      doubt=doubt,
    )
    for i in range(shape[0])
  ]


def create(
  path: Path,
  shape: tuple[int, ...],
  dtype: np.dtype,
  calibration: Calibration = Calibration(),
) -> None:
  """Makes a file of zeros, which takes no room on the disk yet.

  The format has no field for a calibration.
  """
  with open(path, 'xb') as file:
    header = {'descr': dtype.str, 'fortran_order': False, 'shape': tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    file.truncate(file.tell() + dtype.itemsize * math.prod(shape))


def page_offsets(path: Path) -> list[int]:
  """Returns the position of the first byte of each page in a new file."""
  stored = _map(path)
  page = stored.nbytes // len(stored)
  return [stored.offset + i * page for i in range(len(stored))]


def _map(path: Path) -> np.memmap:
  # NumPy parses the header as Python code, which two threads cannot do at once
  # in Python 3.11 (CPython issue 106905).
  with _PARSING:
    return np.lib.format.open_memmap(path, mode='r')
