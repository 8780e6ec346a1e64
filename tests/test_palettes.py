# SPDX-License-Identifier: Apache-2.0
"""VOC's colour map, and what fills up a shorter one."""

import numpy as np
import pytest

from segjax.errors import InputError
from segjax.images.palettes import complete_palette, voc_palette


@pytest.mark.parametrize(
  ('index', 'colour'),
  [
    (0, (0, 0, 0)),
    (1, (128, 0, 0)),
    (2, (0, 128, 0)),
    (3, (128, 128, 0)),
    (4, (0, 0, 128)),
    (15, (192, 128, 128)),
    (20, (0, 64, 128)),
    (255, (224, 224, 192)),
  ],
)
def test_known_colours_of_voc(index, colour):
  assert voc_palette()[index].tolist() == list(colour)


def test_no_two_indices_share_a_colour():
  palette = voc_palette()
  assert palette.shape == (256, 3)
  assert palette.dtype == np.uint8
  assert len({tuple(colour) for colour in palette}) == 256


def test_own_colours_come_first():
  own = np.uint8([[9, 8, 7], [1, 2, 3]])
  whole = complete_palette(own)
  np.testing.assert_array_equal(whole[:2], own)
  np.testing.assert_array_equal(whole[2:], voc_palette()[2:])
  np.testing.assert_array_equal(complete_palette(None), voc_palette())


@pytest.mark.parametrize(
  'palette',
  [
    np.zeros((257, 3), np.uint8),
    np.zeros((2, 4), np.uint8),
    np.zeros(3, np.uint8),
    np.zeros((2, 3)),
  ],
)
def test_what_is_no_palette_is_refused(palette):
  with pytest.raises(InputError, match=r'palette is .*; expected uint8\[K, 3'):
    complete_palette(palette)
