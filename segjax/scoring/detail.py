# SPDX-License-Identifier: Apache-2.0
"""Scores of detail over many images: boundary IoU and the trimap curve."""

import math
from collections.abc import Sequence

import numpy as np

from segjax.metrics import boundaries


def no_detail(num_classes: int) -> list[np.ndarray]:
  """Returns the two counts of `metrics.boundaries`, all zero."""
  shapes = (num_classes, 3), (len(boundaries.RADII_PX), *[num_classes] * 2)
  return [np.zeros(shape, np.int64) for shape in shapes]


def add_detail(
  totals: list[np.ndarray], label: np.ndarray, probability: np.ndarray
) -> None:
  """Adds an image to the counts of `no_detail`, in place.

  Args:
    totals: what `no_detail` returned.
    label: i[H, W].
    probability: f[H, W, K].
  """
  pair = label, np.argmax(probability, axis=-1), probability.shape[-1]
  totals[0] += boundaries.boundary_counts(*pair)
  totals[1] += boundaries.trimap_counts(*pair)


def detail_scores(
  totals: list[np.ndarray], class_names: Sequence[str], present_only: bool
) -> dict[str, float]:
  """Returns boundary IoU and the trimap curve; see `evaluation.evaluate`."""
  ious = boundaries.boundary_iou(totals[0])
  if present_only:  # As `metrics.confusion` has it.
    ious = np.where(totals[0][:, 1] > 0, ious, math.nan)
  counted = ~np.isnan(ious)
  curve = boundaries.trimap_curve(totals[1], present_only)
  mean = float(ious[counted].mean()) if counted.any() else math.nan
  scores = {'boundary_iou': mean}
  scores |= {
    f'boundary_iou/{name}': float(iou)
    for name, iou in zip(class_names, ious, strict=True)
  }
  return scores | {
    f'trimap_mean_iu/{radius}': float(iu)
    for radius, iu in zip(boundaries.RADII_PX, curve, strict=True)
  }
