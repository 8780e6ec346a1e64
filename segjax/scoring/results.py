# SPDX-License-Identifier: Apache-2.0
"""The result of an evaluation: scores and pictures of predictions."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Image as stored, [H, W, C] -> probabilities, f32[H, W, K].
Predict = Callable[[np.ndarray], np.ndarray]


class Panel(NamedTuple):
  """A picture of one prediction.

  Attributes:
    name: name of the example.
    picture: u8[h, w, 3].
    mean_iu: mean IU of this example; NaN if all its pixels are ignored.
  """

  name: str
  picture: np.ndarray
  mean_iu: float


class Evaluation(NamedTuple):
  """Scores of a network, and pictures of its predictions.

  Attributes:
    scores: name -> number.
    panels: pictures of some examples.
    extremes: pictures of the examples with the best and the worst mean IU; []
      unless there are two examples.
    sole_class: see the function `sole_class`.
    columns: descriptions of the columns of the pictures, from left to right.
  """

  scores: dict[str, float]
  panels: list[Panel]
  extremes: list[Panel] = []
  sole_class: str = ''
  columns: str = ''


def best_and_worst(ius: Mapping[int, float]) -> list[int]:
  """Returns the indices of the highest and the lowest mean IU.

  Args:
    ius: index -> mean IU; NaN is left out.

  Returns:
    Two indices; none if fewer than two images have a mean IU.
  """
  ranked = sorted((-iu, i) for i, iu in ius.items() if not math.isnan(iu))
  return [ranked[0][1], ranked[-1][1]] if len(ranked) > 1 else []


def sole_class(matrix: np.ndarray, class_names: Sequence[str]) -> str:
  """Returns the name of the only predicted class, a sign of failed training.

  Args:
    matrix: confusion matrix i64[K, K], rows are true classes.
    class_names: K names.

  Returns:
    The name; '' if several classes are predicted, or the labels have only one.
  """
  predicted = np.flatnonzero(matrix.any(axis=0))
  is_sole = len(predicted) == 1 and matrix.any(axis=1).sum() > 1
  return class_names[int(predicted[0])] if is_sole else ''
