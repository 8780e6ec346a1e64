# SPDX-License-Identifier: Apache-2.0
"""Images of any size, of which only the windows asked for are read.

Every page is an array-like of shape [H, W, C]: `page[rows, columns]`, two
slices within it, gives [h, w, C] as `files.read_stack` would. How that is done
for PNG and JPEG, which have no windows, says `picture_windows`.

tensorstore is known here and to `canvases` only; it reads and writes Zarr.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorstore
import tifffile

from segjax.data.layout import natural_key
from segjax.errors import InputError
from segjax.images import files
from segjax.images.picture_windows import open_picture
from segjax.images.tiff import tiff_pages

# Decoded strips, tiles and chunks that are kept, for the windows beside.
CACHE_BYTES = 2**27


@dataclasses.dataclass(frozen=True)
class Raster:
  """A page that is read by windows.

  Attributes:
    shape: H, W, C.
    dtype: uint8, uint16 or float32.
    read: (rows, columns) -> [h, w, C] of that dtype.
  """

  shape: tuple[int, int, int]
  dtype: np.dtype
  read: Callable[[slice, slice], np.ndarray]

  def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
    return self.read(*window)


def list_rasters(path: str | os.PathLike) -> list[Path]:
  """Returns `files.list_images` with the Zarr folders, names ending .zarr."""
  path = Path(path)
  if is_zarr(path):
    return [path]
  folders = [folder for folder in path.glob('[!.]*') if is_zarr(folder)]
  try:
    found = files.list_images(path)
  except InputError:
    if not folders:
      raise
    found = []
  return sorted((*found, *folders), key=natural_key)


def is_zarr(path: Path) -> bool:
  return path.suffix.lower() == '.zarr' and path.is_dir()


def digest_of_rasters(paths: Sequence[Path]) -> str:
  """Returns the SHA-256 of names, sizes and times of change, in hexadecimal.

  Contents are not read: a large image would take minutes.
  """
  digest = hashlib.sha256()
  for path in paths:
    files = sorted(path.rglob('*')) if path.is_dir() else [path]
    for file in files:
      status = file.stat()
      name = file.relative_to(path.parent)
      digest.update(f'{name} {status.st_size} {status.st_mtime_ns}\n'.encode())
  return digest.hexdigest()


@contextlib.contextmanager
def open_rasters(path: str | os.PathLike) -> Iterator[list]:
  """Yields the pages of an image file, which stays open for the block.

  Args:
    path: what `files.read_stack` takes, with pages of any size (but see
      `picture_windows.open_picture`); or a .zarr folder: Zarr v2 or v3 of the
      shapes of an .npy, or OME-Zarr, of which the first (finest) scale is
      taken, t and z as pages and c as channels.

  Raises:
    InputError: here, or when a window is read: as `files.read_stack`. Values
      that are not finite are not looked for.
    SaveFailed: as `picture_windows.open_picture`.
  """
  path = Path(path)
  ending = '.zarr' if is_zarr(path) else files.check_file(path)
  with contextlib.ExitStack() as stack:
    with files.refusing_damage(path):
      if ending == '.zarr':
        pages = _open_zarr(path)
      elif ending == '.npy':
        pages = _open_npy(path)
      elif ending in ('.tif', '.tiff'):
        tif = stack.enter_context(tifffile.TiffFile(path, is_ome=False))
        pages = _open_tiff(path, tif)
      else:
        pages = [_raster(path, *stack.enter_context(open_picture(path)))]
    yield pages


def _raster(path, shape, dtype, read):
  """Returns a Raster whose reads are refused as damage if they fail."""

  def read_window(rows, columns):
    with files.refusing_damage(path):
      return np.ascontiguousarray(read(rows, columns), dtype)

  return Raster(tuple(shape), dtype, read_window)


def _open_npy(path):
  stored = np.lib.format.open_memmap(path, mode='r')
  shape = files.stack_shape(path, stored.shape)
  if math.prod(shape) == 0:
    raise InputError(f'{path}: shape {list(stored.shape)} has no pixels')
  dtype = files.stored_dtype(path, (1,), stored.dtype)

  def read(number, rows, columns):
    # Mapped anew for every window: pages of a map that lasts stay in memory.
    array = np.lib.format.open_memmap(path, mode='r')
    return array.reshape(shape)[number, rows, columns]

  return [
    _raster(path, shape[1:], dtype, functools.partial(read, i))
    for i in range(shape[0])
  ]


def _open_tiff(path, tif):
  pages, shape = tiff_pages(path, tif)
  if math.prod(shape) == 0:
    raise InputError(f'{path}: pages of shape {list(shape)} have no pixels')
  is_mapped = all(page.is_memmappable for page in pages)
  # What is decoded at once.
  unit = (1,) if is_mapped else pages[0].chunks
  dtype = files.stored_dtype(path, unit, pages[0].dtype)
  count = max(1, CACHE_BYTES // (math.prod(unit) * dtype.itemsize))
  decode = functools.lru_cache(count)(_decode_segment)

  def read_mapped(page, rows, columns):
    stored = np.memmap(
      path,
      np.dtype(page.dtype).newbyteorder(tif.byteorder),
      mode='r',
      offset=page.dataoffsets[0],
      shape=page.shape,
    )
    if page.axes == 'SYX':
      stored = np.moveaxis(stored, 0, -1)
    window = stored.reshape(*shape[:2], -1)[rows, columns]
    return window[..., : shape[-1]]

  def read_segments(page, rows, columns):
    length = page.tilelength if page.is_tiled else page.rowsperstrip
    width = page.tilewidth if page.is_tiled else page.imagewidth
    across = -(-shape[1] // width)
    down = -(-shape[0] // length)
    planes = page.samplesperpixel if page.axes == 'SYX' else 1
    window = np.empty(
      (rows.stop - rows.start, columns.stop - columns.start, shape[-1]), dtype
    )
    for plane in range(min(planes, shape[-1])):
      channels = slice(plane, plane + 1) if planes > 1 else slice(None)
      for i in range(rows.start // length, -(-rows.stop // length)):
        for j in range(columns.start // width, -(-columns.stop // width)):
          segment = decode(page, (plane * down + i) * across + j)
          _paste(
            window[..., channels],
            segment[..., : shape[-1]],
            (i * length - rows.start, j * width - columns.start),
          )
    return window

  read = read_mapped if is_mapped else read_segments
  return [
    _raster(path, shape, dtype, functools.partial(read, page)) for page in pages
  ]


def _decode_segment(page, index):
  """Returns the strip or tile [h, w, C] of that index."""
  file = page.parent.filehandle
  with file.lock:
    file.seek(page.dataoffsets[index])
    data = file.read(page.databytecounts[index])
  tables = {}
  if page.jpegtables is not None or page.keyframe.jpegheader is not None:
    tables = {
      'jpegtables': page.jpegtables,
      'jpegheader': page.keyframe.jpegheader,
    }
  segment, _, shape = page.keyframe.decode(data, index, **tables)
  if segment is None:
    raise InputError(f'{file.path}: strip or tile {index} is empty')
  return segment.reshape(shape)[0]


def _paste(window, segment, at):
  """Writes the part of a segment, whose first pixel is `at`, in the window."""
  into, of = [], []
  for first, size, length in zip(at, window.shape, segment.shape, strict=False):
    start, stop = max(first, 0), min(first + length, size)
    into.append(slice(start, stop))
    of.append(slice(start - first, stop - first))
  window[tuple(into)] = segment[tuple(of)]


def _open_zarr(path):
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
    shape = files.stack_shape(path, store.shape)
    axes = {2: 'yx', 3: 'zyx', 4: 'zyxc'}[store.rank]
  elif len(axes) != store.rank or not set('yx') <= set(axes) <= set('tczyx'):
    raise InputError(
      f'{path}: axes {axes} of shape {list(store.shape)}; expected y and x, '
      'and of t, c and z what there is'
    )
  sizes = dict(zip(axes, store.shape, strict=True))
  shape = (sizes['y'], sizes['x'], sizes.get('c', 1))
  if 0 in store.shape:
    raise InputError(f'{path}: shape {list(store.shape)} has no pixels')
  chunk = store.chunk_layout.read_chunk.shape
  dtype = files.stored_dtype(path, chunk, store.dtype.numpy_dtype)

  def read(t, z, rows, columns):
    at = {'t': t, 'z': z, 'y': rows, 'x': columns, 'c': slice(None)}
    window = store[tuple(at[axis] for axis in axes)].read().result()
    left = [axis for axis in axes if axis in 'yxc']
    window = window.transpose([left.index(a) for a in 'yxc' if a in left])
    return window.reshape(*window.shape[:2], -1)

  return [
    _raster(path, shape, dtype, functools.partial(read, t, z))
    for t in range(sizes.get('t', 1))
    for z in range(sizes.get('z', 1))
  ]


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
