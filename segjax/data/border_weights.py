# SPDX-License-Identifier: Apache-2.0
"""The weight map of the U-Net paper (Ronneberger et al. 2015, equation 2).

All functions take and return NumPy arrays. Compute the map once for each image
and augment it with the image. `find_instances` makes the instances,
`class_counts` and `class_balance` the class weights, `border_weights` the map.
If instances of a data set touch, carve gaps between them (`separate_touching`)
and make the label from the carved instances.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from segjax.data.examples import IGNORE_LABEL
from segjax.errors import InputError

# A border term below this fraction of w0 may be rounded down to 0.
_NEGLIGIBLE = 1e-4


def border_weights(
  instances: np.ndarray,
  *,
  w0: float = 10.0,
  sigma: float = 5.0,
  class_weights: Sequence[float] | np.ndarray | None = None,
  ignore: np.ndarray | None = None,
) -> np.ndarray:
  """Returns w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)).

  d1 and d2 are the Euclidean distances, in pixels, from the centre of pixel x
  to the centre of the nearest pixel of the nearest and of the second nearest
  instance: a background pixel adjacent to an instance has d1 = 1. The paper
  says "distance to the border" and leaves this convention open.

  The border term is added to background pixels only, since it should make the
  network learn the gaps between cells; equation 2 taken literally also raises
  the weight of the rims of cells. It is 0 everywhere if there are fewer than
  two instances. Terms below 1e-4 w0 may be rounded down to 0, so that each
  distance transform stays in a window.

  Args:
    instances: int[H,W], id of the instance of each pixel, 0 for background. Ids
      need not be consecutive.
    w0: weight of the border term, >= 0; 10 in the paper.
    sigma: width of the border term, in pixels, > 0; about 5 in the paper.
    class_weights: w_c of (background, instance), each >= 0, such as from
      `class_balance`; None for 1 and 1.
    ignore: bool[H,W], pixels that get the weight 0. Instances on them still
      count as neighbours.

  Returns:
    f32[H,W].

  Raises:
    InputError: an argument has another shape, dtype or range.

  >>> import numpy, segjax
  >>> cells = numpy.array([[1, 0, 0, 0, 2]])  # d1 + d2 = 4 in between.
  >>> weights = segjax.border_weights(cells, w0=10, sigma=4)
  >>> weights.astype(int).tolist()  # 1 + 10 exp(-.5)
  [[1, 7, 7, 7, 1]]
  """
  instances = _check_instances(instances)
  if not (np.isfinite(w0) and w0 >= 0):
    raise InputError(f'w0 is {w0}; it must be a finite number >= 0')
  if not (np.isfinite(sigma) and sigma > 0):
    raise InputError(f'sigma is {sigma}; it must be a finite number > 0')
  of_background, of_instance = _check_class_weights(class_weights)

  background = instances == 0
  weight = np.where(background, of_background, of_instance)
  nearest, second = _two_nearest(
    instances, radius=sigma * np.sqrt(-2 * np.log(_NEGLIGIBLE))
  )
  # A distance beyond the window is infinite, and exp(-inf) is 0.
  border = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
  weight = np.where(background, weight + border, weight)
  if ignore is not None:
    ignore = np.asarray(ignore)
    if ignore.dtype != bool or ignore.shape != instances.shape:
      raise InputError(
        f'ignore is {ignore.dtype}{list(ignore.shape)}; it must be '
        f'bool{list(instances.shape)} like the instances'
      )
    weight = np.where(ignore, 0.0, weight)
  return weight.astype(np.float32)


def class_counts(label: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns the number of pixels of each class, int64[K].

  Args:
    label: int[...], class indices and `IGNORE_LABEL`.
    num_classes: K.

  Raises:
    InputError: a label is outside the classes.
  """
  label = np.asarray(label)
  if label.dtype.kind not in 'iu':
    raise InputError(f'label has dtype {label.dtype}; it must be an integer')
  counted = label[label != IGNORE_LABEL].astype(np.int64)
  wrong = counted[(counted < 0) | (counted >= num_classes)]
  if wrong.size:
    raise InputError(
      f'label has the value {wrong[0]}; it must be in 0..{num_classes - 1} '
      f'or {IGNORE_LABEL} (ignored)'
    )
  return np.bincount(counted, minlength=num_classes)


def class_balance(counts: np.ndarray) -> np.ndarray:
  """Returns inverse class frequencies w_c with mean weight 1 over the pixels.

  w_c = n / (P n_c), with n_c pixels of class c, n pixels of all classes, and P
  classes that have pixels. All these classes then have the same total weight,
  and the most frequent one has w_c <= 1. The mean weight is 1, so the learning
  rate of an unweighted loss fits. The paper gives no formula for w_c.

  Args:
    counts: int[K], number of pixels of each class, such as from `class_counts`.

  Returns:
    f32[K]; a class without pixels gets 1, the mean weight, since other images
    may have it.

  Raises:
    InputError: a count is negative, or all are 0.
  """
  counts = np.asarray(counts)
  if counts.ndim != 1 or counts.dtype.kind not in 'iu' or (counts < 0).any():
    raise InputError(f'counts is {counts}; it must be int[K], each >= 0')
  present = counts > 0
  if not present.any():
    raise InputError('counts are all 0; expected a pixel of at least one class')
  balanced = counts.sum() / (present.sum() * np.maximum(counts, 1))
  return np.where(present, balanced, 1.0).astype(np.float32)


def find_instances(label: np.ndarray) -> np.ndarray:
  """Returns the 4-connected components of class 1 as instances.

  An 8-connected membrane one pixel wide separates two 4-connected cells, as in
  the ISBI 2012 evaluation.

  Args:
    label: int[H,W].

  Returns:
    int32[H,W]: 1..N in the class, 0 elsewhere.

  Raises:
    InputError: `label` is no int[H,W].
  """
  label = np.asarray(label)
  if label.ndim != 2 or label.dtype.kind not in 'iu':
    raise InputError(
      f'label is {label.dtype}{list(label.shape)}; it must be int[H,W]'
    )
  numbered, _ = ndimage.label(label == 1)
  return numbered.astype(np.int32, copy=False)


def separate_touching(instances: np.ndarray) -> np.ndarray:
  """Returns instances with gaps between those that touch.

  A pixel becomes background if its north-west, north, north-east or west
  neighbour belongs to another instance in the input. Afterwards no two
  instances are 8-connected. The gap is one pixel wide along a horizontal border
  and two pixels along a vertical one, where the north-east rule also removes
  pixels of the left instance. The paper only says "morphological operations";
  this is the rule of the authors' later plug-in (Falk et al. 2019) for
  instances of one class.

  Args:
    instances: int[H,W]; 0 is background.

  Raises:
    InputError: `instances` is no int[H,W], or an id is negative.
  """
  instances = _check_instances(instances)
  height, width = instances.shape
  padded = np.pad(instances, 1)
  carve = np.zeros(instances.shape, bool)
  for row, column in ((0, 0), (0, 1), (0, 2), (1, 0)):
    neighbour = padded[row : row + height, column : column + width]
    carve |= (neighbour != 0) & (neighbour != instances)
  return np.where(carve, 0, instances).astype(instances.dtype, copy=False)


def _two_nearest(
  instances: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns distances f64[H,W] to the nearest and second nearest instance.

  They are exact up to `radius`; larger ones may be infinite. The distance to an
  instance is computed only in its bounding box, grown by `radius`: over the
  whole image, the cost would grow with the number of instances.
  """
  nearest = np.full(instances.shape, np.inf)
  second = np.full(instances.shape, np.inf)
  # Consecutive ids, since find_objects allocates an entry for each possible id.
  ids, dense = np.unique(np.append(0, instances), return_inverse=True)
  if len(ids) < 3:
    return nearest, second
  dense = dense[1:].reshape(instances.shape)
  margin = int(np.ceil(radius))
  for number, box in enumerate(ndimage.find_objects(dense), start=1):
    window = tuple(
      slice(max(side.start - margin, 0), side.stop + margin) for side in box
    )
    distance = ndimage.distance_transform_edt(dense[window] != number)
    second[window] = np.minimum(
      second[window], np.maximum(nearest[window], distance)
    )
    nearest[window] = np.minimum(nearest[window], distance)
  return nearest, second


def _check_instances(instances: np.ndarray) -> np.ndarray:
  instances = np.asarray(instances)
  if instances.ndim != 2 or instances.dtype.kind not in 'iu':
    raise InputError(
      f'instances is {instances.dtype}{list(instances.shape)}; '
      'it must be int[H,W]'
    )
  if instances.size and instances.min() < 0:
    raise InputError(
      f'instances has the value {instances.min()}; ids must be >= 0'
    )
  return instances


def _check_class_weights(class_weights):
  if class_weights is None:
    return np.ones(2)
  checked = np.asarray(class_weights, np.float64)
  if checked.shape != (2,) or not np.all(np.isfinite(checked) & (checked >= 0)):
    raise InputError(
      f'class_weights is {class_weights}; '
      'it must be two numbers >= 0 (background, instance)'
    )
  return checked
