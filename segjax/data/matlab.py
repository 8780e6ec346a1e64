# SPDX-License-Identifier: Apache-2.0
"""Variables of MATLAB files (.mat), in which several data sets store labels.

Only this file knows scipy.io. Files of MATLAB 7.3 are HDF5 and are not read.
"""

import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import scipy.io

from segjax.data.examples import check_known
from segjax.errors import InputError, shortened

# Limits of a variable. A byte of a file can inflate to a thousand.
_MOST_BYTES = 2**25  # Those of a label of 2048 x 2048 doubles.
_MOST_ENTRIES = 2**17  # Cells, fields of structs and letters.
_MOST_DEPTH = 32  # Of arrays in arrays.

# Types of elements and classes of arrays (MAT-file format, level 5).
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _OBJECT, _TEXT, _SPARSE = 1, 2, 3, 4, 5
_NUMBERS = range(6, 16)
_OPAQUE = 17
_COMPLEX = 0x0800  # Of the flags of an array.
_HEAD_BYTES = 512  # Enough for flags, dimensions and the name of a variable.


def read_mat(path: Path, key: str) -> np.ndarray:
  """Returns a variable of a .mat file, as stored.

  Args:
    path: the file.
    key: name of the variable, such as 'LabelMap', or of a field of a struct,
      such as 'GTcls.Segmentation'.

  Returns:
    An array of numbers, or of str for a cell array of text. Dimensions of
    length 1 are dropped.

  Raises:
    InputError: the file is missing, truncated or corrupt, or has no such
      variable or field; or this holds neither numbers nor text, inflates to
      more than 32 MiB, or has more than 131072 cells.
  """
  if not path.is_file():
    raise InputError(f'{path}: no such file')
  variable, *fields = key.split('.')
  try:
    value = scipy.io.loadmat(
      io.BytesIO(_inflated(path, variable)),
      variable_names=[variable],
      simplify_cells=True,
    )
  except InputError:
    raise
  # The parser raises anything on damaged bytes.
  except Exception as e:
    reason = shortened(' '.join(f'{type(e).__name__}: {e}'.split()), 300)
    raise InputError(f'{path}: no MATLAB file, or damaged; {reason}') from e
  for name in (variable, *fields):
    if not isinstance(value, dict) or name not in value:
      raise InputError(f'{path}: has no {key}')
    value = value[name]
  # loadmat returns a message instead of a variable that it cannot read.
  if isinstance(value, (str, dict)):
    raise InputError(f'{path}: {key} is damaged, or no array')
  try:
    cells = isinstance(value, np.ndarray) and value.dtype == object
    array = np.asarray(value.tolist() if cells else value)
  except ValueError as e:  # A cell array of arrays of unequal shape.
    raise InputError(f'{path}: {key} is no array of numbers') from e
  if array.dtype.kind not in 'biufU':
    raise InputError(f'{path}: {key} is {array.dtype}; expected numbers')
  return array


def _inflated(path: Path, variable: str) -> bytes:
  """Returns the file without its compression, checked to be safe to parse.

  The parser of scipy believes the file: it ends the process if arrays are
  nested too deep, and takes memory for cells that the file does not have.

  Raises:
    InputError: the variable is too large, nested too deep, or of a class that
      is not read.
    ValueError: the file is damaged; scipy finds other damage.
  """
  with path.open('rb') as file:
    header = file.read(128)
    # Older files have no cells, and those of MATLAB 7.3 are HDF5.
    if header[124:128] not in (b'\0\1IM', b'\1\0MI'):
      raise ValueError('it is not of MATLAB 5 to 7.2')
    file_bytes = path.stat().st_size
    order = '>' if header[126:] == b'MI' else '<'
    parts, room = [header], _MOST_BYTES
    while tag := file.read(8):
      kind, size = struct.unpack(f'{order}II', tag)
      if file.tell() + size > file_bytes:
        raise ValueError('it is truncated')
      data, inflater = file.read(size), zlib.decompressobj()
      if kind == _COMPRESSED:
        begin = inflater.decompress(data, _HEAD_BYTES)
      else:
        begin = data = tag + data
      if _Elements(begin, order).name() != variable:
        continue
      if kind == _COMPRESSED:
        data = begin + inflater.decompress(inflater.unconsumed_tail, room + 1)
      room -= len(data)
      if room < 0:
        raise InputError(
          f'{path}: {variable} inflates to more than {_MOST_BYTES} bytes; '
          'expected a label'
        )
      if kind == _COMPRESSED and not inflater.eof:
        raise ValueError('it is truncated')
      _Elements(data, order).check(path)
      parts.append(data)
  return b''.join(parts)


class _Elements:
  """The elements of a variable, one after another, as scipy reads them.

  Attributes:
    data: bytes of the variable.
    order: byte order, '<' or '>'.
    at: position of the next element.
    entries: number of entries that the variable may still have.
  """

  def __init__(self, data: bytes, order: str):
    self.data = data
    self.order = order
    self.at = 0
    self.entries = _MOST_ENTRIES

  def next(self) -> bytes:
    """Returns the content of the next element, and moves behind it."""
    kind, size = self._unpack('II', 8)
    if kind >> 16:  # A small element has its content in the tag.
      size, start = kind >> 16, self.at - 4
    else:
      start = self.at
      self.at += size + -size % 8
    return self.data[start : start + size]

  def _unpack(self, format, size):
    start, self.at = self.at, self.at + size
    return struct.unpack(self.order + format, self.data[start : self.at])

  def _head(self):
    """Returns flags, dimensions and name of a matrix; None for an empty one."""
    kind, size = self._unpack('II', 8)
    if kind != _MATRIX:
      raise ValueError(
        f'an element of type {kind} stands where an array should'
      )
    if size == 0:
      return None
    _, _, flags, _ = self._unpack('IIII', 16)
    if flags & 0xFF == _OPAQUE:  # Only this class has no dimensions, no name.
      return flags, (), b''
    dims = self.next()
    dims = struct.unpack(f'{self.order}{len(dims) // 4}i', dims)
    return flags, dims, self.next()

  def name(self) -> str:
    """Returns the name of the variable."""
    head = self._head()
    self.at = 0
    return head[2].decode('latin1') if head else ''

  def check(self, path: Path, depth: int = 0) -> None:
    """Raises InputError or ValueError unless the next matrix is safe."""
    head = self._head()
    if head is None:
      return
    flags, dims, _ = head
    kind, count = flags & 0xFF, math.prod(dims)
    if min(dims, default=0) < 0:
      raise ValueError(f'an array has the dimensions {list(dims)}')
    if depth > _MOST_DEPTH:
      raise InputError(
        f'{path}: arrays lie in each other more than {_MOST_DEPTH} deep'
      )
    if kind in _NUMBERS or kind == _SPARSE:
      parts = (3 if kind == _SPARSE else 1) + bool(flags & _COMPLEX)
      for _ in range(parts):
        self.next()
      return
    if kind == _OBJECT:
      self.next()
    if kind in (_STRUCT, _OBJECT):
      [length] = struct.unpack(f'{self.order}i', self.next())
      count *= max(1, len(self.next()) // max(1, length))
    elif kind not in (_CELL, _TEXT):
      raise InputError(f'{path}: holds an array of MATLAB class {kind}')
    self.entries -= count
    if self.entries < 0:
      raise InputError(
        f'{path}: an array of {list(dims)} has too many cells, fields or '
        f'letters; expected at most {_MOST_ENTRIES}'
      )
    if kind == _TEXT:
      self.next()
      return
    for _ in range(count):
      self.check(path, depth + 1)


def read_label(path: Path, key: str) -> np.ndarray:
  """Returns a variable of a .mat file as a label, i64[H, W]; see `read_mat`.

  Raises:
    InputError: as for `read_mat`; or the array is no [H, W] of whole numbers.
  """
  label = read_mat(path, key)
  if label.ndim != 2 or label.size == 0 or label.dtype.kind not in 'biuf':
    raise InputError(
      f'{path}: {key} is {label.dtype}{list(label.shape)}; expected a label '
      '[H, W]'
    )
  if label.dtype.kind == 'f':
    whole = np.isfinite(label) & (label == np.round(label))
    check_known(label, whole, path, 'whole numbers')
  return label.astype(np.int64)
