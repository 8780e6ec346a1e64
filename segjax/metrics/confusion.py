# SPDX-License-Identifier: Apache-2.0
"""FCN's four metrics from one integer confusion matrix.

Long, Shelhamer and Darrell 2015, section 5: with n_ij pixels of class i
predicted as class j, t_i = sum_j n_ij and u_i = t_i + sum_j n_ji - n_ii,

  pixel accuracy         sum_i n_ii / sum_i t_i
  mean accuracy          mean_i n_ii / t_i
  mean IU                mean_i n_ii / u_i
  frequency weighted IU  sum_i t_i (n_ii / u_i) / sum_i t_i

Also the Dice coefficient, which is the F1 score of a class's pixels, and its
mean over classes:

  Dice                   2 n_ii / (t_i + sum_j n_ji)

Counts first, ratios last: matrices of images and processes are summed as
integers, and `segmentation_scores` divides once. Never a mean of means.
"""

from typing import Any

import numpy as np

from segjax.errors import InputError


def confusion_matrix(
  label: np.ndarray,
  prediction: np.ndarray,
  num_classes: int,
  ignore_label: int | None = 255,
) -> np.ndarray:
  """Returns the numbers of pixels by true and predicted class, on the host.

  Args:
    label: int[...], true classes in 0..num_classes-1, or `ignore_label`.
    prediction: int[...], predicted classes in 0..num_classes-1; anything
      where the label is ignored.
    num_classes: K.
    ignore_label: pixels with this label do not count; None counts all pixels.

  Returns:
    int64[K,K], rows the true class, columns the predicted one.

  Raises:
    InputError: shapes differ, a type is not integer, or a value that counts
      is out of range.

  >>> import numpy, segjax
  >>> label = numpy.array([0, 1, 1, 255])
  >>> prediction = numpy.array([0, 0, 1, 1])
  >>> segjax.confusion_matrix(label, prediction, num_classes=2).tolist()
  [[1, 0], [1, 1]]
  """
  label, prediction = np.asarray(label), np.asarray(prediction)
  if label.shape != prediction.shape:
    raise InputError(
      f'label has shape {label.shape}, prediction {prediction.shape}; '
      'they must be equal'
    )
  for name, values in (('label', label), ('prediction', prediction)):
    if not np.issubdtype(values.dtype, np.integer):
      raise InputError(f'{name} is {values.dtype}; must be an integer type')
  if ignore_label is not None:
    counted = label != ignore_label
    label, prediction = label[counted], prediction[counted]
  for name, values in (('label', label), ('prediction', prediction)):
    wrong = values[(values < 0) | (values >= num_classes)]
    if wrong.size:
      raise InputError(
        f'{name} holds {wrong[0]}; must be in 0..{num_classes - 1} '
        f'(ignore_label is {ignore_label})'
      )
  pairs = label.astype(np.int64).ravel() * num_classes
  pairs += prediction.astype(np.int64).ravel()
  matrix = np.bincount(pairs, minlength=num_classes**2)
  return matrix.reshape(num_classes, num_classes)


def segmentation_scores(
  matrix: np.ndarray, present_only: bool = False
) -> dict[str, Any]:
  """Returns FCN's four metrics, Dice, and IU and Dice by class, in [0, 1].

  A class in neither labels nor predictions has no IU and no Dice: it is NaN in
  `iu` and `dice` and left out of their means. One that is predicted but in no
  label has IU and Dice 0. Mean accuracy leaves out every class without labels.

  Args:
    matrix: int[K,K], rows the true class, summed over the whole dataset.
    present_only: whether mean IU and mean Dice, too, leave out every class
      without labels, as FCN's mean IU does on SIFT Flow (arXiv 1411.4038v2,
      footnote 10). Nothing else depends on it.

  Returns:
    `pixel_accuracy`, `mean_accuracy`, `mean_iu`, `frequency_weighted_iu`,
    `mean_dice` as floats, `iu` and `dice` as float64[K].

  Raises:
    InputError: the matrix is not square and integer, has a negative count,
      or is all 0.

  >>> import numpy, segjax
  >>> scores = segjax.segmentation_scores(numpy.array([[1, 0], [1, 1]]))
  >>> scores['mean_iu'], scores['iu'].tolist()
  (0.5, [0.5, 0.5])
  """
  matrix = np.asarray(matrix)
  if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
    raise InputError(f'matrix has shape {matrix.shape}; must be [K,K]')
  if not np.issubdtype(matrix.dtype, np.integer):
    raise InputError(f'matrix is {matrix.dtype}; must hold integer counts')
  if (matrix < 0).any():
    raise InputError(f'matrix holds {matrix.min()}; counts must be >= 0')
  matrix = matrix.astype(np.int64)
  hits = np.diag(matrix)
  labelled = matrix.sum(axis=1)
  total = labelled.sum()
  if not total:
    raise InputError('no pixel was counted; at least one must have a label')
  union = labelled + matrix.sum(axis=0) - hits
  iu = ratio(hits, union)
  dice = ratio(2 * hits, union + hits)
  present = labelled > 0
  return {
    'pixel_accuracy': float(hits.sum() / total),
    'mean_accuracy': float(np.nanmean(ratio(hits, labelled))),
    'mean_iu': float(np.nanmean(iu[present] if present_only else iu)),
    'frequency_weighted_iu': float(labelled[present] @ iu[present] / total),
    'mean_dice': float(np.nanmean(dice[present] if present_only else dice)),
    'iu': iu,
    'dice': dice,
  }


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """Returns part / whole, NaN where whole is 0."""
  return np.divide(
    part, whole, out=np.full(part.shape, np.nan), where=whole > 0
  )
