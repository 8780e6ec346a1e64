# SPDX-License-Identifier: Apache-2.0
"""Zarr and OME-Zarr folders, whose pages are read by windows.

Only this file and `ome_zarr`, which writes, know tensorstore.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from segjax.errors import InputError, shortened
from segjax.images.calibration import Calibration
from segjax.images.windows import (
  CACHE_BYTES,
  SMALL_FILE_BYTES,
  StoredPage,
  bits_of,
  bytes_of,
  check_page_count,
  say_once,
  stack_shape,
  stored_dtype,
)

_METADATA = ('zarr.json', '.zarray', '.zgroup', '.zattrs')
# Version of Zarr -> the codecs that tensorstore decodes.
_CODECS = {
  2: ('blosc', 'bz2', 'gzip', 'zlib', 'zstd'),
  3: (
    'blosc',
    'bytes',
    'crc32c',
    'gzip',
    'sharding_indexed',
    'transpose',
    'zstd',
  ),
}


def is_zarr(path: Path) -> bool:
  """Returns whether the path is a folder named .zarr or with a Zarr's files."""
  return path.is_dir() and (
    path.suffix.lower() == '.zarr'
    or any((path / name).is_file() for name in _METADATA)
  )


@contextlib.contextmanager
def open_pages(path: Path) -> Iterator[list[StoredPage]]:
  """Yields the pages of a Zarr v2 or v3.

  An array that names its dimensions, or the first (finest) scale of an
  OME-Zarr, has its pages along t and z and its channels along c. Any other
  array has the shapes of a .npy file.
  """
  folder, axes, calibration = _finest_scale(path)
  store = _open(folder)
  doubt = ''
  labels = [label.lower() for label in store.domain.labels]
  if not axes and all(len(label) == 1 for label in labels):
    axes = ''.join(labels)
  if not axes:
    _, doubt = stack_shape(path, store.shape)
    axes = {2: 'yx', 3: 'zyx', 4: 'zyxc'}[store.rank]
  elif (
    len({*axes}) != store.rank
    or len(axes) != store.rank
    or not {*'yx'} <= {*axes} <= {*'tczyx'}
  ):
    raise InputError(
      f'{path}: axes {axes} of shape {list(store.shape)}; expected y, x and '
      'any of t, c and z'
    )
  sizes = dict(zip(axes, store.shape, strict=True))
  shape = (sizes['y'], sizes['x'], sizes.get('c', 1))
  chunk = store.chunk_layout.read_chunk_template.shape
  dtype = store.dtype.numpy_dtype
  size = bytes_of(folder)
  dtype = stored_dtype(path, store.shape, dtype, chunk, size)
  check_page_count(path, sizes.get('t', 1) * sizes.get('z', 1), size)
  _check_chunks(folder, store)

  def read(t, z, rows, columns):
    at = {'t': t, 'z': z, 'y': rows, 'x': columns, 'c': slice(None)}
    window = _result(store[tuple(at[axis] for axis in axes)].read())
    left = [axis for axis in axes if axis in 'yxc']
    window = window.transpose([left.index(a) for a in 'yxc' if a in left])
    return window.reshape(*window.shape[:2], -1)

  named = {axis: sizes[axis] for axis in 'tz' if axis in sizes}
  calibration = dataclasses.replace(calibration, pages=named)
  yield [
    StoredPage(
      shape,
      dtype,
      functools.partial(read, t, z),
      bits_of(dtype),
      doubt=doubt,
      calibration=calibration,
    )
    for t in range(sizes.get('t', 1))
    for z in range(sizes.get('z', 1))
  ]


def _open(folder):
  """Returns the array of a folder, opened by tensorstore."""
  version = 3 if (folder / 'zarr.json').is_file() else 2
  name = 'zarr.json' if version == 3 else '.zarray'
  if not (folder / name).is_file():
    raise InputError(f'{folder}: no Zarr array; expected .zarray or zarr.json')
  metadata = json.loads((folder / name).read_text('utf-8'))
  if version == 3 and metadata.get('node_type') != 'array':
    raise InputError(
      f'{folder}: is a Zarr group; expected an array, or OME-Zarr'
    )
  codecs = _codecs(metadata, version)
  for codec in codecs:
    if codec not in _CODECS[version]:
      raise InputError(
        f'{folder}: codec {codec} is not supported; expected of '
        f'{", ".join(_CODECS[version])}'
      )
  compressors = [codec for codec in codecs if codec in _CODECS[2]]
  if len(compressors) > 1 or codecs.count('sharding_indexed') > 1:
    raise InputError(
      f'{folder}: codecs {shortened(", ".join(codecs))}; expected at most one '
      'that compresses and no shards in shards'
    )
  files = {'driver': 'file', 'path': f'{folder}/'}
  context = tensorstore.Context(
    {'cache_pool': {'total_bytes_limit': CACHE_BYTES}}
  )
  if version == 2:
    # tensorstore lacks two things that are newer than the format: the setting
    # for checksums of zstd, which its decoder checks anyway, and nested chunks
    # by default.
    if metadata.get('compressor'):
      metadata['compressor'].pop('checksum', None)
    if 'dimension_separator' not in metadata and _has_nested_chunks(folder):
      metadata['dimension_separator'] = '/'
    memory = {'driver': 'memory', 'path': 'metadata/'}
    written = tensorstore.KvStore.open(memory, context=context).result()
    written.write(name, json.dumps(metadata).encode()).result()
    changed = {'driver': 'memory', 'path': f'metadata/{name}'}
    files = {
      'driver': 'kvstack',
      'layers': [{'base': files}, {'exact': name, 'base': changed}],
    }
  spec = {'driver': 'zarr3' if version == 3 else 'zarr', 'kvstore': files}
  return _result(tensorstore.open(spec, read=True, context=context))


def _result(future):
  """Returns the result of a call of tensorstore; its errors become short."""
  try:
    return future.result()
  except ValueError as e:
    raise ValueError(str(e).partition(' [tensorstore_spec')[0]) from e


def _codecs(metadata, version):
  """Returns the names of all codecs of an array, those in shards included."""
  if version == 2:
    stages = [metadata.get('compressor'), *(metadata.get('filters') or ())]
    return [stage['id'] for stage in stages if stage]
  names = []
  for stage in metadata['codecs']:
    names.append(stage['name'])
    inner = stage.get('configuration', {})
    for key in ('codecs', 'index_codecs'):
      names += _codecs({'codecs': inner.get(key, ())}, version)
  return names


def _has_nested_chunks(folder):
  return any(f.name.isdecimal() and f.is_dir() for f in folder.iterdir())


def _check_chunks(folder, store):
  """Refuses an array without any chunk, and says how many chunks are missing.

  A missing chunk stands for the fill value. But a copy that was interrupted
  lacks chunks, too.
  """
  chunk = store.chunk_layout.write_chunk_template.shape
  counts = [-(-n // c) for n, c in zip(store.shape, chunk, strict=True)]
  total = math.prod(counts)
  rank = len(counts)
  key = re.compile(rf'(c[./])?\d+([./]\d+){{{rank - 1}}}')
  found = 0
  is_small = bytes_of(folder) < SMALL_FILE_BYTES
  for file in folder.rglob('*'):
    name = file.relative_to(folder).as_posix()
    if not file.is_dir() and key.fullmatch(name):
      found += 1
      if is_small:
        _check_blosc(file, store)
  if found == 0:
    raise InputError(
      f'{folder}: none of its {total} chunks is there; copy the whole folder'
    )
  if found < total:
    say_once(
      f'chunks of {folder}',
      f'{folder}: {total - found} of {total} chunks are missing and read as '
      f'{store.fill_value if store.fill_value is not None else 0}, the fill '
      'value',
    )


def _check_blosc(file, store):
  """Refuses a file in Blosc that inflates to more than a chunk's pixels.

  tensorstore's other decoders stop there; that of Blosc trusts its own header.
  """
  codec: dict[str, Any] = store.codec.to_json()
  v2 = [{'name': (codec.get('compressor') or {}).get('id')}]
  codecs: list[dict[str, Any]] = codec.get('codecs', v2)
  data, starts = file.read_bytes(), [0]
  if codecs[-1]['name'] == 'sharding_indexed':
    # The index at one end of the file has position and size of each chunk, u64.
    shards = codecs[-1]['configuration']
    codecs = shards['codecs']
    whole = math.prod(store.chunk_layout.write_chunk.shape)
    size = 16 * (whole // math.prod(shards['chunk_shape']))
    if shards['index_location'] == 'end':
      has_checksum = shards['index_codecs'][-1]['name'] == 'crc32c'
      index = data[max(0, len(data) - size - 4 * has_checksum) :]
    else:
      index = data
    starts = np.frombuffer(index[:size], '<u8')[::2].tolist()
  if not any(codec['name'] == 'blosc' for codec in codecs):
    return
  expected = math.prod(store.chunk_layout.read_chunk.shape)
  expected *= store.dtype.numpy_dtype.itemsize
  for start in starts:
    size = int.from_bytes(data[start + 4 : start + 8], 'little')
    if size > expected + 8:  # The 8 bytes may be a checksum.
      raise InputError(
        f'{file}: a chunk inflates to {size} bytes; expected {expected}'
      )


def _finest_scale(path):
  """Returns the folder of the finest array, its axes and its calibration.

  Axes are '' and the calibration is empty unless the folder is an OME-Zarr.
  """
  attributes = _attributes(path)
  if 'bioformats2raw.layout' in attributes:
    series = [f for f in path.iterdir() if f.name.isdecimal() and f.is_dir()]
    if len(series) != 1:
      raise InputError(
        f'{path}: holds {len(series)} series; name one of them, such as '
        f'{path / "0"}'
      )
    path, attributes = series[0], _attributes(series[0])
  if 'multiscales' not in attributes:
    return path, '', Calibration()
  scales = attributes['multiscales'][0]
  folder = path / scales['datasets'][0]['path']
  if path.resolve() not in (folder.resolve(), *folder.resolve().parents):
    raise InputError(f'{path}: its first scale {folder} lies outside of it')
  # Before version 0.3 there were always five axes. Version 0.3 has a list of
  # names, and later ones have a list of objects.
  axes = scales.get('axes', [*'tczyx'])
  names = [axis if isinstance(axis, str) else axis['name'] for axis in axes]
  if any(len(name) != 1 for name in names):
    raise InputError(f'{path}: axes {names}; expected of t, c, z, y and x')
  units = {
    axis['name']: axis['unit']
    for axis in axes
    if isinstance(axis, dict) and isinstance(axis.get('unit'), str)
  }
  steps, origin = _steps(names, scales)
  units = {axis: unit for axis, unit in units.items() if axis in steps}
  return folder, ''.join(names), Calibration({}, steps, origin, units)


def _steps(names, scales):
  """Returns steps and origin of the first scale, as `Calibration` has them."""
  step, first = np.full(len(names), np.nan), np.zeros(len(names))
  is_scaled = False
  # The transforms of the first scale come before those of all scales.
  for holder in (scales['datasets'][0], scales):
    for transform in holder.get('coordinateTransformations', ()):
      if 'scale' in transform:
        scale = np.array(transform['scale'], np.float64)
        scale[~np.isfinite(scale)] = np.nan
        step = step * scale if is_scaled else scale
        first = first * scale
        is_scaled = True
      elif 'translation' in transform:
        first = first + transform['translation']
  steps, origin = {}, {}
  for axis, size, position in zip(names, step, first, strict=True):
    if axis != 'c' and 0 < size < math.inf:
      steps[axis] = float(size)
      origin[axis] = float(position) if math.isfinite(position) else 0.0
  return steps, origin


def _attributes(path):
  """Returns the attributes of OME-Zarr in the metadata of a group or array."""
  if (path / 'zarr.json').is_file():
    metadata = json.loads((path / 'zarr.json').read_text('utf-8'))
    attributes = metadata.get('attributes', {})
    return attributes.get('ome', attributes)
  if (path / '.zattrs').is_file():
    return json.loads((path / '.zattrs').read_text('utf-8'))
  return {}
