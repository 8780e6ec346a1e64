# SPDX-License-Identifier: Apache-2.0
"""Picture files in and out.

tifffile is known here, to `tiff`, `rasters` and `canvases`; Pillow, which reads
PNG and JPEG, to `png_jpeg` and to `legends`, which draws with it.

Every stack in memory is [N,H,W,C]: N pages of H rows, W columns and C
channels. What is read is what was stored: nothing is scaled, inverted,
rotated or coloured. A file that is not whole is refused, never half read.
"""

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile

from segjax.atomic import replacing
from segjax.data.layout import natural_key
from segjax.errors import InputError, SaveFailed
from segjax.images import png_jpeg
from segjax.images.palettes import complete_palette
from segjax.images.png import write_png
from segjax.images.tiff import tiff_pages

# 16384 x 16384 gray. Also what stops a small file that decodes to a huge page.
MAX_PAGE_VALUES = 2**28

_DTYPES = ('uint8', 'uint16', 'float32')
_WRITABLE = ('.tif', '.tiff', '.png', '.npy')


def read_stack(path: str | os.PathLike) -> np.ndarray:
  """Returns all pages of a picture file.

  A palette PNG gives its indices, not its colours. One bit per pixel gives
  uint8 0 and 1. Alpha is dropped: it says how to show a pixel, not what was
  measured. Any other stored sample is a channel.

  Args:
    path: a .tif or .tiff (any number of pages), .png, .jpg or .jpeg (one page)
      or .npy of shape [H,W], [N,H,W] or [N,H,W,C].

  Returns:
    uint8, uint16 or float32 [N,H,W,C], as stored, in native byte order.

  Raises:
    InputError: the file is missing, a directory, of another ending or dtype,
      truncated or corrupt, empty, has pages of unequal shape, a page of more
      than `MAX_PAGE_VALUES` values, or NaN or inf pixels. Changed bytes can go
      unseen in a JPEG, a .npy and an uncompressed TIFF: they have no checksum.
  """
  path = Path(path)
  reader = _READERS[check_file(path)]
  with refusing_damage(path):
    images = reader(path)
  finite = np.isfinite(images)
  if not finite.all():
    at = np.unravel_index(np.argmin(finite), images.shape)
    raise InputError(
      f'{path}: pixel is {images[at]} in page {at[0]}, row {at[1]}, column '
      f'{at[2]}, channel {at[3]} (counted from 0); pixels must be finite'
    )
  return images


def check_file(path: Path) -> str:
  """Returns the ending of a file, in small letters.

  Raises:
    InputError: there is no such file, or `read_stack` takes no such ending.
  """
  if not path.is_file():
    what = 'is a directory, not a file' if path.is_dir() else 'no such file'
    raise InputError(f'{path}: {what}')
  return _known_ending(path, _READERS)


def decode_picture(data: bytes, source: str) -> np.ndarray:
  """Returns [H,W,C], what `read_stack` reads from a PNG or JPEG of these bytes.

  Raises InputError where it does; `source` says whose the bytes are.
  """
  with refusing_damage(source):
    return _decode_picture(data, source)


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
    _known_ending(path, _READERS)
    return [path]
  files = [f for f in path.glob('[!.]*') if f.is_file()]
  files = [f for f in files if f.suffix.lower() in _READERS]
  if not files:
    what = 'no image in this' if path.is_dir() else 'no such file or'
    raise InputError(f'{path}: {what} directory; expected {" ".join(_READERS)}')
  return sorted(files, key=natural_key)


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
    palette: uint8[K,3], K <= 256, colours in which a .png of one channel shows
      its values 0..K-1, class indices; those above get VOC's.

  Raises:
    InputError: another ending, shape or dtype, before anything is written; or
      the file cannot be written (no such directory, no permission, disk full).
  """
  path = Path(path)
  ending = _known_ending(path, _WRITABLE)
  array = np.asarray(array)
  given = f'{path}: cannot hold {array.dtype}{list(array.shape)}'
  dtype = array.dtype.name
  if dtype not in _DTYPES or array.ndim not in (3, 4) or array.size == 0:
    raise InputError(
      f'{given}; expected [N,H,W] or [N,H,W,C] of {", ".join(_DTYPES)}'
    )
  if ending == '.png':
    check_picture(path, array.shape, array.dtype)
  if palette is not None:
    if ending != '.png' or array.shape[3:] == (3,):
      raise InputError(f'{given} with a palette; only a .png of 1 channel can')
    palette = complete_palette(palette)
  try:
    with replacing(path) as temporary, open(temporary, 'xb') as file:
      array = np.ascontiguousarray(array, np.dtype(dtype))
      _encode(file, array, ending, palette)
  except OSError as e:
    raise InputError(f'{path}: cannot be written; {e.strerror or e}') from e


def check_picture(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
  """Raises InputError unless a .png can hold such a stack."""
  one_picture = shape[0] == 1 and shape[3:] in ((), (1,), (3,))
  if dtype != np.uint8 or not one_picture:
    raise InputError(
      f'{path}: cannot hold {dtype}{list(shape)}; a .png takes one uint8 page '
      'of 1 or 3 channels, use .tif'
    )


def _encode(file, array, ending, palette):
  if ending == '.npy':
    np.save(file, array, allow_pickle=False)
    return
  if array.shape[3:] == (1,):
    array = array[..., 0]
  if ending == '.png':
    write_png(file, array[0].reshape(*array.shape[1:3], -1), palette)
    return
  axes = {'planarconfig': 'contig'} if array.ndim == 4 else {}
  with tifffile.TiffWriter(file, bigtiff=array.nbytes > 2**31) as tif:
    for page in array:
      # Not contiguous: the header goes first, so that every cut is noticed.
      tif.write(
        page, photometric='minisblack', contiguous=False, metadata=None, **axes
      )


@contextlib.contextmanager
def refusing_damage(source: Path | str) -> Iterator[None]:
  """Turns whatever a decoder raises of the block into an InputError.

  A SaveFailed, which is not of the bytes, stays what it is.
  """

  # Otherwise tifffile also logs to stderr what the InputError says. A function
  # of this call's own, so that other threads do not remove it.
  def mute(record):
    return False

  log = tifffile.logger()
  log.addFilter(mute)
  try:
    yield
  except (InputError, SaveFailed):
    raise
  # On damaged bytes the decoders raise whatever their parsers run into.
  except Exception as e:
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())
    message = f'{source}: truncated, corrupt or misnamed; {reason}'
    raise InputError(message) from e
  finally:
    log.removeFilter(mute)


def _known_ending(path, known):
  ending = path.suffix.lower()
  if ending not in known:
    raise InputError(f'{path}: ending {ending!r} is none of {" ".join(known)}')
  return ending


def stored_dtype(
  path: Path | str, shape: Sequence[int], dtype: np.dtype
) -> np.dtype:
  """Returns the dtype to read arrays of `shape` and `dtype` into.

  Raises:
    InputError: the array is empty or decodes to more than `MAX_PAGE_VALUES`,
      or its dtype is none that is read.
  """
  if math.prod(shape) == 0 or math.prod(shape) > MAX_PAGE_VALUES:
    raise InputError(
      f'{path}: pages of shape {list(shape)}; expected 1 to {MAX_PAGE_VALUES} '
      'values, cut larger images into smaller ones'
    )
  name = 'uint8' if dtype.kind == 'b' else dtype.name
  if name not in _DTYPES:
    raise InputError(f'{path}: dtype {dtype}; expected {", ".join(_DTYPES)}')
  return np.dtype(name)


def _read_tiff(path):
  # Without OME: its metadata may send the reader to other files.
  with tifffile.TiffFile(path, is_ome=False) as tif:
    pages, shape = tiff_pages(path, tif)
    stored = (*shape[:2], pages[0].samplesperpixel)
    dtype = stored_dtype(path, stored, pages[0].dtype)
    images = np.empty((len(pages), *shape), dtype)
    for i, page in enumerate(pages):
      image = page.asarray()
      if page.axes == 'SYX':
        image = np.moveaxis(image, 0, -1)
      images[i] = image.reshape(stored)[..., : shape[-1]]
  return images


def _read_picture(path):
  return _decode_picture(path.read_bytes(), path)[np.newaxis]


def _decode_picture(data, source):
  picture, shape, dtype = png_jpeg.open_picture(io.BytesIO(data), source)
  stored_dtype(source, shape, dtype)
  png_jpeg.check_whole(data, source)
  image = np.asarray(picture).astype(dtype)
  return image.reshape(*shape[:2], -1)[..., : shape[2]]


def stack_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns [N,H,W,C] of an array file; raises InputError if it has none."""
  shapes = {2: (1, *shape, 1), 3: (*shape, 1), 4: shape}
  if len(shape) not in shapes or shape[0] == 0:
    raise InputError(
      f'{path}: shape {list(shape)}; expected [H,W], [N,H,W] or [N,H,W,C]'
    )
  return shapes[len(shape)]


def _read_npy(path):
  array = np.lib.format.open_memmap(path, mode='r')
  shape = stack_shape(path, array.shape)
  dtype = stored_dtype(path, shape[1:], array.dtype)
  return np.array(array, dtype, order='C').reshape(shape)


_READERS = {
  **dict.fromkeys(('.tif', '.tiff'), _read_tiff),
  **dict.fromkeys(('.png', '.jpg', '.jpeg'), _read_picture),
  '.npy': _read_npy,
}
