# SPDX-License-Identifier: Apache-2.0
"""Boundary metrics: boundary IoU and the trimap curve.

Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image
Segmentation Evaluation", CVPR 2021) is the IU of the pixels of a class that lie
within d px of its contour: |G_d and P_d| / |G_d or P_d|, where G_d are those
pixels in the label and P_d in the prediction. As in the authors' code, the edge
of the image is a contour.

The trimap curve (Kohli, Ladicky, Torr 2009; Krähenbühl and Koltun 2011) is
the mean IU of the pixels within r px of a border between classes in the label,
for several r; the edge of the image is no border.

A pixel lies within d px of another if neither their rows nor their columns
differ by more than d. Ignored pixels do not count and have no class, so nothing
borders on them; classes on both sides of a band of them border on each other.

Counts first, ratios last, as in `confusion`. Contract: host numpy.
"""

import numbers
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from segjax.errors import InputError
from segjax.metrics import confusion

# Distances from a border, in pixels, for which evaluation reports mean IU.
RADII_PX = (1, 2, 4, 8, 16, 32)
_IGNORED = 255  # Label of pixels that do not count.


def default_distance(height: int, width: int) -> int:
  """Returns Cheng et al.'s d: 2 % of the diagonal in px, but at least 1."""
  return max(1, round(0.02 * np.hypot(height, width)))


def boundary_counts(
  label: np.ndarray,
  prediction: np.ndarray,
  num_classes: int,
  distance_px: int | None = None,
) -> np.ndarray:
  """Returns the numbers of pixels of each class that lie near its contours.

  Args:
    label: int[H, W], true classes in 0..num_classes-1; 255 is ignored.
    prediction: int[H, W], predicted classes.
    num_classes: K.
    distance_px: d, 1 or more; None for `default_distance` of this image.

  Returns:
    int64[K, 3]: for each class, the pixels in both G_d and P_d, in G_d, and in
    P_d. Counts of several images can be added.

  Raises:
    InputError: shapes differ or are not [H, W], a type is not integer, or a
      value that counts or a distance is out of range.
  """
  label, prediction = _checked(label, prediction, num_classes)
  if distance_px is None:
    distance_px = default_distance(*label.shape)
  _check_distance('distance_px', distance_px)
  ignored = label == _IGNORED
  in_label, in_prediction = (
    ~ignored & _near_others(classes, ignored, distance_px, edge=-1)
    for classes in (label, prediction)
  )
  both = in_label & in_prediction & (label == prediction)
  counts = [
    np.bincount(classes[chosen], minlength=num_classes)
    for classes, chosen in (
      (label, both),
      (label, in_label),
      (prediction, in_prediction),
    )
  ]
  return np.stack(counts, axis=1).astype(np.int64)


def boundary_iou(counts: np.ndarray) -> np.ndarray:
  """Returns the boundary IoU of each class, f64[K], from `boundary_counts`.

  It is NaN for a class without contours in labels and predictions.
  """
  both, label, prediction = counts.T
  return confusion.ratio(both, label + prediction - both)


def trimap_counts(
  label: np.ndarray,
  prediction: np.ndarray,
  num_classes: int,
  radii_px: Sequence[int] = RADII_PX,
) -> np.ndarray:
  """Returns the confusion matrices int64[R, K, K] of pixels near borders.

  Args:
    label: int[H, W], true classes in 0..num_classes-1; 255 is ignored.
    prediction: int[H, W], predicted classes.
    num_classes: K.
    radii_px: R distances from a border between classes, 1 or more.

  Raises:
    InputError: see `boundary_counts`.
  """
  label, prediction = _checked(label, prediction, num_classes)
  ignored = label == _IGNORED
  matrices = []
  for radius in radii_px:
    _check_distance('radii_px', radius)
    near = _near_others(label, ignored, radius, edge=None)
    matrices.append(
      confusion.confusion_matrix(
        np.where(near, label, _IGNORED), prediction, num_classes
      )
    )
  return np.array(matrices, np.int64).reshape(-1, num_classes, num_classes)


def trimap_curve(counts: np.ndarray, present_only: bool = False) -> np.ndarray:
  """Returns mean IU f64[R] from `trimap_counts`; NaN where no pixel counts.

  Args:
    counts: int64[R, K, K].
    present_only: see `confusion.segmentation_scores`.
  """
  return np.array(
    [
      confusion.segmentation_scores(matrix, present_only)['mean_iu']
      if matrix.any()
      else np.nan
      for matrix in counts
    ]
  )


def _near_others(classes, ignored, distance, edge):
  """Returns bool[H, W]: whether a pixel is near one of another class.

  Args:
    classes: int[H, W].
    ignored: bool[H, W], pixels of no class.
    distance: d, in pixels.
    edge: class of the pixels beyond the image; None for no class.
  """
  far = np.iinfo(np.int32)

  def extreme(search, nothing):
    values = np.where(ignored, nothing, classes).astype(np.int32)
    beyond = nothing if edge is None else edge
    return search(values, 2 * distance + 1, mode='constant', cval=beyond)

  lowest = extreme(ndimage.minimum_filter, far.max)
  highest = extreme(ndimage.maximum_filter, far.min)
  return (lowest != classes) | (highest != classes)


def _check_distance(name, distance):
  if not isinstance(distance, numbers.Integral) or distance < 1:
    raise InputError(f'{name}: {distance!r} must be a whole number, at least 1')


def _checked(label, prediction, num_classes):
  """Returns label and prediction as arrays, checked as in `boundary_counts`."""
  label, prediction = np.asarray(label), np.asarray(prediction)
  confusion.confusion_matrix(label, prediction, num_classes)
  if label.ndim != 2:
    raise InputError(f'label has shape {label.shape}; expected [H, W]')
  return label, prediction
