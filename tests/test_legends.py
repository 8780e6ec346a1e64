# SPDX-License-Identifier: Apache-2.0
"""Whether names are whole, apart, and beside their swatches."""

import numpy as np
import pytest

from segjax.images.legends import legend

COLOURS = [(200, 30 * i, 255 - 30 * i) for i in range(8)]
NAMES = ['sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'a b']


def centres(strip):
  """Mean row and column of each swatch."""
  places = [np.argwhere((strip == colour).all(-1)) for colour in COLOURS]
  return np.array([place.mean(axis=0) for place in places])


@pytest.mark.parametrize('width', [40, 178, 500, 978, 2018])
def test_entries_stand_in_reading_order(width):
  strip = legend(list(zip(NAMES, COLOURS, strict=True)), width)
  assert strip.dtype == np.uint8
  assert strip.shape[1] == width or width == 40
  rows, columns = centres(strip).T
  order = rows * 10_000 + columns
  assert (np.diff(order) > 0).all()
  # The same columns in every row.
  assert len(set(columns.round(3))) == (rows == rows[0]).sum()
  assert len(set(rows)) == {40: 8, 178: 4, 500: 2, 978: 1, 2018: 1}[width]


@pytest.mark.parametrize('width', [20, 178, 500])
def test_no_name_is_cut(width):
  # Alone in a wide strip with letters of the same size.
  alone = [legend([entry], 800) for entry in zip(NAMES, COLOURS, strict=True)]
  strip = legend(list(zip(NAMES, COLOURS, strict=True)), width)
  ink = sum((255 - x.astype(int)).sum() for x in alone)
  assert (255 - strip.astype(int)).sum() == ink
  assert strip.shape[1] >= width


def test_letters_grow_within_limits():
  heights = [legend([('x', COLOURS[0])], w).shape[0] for w in (50, 900, 1500)]
  assert heights[0] == legend([('x', COLOURS[0])], 800).shape[0]
  assert heights == sorted(set(heights))
  largest = [legend([('x', COLOURS[0])], w).shape[0] for w in (2000, 9000)]
  assert largest[0] == largest[1] > heights[-1]


def test_white_space_in_a_name_is_one_blank():
  one, other = (
    legend([(name, COLOURS[0])], 90) for name in ('a b', 'a \n\tb ')
  )
  np.testing.assert_array_equal(one, other)
