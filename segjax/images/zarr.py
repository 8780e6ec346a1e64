# SPDX-License-Identifier: Apache-2.0
"""Zarr and OME-Zarr folders: pages read by windows, and canvases.

This is the only file that knows tensorstore.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorstore

from segjax.errors import InputError
from segjax.images.windows import (
  CACHE_BYTES,
  Canvas,
  Raster,
  stack_shape,
  stored_dtype,
)

# Rows and columns of the chunks that are written.
CHUNK = 512


def is_zarr(path: Path) -> bool:
  """Whether the path is a folder whose name ends in .zarr."""
  return path.suffix.lower() == '.zarr' and path.is_dir()


@contextlib.contextmanager
def open_pages(path: Path) -> Iterator[list[Raster]]:
  """Yields the pages of a Zarr v2 or v3.

  The array has the shape of a .npy that is read; or the folder is an OME-Zarr:
  of its first (finest) scale t and z are pages, and c is channels.
  """
  folder, axes = _finest_scale(path)
  driver = 'zarr3' if (folder / 'zarr.json').is_file() else 'zarr'
  if driver == 'zarr' and not (folder / '.zarray').is_file():
    raise InputError(f'{folder}: no Zarr array; expected .zarray or zarr.json')
  store = tensorstore.open(
    {
      'driver': driver,
      'kvstore': {'driver': 'file', 'path': f'{folder}/'},
      'context': {'cache_pool': {'total_bytes_limit': CACHE_BYTES}},
    },
    read=True,
  ).result()
  if not axes:
    stack_shape(path, store.shape)
    axes = {2: 'yx', 3: 'zyx', 4: 'zyxc'}[store.rank]
  elif len(axes) != store.rank or not set('yx') <= set(axes) <= set('tczyx'):
    raise InputError(
      f'{path}: axes {axes} of shape {list(store.shape)}; expected y, x and '
      'any of t, c and z'
    )
  sizes = dict(zip(axes, store.shape, strict=True))
  shape = (sizes['y'], sizes['x'], sizes.get('c', 1))
  chunk = store.chunk_layout.read_chunk_template.shape
  dtype = stored_dtype(path, store.shape, store.dtype.numpy_dtype, chunk)

  def read(t, z, rows, columns):
    at = {'t': t, 'z': z, 'y': rows, 'x': columns, 'c': slice(None)}
    window = store[tuple(at[axis] for axis in axes)].read().result()
    left = [axis for axis in axes if axis in 'yxc']
    window = window.transpose([left.index(a) for a in 'yxc' if a in left])
    return window.reshape(*window.shape[:2], -1)

  yield [
    Raster(shape, dtype, functools.partial(read, t, z))
    for t in range(sizes.get('t', 1))
    for z in range(sizes.get('z', 1))
  ]


def open_canvas(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Canvas:
  """Returns a canvas of [N, H, W] or [N, H, W, C] on a Zarr v3.

  The folder is made if it does not exist.
  """
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
      # tensorstore raises it for a full disk, with links to its source.
      raise OSError(str(e).splitlines()[0].partition(' [')[0]) from e

  # A write returns when its chunks are on the disk.
  return Canvas(write, lambda: None)


def _finest_scale(path):
  """Returns the folder of the array, and its axes if it is OME-Zarr."""
  attributes = {}
  if (path / 'zarr.json').is_file():
    metadata = json.loads((path / 'zarr.json').read_text('utf-8'))
    attributes = metadata.get('attributes', {})
    attributes = attributes.get('ome', attributes)
  elif (path / '.zattrs').is_file():
    attributes = json.loads((path / '.zattrs').read_text('utf-8'))
  if 'multiscales' not in attributes:
    return path, ''
  scales = attributes['multiscales'][0]
  folder = path / scales['datasets'][0]['path']
  if path.resolve() not in (folder.resolve(), *folder.resolve().parents):
    raise InputError(f'{path}: its first scale {folder} lies outside of it')
  # Before version 0.3 there were always five; 0.3 has names, later maps.
  axes = scales.get('axes', [*'tczyx'])
  names = [axis if isinstance(axis, str) else axis['name'] for axis in axes]
  if any(len(name) != 1 for name in names):
    raise InputError(f'{path}: axes {names}; expected of t, c, z, y and x')
  return folder, ''.join(names)
