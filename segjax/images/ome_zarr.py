# SPDX-License-Identifier: Apache-2.0
"""OME-Zarr 0.5 folders, written by windows, with pyramids and names of classes.

The finest scale is a Zarr v3 array, '0', that several processes may write. When
it is complete, one process adds the coarser scales.
"""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import tensorstore

from segjax.images.calibration import Calibration
from segjax.images.windows import Canvas

# Rows, and columns, of the chunks that are written.
CHUNK = 512

# An image with a longer side gets a pyramid: coarser scales, down to this side.
LARGE = 1024

# The attribute by which `outputs.check_replaceable` recognises an output.
CREATOR = {'_creator': {'name': 'segjax'}}

_TRANSFORMS = 'coordinateTransformations'


def open_canvas(
  path: Path,
  shape: tuple[int, ...],
  dtype: np.dtype,
  calibration: Calibration = Calibration(),
) -> Canvas:
  """Returns a canvas on the finest scale of an OME-Zarr.

  The folder is made if it does not exist. The shape is [N, H, W] or
  [N, H, W, C].
  """
  axes = calibration.axes(shape)
  store = _create(path / '0', axes, dtype)
  if not (path / 'zarr.json').exists():
    scale = [calibration.steps.get(axis, 1.0) for axis in axes]
    origin = [calibration.origin.get(axis, 0.0) for axis in axes]
    scales = {
      'name': path.stem,
      'axes': [_axis(axis, calibration.units) for axis in axes],
      'datasets': [_dataset(0, scale, origin)],
    }
    _write_group(path, {'multiscales': [scales], **CREATOR})
  pages = [length for axis, length in axes.items() if axis in 'tz']

  def write(n, rows, columns, values):
    page = iter(np.unravel_index(n, pages) if pages else ())
    at = {'c': slice(None), 'y': rows, 'x': columns}
    window = tuple(at[a] if a in at else int(next(page)) for a in axes)
    values = np.moveaxis(values, -1, 0) if 'c' in axes else values
    _result(store[window].write(values))

  # A write returns when its chunks are on the disk, so there is no `sync`.
  return Canvas(write, lambda: None)


def add_scales(
  path: Path, method: Literal['mean', 'stride'], attributes: Mapping
) -> None:
  """Adds coarser scales, and attributes, to a complete canvas.

  Each scale has half the pixels of the one before along y and x, until no side
  exceeds `LARGE`. Memory holds a few chunks.

  Args:
    path: the folder of `open_canvas`.
    method: 'mean' of 2 x 2 pixels, or 'stride', which takes one of them.
    attributes: attributes that are added to those of OME; see
      `label_attributes` and `channel_attributes`.
  """
  group = json.loads((path / 'zarr.json').read_text('utf-8'))
  written = group['attributes']['ome']
  [scales] = written['multiscales']
  finest = scales['datasets'][0]
  datasets = [finest]
  axes = [axis['name'] for axis in scales['axes']]
  scale, *shift = [
    [*transform.values()][1] for transform in finest[_TRANSFORMS]
  ]
  [origin] = shift or [[0.0] * len(axes)]
  factors = [2 if axis in 'yx' else 1 for axis in axes]
  fine = _open_to_write(path / finest['path'])
  while max(fine.shape[-2:]) > LARGE:
    coarse = tensorstore.downsample(fine, factors, method)
    shape = dict(zip(axes, coarse.shape, strict=True))
    level = len(datasets)
    folder = path / f'{level}'
    fine = _create(folder, shape, coarse.dtype.numpy_dtype, is_new=True)
    for window in _files(shape):
      _result(fine[window].write(coarse[window]))
    # A pixel lies in the middle of the finest pixels that it stands for.
    sizes = np.multiply(scale, np.power(factors, level))
    first = np.add(origin, (sizes - scale) / 2)
    datasets.append(_dataset(level, sizes.tolist(), first.tolist()))
  scales = {**scales, 'datasets': datasets}
  _write_group(path, {**written, 'multiscales': [scales], **attributes})


def label_attributes(names: Sequence[str], colours: np.ndarray) -> dict:
  """Returns OME-Zarr's attributes of a label map with colours u8[K, 3].

  Class 0 is transparent if it is black, as a background is.
  """
  return {
    'image-label': {
      'colors': [
        {'label-value': i, 'rgba': [*colour, 255 if i or any(colour) else 0]}
        for i, colour in enumerate(colours.tolist())
      ],
      'properties': [
        {'label-value': i, 'class': name} for i, name in enumerate(names)
      ],
    }
  }


def channel_attributes(
  names: Sequence[str], colours: np.ndarray, largest: float
) -> dict:
  """Returns OME-Zarr's attributes of channels.

  The colours u8[C, 3] are those of the value `largest`, and 0 is black. White
  replaces a black colour.
  """
  window = {'min': 0, 'start': 0, 'max': largest, 'end': largest}
  colours = np.where(colours.any(axis=1, keepdims=True), colours, 255)
  return {
    'omero': {
      'channels': [
        {
          'label': name,
          'color': bytes(colour.tolist()).hex().upper(),
          'window': window,
          'active': True,
        }
        for name, colour in zip(names, colours, strict=True)
      ]
    }
  }


def _axis(name, units):
  kind = {'t': 'time', 'c': 'channel'}.get(name, 'space')
  unit = {'unit': units[name]} if name in units else {}
  return {'name': name, 'type': kind, **unit}


def _dataset(level, scale, origin):
  transforms: list[dict] = [{'type': 'scale', 'scale': scale}]
  if any(origin):
    transforms.append({'type': 'translation', 'translation': origin})
  return {'path': f'{level}', _TRANSFORMS: transforms}


def _write_group(path, ome):
  """Writes the metadata of an OME-Zarr, whole or not at all."""
  group = {
    'zarr_format': 3,
    'node_type': 'group',
    'attributes': {'ome': {**ome, 'version': '0.5'}},
  }
  new = path / '.zarr.json.new'
  with open(new, 'w', encoding='utf-8') as file:
    json.dump(group, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  os.replace(new, path / 'zarr.json')


def _create(folder, axes, dtype, is_new=False):
  """Returns a Zarr v3 array to write to.

  It is made if it does not exist, or anew if `is_new`.
  """
  if (folder / 'zarr.json').exists() and not is_new:
    return _open_to_write(folder)
  chunk = [min(CHUNK if a in 'yx' else 1, n) for a, n in axes.items()]
  # One file has all channels, each in a chunk: they are written together and
  # viewed apart.
  shard = [*chunk]
  if 'c' in axes:
    shard[[*axes].index('c')] = axes['c']
  codecs: list[dict] = [
    {'name': 'bytes', 'configuration': {'endian': 'little'}},
    {'name': 'zstd', 'configuration': {'level': 1}},
  ]
  if shard != chunk:
    sharding = {
      'chunk_shape': chunk,
      'codecs': codecs,
      'index_codecs': [codecs[0], {'name': 'crc32c'}],
    }
    codecs = [{'name': 'sharding_indexed', 'configuration': sharding}]
  metadata = {
    'shape': [*axes.values()],
    'data_type': dtype.name,
    'chunk_grid': {'name': 'regular', 'configuration': {'chunk_shape': shard}},
    'codecs': codecs,
    'dimension_names': [*axes],
  }
  return _open_to_write(
    folder, metadata=metadata, create=True, delete_existing=is_new
  )


def _open_to_write(folder, **options):
  spec = {
    'driver': 'zarr3',
    'kvstore': {'driver': 'file', 'path': f'{folder}/'},
    # Without this, `zarr.open_pages` would count chunks of zeros as missing.
    'store_data_equal_to_fill_value': True,
    **options,
  }
  return _result(tensorstore.open(spec))


def _result(future):
  try:
    return future.result()
  except ValueError as e:
    # tensorstore raises a ValueError for a full disk, with links to its source.
    raise OSError(str(e).splitlines()[0].partition(' [')[0]) from e


def _files(axes):
  """Yields the window of each file of an array."""
  sides = {'y': CHUNK, 'x': CHUNK, 'c': axes.get('c')}
  steps = [sides.get(axis, 1) for axis in axes]
  lengths = [*axes.values()]
  for starts in itertools.product(*map(range, [0] * len(axes), lengths, steps)):
    yield tuple(
      slice(start, min(start + step, length))
      for start, step, length in zip(starts, steps, lengths, strict=True)
    )
