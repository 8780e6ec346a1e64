# SPDX-License-Identifier: Apache-2.0
"""Stacks, thresholds and cells: the common part of the ISBI 2012 metrics.

Contract: host numpy, one stack at a time. `labels` holds 0 (membrane) and
1 (cell), `probabilities` the probability of cell; both [N,H,W]. A pixel is
cell where its probability exceeds the threshold. Cells are 4-connected,
membranes 8-connected.
"""

import itertools

import numpy as np
from scipy import ndimage

from segjax.errors import InputError

# The challenge's loop adds 0.1 to a double, so the last threshold is just
# below 1 and a probability of exactly 1 is cell at every threshold.
THRESHOLDS: tuple[float, ...] = tuple(
  itertools.accumulate([0.1] * 10, initial=0.0)
)
# How far rounding may put a float32 average of probabilities outside [0, 1].
_ROUNDING = 1e-6


def checked(
  labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns labels as bool and probabilities as float64 in [0, 1].

  Raises:
    InputError: see `neuron.evaluate_stack`.
  """
  labels = np.asarray(labels)
  # Thresholds are doubles: a float32 comparison would round them.
  probabilities = np.asarray(probabilities, np.float64)
  if labels.shape != probabilities.shape or labels.ndim != 3:
    raise InputError(
      f'labels have shape {labels.shape}, probabilities '
      f'{probabilities.shape}; both must be the same [N,H,W]'
    )
  if not labels.size:
    raise InputError(f'an empty stack {labels.shape} has no score')
  wrong = labels[(labels != 0) & (labels != 1)]
  if wrong.size:
    raise InputError(
      f'labels hold {wrong[0]}; must be 0 (membrane) or 1 (cell)'
    )
  # Written so that NaN fails it, too.
  inside = (probabilities >= -_ROUNDING) & (probabilities <= 1 + _ROUNDING)
  if not inside.all():
    raise InputError(
      f'probabilities hold {probabilities[~inside][0]}; must be in [0, 1]'
    )
  if not labels.any():
    raise InputError(
      f'no cell pixel in the labels of {len(labels)} slice(s); their scores '
      'are undefined'
    )
  return labels.astype(bool, copy=False), np.clip(probabilities, 0, 1)


def components(cell: np.ndarray) -> np.ndarray:
  """Returns int32[H,W]: 4-connected cells of bool[H,W] from 1, membranes 0."""
  return ndimage.label(cell)[0].astype(np.int32, copy=False)
