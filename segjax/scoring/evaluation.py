# SPDX-License-Identifier: Apache-2.0
"""Scores and pictures of a network on whole images."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from segjax.contracts import SegmentationModel
from segjax.crf import Refinement
from segjax.data import Dataset
from segjax.errors import counted
from segjax.prediction.predictor import predict_stored
from segjax.scoring.best_metric import STACK_METRIC
from segjax.scoring.classes import evaluate_classes
from segjax.scoring.results import Evaluation
from segjax.scoring.stack import evaluate_stack
from segjax.settings.sections import read_prediction, read_refinement


def evaluate(
  model: SegmentationModel,
  params: Any,
  examples: Sequence[dict],
  config: ConfigDict,
  dataset: Dataset,
  *,
  average: bool,
  complete: bool = True,
  detail: bool = False,
) -> Evaluation:
  """Returns the scores and pictures of a network on whole images.

  Process p of P predicts examples p, p + P, p + 2P, ... Every process returns
  the scores of all examples. The pictures of process 0 are those to show; its
  `panels` show only examples that it predicted, except for a stack.

  Args:
    model: the network.
    params: its parameters, on one device of this process.
    examples: images to predict, with the labels that count as truth.
    config: config of the run; reads `evaluation`, `preprocessing`,
      `prediction`, `refinement` and the fields that define the loss.
    dataset: names and colours of the classes.
    average: whether to use test-time augmentation, the mean over the eight
      turns and flips.
    complete: whether to compute what takes long: the warping error, and which
      examples are the best and the worst.
    detail: whether to add the scores of `metrics.boundaries`: `boundary_iou`,
      the mean over classes, `boundary_iou/NAME` of each class, and
      `trimap_mean_iu/R` of the pixels within R px of a border.

  Raises:
    InputError: all pixels of all examples are ignored.
  """
  preprocessing, tiles = read_prediction(config, average=average)
  refinement = read_refinement(config)

  def predict(image):
    return predict_stored(
      model, params, image, preprocessing, tiles, refinement
    )

  if config.evaluation.best_metric == STACK_METRIC:
    return evaluate_stack(
      predict, examples, config, complete, dataset.class_names, detail
    )
  return evaluate_classes(
    predict,
    examples,
    dataset,
    heads=(*zip(model.head_names, model.head_sizes, strict=True),),
    config=config,
    complete=complete,
    detail=detail,
  )


def title(
  num_images: int, split: str, average: bool, refinement: Refinement
) -> str:
  """Returns the title of a table of scores."""
  how = 'one pass'
  if average:
    how = 'test-time augmentation: mean of 8 turns and flips'
  refined = f', {text}' if (text := refinement.describe()) else ''
  return f'{counted(num_images, "image")} ({split}), {how}{refined}'
