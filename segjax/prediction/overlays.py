# SPDX-License-Identifier: Apache-2.0
"""Pictures of a prediction over its image, of which neither is held whole."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segjax import pictures

# Of a picture that is looked at. Larger images show every n-th pixel.
MAX_SIDE_PX = 4096
_BAND_ROWS = 256  # Of the image, read at once.


def thinning(height: int, width: int) -> int:
  """Returns n, where the overlay of such an image shows every n-th pixel."""
  return math.ceil(max(height, width) / MAX_SIDE_PX)


def draw_overlay(
  page: Any,
  stream: Callable[..., Any],
  class_names: Sequence[str],
  palette: np.ndarray | None,
) -> np.ndarray:
  """Returns `pictures.segmentation_panel` of an image and its prediction.

  It shows every n-th row and column, from the first, with the least n that
  makes the sides at most `MAX_SIDE_PX`; see `thinning`.

  Args:
    page: the image, a `images.windows.Raster` or an array [H, W, C].
    stream: (page, writer, encode=) -> plan; as `predictor.create_streamer`,
      with parameters.
    class_names: K names, of the first head.
    palette: as of `segmentation_panel`.

  Returns:
    u8[h, w, 3].
  """
  height, width, channels = page.shape
  step = thinning(height, width)
  shape = (math.ceil(height / step), math.ceil(width / step))
  labels = _Thinned(np.empty(shape, np.uint8), step)
  stream(
    page,
    labels,
    encode=lambda scores: np.argmax(scores[..., : len(class_names)], axis=-1),
  )
  image = None
  band_rows = max(1, _BAND_ROWS // step) * step
  for start in range(0, height, band_rows):
    rows = slice(start, min(start + band_rows, height))
    band = page[rows, slice(0, width)][::step, ::step]
    if image is None:
      image = np.empty((*shape, channels), band.dtype)
    image[start // step :][: len(band)] = band
  return pictures.segmentation_panel(
    image, None, labels.array, class_names, palette
  )


class _Thinned:
  """An array of every `step`-th row and column of what is written."""

  def __init__(self, array: np.ndarray, step: int):
    self.array = array
    self._step = step

  def __setitem__(
    self, window: tuple[slice, slice], values: np.ndarray
  ) -> None:
    skipped = [-side.start % self._step for side in window]
    kept = values[skipped[0] :: self._step, skipped[1] :: self._step]
    row, column = (-(-side.start // self._step) for side in window)
    self.array[row:, column:][: kept.shape[0], : kept.shape[1]] = kept
