# SPDX-License-Identifier: Apache-2.0
"""Draws docs/images/tiles.png: a sketch of overlap tiles over an image.

python docs/draw_tiles.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import segjax
from segjax.data import synthetic

INPUT_PX = 220
SIZE_PX = 256
BLUE, ORANGE, WHITE = (0, 114, 178), (230, 120, 0), (255, 255, 255)


def main():
  """Writes the picture: the first tile and the last, beside each other."""
  output_px = segjax.UNet(depth=3).geometry.output_size(INPUT_PX)
  margin = (INPUT_PX - output_px) // 2
  images, _ = synthetic.neuron_stack(num_slices=1, size_px=SIZE_PX, seed=1)
  mirrored = np.pad(images[0], margin, mode='reflect')
  inside = np.pad(np.ones_like(images[0]), margin)
  gray = np.where(inside, mirrored, 140 + mirrored * 0.4).astype(np.uint8)
  starts = [0, SIZE_PX - output_px]
  panels = []
  for corner, colour in ((0, BLUE), (1, ORANGE)):
    picture = np.repeat(gray[..., None], 3, axis=2).astype(np.float64)
    y = x = starts[corner] + margin
    window = picture[y : y + output_px, x : x + output_px]
    window += 0.35 * (np.float64(colour) - window)
    panel = Image.fromarray(picture.round().astype(np.uint8))
    draw = ImageDraw.Draw(panel)
    end = margin + SIZE_PX - 1
    draw.rectangle((margin, margin, end, end), outline=WHITE, width=2)
    last = y - margin + INPUT_PX - 1
    draw.rectangle(
      (x - margin, y - margin, last, last), outline=colour, width=3
    )
    panels.append(np.asarray(panel))
  gap = np.full((len(gray), 12, 3), 255, np.uint8)
  row = np.concatenate([panels[0], gap, panels[1]], axis=1)
  target = Path(__file__).parent / 'images' / 'tiles.png'
  Image.fromarray(row).quantize(128).save(target, optimize=True)


if __name__ == '__main__':
  main()
