# SPDX-License-Identifier: Apache-2.0
"""Legends, which stand under pictures: a swatch of colour and a name per class.

Pillow draws the text, here and in `runs.curves`.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK = (40, 40, 40)
_PAPER = (255, 255, 255)
# The line around a swatch; without it, pale colours would have no edge.
_FRAME = (150, 150, 150)


def legend(
  entries: Sequence[tuple[str, Sequence[int] | np.ndarray]], width: int
) -> np.ndarray:
  """Returns a white strip with a swatch and a name for each entry.

  The entries stand in rows and columns, in reading order. Letters grow with
  the strip, from 11 to 26 px, since wide pictures are looked at from afar.

  Args:
    entries: (name, RGB colour in 0..255) of each entry; at least one.
    width: width of the strip, in pixels.

  Returns:
    u8[h, w, 3]; w is `width`, or more if the longest name needs more.
  """
  size = min(max(round(width / 75), 11), 26)
  font = ImageFont.load_default(size=size)
  space = max(size // 2, 4)
  swatch = round(1.5 * size), size
  names = [' '.join(name.split()) for name, _ in entries]
  texts = [int(np.ceil(font.getlength(name))) for name in names]
  cell = swatch[0] + space + max(texts)
  # The gap between two cells is wider than that between a swatch and its name.
  columns = max((width + 3 * space) // (cell + 3 * space), 1)
  line = round(1.7 * size)
  rows = -(-len(entries) // columns)
  height = rows * line + space
  canvas = Image.new('RGB', (max(width, cell), height), _PAPER)
  draw = ImageDraw.Draw(canvas)
  for i, (name, (_, colour)) in enumerate(zip(names, entries, strict=True)):
    left = i % columns * (cell + 3 * space)
    middle = space // 2 + i // columns * line + line // 2
    top = middle - swatch[1] // 2
    draw.rectangle(
      (left, top, left + swatch[0] - 1, top + swatch[1] - 1),
      tuple(int(value) for value in colour),
      _FRAME,
    )
    draw.text((left + swatch[0] + space, middle), name, _INK, font, anchor='lm')
  return np.asarray(canvas)
