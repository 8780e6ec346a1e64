# SPDX-License-Identifier: Apache-2.0
"""The scores of ISBI 2012, of a stack of membranes and cells."""

from collections.abc import Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from segjax import pictures
from segjax.data.examples import list_some
from segjax.devices import processes
from segjax.metrics import confusion, neuron
from segjax.scoring.detail import add_detail, detail_scores, no_detail
from segjax.scoring.heldout_loss import image_loss, mean_loss
from segjax.scoring.results import (
  Evaluation,
  Panel,
  Predict,
  best_and_worst,
  sole_class,
)


def evaluate_stack(
  predict: Predict,
  examples: Sequence[dict],
  config: ConfigDict,
  complete: bool,
  class_names: Sequence[str],
  detail: bool,
) -> Evaluation:
  """Returns the scores of `neuron.evaluate_stack`, and those of pixels.

  Args:
    predict: image as stored [H, W, C] -> probabilities f32[H, W, 2].
    examples: images of one size, with labels 0 (membrane) and 1 (cell).
    class_names: names of the two classes.
    config, complete, detail: see `evaluation.evaluate`.
  """
  examples = list(examples)
  labels = np.stack([example['label'] for example in examples])
  stack = predict_stack(predict, [example['image'] for example in examples])
  matrices = [
    confusion.confusion_matrix(
      label, np.argmax(probability, axis=-1), num_classes=stack.shape[-1]
    )
    for label, probability in zip(labels, stack, strict=True)
  ]
  counts = np.sum(matrices, axis=0)
  ius = dict(enumerate(map(confusion.mean_iu, matrices)))
  pixels = confusion.segmentation_scores(counts)
  del pixels['iu'], pixels['dice']  # Scores of single classes.
  if detail:
    totals = no_detail(stack.shape[-1])
    for label, probability in zip(labels, stack, strict=True):
      add_detail(totals, label, probability)
    present_only = config.evaluation.present_only
    pixels |= detail_scores(totals, class_names, present_only)
  scores = neuron.evaluate_stack(labels, stack[..., 1], warping=complete)
  heads = [stack.shape[-1]]
  image_losses = [
    image_loss(probability, e['label'], e.get('weight'), heads, config.loss)
    for probability, e in zip(stack, examples, strict=True)
  ]
  pixels['loss'] = mean_loss(image_losses, config)
  empty = [e['name'] for e in examples if not e['label'].any()]
  if empty and processes.is_first():
    logging.log_first_n(  # Once a run, not at every evaluation.
      logging.WARNING,
      'no cell pixel in the label of %s: left out of the means of v_rand and '
      'v_info, which are undefined there',
      1,
      list_some(empty),
    )

  def draw(index):
    example = examples[index]
    picture = pictures.panel(
      example['image'],
      example['label'],
      example.get('weight'),
      stack[index, ..., 1],
    )
    return Panel(example['name'], picture, ius[index])

  return Evaluation(
    scores | pixels,
    [draw(i) for i in range(min(config.evaluation.num_pictures, len(ius)))],
    [draw(i) for i in best_and_worst(ius)] if complete else [],
    sole_class(counts, class_names),
    pictures.PANEL_COLUMNS,
  )


def predict_stack(predict: Predict, images: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the predictions f32[N, H, W, K]; each process computes its share.

  Args:
    predict: image [H, W, C] -> probabilities f32[H, W, K].
    images: N images of one size, the same in every process.
  """
  last = len(images) - 1
  own = np.stack(
    [predict(images[min(i, last)]) for i in processes.share(len(images))]
  )
  stack = processes.gather(own).swapaxes(0, 1)
  return stack.reshape(-1, *own.shape[1:])[: len(images)]
