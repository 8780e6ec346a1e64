# SPDX-License-Identifier: Apache-2.0
"""Parameters in .npz and .safetensors files: `layer/kernel`, `layer/bias`.

Neither format can run code: pickled objects in an .npz are refused.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from segjax.atomic import replacing
from segjax.errors import InputError

ENDINGS = ('.npz', '.safetensors')
# Trained weights hardly compress; deflate reaches a thousand.
_MAX_INFLATION = 100


def read_params(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the nested dict of arrays that `write_params` wrote.

  Raises:
    InputError: see `read_arrays`; or one name is both an array and a layer.
  """
  return nested(read_arrays(path), path)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns name -> float array of an .npz or .safetensors file.

  Raises:
    InputError: another ending; the file cannot be read, is cut short,
      garbled or inflates a hundredfold; or it holds something else than float
      arrays.
  """
  path = Path(path)
  read = {'.npz': _read_npz, '.safetensors': _read_safetensors}
  arrays = read[_known_ending(path)](path)
  for name, array in arrays.items():
    if not np.issubdtype(array.dtype, np.floating):
      raise InputError(f'{path}: {name} is {array.dtype}, not a float array')
  if not arrays:
    raise InputError(f'{path} holds no arrays')
  return arrays


def nested(
  arrays: Mapping[str, Any], path: str | os.PathLike = ''
) -> dict[str, Any]:
  """Returns {'a': {'b': x}} of {'a/b': x}; `path` is for messages.

  Raises:
    InputError: one name is both an array and a layer.
  """
  params = {}
  for name, array in arrays.items():
    *parents, leaf = name.split('/')
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise InputError(f'{path}: {name} lies inside another array')
    if leaf in node:
      raise InputError(f'{path}: {name} is both an array and a layer')
    node[leaf] = array
  return params


def flattened(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {'a/b': x} of {'a': {'b': x}}."""
  return {
    jax.tree_util.keystr(name, simple=True, separator='/'): leaf
    for name, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def write_params(
  path: str | os.PathLike, params: Mapping[str, Any], overwrite: bool = False
) -> None:
  """Writes a tree of arrays; the file appears whole or not at all.

  Args:
    path: .npz or .safetensors, in a folder that exists.
    params: nested dict of arrays.
    overwrite: whether to replace a file that exists.

  Raises:
    InputError: another ending, the file exists, or it cannot be written.
  """
  path = Path(path)
  check_output(path, overwrite)
  arrays = {n: np.asarray(leaf) for n, leaf in flattened(params).items()}
  try:
    with replacing(path) as temporary:
      if path.suffix.lower() == '.npz':
        with open(temporary, 'xb') as file:
          np.savez(file, allow_pickle=False, **arrays)
      else:
        # The package writes the memory of other arrays, not their elements.
        arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        _import_safetensors().numpy.save_file(arrays, temporary)
  except OSError as e:
    raise InputError(f'{path} cannot be written: {e.strerror or e}') from e


def check_output(path: Path, overwrite: bool) -> None:
  """Raises InputError if `write_params` will not write to `path`."""
  if _known_ending(path) == '.safetensors':
    _import_safetensors()
  if not path.parent.is_dir():
    raise InputError(f'output {path}: there is no folder {path.parent}')
  if path.is_dir() or (path.exists() and not overwrite):
    raise InputError(f'{path} exists; give --overwrite to replace it')


def _read_npz(path):
  try:
    # np.load does not close what it opened and could not read.
    with open(path, 'rb') as opened:
      _check_inflation(opened)
      arrays = np.load(opened, allow_pickle=False)
      if isinstance(arrays, np.ndarray):
        raise ValueError('it is one array, an .npy')
      # A member that is no array comes as bytes.
      return {name: np.asarray(array) for name, array in arrays.items()}
  except OSError as e:
    raise InputError(f'cannot read {path}: {e.strerror or e}') from e
  except (
    ValueError,  # Foreign, garbled header, or pickled objects.
    EOFError,
    KeyError,
    MemoryError,  # A header that claims more than there is.
    NotImplementedError,  # Compressed in a way that zipfile cannot read.
    RuntimeError,  # Encrypted.
    zipfile.BadZipFile,
    zlib.error,
  ) as e:
    raise InputError(f'{path} is not a whole .npz of arrays: {e}') from e


def _check_inflation(file):
  """Raises ValueError for a zip archive that is a decompression bomb."""
  if not zipfile.is_zipfile(file):
    file.seek(0)
    return  # To be refused by numpy.
  with zipfile.ZipFile(file) as archive:
    claimed = sum(member.file_size for member in archive.infolist())
  size = file.seek(0, os.SEEK_END)
  file.seek(0)
  if claimed > _MAX_INFLATION * size:
    raise ValueError(f'{size} bytes would inflate to {claimed}')


def _read_safetensors(path):
  safetensors = _import_safetensors()
  try:
    with safetensors.safe_open(path, 'np') as file:
      return {name: file.get_tensor(name) for name in file.keys()}
  except OSError as e:
    raise InputError(f'cannot read {path}: {e.strerror or e}') from e
  except safetensors.SafetensorError as e:
    raise InputError(f'{path} is not a whole .safetensors: {e}') from e


def _import_safetensors():
  try:
    import safetensors.numpy
  except ImportError as e:
    raise InputError(
      '.safetensors needs a package: pip install safetensors; or use .npz'
    ) from e
  return safetensors


def _known_ending(path):
  ending = path.suffix.lower()
  if ending not in ENDINGS:
    raise InputError(f'{path} has none of the endings {", ".join(ENDINGS)}')
  return ending
