# SPDX-License-Identifier: Apache-2.0
"""Scores of classes and of objects, over whole images of any sizes."""

from collections.abc import Sequence
from math import nan

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
  ends = np.cumsum(sizes)
  names_of = [
    dataset.class_names[end - size : end]
    for size, end in zip(sizes, ends, strict=True)
  ]
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
  own_scores, panels = {}, {}

  def named(head, found):
    prefix = f'{heads[head][0]}_' if heads[head][0] else ''
    return {f'{prefix}{key}': value for key, value in found.items()}

  def score(head, matrix):
    return named(head, _class_scores(matrix, names_of[head], present_only))

  def draw(index, example, probability, truth):
    picture = pictures.segmentation_panel(
      example['image'],
      truth,
      np.argmax(probability, axis=-1),
      names_of[0],
      dataset.palette,
    )
    panels[index] = Panel(example['name'], picture, own_scores[index])

  def count():
    for index in own:
      example = examples[index]
      predicted = predict(example['image'])
      label, weight = example['label'], example.get('weight')
      summed = image_loss(predicted, label, weight, sizes, config.loss)
      image_losses.append(summed[None])
      scores = {}
      if 'instances' in example:
        found = label_instances(predicted[..., 1])
        matches.append(cells.match_objects(example['instances'], found))
        row = cells.count_hits(example['instances'], found, cells.THRESHOLDS)
        hits.append(np.hstack(row)[None])
        scores |= object_scores(matches[-1], hits[-1])
      split = [*losses.split_heads(predicted, label, sizes)]
      for head, (probability, truth) in enumerate(split):
        matrix = confusion.confusion_matrix(
          truth, np.argmax(probability, axis=-1), num_classes=sizes[head]
        )
        counts[head] += matrix
        if detail:
          add_detail(details[head], truth, probability)
        if matrix.any():
          scores |= score(head, matrix)
      own_scores[index] = scores.get(config.evaluation.best_metric, nan)
      if index in shown:
        draw(index, example, *split[0])

  def draw_extremes():
    for index in best_and_worst(own_scores) if processes.is_first() else ():
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
  scores, soles = {}, []
  for head, (matrix, totals) in enumerate(zip(counts, details, strict=True)):
    scores |= score(head, matrix)
    if detail:
      totals = [processes.gather(total).sum(axis=0) for total in totals]
      found = detail_scores(totals, names_of[head], present_only)
      scores |= named(head, found)
    if sole := sole_class(matrix, names_of[head]):
      soles.append(sole)
  summed = processes.gather_rows(np.concatenate(image_losses))
  scores['loss'] = mean_loss(summed, config)
  matched = processes.gather_rows(np.concatenate(matches))
  rows = processes.gather_rows(np.concatenate(hits))
  if len(rows):
    scores |= object_scores(matched, rows)
  extremes = []
  if complete:
    rows = np.array([*own_scores.items()], np.float64).reshape(-1, 2)
    own_scores |= {int(i): value for i, value in processes.gather_rows(rows)}
    processes.together(draw_extremes)
    extremes = [panels[i] for i in best_and_worst(own_scores) if i in panels]
  return Evaluation(
    scores,
    [panels[i] for i in sorted(shown)],
    extremes,
    ', '.join(soles),
    pictures.SEGMENTATION_COLUMNS,
  )


def _class_scores(matrix, names, present_only):
  """Returns the scores of a head by name; NaN for a class without one."""
  scores = confusion.segmentation_scores(matrix, present_only=present_only)
  ius, dices = scores.pop('iu'), scores.pop('dice')
  if present_only:  # A class without labels has no score.
    ius, dices = (np.where(matrix.any(axis=1), x, nan) for x in (ius, dices))
  is_in_mean = ~np.isnan(ius)
  others = ius[1:][is_in_mean[1:]]
  if names[0] == 'background' and len(names) > 2 and len(others):
    # PASCAL-Context is a task of 59 classes, without the background.
    scores['mean_iu_but_background'] = float(others.mean())
  for kind, values in (('iu', ius), ('dice', dices)):
    named = zip(names, values, strict=True)
    scores |= {f'{kind}/{name}': float(value) for name, value in named}
  return scores


def object_scores(matches: np.ndarray, rows: np.ndarray) -> dict[str, float]:
  """Returns SEG, average precision and numbers of objects.

  Args:
    matches: i64[R, 3], the counts of `cells.match_objects` of all images.
    rows: i64[N, T + 2], one row for each image: its hits at the T thresholds of
      `cells.THRESHOLDS`, its number of true and of predicted objects.
  """
  objects = rows[:, -2:].sum(axis=1)
  scores = {'seg': cells.mean_jaccard(matches)} if len(matches) else {}
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
