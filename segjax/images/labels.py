# SPDX-License-Identifier: Apache-2.0
"""Stored samples as labels: class indices, ids or colours.

This file alone decides what a sample means as a label, for all formats, and for
files that are read as a whole or by windows. `pixels` does so for images.
"""

from pathlib import Path

import numpy as np

from segjax.errors import InputError
from segjax.images.pixels import image_of
from segjax.images.windows import Raster, StoredPage, bands, upright


def label_of(page: StoredPage, path: Path | str) -> Raster:
  """Returns a stored page as labels: the numbers that the file holds.

  Nothing is scaled: a palette gives its indices, and samples of 1, 2 or 4 bits
  are 0 to 1, 3 or 15. RGB stays RGB, for labels that are coded by colours. An
  alpha channel is left out if it is constant. The page is turned as its
  orientation tag asks for.

  Returns:
    A raster of uint8 or uint16 as stored, and of uint8 for booleans. Other
    whole numbers become int32 in one channel, and uint16 in several.

  Raises:
    InputError: a lossy compression may have changed the labels, or 0 is white.
      Reading raises it for a value that is not whole or does not fit into the
      dtype, and for an alpha channel that is not constant.
  """
  if page.lossy:
    raise InputError(
      f'{path}: {page.lossy} changes values; expected labels in a lossless '
      'format, such as PNG or TIFF. A mask of black and white can be saved '
      "again by a threshold; with Pillow: Image.open('a.jpg').convert('L')"
      ".point(lambda v: 255 * (v > 127)).save('a.png')"
    )
  if page.is_inverted:
    raise InputError(
      f'{path}: 0 is white (MINISWHITE), so programs do not agree which class '
      'is 0; save the labels with 0 as black (MINISBLACK)'
    )
  page = upright(page)
  height, width, channels = page.shape
  if page.palette is not None:
    channels = 1
  alpha = None
  if page.has_alpha:
    channels -= page.palette is None
    alpha = page.read(slice(0, 1), slice(0, 1))[0, 0, -1]
  if page.dtype.kind == 'b':
    dtype = np.dtype(np.uint8)
  elif page.dtype in (np.uint8, np.uint16):
    dtype = page.dtype
  else:
    dtype = np.dtype(np.int32 if channels == 1 else np.uint16)

  def read(rows, columns):
    stored = page.read(rows, columns)
    if alpha is not None and (stored[..., -1] != alpha).any():
      raise InputError(
        f'{path}: labels with an alpha channel that varies; expected labels '
        'without alpha, class indices or RGB'
      )
    values = stored[..., :channels]
    for band in bands(values):
      _check_whole(
        values[band], dtype, path, rows.start + band.start, columns.start
      )
    return values.astype(dtype, copy=False)

  return Raster((height, width, channels), dtype, read)


def map_of(page: StoredPage, path: Path | str) -> Raster:
  """Returns a page of a prediction: floats as an image, others as labels."""
  if page.dtype.kind == 'f':
    return image_of(page, path)
  return label_of(page, path)


def _check_whole(values, dtype, path, row, column):
  """Raises InputError for a value that is not whole or does not fit."""
  if values.dtype == dtype or values.dtype.kind == 'b':
    return
  limits = np.iinfo(dtype)
  if values.dtype.kind == 'f':
    values = values.astype(np.float64)  # Whose range holds the limits.
  known = (values >= limits.min) & (values <= limits.max)
  if values.dtype.kind == 'f':
    known &= values == np.round(values)
  if not known.all():
    at = np.unravel_index(np.argmin(known), known.shape)
    raise InputError(
      f'{path}: label {values[at]} in row {row + at[0]}, column '
      f'{column + at[1]} (counted from 0); expected whole numbers in '
      f'{limits.min}..{limits.max}'
    )
