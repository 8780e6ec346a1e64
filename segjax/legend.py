# SPDX-License-Identifier: Apache-2.0
"""Colours of classes and the strip that names them.

The one file besides `data.images` that knows Pillow: it draws the text.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TEXT_PX = 13
_SWATCH_PX = 14
_ROW_PX = 22
_PADDING_PX = 8
_INK = (40, 40, 40)


def voc_palette() -> np.ndarray:
  """Returns PASCAL VOC's colours, u8[256, 3], RGB.

  The bits of an index, from the lowest, are dealt to red, green and blue in
  turn, and fill these from the highest bit down: 0 is black, 1 (128, 0, 0).
  """
  index = np.arange(256)
  colours = np.zeros((256, 3), np.uint8)
  for bit in range(8):
    for channel in range(3):
      value = index >> (3 * bit + channel) & 1
      colours[:, channel] |= (value << (7 - bit)).astype(np.uint8)
  return colours


def legend(
  names: Sequence[str], colours: Sequence[Sequence[int]], width: int
) -> np.ndarray:
  """Returns a strip u8[h, w, 3] of swatches with names, wrapped to `width`.

  It is wider than `width` only where a single name is.

  Args:
    names: one for each swatch.
    colours: RGB of each, 0..255.
    width: in pixels.
  """
  font = ImageFont.load_default(size=_TEXT_PX)
  place, rows, right, placed = _PADDING_PX, 0, width, []
  for name, colour in zip(names, colours, strict=True):
    length = int(np.ceil(font.getlength(name)))
    end = place + _SWATCH_PX + 6 + length + _PADDING_PX
    if end > width and place > _PADDING_PX:
      rows, end = rows + 1, end - place + _PADDING_PX
      place = _PADDING_PX
    placed.append((place, rows, name, colour))
    right, place = max(right, end), end + _PADDING_PX
  height = (rows + 1) * _ROW_PX + _PADDING_PX
  picture = Image.new('RGB', (right, height), (255, 255, 255))
  draw = ImageDraw.Draw(picture)
  for left, row, name, colour in placed:
    top = _PADDING_PX // 2 + row * _ROW_PX + (_ROW_PX - _SWATCH_PX) // 2
    corner = left + _SWATCH_PX - 1, top + _SWATCH_PX - 1
    fill = tuple(int(value) for value in colour)
    draw.rectangle((left, top, *corner), fill=fill, outline=(150, 150, 150))
    middle = top + _SWATCH_PX // 2
    draw.text(
      (left + _SWATCH_PX + 6, middle), name, _INK, font=font, anchor='lm'
    )
  return np.asarray(picture)
