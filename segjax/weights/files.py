# SPDX-License-Identifier: Apache-2.0
"""Parameters in .npz and .safetensors files: `layer/kernel`, `layer/bias`.

A file may also hold metadata of its network; see `networks.metadata`. Neither
format can run code: pickled objects in an .npz are refused.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax.atomic import check_file, replacing
from segjax.errors import InputError, shortened
from segjax.runs.integrity import digest_of_values, digests_of_arrays

ENDINGS = ('.npz', '.safetensors')
# Trained weights hardly compress; a decompression bomb reaches a thousand.
MAX_INFLATION = 100
_MAX_DEPTH = 32  # Of layers inside layers, in the name of an array.

# Scales of the pixels that weights expect: 0..255 minus a mean (Caffe, Keras),
# or also divided by a standard deviation (torchvision).
PIXELS = ('0..255', 'standardised')
PER_IMAGE = 'standardised image by image'  # Of U-Nets on one's own images.

_METADATA = '__about__'  # Name of the metadata in a file.
_SHA256 = 'sha256'  # Of all arrays; an .npz has checksums of its own.


def read_params(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the nested dict of arrays that `write_params` wrote.

  Raises:
    InputError: see `read_arrays`; or a name lies too deep, or is both an array
      and a layer.
  """
  arrays = read_arrays(path)
  layers = set()
  for name in arrays:
    if name.count('/') > _MAX_DEPTH:
      raise InputError(
        f'{path}: {shortened(name)} lies {name.count("/")} layers deep; '
        f'expected at most {_MAX_DEPTH}'
      )
    layers.update(
      name[:end] for end, letter in enumerate(name) if letter == '/'
    )
  for name in layers.intersection(arrays):
    raise InputError(f'{path}: {name} is both an array and a layer')
  return unflatten_dict(arrays, sep='/')


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns name -> float array of an .npz or .safetensors file.

  Raises:
    InputError: the ending is another; the file cannot be read, is truncated or
      damaged, or inflates more than a hundredfold; or it holds anything but
      float arrays.
  """
  path = Path(path)
  arrays, _ = _read(path)
  for name, array in arrays.items():
    if not np.issubdtype(array.dtype, np.floating):
      raise InputError(f'{path}: {name} is {array.dtype}, not a float array')
  if not arrays:
    raise InputError(f'{path} holds no arrays')
  return arrays


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
  """Returns the metadata that `write_params` wrote; {} if there is none.

  Raises:
    InputError: the file cannot be read, or its metadata is damaged.
  """
  path = Path(path)
  _, text = _read(path, only_metadata=True)
  try:
    metadata = json.loads(text).items()
  except (ValueError, RecursionError, AttributeError) as e:  # Not an object.
    raise InputError(f'{path} has damaged metadata of its network') from e
  return {str(name): str(value) for name, value in metadata}


def write_params(
  path: str | os.PathLike,
  params: Mapping[str, Any],
  overwrite: bool = False,
  metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
  """Writes a tree of arrays atomically: the file is whole or absent.

  Args:
    path: .npz or .safetensors, in a folder that exists.
    params: nested dict of arrays.
    overwrite: whether to replace a file that exists.
    metadata: metadata of the network.

  Raises:
    InputError: the ending is another, or the file exists or cannot be written.

  >>> import numpy, segjax
  >>> params = {'head': {'bias': numpy.float32([1, 2])}}
  >>> segjax.write_params('net.npz', params)  # Or .safetensors.
  >>> segjax.load_params('net.npz')
  {'head': {'bias': array([1., 2.], dtype=float32)}}
  """
  path = Path(path)
  check_output(path, overwrite)
  arrays = flatten_dict(params, sep='/')
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  try:
    with replacing(path, overwrite) as temporary:
      if path.suffix.lower() == '.npz':
        with open(temporary, 'xb') as file:
          text = np.array(json.dumps(dict(metadata)))
          np.savez(file, allow_pickle=False, **arrays, **{_METADATA: text})
      else:
        # Of an array that is not contiguous, the package writes wrong values.
        arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        texts = {
          _METADATA: json.dumps(dict(metadata)),
          _SHA256: _digest(arrays),
        }
        safetensors.numpy.save_file(arrays, temporary, metadata=texts)
        # The package leaves it to its owner alone; the folder is as others are.
        temporary.chmod(temporary.parent.stat().st_mode & 0o666)
  except OSError as e:
    raise InputError(f'{path} cannot be written: {e.strerror or e}') from e


def check_output(path: Path, overwrite: bool) -> None:
  """Raises `InputError` if `write_params` would not write to `path`."""
  _known_ending(path)
  check_file(path, overwrite)


def _read(path, only_metadata=False):
  """Returns the arrays of a file, none if `only_metadata`, and its metadata."""
  read = {'.npz': _read_npz, '.safetensors': _read_safetensors}
  return read[_known_ending(path)](path, only_metadata)


def _read_npz(path, only_metadata):
  try:
    # np.load does not close what it opened and could not read.
    with open(path, 'rb') as opened:
      check_inflation(opened)
      arrays = np.load(opened, allow_pickle=False)
      if isinstance(arrays, np.ndarray):
        raise ValueError('it is one array, an .npy')
      metadata = str(arrays[_METADATA]) if _METADATA in arrays else '{}'
      names = () if only_metadata else [n for n in arrays if n != _METADATA]
      # A member that is no array comes as bytes.
      return {name: np.asarray(arrays[name]) for name in names}, metadata
  except OSError as e:
    raise InputError(f'cannot read {path}: {e.strerror or e}') from e
  except (
    ValueError,  # Another format, a damaged header, or pickled objects.
    EOFError,
    KeyError,
    MemoryError,  # A header that claims more memory than there is.
    NotImplementedError,  # A compression that zipfile cannot read.
    RuntimeError,  # Encrypted.
    zipfile.BadZipFile,
    zlib.error,
  ) as e:
    raise InputError(f'{path} is not a whole .npz of arrays: {e}') from e


def check_inflation(file: BinaryIO) -> None:
  """Raises `ValueError` for a zip archive that is a decompression bomb."""
  if not zipfile.is_zipfile(file):
    file.seek(0)
    return  # The reader of the file decides on it.
  with zipfile.ZipFile(file) as archive:
    claimed = sum(member.file_size for member in archive.infolist())
  size = file.seek(0, os.SEEK_END)
  file.seek(0)
  if claimed > MAX_INFLATION * size:
    raise ValueError(f'{size} bytes would inflate to {claimed}')


def _read_safetensors(path, only_metadata):
  try:
    with safetensors.safe_open(path, 'np') as file:
      texts = file.metadata() or {}
      names = () if only_metadata else file.keys()
      arrays = {name: file.get_tensor(name) for name in names}
  except OSError as e:
    raise InputError(f'cannot read {path}: {e.strerror or e}') from e
  except safetensors.SafetensorError as e:
    raise InputError(f'{path} is not a whole .safetensors: {e}') from e
  stated = texts.get(_SHA256)  # Files of others have none.
  if arrays and stated and stated != _digest(arrays):
    raise InputError(
      f'{path} was changed since it was written: its values do not have the '
      'SHA-256 that it states'
    )
  return arrays, texts.get(_METADATA, '{}')


def _digest(arrays):
  return digest_of_values(digests_of_arrays(arrays))


def _known_ending(path):
  ending = path.suffix.lower()
  if ending not in ENDINGS:
    raise InputError(f'{path} has none of the endings {", ".join(ENDINGS)}')
  return ending
