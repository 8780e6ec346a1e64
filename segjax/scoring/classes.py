# SPDX-License-Identifier: Apache-2.0
"""Scores of classes and of objects, over whole images of any sizes."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from segjax import losses, pictures
from segjax.data import Dataset
from segjax.devices import processes
from segjax.errors import InputError
from segjax.metrics import cells, confusion
from segjax.prediction.components import label_instances
from segjax.scoring.detail import add_detail, detail_scores, no_detail
from segjax.scoring.heldout_loss import image_loss, mean_loss
from segjax.scoring.results import (
  Evaluation,
  Panel,
  Predict,
  best_and_worst,
  sole_class,
)


def evaluate_classes(
  predict: Predict,
  examples: Sequence[dict],
  dataset: Dataset,
  heads: Sequence[tuple[str, int]],
  config: ConfigDict,
  complete: bool,
  detail: bool,
) -> Evaluation:
  """Returns the scores of `confusion`, counted by image and divided once.

  With several heads, names of scores begin with that of the head, such as
  `sem_mean_iu`. IU and Dice of single classes are `iu/NAME` and `dice/NAME`. If
  examples have instances, these are compared with the connected components of
  class 1: `seg`, `ap/THRESHOLD` and `mean_ap`, see `metrics.cells`, and the
  numbers of objects, `objects/true` and `objects/predicted`. Average precision
  is the mean over the images that have an object in truth or prediction.

  Args:
    predict: image as stored [H, W, C] -> probabilities f32[H, W, K].
    heads: (name, number of classes) of each head; a single one is named ''.
    examples, dataset, config, complete, detail: see `evaluation.evaluate`.

  Raises:
    InputError: all pixels of all examples are ignored.
  """
  num_pictures = config.evaluation.num_pictures
  present_only = config.evaluation.present_only
  sizes = [size for _, size in heads]
  image_losses = [np.zeros((0, 2))]
  counts = [np.zeros((size, size), np.int64) for size in sizes]
  details = [no_detail(size) for size in sizes]
  matches = [np.zeros((0, 3), np.int64)]
  # Rows of `object_scores`.
  hits = [np.zeros((0, len(cells.THRESHOLDS) + 2), np.int64)]
  own = [i for i in processes.share(len(examples)) if i < len(examples)]
  # Spread over the set, since neighbours may be frames of one film.
  spread = [i * len(own) // num_pictures for i in range(num_pictures)]
  shown = {own[i] for i in spread if i < len(own)}
  ius, panels = {}, {}

  def draw(index, example, probability, truth):
    picture = pictures.segmentation_panel(
      example['image'],
      truth,
      np.argmax(probability, axis=-1),
      dataset.class_names[: sizes[0]],
      dataset.palette,
    )
    panels[index] = Panel(example['name'], picture, ius[index])

  def count():
    for index in own:
      example = examples[index]
      predicted = predict(example['image'])
      label, weight = example['label'], example.get('weight')
      summed = image_loss(predicted, label, weight, sizes, config.loss)
      image_losses.append(summed[None])
      if 'instances' in example:
        found = label_instances(predicted[..., 1])
        matches.append(cells.match_objects(example['instances'], found))
        row = cells.count_hits(example['instances'], found, cells.THRESHOLDS)
        hits.append(np.hstack(row)[None])
      split = losses.split_heads(predicted, label, sizes)
      for head, (probability, truth) in enumerate(split):
        matrix = confusion.confusion_matrix(
          truth, np.argmax(probability, axis=-1), num_classes=sizes[head]
        )
        counts[head] += matrix
        if detail:
          add_detail(details[head], truth, probability)
        if head == 0:
          ius[index] = confusion.mean_iu(matrix, present_only)
          if index in shown:
            draw(index, example, probability, truth)

  def draw_extremes():
    for index in best_and_worst(ius) if processes.is_first() else ():
      if index not in panels:  # Another process may have scored it.
        example = examples[index]
        predicted = predict(example['image'])
        first = next(losses.split_heads(predicted, example['label'], sizes))
        draw(index, example, *first)

  processes.together(count)
  counts = [processes.gather(matrix).sum(axis=0) for matrix in counts]
  if not all(matrix.any() for matrix in counts):
    raise InputError(
      f'all pixels of the {len(examples)} examples are ignored; at least one '
      'must have a label'
    )
  scores, soles, start = {}, [], 0
  for (name, size), matrix, totals in zip(heads, counts, details, strict=True):
    names = dataset.class_names[start : start + size]
    start += size
    found = _class_scores(matrix, names, present_only)
    if detail:
      totals = [processes.gather(total).sum(axis=0) for total in totals]
      found |= detail_scores(totals, names, present_only)
    prefix = f'{name}_' if name else ''
    scores |= {f'{prefix}{key}': value for key, value in found.items()}
    if sole := sole_class(matrix, names):
      soles.append(sole)
  summed = processes.gather_rows(np.concatenate(image_losses))
  scores['loss'] = mean_loss(summed, config)
  matched = processes.gather_rows(np.concatenate(matches))
  if len(matched):
    scores['seg'] = cells.mean_jaccard(matched)
  rows = processes.gather_rows(np.concatenate(hits))
  if len(rows):
    scores |= object_scores(rows)
  extremes = []
  if complete:
    rows = np.array([*ius.items()], np.float64).reshape(-1, 2)
    ius |= {int(index): iu for index, iu in processes.gather_rows(rows)}
    processes.together(draw_extremes)
    extremes = [panels[i] for i in best_and_worst(ius) if i in panels]
  return Evaluation(
    scores,
    [panels[i] for i in sorted(shown)],
    extremes,
    ', '.join(soles),
    pictures.SEGMENTATION_COLUMNS,
  )


def _class_scores(matrix, names, present_only):
  """Returns the scores of a head by name, from its confusion matrix."""
  scores = confusion.segmentation_scores(matrix, present_only=present_only)
  ius, dices = scores.pop('iu'), scores.pop('dice')
  is_in_mean = matrix.any(axis=1) if present_only else ~np.isnan(ius)
  others = ius[1:][is_in_mean[1:]]
  if names[0] == 'background' and len(names) > 2 and len(others):
    # PASCAL-Context is a task of 59 classes, without the background.
    scores['mean_iu_but_background'] = float(others.mean())
  for kind, values in (('iu', ius), ('dice', dices)):
    named = zip(names, values, strict=True)
    scores |= {f'{kind}/{name}': float(value) for name, value in named}
  return scores


def object_scores(rows: np.ndarray) -> dict[str, float]:
  """Returns average precision and numbers of objects.

  Args:
    rows: i64[N, T + 2], one row for each image: its hits at the T thresholds of
      `cells.THRESHOLDS`, its number of true and of predicted objects.
  """
  objects = rows[:, -2:].sum(axis=1)
  scores = {}
  some = rows[objects > 0]
  if len(some):
    true_positives = some[:, :-2]
    whole = objects[objects > 0, None] - true_positives
    precisions = (true_positives / whole).mean(axis=0)
    scores |= {
      f'ap/{threshold:.2f}': float(precision)
      for threshold, precision in zip(cells.THRESHOLDS, precisions, strict=True)
    }
    scores['mean_ap'] = float(precisions.mean())
  num_true, num_predicted = rows[:, -2:].sum(axis=0)
  scores['objects/true'] = int(num_true)
  scores['objects/predicted'] = int(num_predicted)
  return scores
