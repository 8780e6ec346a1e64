# SPDX-License-Identifier: Apache-2.0
"""Overlays: pictures of a prediction over an image of any size."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segjax import pictures

MAX_SIDE_PX = 4096  # Overlays of larger images show every n-th pixel.
_BAND_ROWS = 256  # Rows of the image that are read at once.


def thinning(height: int, width: int) -> int:
  """Returns n, if an overlay shows every n-th row and column.

  It is the smallest n that makes both sides at most `MAX_SIDE_PX`.
  """
  return math.ceil(max(height, width) / MAX_SIDE_PX)


def draw_overlay(
  page: Any,
  stream: Callable[..., Any],
  class_names: Sequence[str],
  palette: np.ndarray | None,
) -> np.ndarray:
  """Returns `pictures.segmentation_panel` of an image and its prediction.

  It shows every n-th row and column, from the first; see `thinning`.

  Args:
    page: the image, an `images.windows.Raster` or an array [H, W, C].
    stream: (page, writer) -> plan, such as `streaming.stream_predict` with a
      model, parameters and settings.
    class_names: names of the classes of the first head.
    palette: uint8[K, 3], colours of the classes; see `segmentation_panel`.

  Returns:
    u8[h, w, 3], the picture with its legend.
  """
  height, width, _ = page.shape
  step = thinning(height, width)
  shape = (math.ceil(height / step), math.ceil(width / step))
  labels = _ThinnedLabels(np.empty(shape, np.uint8), step, len(class_names))
  stream(page, labels)
  bands = []
  band_rows = max(1, _BAND_ROWS // step) * step
  for start in range(0, height, band_rows):
    rows = slice(start, min(start + band_rows, height))
    band = page[rows, slice(0, width)][::step, ::step]
    bands.append(band.copy())  # A view would keep all that was read.
  return pictures.segmentation_panel(
    np.concatenate(bands), None, labels.array, class_names, palette
  )


@dataclasses.dataclass(frozen=True)
class _ThinnedLabels:
  """A writer that keeps the labels of every `step`-th row and column.

  A label is the likeliest of the first `num_classes` classes.
  """

  array: np.ndarray
  step: int
  num_classes: int

  def __setitem__(
    self, window: tuple[slice, slice], predicted: np.ndarray
  ) -> None:
    skipped = [-side.start % self.step for side in window]
    kept = predicted[skipped[0] :: self.step, skipped[1] :: self.step]
    labels = np.argmax(kept[..., : self.num_classes], axis=-1)
    row, column = (-(-side.start // self.step) for side in window)
    self.array[row:, column:][: kept.shape[0], : kept.shape[1]] = labels
