# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from segjax import overlays, pictures
from segjax.palettes import voc_palette

SHAPE = (37, 50, 3)
NAMES = ('ground', 'cell', 'wall')


@pytest.mark.parametrize(
  ('max_side_px', 'step'), [(50, 1), (49, 2), (25, 2), (24, 3), (7, 8), (1, 50)]
)
def test_large_images_show_every_nth_pixel(monkeypatch, max_side_px, step):
  monkeypatch.setattr(overlays, 'MAX_SIDE_PX', max_side_px)
  monkeypatch.setattr(overlays, '_BAND_ROWS', 3)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, SHAPE, np.uint8)
  scores = rng.random((*SHAPE[:2], 5))  # Two more of a second head.

  def stream(page, writer, encode):
    for row in range(0, 37, 10):
      for column in range(0, 50, 16):
        window = slice(row, row + 10), slice(column, column + 16)
        writer[window] = encode(scores[window])

  picture = overlays.draw_overlay(image, stream, NAMES, None)
  expected = pictures.segmentation_panel(
    image[::step, ::step],
    None,
    scores[::step, ::step, :3].argmax(-1),
    NAMES,
    voc_palette(),
  )
  np.testing.assert_array_equal(picture, expected)
