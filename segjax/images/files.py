# SPDX-License-Identifier: Apache-2.0
"""Image files in and out, as a whole or by windows.

This is the entry to all formats; each of them is one file beside this one.
What is read is what was stored: nothing is scaled, inverted, rotated or
coloured. A palette PNG gives its indices, not its colours. One bit per pixel
gives uint8 0 and 1. Alpha is dropped: it says how to show a pixel, not what was
measured. Any other stored sample is a channel. A file that is not whole is
refused, never half read.
"""

import contextlib
import errno
import hashlib
import io
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segjax.atomic import replacing
from segjax.errors import InputError
from segjax.images import npy, png_jpeg, tiff, zarr
from segjax.images.palettes import complete_palette
from segjax.images.windows import (
  DTYPES,
  MAX_PAGE_VALUES,
  Canvas,
  Raster,
  check_size,
  uncompressed_canvas,
)

# Each has `open_pages`; those that are written in place, `create` and
# `page_offsets`.
_FORMATS = {
  '.tif': tiff,
  '.tiff': tiff,
  '.png': png_jpeg,
  '.jpg': png_jpeg,
  '.jpeg': png_jpeg,
  '.npy': npy,
}


def read_stack(path: str | os.PathLike) -> np.ndarray:
  """Returns all pages of an image file.

  Args:
    path: as for `open_rasters`.

  Returns:
    uint8, uint16 or float32 [N,H,W,C]: N pages of H rows, W columns and C
    channels, as stored, in native byte order.

  Raises:
    InputError: as `open_rasters`; or a page has more than `MAX_PAGE_VALUES`
      values, or pixels that are NaN or inf.
  """
  with open_rasters(path) as pages, _refusing_damage(path):
    shape = pages[0].shape
    check_size(path, shape)
    whole = slice(0, shape[0]), slice(0, shape[1])
    images = np.empty((len(pages), *shape), pages[0].dtype)
    for image, page in zip(images, pages, strict=True):
      image[:] = page[whole]
  _check_finite(path, images)
  return images


def _check_finite(path, images):
  is_float = images.dtype.kind == 'f'
  if is_float and not (finite := np.isfinite(images)).all():
    at = np.unravel_index(np.argmin(finite), images.shape)
    raise InputError(
      f'{path}: pixel is {images[at]} in page {at[0]}, row {at[1]}, column '
      f'{at[2]}, channel {at[3]} (counted from 0); pixels must be finite'
    )


def read_numbered_page(path: str | os.PathLike, number: int) -> np.ndarray:
  """Returns one page [H,W,C] of an image file; see `read_stack`."""
  with open_rasters(path) as pages, _refusing_damage(path):
    height, width, _ = pages[number].shape
    check_size(path, pages[number].shape)
    page = pages[number][:height, :width]
  _check_finite(path, page[None])
  return page


def count_pages(path: str | os.PathLike) -> int:
  """Returns how many pages an image file has; see `open_rasters`."""
  if Path(path).suffix.lower() in ('.png', '.jpg', '.jpeg'):
    return 1  # It need not be opened, which takes long for many files.
  with open_rasters(path) as pages:
    return len(pages)


@contextlib.contextmanager
def open_rasters(path: str | os.PathLike) -> Iterator[list[Raster]]:
  """Yields the pages of an image file, which stays open for the block.

  Pages of TIFF, Zarr and .npy may have any size; only the windows asked for are
  read. A PNG or JPEG has no windows: it is decoded as a whole at the first one.

  Args:
    path: a .tif or .tiff of any number of pages, a .png, .jpg or .jpeg, a .npy
      of shape [H,W], [N,H,W] or [N,H,W,C], or a .zarr folder of these shapes,
      or OME-Zarr, of which the finest scale is taken.

  Raises:
    InputError: the file is missing, a directory, of another ending or dtype,
      truncated or corrupt, empty, or has pages of unequal shape; or more than
      `MAX_PAGE_VALUES` values would be decoded at once. Some damage is found
      only when a window is read. Changed bytes can go unseen in a JPEG, a .npy,
      a Zarr and an uncompressed TIFF: they have no checksum.
  """
  path = Path(path)
  if zarr.is_zarr(path):
    reader = zarr
  elif path.is_file():
    reader = _FORMATS[_known_ending(path, _FORMATS)]
  else:
    what = 'is a directory, not a file' if path.is_dir() else 'no such file'
    raise InputError(f'{path}: {what}')
  with contextlib.ExitStack() as stack:
    with _refusing_damage(path):
      pages = stack.enter_context(reader.open_pages(path))
    yield [_refusing_raster(path, page) for page in pages]


def _refusing_raster(path, page):
  """Returns the page; its windows are refused as damaged if they fail."""

  def read(rows, columns):
    with _refusing_damage(path):
      return np.ascontiguousarray(page[rows, columns], page.dtype)

  return Raster(page.shape, page.dtype, read)


def decode_picture(data: bytes, source: str) -> np.ndarray:
  """Returns [H,W,C], the pixels of a PNG or JPEG of these bytes.

  Args:
    data: the bytes of the file.
    source: says in messages whose bytes they are.

  Raises:
    InputError: as `read_stack`.
  """
  with _refusing_damage(source):
    return png_jpeg.decode(io.BytesIO(data), source)


@contextlib.contextmanager
def _refusing_damage(source):
  """Turns whatever a decoder raises of the block into an InputError."""

  # Otherwise tifffile also logs to stderr what the InputError says. A function
  # of this call's own, so that other threads do not remove it.
  def mute(record):
    return False

  log = logging.getLogger('tifffile')
  log.addFilter(mute)
  try:
    yield
  except InputError:
    raise
  except MemoryError as e:
    raise InputError(f'{source}: too large for the memory of this host') from e
  # On damaged bytes the decoders raise whatever their parsers run into.
  except Exception as e:
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())
    message = f'{source}: truncated, corrupt or misnamed; {reason}'
    raise InputError(message) from e
  finally:
    log.removeFilter(mute)


def write_stack(
  path: str | os.PathLike,
  array: np.ndarray,
  palette: np.ndarray | None = None,
) -> None:
  """Writes a stack that `read_stack` returns unchanged, as [N,H,W,C].

  The file appears under its name whole or not at all, and replaces one that
  was there. A TIFF is uncompressed, one page per image, minimum is black.

  Args:
    path: a .tif, .tiff or .npy, or a .png for one uint8 image. Its directory
      exists.
    array: uint8, uint16 or float32 [N,H,W] or [N,H,W,C]; C is 1 or 3 in a .png.
    palette: uint8[K,3], K <= 256, the colours in which a .png of one channel
      shows its values 0..K-1, class indices; values from K on get VOC's.

  Raises:
    InputError: another ending, shape or dtype, before anything is written; or
      the file cannot be written (no such directory, no permission, disk full).
  """
  path = Path(path)
  ending = _known_ending(path, ('.tif', '.tiff', '.png', '.npy'))
  array = np.asarray(array)
  given = f'{path}: cannot hold {array.dtype}{list(array.shape)}'
  dtype = array.dtype.name
  if dtype not in DTYPES or array.ndim not in (3, 4) or array.size == 0:
    raise InputError(
      f'{given}; expected [N,H,W] or [N,H,W,C] of {", ".join(DTYPES)}'
    )
  if ending == '.png':
    check_picture(path, array.shape, array.dtype)
  if palette is not None:
    if ending != '.png' or array.shape[3:] == (3,):
      raise InputError(f'{given} with a palette; only a .png of 1 channel can')
    palette = complete_palette(palette)
  try:
    with replacing(path) as temporary:
      if ending == '.png':
        with open(temporary, 'xb') as file:
          png_jpeg.encode(file, array[0], palette)
        return
      _FORMATS[ending].create(temporary, array.shape, np.dtype(dtype))
      whole = slice(0, array.shape[1]), slice(0, array.shape[2])
      with _canvas(_FORMATS[ending], temporary, array.shape, dtype) as canvas:
        for number, page in enumerate(array):
          canvas[number, *whole] = page
  except OSError as e:
    raise InputError(f'{path}: cannot be written; {e.strerror or e}') from e


def check_picture(
  path: str | os.PathLike, shape: tuple[int, ...], dtype: np.dtype
) -> None:
  """Raises InputError unless a .png can hold such a stack."""
  one_picture = shape[0] == 1 and shape[3:] in ((), (1,), (3,))
  is_small = math.prod(shape) <= MAX_PAGE_VALUES
  if dtype != np.uint8 or not one_picture or not is_small:
    raise InputError(
      f'{path}: cannot hold {dtype}{list(shape)}; a .png takes one uint8 page '
      f'of 1 or 3 channels and at most {MAX_PAGE_VALUES} values, use .tif'
    )


@contextlib.contextmanager
def open_canvas(
  path: str | os.PathLike,
  shape: tuple[int, ...],
  dtype: np.dtype,
) -> Iterator[Canvas]:
  """Yields a file that is written by windows, in any order.

  The file is made if it does not exist. One that was begun is opened again and
  goes on where it stopped. What was not written is 0.

  Args:
    path: a .tif or .tiff, as `write_stack` writes it, a .npy, or a .zarr.
    shape: [N, H, W] or [N, H, W, C].
    dtype: uint8, uint16, float16 or float32.

  Raises:
    InputError: another ending.
    OSError: the file cannot be made or written.
  """
  path, dtype = Path(path), np.dtype(dtype)
  ending = _known_ending(path, ('.tif', '.tiff', '.npy', '.zarr'))
  if ending == '.zarr':
    yield zarr.open_canvas(path, shape, dtype)
    return
  writer = _FORMATS[ending]
  if dtype.itemsize * math.prod(shape) > sys.maxsize:
    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
  if not path.exists():
    # It gets its name when all of it is there, since it may be opened again.
    unfinished = path.with_name(f'.{path.name}.new')
    unfinished.unlink(missing_ok=True)
    writer.create(unfinished, shape, dtype)
    os.replace(unfinished, path)
  with _canvas(writer, path, shape, dtype) as canvas:
    yield canvas


def _canvas(writer, path, shape, dtype):
  offsets = writer.page_offsets(path)
  return uncompressed_canvas(path, offsets, shape, np.dtype(dtype))


def list_images(path: str | os.PathLike) -> list[Path]:
  """Returns the image files at `path`, slice2 before slice10.

  Args:
    path: an image file, or a directory; folders below it and names that begin
      with a dot are passed over.

  Raises:
    InputError: nothing is there, or nothing with an ending `read_stack` takes.
  """
  path = Path(path)
  if path.is_file():
    _known_ending(path, _FORMATS)
    return [path]
  found = [f for f in path.glob('[!.]*') if f.is_file()]
  found = [f for f in found if f.suffix.lower() in _FORMATS]
  if not found:
    what = 'no image in this' if path.is_dir() else 'no such file or'
    raise InputError(f'{path}: {what} directory; expected {" ".join(_FORMATS)}')
  return sorted(found, key=_natural_key)


def list_rasters(path: str | os.PathLike) -> list[Path]:
  """Returns the image files and Zarr folders at `path`; see `list_images`."""
  path = Path(path)
  if zarr.is_zarr(path):
    return [path]
  folders = [folder for folder in path.glob('[!.]*') if zarr.is_zarr(folder)]
  try:
    found = list_images(path)
  except InputError:
    if not folders:
      raise
    found = []
  return sorted((*found, *folders), key=_natural_key)


def digest_of_rasters(paths: Sequence[Path]) -> str:
  """Returns the SHA-256 of names, sizes and times of change, in hexadecimal.

  Contents are not read: that would take minutes for a large image.
  """
  digest = hashlib.sha256()
  for path in paths:
    for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
      status = file.stat()
      name = file.relative_to(path.parent)
      digest.update(f'{name} {status.st_size} {status.st_mtime_ns}\n'.encode())
  return digest.hexdigest()


def _natural_key(path):
  """Sorts slice2 before slice10."""
  parts = re.split(r'(\d+)', path.name)
  parts[1::2] = map(int, parts[1::2])
  return parts, path.name


def _known_ending(path, known):
  ending = path.suffix.lower()
  if ending not in known:
    raise InputError(f'{path}: ending {ending!r} is none of {" ".join(known)}')
  return ending
