# SPDX-License-Identifier: Apache-2.0
"""Legends: swatches with names, for under a picture.

Only this file and `runs.curves` draw text. They know Pillow, as `png_jpeg`
does.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK = (40, 40, 40)
_PAPER = (255, 255, 255)
# Around a swatch: white and pale colours would have no edge on the paper.
_FRAME = (150, 150, 150)


def legend(
  entries: Sequence[tuple[str, Sequence[int] | np.ndarray]], width: int
) -> np.ndarray:
  """Returns a white strip with a swatch and a name for each entry.

  The entries stand in rows and columns, in reading order. Letters grow with
  the strip, from 11 to 26 px, since wide pictures are looked at from afar.

  Args:
    entries: (name, RGB colour in 0..255), one at least.
    width: of the strip, in pixels.

  Returns:
    u8[h, w, 3]; w is `width`, or more where one name alone needs it.
  """
  size = min(max(round(width / 75), 11), 26)
  font = ImageFont.load_default(size=size)
  space = max(size // 2, 4)
  swatch = round(1.5 * size), size
  names = [' '.join(name.split()) for name, _ in entries]
  texts = [int(np.ceil(font.getlength(name))) for name in names]
  cell = swatch[0] + space + max(texts)
  # Between two cells lies more than between a swatch and its name.
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
