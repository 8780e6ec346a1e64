# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from tiny_network import tiny_network

from segjax import pictures
from segjax.images import files
from segjax.images.palettes import voc_palette
from segjax.predict import predict_files
from segjax.prediction import overlays

SHAPE = (37, 50, 3)
NAMES = ('ground', 'cell', 'wall')


@pytest.mark.parametrize(
  ('max_side_px', 'step'), [(50, 1), (49, 2), (25, 2), (24, 3), (7, 8), (1, 50)]
)
def test_large_images_show_every_nth_pixel(monkeypatch, max_side_px, step):
  monkeypatch.setattr(overlays, 'MAX_SIDE_PX', max_side_px)
  monkeypatch.setattr(overlays, '_BAND_ROWS', 5)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, SHAPE, np.uint8)
  scores = rng.random((*SHAPE[:2], 5))  # Two more of a second head.

  def stream(page, writer):
    for row in range(0, 37, 10):
      for column in range(0, 50, 16):
        window = slice(row, row + 10), slice(column, column + 16)
        writer[window] = scores[window]

  picture = overlays.draw_overlay(image, stream, NAMES, None)
  expected = pictures.segmentation_panel(
    image[::step, ::step],
    None,
    scores[::step, ::step, :3].argmax(-1),
    NAMES,
    voc_palette(),
  )
  np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize(
  ('max_side_px', 'said', 'height'),
  [(40, '', 30), (39, ', of 2 x 2 px one', 15)],
)
def test_predict_says_what_is_left_out(
  tmp_path, monkeypatch, capsys, max_side_px, said, height
):
  monkeypatch.setattr(overlays, 'MAX_SIDE_PX', max_side_px)
  source, output = tmp_path / 'in.npy', tmp_path / 'out.png'
  np.save(source, np.zeros((30, 40), np.uint8))
  predict_files(tiny_network(), source, output, kind='overlay')
  assert capsys.readouterr().out == f'{output}: overlay of 1 image{said}\n'
  panel = files.read_stack(output)[0]
  assert (panel[:height, :10] == 0).all()  # The image, left and on top.
  assert (panel[height:, :1] == 255).any()
