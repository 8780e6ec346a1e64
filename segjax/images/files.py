# SPDX-License-Identifier: Apache-2.0
"""Image files of all formats, read and written as a whole or by windows.

Each format is one file beside this one and gives samples as they are stored;
`pixels` makes images of these samples, `labels` makes labels. A file that is
not whole is refused, never half read.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from segjax.atomic import refusing_write_errors, replacing
from segjax.errors import InputError, shortened
from segjax.images import npy, ome_zarr, png_jpeg, tiff, zarr
from segjax.images.calibration import Calibration
from segjax.images.labels import label_of
from segjax.images.pixels import check_finite, image_of
from segjax.images.windows import (
  DTYPES,
  MAX_PAGE_VALUES,
  NARROWEST_PX,
  Canvas,
  Raster,
  StoredPage,
  bytes_of,
  check_size,
  say_once,
  uncompressed_canvas,
)

# Every format has `open_pages`. `create` and `page_offsets` belong to the
# formats that are written by windows.
_FORMATS = {
  '.tif': tiff,
  '.tiff': tiff,
  '.png': png_jpeg,
  '.jpg': png_jpeg,
  '.jpeg': png_jpeg,
  '.bmp': png_jpeg,
  '.gif': png_jpeg,
  '.webp': png_jpeg,
  '.npy': npy,
}

Meaning = Callable[[StoredPage, Path | str], Raster]


def read_stack(path: str | os.PathLike) -> np.ndarray:
  """Returns all pages of an image file, as images; see `pixels.image_of`.

  Args:
    path: see `open_rasters`.

  Returns:
    uint8, uint16 or float32 [N,H,W,C]: N pages of H rows, W columns and C
    channels, in native byte order.

  Raises:
    InputError: see `open_rasters`; or all pages together have more than
      `MAX_PAGE_VALUES` values; or a pixel is NaN or inf.
  """
  return _read(path, image_of)


def read_labels(path: str | os.PathLike) -> np.ndarray:
  """Returns all pages of an image file, as labels; see `labels.label_of`.

  Args:
    path: see `open_rasters`.

  Returns:
    uint8, uint16 or int32 [N,H,W,C]; C is 1, or 3 for labels that are stored as
    colours.

  Raises:
    InputError: see `read_stack`; or the file does not hold labels.
  """
  return _read(path, label_of)


def read_image_page(path: str | os.PathLike, number: int) -> np.ndarray:
  """Returns one page [H,W,C] of an image file; see `read_stack`.

  The limit of `MAX_PAGE_VALUES` counts for this page alone.
  """
  return _read(path, image_of, number)[0]


def read_label_page(path: str | os.PathLike, number: int) -> np.ndarray:
  """Returns one page [H,W,C] of a label file; see `read_labels`."""
  return _read(path, label_of, number)[0]


def _read(path, meaning, number=None):
  """Returns [N,H,W,C], all pages of a file or only that of a number."""
  with open_rasters(path, meaning) as pages, _refusing_damage(path):
    first = pages[0]
    numbers = range(len(pages)) if number is None else [number]
    shape = len(numbers), *first.shape
    check_size(path, shape, first.dtype, bytes_of(Path(path)))
    images = np.empty(shape, first.dtype)
    for image, i in zip(images, numbers, strict=True):
      image[:] = pages[i].read_all()
      check_finite(path, i, image)
  return images


def read_colours(
  path: str | os.PathLike, number: int
) -> dict[int, tuple[int, ...]] | None:
  """Returns index -> (red, green, blue) of the indices in a label page.

  A page without a palette is not decoded, and gives None.

  Raises:
    InputError: see `read_labels`; or the palette lacks an index.
  """
  path = Path(path)
  with _open_stored(path) as stored, _refusing_damage(path):
    palette, page = stored[number].palette, label_of(stored[number], path)
    if palette is None:
      return None
    check_size(path, page.shape, page.dtype, bytes_of(path))
    indices = np.unique(page.read_all())
    if indices[-1] >= len(palette):
      raise InputError(
        f'{path}: index {indices[-1]} in a palette of {len(palette)} colours'
      )
    return {int(i): tuple(palette[i].tolist()) for i in indices}


def read_calibration(path: str | os.PathLike) -> Calibration:
  """Returns the axes and pixel sizes of an image file; see `open_rasters`."""
  with _open_stored(Path(path)) as stored:
    return stored[0].calibration


def count_pages(path: str | os.PathLike, meaning: Meaning = image_of) -> int:
  """Returns how many pages an image file has; see `open_rasters`."""
  if Path(path).suffix.lower() in ('.png', '.jpg', '.jpeg'):
    return 1  # It need not be opened, which takes long for many files.
  with open_rasters(path, meaning) as pages:
    return len(pages)


def how_to_join(path: Path, channels: int, are_last: bool = False) -> str:
  """Returns a sentence that says how pages become channels, for a message.

  Args:
    path: the image file, which is read as pages of one channel.
    channels: number of channels that the image may have.
    are_last: whether they are the columns of the pages; else they are pages.

  Returns:
    '' for a format without a name for the axis of channels.
  """
  ending = path.suffix.lower()
  if ending == '.npy':
    array = 'np.load(FILE)'
    array = array if are_last else f'np.moveaxis({array}, 0, -1)'
    command = f'np.save(NEW, {array}[None])'
  elif ending in ('.tif', '.tiff'):
    array = 'tifffile.imread(FILE, key=slice(None))'
    array = f'np.moveaxis({array}, -1, 0)' if are_last else array
    command = (
      f"tifffile.imwrite(NEW, {array}, photometric='minisblack', "
      "metadata={'axes': 'CYX'})"
    )
  else:
    return ''
  what = f'it is one image [H,W,C] of {channels} channels'
  if not are_last:
    what = f'the {channels} pages are channels of one image'
  return f'. If {what}, save it so in Python: {command}'


@contextlib.contextmanager
def open_rasters(
  path: str | os.PathLike, meaning: Meaning = image_of
) -> Iterator[list[Raster]]:
  """Yields the pages of an image file, which stays open for the block.

  Pages of TIFF, Zarr and .npy may have any size; only the windows asked for are
  read. Other formats have no windows: the first one decodes the whole picture.

  Args:
    path: a .tif or .tiff of any number of pages; a .png, .jpg, .jpeg, .bmp,
      .gif or .webp; a .npy or Zarr folder of shape [H,W], [N,H,W] or [N,H,W,C];
      or an OME-Zarr folder, of which the finest scale is read.
    meaning: function that says what stored samples mean: `pixels.image_of`,
      `labels.label_of` or `labels.map_of`.

  Raises:
    InputError: the file is missing, a directory, truncated, corrupt, empty, or
      of another ending or dtype; its pages have unequal shapes; more than
      `MAX_PAGE_VALUES` values would be decoded at once, or more than
      `MAX_SMALL_BYTES` of a file below `SMALL_FILE_BYTES`; there are more than
      `MAX_PAGES` pages, or `MAX_SMALL_PAGES` in a small file; or `meaning`
      refuses a page. Some damage is found only when a window is read. Changed
      bytes can go unseen in JPEG, BMP, GIF, .npy, Zarr and uncompressed TIFF,
      which have no checksum.
  """
  path = Path(path)
  with _open_stored(path) as stored:
    with _refusing_damage(path):
      pages = [meaning(page, path) for page in stored]
    first = pages[0]
    for i, page in enumerate(pages):
      if (page.shape, page.dtype) != (first.shape, first.dtype):
        raise InputError(
          f'{path}: page {i} is {page.dtype}{list(page.shape)}, page 0 '
          f'{first.dtype}{list(first.shape)}; pages must be equal'
        )
    yield [_refusing_raster(path, page) for page in pages]


@contextlib.contextmanager
def _open_stored(path):
  """Yields the pages of an image file as it stores them."""
  if zarr.is_zarr(path):
    reader = zarr
  elif path.is_file():
    reader = _FORMATS[_known_ending(path, _FORMATS)]
  else:
    what = 'is a directory, not a file' if path.is_dir() else 'no such file'
    raise InputError(f'{path}: {what}')
  with contextlib.ExitStack() as stack:
    with _refusing_damage(path):
      stored = stack.enter_context(reader.open_pages(path))
    yield stored


def _refusing_raster(path, page):
  """Returns the page; a window that cannot be decoded raises InputError."""

  def read(rows, columns):
    with _refusing_damage(path):
      return np.ascontiguousarray(page[rows, columns], page.dtype)

  return Raster(page.shape, page.dtype, read)


def decode_picture(
  data: bytes, source: str, meaning: Meaning = image_of
) -> np.ndarray:
  """Returns the only page [H,W,C] of the bytes of a PNG, JPEG or the like.

  Raises:
    InputError: see `read_stack`; or there are several pages.
  """
  with _refusing_damage(source):
    pages = png_jpeg.pages_of(lambda: io.BytesIO(data), source)
    if len(pages) > 1:
      raise InputError(f'{source}: animated; expected one image')
    return np.ascontiguousarray(meaning(pages[0], source).read_all())


@contextlib.contextmanager
def _refusing_damage(source):
  """Turns every error of a decoder in the block into an InputError."""

  # tifffile also logs to stderr what the InputError says. Each call has its own
  # filter, so that another thread does not remove it.
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
  # On damaged bytes, parsers of the decoders raise errors of any type.
  except Exception as e:
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())
    if os.path.isfile(source) and not os.path.getsize(source):
      reason = 'it has 0 bytes'
    raise InputError(
      f'{source}: truncated, corrupt or misnamed; {shortened(reason, 300)}'
    ) from e
  finally:
    log.removeFilter(mute)


def write_stack(path: str | os.PathLike, array: np.ndarray) -> None:
  """Writes a stack, which `read_stack` returns unchanged as [N,H,W,C].

  The file appears under its name whole or not at all, and replaces one that
  was there. For TIFF, see `tiff.create`.

  Args:
    path: a .tif, .tiff or .npy, or a .png for one uint8 image. Its directory
      exists.
    array: uint8, uint16 or float32 [N,H,W] or [N,H,W,C]; C is 1 or 3 in a .png.

  Raises:
    InputError: the ending, the shape or the dtype is not supported, and nothing
      is written; or the file cannot be written (no such directory, no
      permission, disk full).
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
  if ending == '.npy' and array.ndim == 3:
    if array.shape[0] == 3 or array.shape[2] <= NARROWEST_PX:
      array = array[..., None]  # Or it could be one image of several channels.
  with refusing_write_errors(path), replacing(path) as temporary:
    if ending == '.png':
      with open(temporary, 'xb') as file:
        png_jpeg.encode(file, array[0])
      return
    whole = slice(0, array.shape[1]), slice(0, array.shape[2])
    with open_canvas(temporary, array.shape, np.dtype(dtype)) as canvas:
      for number, page in enumerate(array):
        canvas[number, *whole] = page


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
  calibration: Calibration = Calibration(),
) -> Iterator[Canvas]:
  """Yields the canvas of a file that is written by windows, in any order.

  The file is made if it does not exist, and keeps its contents if it does.
  Windows that were never written are 0.

  Args:
    path: a .tif or .tiff, as `write_stack` writes it, a .npy, or a .zarr.
    shape: [N, H, W] or [N, H, W, C].
    dtype: uint8, uint16, float16 or float32.
    calibration: axes and pixel sizes that a .tif or .zarr states.

  Raises:
    InputError: the ending is not supported.
    OSError: the file cannot be made or written.
  """
  path, dtype = Path(path), np.dtype(dtype)
  ending = _known_ending(path, ('.tif', '.tiff', '.npy', '.zarr'))
  if ending == '.zarr':
    yield ome_zarr.open_canvas(path, shape, dtype, calibration)
    return
  writer = _FORMATS[ending]
  if dtype.itemsize * math.prod(shape) > sys.maxsize:
    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
  if not path.exists():
    # The file gets its name when it is complete, since it may be opened again.
    unfinished = path.with_name(f'.{path.name}.new')
    unfinished.unlink(missing_ok=True)
    writer.create(unfinished, shape, dtype, calibration)
    os.replace(unfinished, path)
  offsets = writer.page_offsets(path)
  with uncompressed_canvas(path, offsets, shape, dtype) as canvas:
    yield canvas


def list_images(path: str | os.PathLike) -> list[Path]:
  """Returns the image files at `path`, slice2 before slice10.

  Args:
    path: an image file, or a directory. Folders below it, and names that begin
      with a dot, are passed over; so are files of other endings, with a
      message.

  Raises:
    InputError: nothing is there, or no file has an ending that is read.
  """
  path = Path(path)
  if path.is_file():
    _known_ending(path, _FORMATS)
    return [path]
  entries = [*path.glob('[!.]*')]
  files = [f for f in entries if f.is_file()]
  for entry in {*entries} - {*files}:
    if entry.suffix.lower() in _FORMATS and not entry.exists():
      raise InputError(f'{entry}: a link to a file that is not there')
  found = [f for f in files if f.suffix.lower() in _FORMATS]
  if not found:
    what = 'no image in this' if path.is_dir() else 'no such file or'
    expected = ' '.join([*_FORMATS, '.zarr'])
    raise InputError(f'{path}: {what} directory; expected {expected}')
  if len(files) > len(found):
    endings = {f.suffix.lower() or f.name for f in files} - _FORMATS.keys()
    say_once(
      f'endings in {path}',
      f'{path}: {len(files) - len(found)} file(s) of other endings are passed '
      f'over: {" ".join(sorted(endings)[:8])}',
    )
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
  """Returns the SHA-256, in hexadecimal, of names, sizes and times of change.

  Contents are not read, which would take minutes for a large image.
  """
  digest = hashlib.sha256()
  for path in paths:
    for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
      status = file.stat()
      name = file.relative_to(path.parent)
      digest.update(
        f'{name} {status.st_size} {status.st_mtime_ns}\n'.encode(
          errors='surrogateescape'
        )
      )
  return digest.hexdigest()


def _natural_key(path):
  """Returns a key that sorts slice2 before slice10."""
  parts = re.split(r'(\d+)', path.name)
  parts[1::2] = map(int, parts[1::2])
  return parts, path.name


def _known_ending(path, known):
  ending = path.suffix.lower()
  if ending not in known:
    raise InputError(f'{path}: ending {ending!r} is none of {" ".join(known)}')
  return ending
