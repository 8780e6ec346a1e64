# SPDX-License-Identifier: Apache-2.0
"""What PNG and JPEG files say of themselves, by Pillow's parsers.

The plug-in classes are called directly because `Image.open` reports a large
image by a warning, and catching warnings is not safe among threads.
"""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ImageFile, JpegImagePlugin, PngImagePlugin

from segjax.errors import InputError

PNG_START = b'\x89PNG'
PNG_END = b'IEND\xaeB`\x82'


def open_picture(
  file: BinaryIO, source: Path | str
) -> tuple[ImageFile.ImageFile, tuple[int, int, int], np.dtype]:
  """Returns a PNG or JPEG, whichever the first bytes say, not yet decoded.

  Args:
    file: of which the header is read.
    source: says whose the bytes are.

  Returns:
    The picture, the shape [H,W,C] of its pixels without alpha, and their dtype,
    uint8 or uint16.

  Raises:
    InputError: it is animated or of a mode that is not read. On damaged bytes
      Pillow raises whatever its parsers run into.
  """
  is_png = file.read(len(PNG_START)) == PNG_START
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
  return picture, shape, np.dtype(f'uint{bits}')


def check_whole(data: bytes, source: Path | str) -> None:
  """Raises if a PNG has a wrong checksum, which decoding ignores, or no end."""
  if data.startswith(PNG_START):
    PngImagePlugin.PngImageFile(io.BytesIO(data)).verify()
    if PNG_END not in data:
      raise InputError(f'{source}: truncated; expected a whole image')
