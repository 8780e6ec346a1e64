# SPDX-License-Identifier: Apache-2.0
"""PNG and JPEG files, decoded and encoded as a whole by Pillow.

Only this file, and `legends` and `runs.curves`, which draw, know Pillow. Its
plug-in classes are called directly because `Image.open` reports a large image
by a warning, and catching warnings is not safe among threads.
"""

import contextlib
import functools
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from segjax.errors import InputError
from segjax.images.windows import Raster, stored_dtype

_PNG_START = b'\x89PNG'
_PNG_END = b'\xaeB`\x82'  # The checksum of the last chunk, which is empty.


@contextlib.contextmanager
def open_pages(path: Path) -> Iterator[list[Raster]]:
  """Yields the only page of a PNG or JPEG.

  Opening reads the header. The first window decodes the picture, which stays in
  memory as long as the page.
  """
  with open(path, 'rb') as file:
    _, shape, dtype = _open(file, path)
  lock = threading.Lock()

  @functools.cache
  def pixels():
    with open(path, 'rb') as file:
      return decode(file, path)

  def read(rows, columns):
    with lock:  # The other threads wait for the first one's picture.
      decoded = pixels()
    return decoded[rows, columns]

  yield [Raster(shape, dtype, read)]


def decode(file: BinaryIO, source: Path | str) -> np.ndarray:
  """Returns the pixels [H,W,C] of a PNG or JPEG, uint8 or uint16, no alpha.

  Args:
    file: opened at its begin.
    source: names the file in messages.

  Raises:
    InputError: as `_open`; or the file is cut. On damaged bytes Pillow raises
      whatever its parsers run into.
  """
  picture, shape, dtype = _open(file, source)
  if picture.format == 'PNG':
    # Decoding ignores checksums and whether there is an end.
    picture.verify()
    if file.read(len(_PNG_END)) != _PNG_END:
      raise InputError(f'{source}: truncated; expected a whole image')
    file.seek(0)
    picture, *_ = _open(file, source)
  pixels = np.asarray(picture).reshape(*shape[:2], -1)[..., : shape[2]]
  return pixels.astype(dtype, copy=False)


def encode(
  file: BinaryIO, page: np.ndarray, palette: np.ndarray | None = None
) -> None:
  """Writes a PNG.

  Args:
    file: to write to.
    page: u8[H, W], or u8[H, W, C] with C 1 or 3.
    palette: u8[K, 3], the colours that show the values of one channel,
      class indices below K.
  """
  picture = Image.fromarray(page[..., 0] if page.shape[2:] == (1,) else page)
  if palette is not None:
    picture.putpalette(palette.tobytes())
  picture.save(file, 'PNG')


def encode_preview(
  picture: np.ndarray, most_width: int = 1600, most_pixels: int = 1_200_000
) -> bytes:
  """Returns a JPEG of a picture u8[H, W, 3], made smaller if it is large."""
  height, width = picture.shape[:2]
  scale = max(1.0, width / most_width, (height * width / most_pixels) ** 0.5)
  image = Image.fromarray(picture)
  if scale > 1:
    size = max(round(width / scale), 1), max(round(height / scale), 1)
    image = image.resize(size, Image.Resampling.LANCZOS)
  file = io.BytesIO()
  # All colours at full resolution: panels hold maps of classes and text.
  image.save(file, 'JPEG', quality=88, subsampling=0)
  return file.getvalue()


def _open(
  file: BinaryIO, source: Path | str
) -> tuple[ImageFile.ImageFile, tuple[int, int, int], np.dtype]:
  """Returns a PNG or JPEG, whichever the first bytes say, not yet decoded.

  Returns:
    The picture, the shape [H,W,C] of its pixels without alpha, and their dtype.

  Raises:
    InputError: the picture is animated, too large, or of a mode that is not
      read.
  """
  is_png = file.read(len(_PNG_START)) == _PNG_START
  file.seek(0)
  if is_png:
    picture = PngImagePlugin.PngImageFile(file)
    if picture.is_animated:
      raise InputError(f'{source}: animated; expected one image')
  else:
    picture = JpegImagePlugin.JpegImageFile(file)
  bits = 16 if '16' in str(picture.tile[0].args) else 8
  known = ['I;16'] if bits == 16 else ['1', 'L', 'LA', 'P', 'RGB', 'RGBA']
  if picture.mode not in known:
    raise InputError(
      f'{source}: {bits}-bit {picture.mode}; expected gray, palette or '
      '8-bit RGB'
    )
  bands = picture.getbands()
  shape = (picture.height, picture.width, len(bands) - ('A' in bands))
  return (
    picture,
    shape,
    stored_dtype(source, shape, np.dtype(f'u{bits // 8}'), shape),
  )
