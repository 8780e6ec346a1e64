# SPDX-License-Identifier: Apache-2.0
"""Object metrics: SEG of the Cell Tracking Challenge, and average precision.

SEG is the segmentation accuracy of the challenge. For each reference object, it
takes the Jaccard index (IoU) with the object of the result that covers more
than half of it, or 0 if none does; SEG is the mean over the reference objects
of all frames. The U-Net paper reports it as "IOU" (table 2). Objects of the
result that match nothing are not punished, so that frames whose truth marks
only some of the cells can be scored; average precision punishes them. The
challenge's field of interest is not known here: crop frames to it first.

Contract: host numpy. Ids of objects are positive integers, 0 is background. A
frame is [H,W], or a volume [D,H,W].
"""

from collections.abc import Sequence

import numpy as np

from segjax.errors import InputError

# IoU thresholds of the 2018 Data Science Bowl: 0.5, 0.55, ..., 0.95.
THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))


def match_objects(label: np.ndarray, result: np.ndarray) -> np.ndarray:
  """Returns the numbers of pixels of each reference object and of its match.

  Args:
    label: int[...], ids of the reference objects of a frame.
    result: int[...] of the same shape, ids of the objects found.

  Returns:
    int64[R,3], a row for each reference object by increasing id: its pixels,
    the pixels of the result object that covers more than half of it, and the
    pixels in both. The last two are 0 if there is no such object.

  Raises:
    InputError: shapes differ, or an id is negative or no integer.
  """
  label, result = np.asarray(label), np.asarray(result)
  if label.shape != result.shape:
    raise InputError(
      f'label has shape {label.shape}, result {result.shape}; both must be '
      'the same'
    )
  for name, ids in (('label', label), ('result', result)):
    if not np.issubdtype(ids.dtype, np.integer) or ids.min(initial=0) < 0:
      raise InputError(
        f'{name} holds {ids.dtype} down to {ids.min(initial=0)}; ids must be '
        'integers >= 0'
      )
  ids, i, sizes = np.unique(label, return_inverse=True, return_counts=True)
  found, j, found_sizes = np.unique(
    result, return_inverse=True, return_counts=True
  )
  pairs, both = np.unique(
    i.ravel() * len(found) + j.ravel(), return_counts=True
  )
  i, j = np.divmod(pairs, len(found))
  # Strict, so that one object at most matches.
  matches = (found[j] > 0) & (2 * both > sizes[i])
  i, j, both = i[matches], j[matches], both[matches]
  counts = np.zeros((len(ids), 3), np.int64)
  counts[:, 0] = sizes
  counts[i, 1] = found_sizes[j]
  counts[i, 2] = both
  return counts[ids > 0]


def seg(labels: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> float:
  """Returns SEG of the annotated frames of one or more sequences, in [0, 1].

  Args:
    labels: ids of the reference objects, as a stack or as a list of frames of
      any sizes; see `match_objects`.
    results: ids of the objects found, frame by frame.

  Raises:
    InputError: the numbers of frames differ, no frame has a reference object,
      or see `match_objects`.

  >>> import numpy, segjax
  >>> truth = numpy.array([[1, 1, 1, 1, 0]])
  >>> found = numpy.array([[7, 7, 7, 0, 0]])
  >>> segjax.seg([truth], [found])
  0.75
  """
  if len(labels) != len(results):
    raise InputError(
      f'{len(labels)} frames of labels and {len(results)} of results; both '
      'must be the same'
    )
  counts = [match_objects(*pair) for pair in zip(labels, results, strict=True)]
  return mean_jaccard(np.concatenate(counts or [np.zeros((0, 3), np.int64)]))


def mean_jaccard(counts: np.ndarray) -> float:
  """Returns SEG from the counts int64[R,3] of `match_objects`, of all frames.

  Raises:
    InputError: R is 0.
  """
  if not len(counts):
    raise InputError('no frame has a reference object; SEG is undefined')
  size, found, both = counts.T
  return float(np.mean(both / (size + found - both)))


def average_precision(
  truth: np.ndarray,
  predicted: np.ndarray,
  thresholds: Sequence[float] = THRESHOLDS,
) -> np.ndarray:
  """Returns TP / (TP + FP + FN) of the objects of an image, by threshold.

  A predicted object is a true positive (TP) if its intersection over union
  with an object of the truth is greater than the threshold; the other predicted
  objects are false positives (FP), the other true ones false negatives (FN).
  The 2018 Data Science Bowl ranks by the mean over thresholds and images.
  Predicted objects that the truth does not mark are punished, unlike in `seg`.

  Args:
    truth: int[...], ids of the true objects.
    predicted: int[...] of the same shape, ids of the objects found.
    thresholds: T numbers in [0.5, 1), so that an object has at most one match.

  Returns:
    float64[T], NaN if there is neither a true nor a predicted object.

  Raises:
    InputError: a threshold is outside [0.5, 1), shapes differ, or an id is
      negative or no integer.

  >>> import numpy, segjax
  >>> truth = numpy.array([[1, 1, 1, 1, 0, 2]])
  >>> found = numpy.array([[7, 7, 7, 0, 8, 0]])  # IoU of 7 with 1 is 3/4.
  >>> segjax.average_precision(truth, found, [0.5, 0.9]).round(2).tolist()
  [0.33, 0.0]
  """
  hits, num_true, num_predicted = count_hits(truth, predicted, thresholds)
  whole = num_true + num_predicted - hits
  return np.divide(hits, whole, out=np.full(len(hits), np.nan), where=whole > 0)


def count_hits(
  truth: np.ndarray, predicted: np.ndarray, thresholds: Sequence[float]
) -> tuple[np.ndarray, int, int]:
  """Returns TP int64[T], and the numbers of true and of predicted objects.

  Arguments and errors are those of `average_precision`.
  """
  wrong = [t for t in thresholds if not 0.5 <= t < 1]
  if wrong:
    raise InputError(f'thresholds holds {wrong[0]}; must be in [0.5, 1)')
  # An IoU above 1/2 implies more than half of the true object.
  sizes, found, both = match_objects(truth, predicted).T
  iou = both / (sizes + found - both)
  hits = (iou[:, None] > np.asarray(thresholds)).sum(axis=0)
  num_predicted = int(np.count_nonzero(np.unique(predicted)))
  return hits, len(sizes), num_predicted
