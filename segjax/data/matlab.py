# SPDX-License-Identifier: Apache-2.0
"""MATLAB files, in which several data sets keep labels: reading one variable.

The one file that knows scipy.io. Files of MATLAB 7.3 are HDF5 and not read.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import scipy.io

from segjax.data.examples import check_known
from segjax.errors import InputError

# A label of 16384 x 16384 doubles has as many; zlib makes a thousand of one.
_MOST_BYTES = 2**31
_CHUNK_BYTES = 2**16
_COMPRESSED = 15  # miCOMPRESSED, an element's type (MAT-file format, level 5).


def read_mat(path: Path, key: str) -> np.ndarray:
  """Returns a variable of a .mat file, as stored.

  Args:
    path: the file.
    key: the variable, such as 'LabelMap', or a field of a struct, such as
      'GTcls.Segmentation'.

  Returns:
    An array of numbers or, of a cell array of text, of str. Dimensions of
    length 1 are dropped.

  Raises:
    InputError: the file is missing, truncated or corrupt, would inflate to more
      than 2 GiB, has no such variable or field, or it is neither numbers nor
      text.
  """
  if not path.is_file():
    raise InputError(f'{path}: no such file')
  _check_inflated(path)
  variable, *fields = key.split('.')
  try:
    with path.open('rb') as file:
      value = scipy.io.loadmat(
        file, variable_names=[variable], simplify_cells=True
      )
  # On damaged bytes the parser raises whatever it runs into.
  except Exception as e:
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())
    raise InputError(f'{path}: no MATLAB file, or damaged; {reason}') from e
  for name in (variable, *fields):
    if not isinstance(value, dict) or name not in value:
      raise InputError(f'{path}: has no {key}')
    value = value[name]
  # loadmat gives a sentence where it could not read the variable.
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


def _check_inflated(path: Path) -> None:
  """Raises InputError if the variables would inflate beyond `_MOST_BYTES`.

  Holds a chunk at a time. Damage is left for the parser to find.
  """
  room = _MOST_BYTES
  with path.open('rb') as file:
    header = file.read(128)
    order = '>' if header[126:] == b'MI' else '<'
    while len(tag := file.read(8)) == 8:
      kind, size = struct.unpack(f'{order}II', tag)
      if kind != _COMPRESSED:
        file.seek(size, 1)
        continue
      end = file.tell() + size
      inflater = zlib.decompressobj()
      while data := file.read(min(_CHUNK_BYTES, end - file.tell())):
        while data:
          try:
            room -= len(inflater.decompress(data, _CHUNK_BYTES))
          except zlib.error:
            return
          if room < 0:
            raise InputError(
              f'{path}: inflates to more than {_MOST_BYTES} bytes; no label is '
              'as large'
            )
          data = inflater.unconsumed_tail


def read_label(path: Path, key: str) -> np.ndarray:
  """Returns integers [H, W] of a .mat file; see `read_mat`.

  Raises:
    InputError: as `read_mat`; or the array is no [H, W] of whole numbers.
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
