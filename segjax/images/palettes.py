# SPDX-License-Identifier: Apache-2.0
"""Palettes, the colours of classes: VOC's, and a data set's, completed."""

import numpy as np

from segjax.errors import InputError


def voc_palette() -> np.ndarray:
  """Returns u8[256, 3], the colour of each index in VOC's label images.

  Bits 0, 3, 6 of the index, lowest first, are the highest bits of red, from
  bit 7 down; bits 1, 4, 7 are those of green, and bits 2 and 5 of blue. So the
  first classes differ most (the VOC development kit's colour map).
  """
  index = np.arange(256)
  palette = np.zeros((256, 3), np.uint8)
  for channel in range(3):
    for rank, bit in enumerate(range(channel, 8, 3)):
      palette[:, channel] |= np.uint8((index >> bit & 1) << (7 - rank))
  return palette


def complete_palette(palette: np.ndarray | None) -> np.ndarray:
  """Returns u8[256, 3]: `palette`, and VOC's colours for all further indices.

  Args:
    palette: u8[K, 3], K <= 256; None for VOC's colours alone.

  Raises:
    InputError: the palette has another shape or dtype.
  """
  whole = voc_palette()
  if palette is None:
    return whole
  palette = np.asarray(palette)
  shape = palette.shape
  if palette.dtype != np.uint8 or shape[1:] != (3,) or len(palette) > 256:
    raise InputError(
      f'palette is {palette.dtype}{list(shape)}; expected uint8[K, 3], K <= 256'
    )
  whole[: len(palette)] = palette
  return whole
