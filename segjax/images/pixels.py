# SPDX-License-Identifier: Apache-2.0
"""Stored samples as the pixels of an image.

This file alone decides what a sample means as a pixel, for all formats, and for
files that are read as a whole or by windows. `labels` does so for labels.
"""

import functools
from pathlib import Path

import numpy as np

from segjax.errors import InputError
from segjax.images.windows import (
  Raster,
  StoredPage,
  by_bands,
  say_once,
  upright,
)

# Whole numbers up to here are exact in float32.
_MAX_WHOLE = 2**24


def image_of(page: StoredPage, path: Path | str) -> Raster:
  """Returns a stored page as an image, as a viewer would show it.

  A palette gives its colours, or gray if all of its colours are gray. Booleans
  and unsigned samples of fewer than 8 or 16 bits are scaled to the whole range
  of uint8 or uint16. If 0 is white, values are inverted. An alpha channel is
  left out, with a message. The page is turned as its orientation tag asks for.
  Signed and longer integers, and other floats, become float32 of the same
  values.

  Raises:
    InputError: the axes are doubtful, or inverted values have no fixed range.
      Reading raises it for an index that the palette lacks, and for a value
      that float32 cannot hold.
  """
  if page.doubt:
    raise InputError(f'{path}: {page.doubt}')
  page = upright(page)
  height, width, channels = page.shape
  if page.has_alpha:
    channels -= 1
    say_once(
      'alpha',
      f'{path}: the alpha channel of images is left out, here and elsewhere; '
      'save a channel of measurements as a TIFF without the ExtraSamples tag '
      'of alpha',
    )
  if page.palette is not None:
    table = page.palette
    if (table == table[:, :1]).all():
      table = table[:, :1]
    shape, dtype = (height, width, table.shape[1]), np.dtype(np.uint8)
    convert = functools.partial(_look_up, table=table, path=path)
  elif page.dtype.kind in 'bu' and page.bits <= 16:
    shape = height, width, channels
    dtype = np.dtype(np.uint8 if page.bits <= 8 else np.uint16)
    convert = functools.partial(
      _scale, full=2**page.bits - 1, dtype=dtype, is_inverted=page.is_inverted
    )
  else:
    if page.is_inverted:
      raise InputError(
        f'{path}: 0 is white (MINISWHITE) in samples of {page.dtype}, which '
        'cannot be inverted; save it with 0 as black'
      )
    shape, dtype = (height, width, channels), np.dtype(np.float32)
    convert = functools.partial(_to_float, path=path)
    if page.dtype != dtype:
      how = 'unchanged'
      if page.dtype == np.float64:
        how = 'rounded to about seven digits'
      say_once(
        f'as float32: {page.dtype}',
        f'{path}: images of {page.dtype} are read as float32, their values '
        f'{how}',
      )

  def read(rows, columns):
    return by_bands(convert, page.read(rows, columns)[..., :channels])

  return Raster(shape, dtype, read)


def check_finite(
  path: Path | str,
  number: int,
  pixels: np.ndarray,
  first: tuple[int, int] = (0, 0),
) -> None:
  """Raises InputError if a pixel is NaN or inf.

  The pixels [h, w, C] are a window that begins at the row and column `first` of
  the page `number`.
  """
  if pixels.dtype.kind != 'f' or (finite := np.isfinite(pixels)).all():
    return
  at = np.unravel_index(np.argmin(finite), pixels.shape)
  raise InputError(
    f'{path}: pixel is {pixels[at]} in page {number}, row {first[0] + at[0]}, '
    f'column {first[1] + at[1]}, channel {at[2]} (counted from 0); pixels must '
    'be finite'
  )


def _look_up(indices, table, path):
  indices = indices[..., 0]
  if indices.max() >= len(table):
    raise InputError(
      f'{path}: index {indices.max()} in a palette of {len(table)} colours'
    )
  return table[indices.astype(np.intp)]


def _scale(values, full, dtype, is_inverted):
  values = values.astype(dtype, copy=False)
  if is_inverted:
    values = dtype.type(full) - values
  top = np.iinfo(dtype).max
  if full == top:
    return values
  return ((values.astype(np.uint32) * top + full // 2) // full).astype(dtype)


def _to_float(values, path):
  if values.dtype.kind == 'f':
    with np.errstate(over='ignore'):
      converted = values.astype(np.float32, copy=False)
    lost = np.isinf(converted) & np.isfinite(values)
  else:
    converted = values.astype(np.float32)
    lost = (values > _MAX_WHOLE) | (values < -_MAX_WHOLE)
  if lost.any():
    raise InputError(
      f'{path}: pixel {values.flat[np.argmax(lost)]} of {values.dtype} does '
      'not fit into float32, in which images are read; expected whole numbers '
      f'up to {_MAX_WHOLE}, or floats up to 3.4e38'
    )
  return converted
