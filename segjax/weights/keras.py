# SPDX-License-Identifier: Apache-2.0
"""Reader of Keras's VGG16, from .h5, .weights.h5 and .keras files, by h5py.

The weights are Caffe's, so images must be BGR in 0..255 minus (103.939,
116.779, 123.68).
"""

import math
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from typing import Any

import numpy as np

from segjax.errors import InputError, shortened
from segjax.models.vgg import BLOCKS
from segjax.weights.files import MAX_INFLATION, check_inflation
from segjax.weights.matching import Tensor

_CONVOLUTIONS = tuple(
  f'conv{block}_{i}'
  for block, (_, convolutions) in enumerate(BLOCKS, start=1)
  for i in range(1, convolutions + 1)
)
_DENSE = ('fc6', 'fc7', 'fc8')
_OPTIMIZERS = ('optimizer', 'optimizer_weights')


def read_vgg16(path: str | os.PathLike) -> dict[str, Tensor]:
  """Returns parameter path -> tensor of a VGG16, for `matching.match`.

  Names of groups and datasets changed from version to version, so layers are
  recognised by the axes of their kernels and the natural order of their names:
  `block1_conv1`, ..., or `conv2d`, `conv2d_1`, ..., `conv2d_10`.

  Args:
    path: a file with or without the fully connected layers.

  Raises:
    InputError: h5py is missing; or the file cannot be read, claims more than a
      hundred times its size, keeps values in other files, or does not hold 13
      convolutions and 0 or 3 fully connected layers.
  """
  layers = _read_layers(path)
  by_axes = {
    axes: [name for name in layers if layers[name]['kernel'].ndim == axes]
    for axes in (4, 2)
  }
  if len(by_axes[4]) != len(_CONVOLUTIONS) or len(by_axes[2]) not in (0, 3):
    raise InputError(
      f'{path} holds {len(by_axes[4])} convolutions and {len(by_axes[2])} '
      'fully connected layers; VGG16 has 13, and 3 or none'
    )
  tensors = {}
  for axes, layer_names in ((4, _CONVOLUTIONS), (2, _DENSE)):
    for name, layer in zip(by_axes[axes], layer_names, strict=False):
      for kind, values in layers[name].items():
        tensors[f'{layer}/{kind}'] = Tensor(f'{name}/{kind}', values, 'HWIO')
  return tensors


def _read_layers(path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
  """Returns group name -> kernel and bias, in natural order of the names."""
  try:
    import h5py
  except ImportError as e:
    raise InputError(
      f'{path}: files of Keras need a package: pip install h5py'
    ) from e
  try:
    with open(path, 'rb') as file, tempfile.TemporaryFile() as extracted:
      check_inflation(file)
      if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file).open('model.weights.h5') as weights:
          shutil.copyfileobj(weights, extracted)
        file = extracted
      with h5py.File(file, 'r') as root:
        room = MAX_INFLATION * os.stat(path).st_size
        datasets = _datasets(root, h5py.Dataset, room)
  except OSError as e:  # From h5py also for damaged files.
    raise InputError(f'cannot read {path}: {e.strerror or e}') from e
  except (
    KeyError,
    MemoryError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
  ) as e:
    raise InputError(f'{path} is not a whole file of Keras: {e}') from e
  layers = {}
  for group in sorted(datasets, key=_natural):
    kinds = {'bias' if a.ndim == 1 else 'kernel': a for a in datasets[group]}
    if len(datasets[group]) != 2 or set(kinds) != {'kernel', 'bias'}:
      shapes = [list(array.shape) for array in datasets[group]]
      raise InputError(
        f'{path}: {shortened(group)} holds arrays of '
        f'{shortened(str(shapes))}, not a kernel and a bias'
      )
    layers[group] = kinds
  return layers


def _datasets(root: Any, kind: type, room: int) -> dict[str, list[np.ndarray]]:
  """Returns group name -> its float arrays, without the optimizer's.

  Raises:
    ValueError: the arrays or their chunks take more bytes than `room`, or an
      array lies in another file.
  """
  datasets = {}

  def visit(name, node):
    nonlocal room
    if (
      isinstance(node, kind)
      and name.partition('/')[0] not in _OPTIMIZERS
      and np.issubdtype(node.dtype, np.floating)
    ):
      if node.external or node.is_virtual:
        raise ValueError(f'{shortened(name)} lies in another file')
      chunk = math.prod(node.chunks or ()) * node.dtype.itemsize
      room -= max(node.nbytes, chunk)
      if room < 0:
        raise ValueError(
          f'{shortened(name)} is too large for the size of the file'
        )
      datasets.setdefault(name.rpartition('/')[0], []).append(node[()])

  root.visititems(visit)
  return datasets


def _natural(name: str) -> list[str | int]:
  """Returns a sort key that puts `conv2d_2` before `conv2d_10`."""
  parts = re.split(r'(\d+)', name)
  return [int(part) if i % 2 else part for i, part in enumerate(parts)]
