# SPDX-License-Identifier: Apache-2.0
"""Scores of a network on whole images; also a command line.

`python -m segjax.evaluate --workdir=DIR` prints the table of a run again, and
`--config=CONFIG --params=FILE` that of converted weights.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.command_line import run

  run('evaluate')

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from segjax import network_flags, networks, pictures
from segjax.command_flags import SPLITS
from segjax.contracts import SegmentationModel
from segjax.data import Dataset, create_dataset
from segjax.data.examples import IGNORE_LABEL, Chained, list_some
from segjax.devices import processes
from segjax.errors import InputError
from segjax.losses import split_heads
from segjax.metrics import cells, confusion, neuron
from segjax.prediction.components import label_instances
from segjax.prediction.predictor import predict_stored
from segjax.runs import writers
from segjax.settings import read_prediction

# Asks for the scores of ISBI 2012, of a stack of membranes and cells.
_STACK_METRIC = 'v_rand'
_SCORES = (
  'pixel_accuracy',
  'mean_accuracy',
  'mean_iu',
  'frequency_weighted_iu',
)


class Panel(NamedTuple):
  """A picture of one prediction.

  Attributes:
    name: of the example.
    picture: u8[h, w, 3].
    mean_iu: of this example alone; NaN if all its pixels are ignored.
  """

  name: str
  picture: np.ndarray
  mean_iu: float


class Evaluation(NamedTuple):
  """Scores of a network, and what its predictions look like.

  Attributes:
    scores: name -> number.
    panels: of some examples.
    extremes: of the examples with the best and the worst mean IU; [] unless
      there are two examples.
    sole_class: name of the class that all pixels are predicted as, though the
      labels have others; '' if there is none.
    columns: what the pictures show, from left to right.
  """

  scores: dict[str, float]
  panels: list[Panel]
  extremes: list[Panel] = []
  sole_class: str = ''
  columns: str = ''


def evaluate(
  model: SegmentationModel,
  params: Any,
  examples: Sequence[dict],
  config: ConfigDict,
  dataset: Dataset,
  *,
  average: bool,
  complete: bool = True,
) -> Evaluation:
  """Returns the scores and pictures of a network on whole images.

  Process p of P predicts examples p, p + P, p + 2P, ...; all get the scores of
  all examples, and process 0 the pictures; `panels` are of its own examples
  where each image counts for itself.

  Args:
    model: of the run.
    params: its parameters, on one device of this process.
    examples: what to predict; their labels are the truth.
    config: of the run; reads `evaluation`, `preprocessing` and `prediction`.
    dataset: names and colours of the classes.
    average: whether to predict by the mean over the eight turns and flips.
    complete: whether to compute what takes long: the warping error, and which
      examples are the best and the worst.
  """
  preprocessing, tiles = read_prediction(config, average=average)

  def predict(image):
    return predict_stored(model, params, image, preprocessing, tiles)

  if config.evaluation.best_metric == _STACK_METRIC:
    return _evaluate_stack(
      predict,
      examples,
      config.evaluation.num_pictures,
      complete,
      dataset.class_names,
    )
  return _evaluate_classes(
    predict,
    examples,
    dataset,
    heads=(*zip(model.head_names, model.head_sizes, strict=True),),
    num_pictures=config.evaluation.num_pictures,
    present_only=config.evaluation.present_only,
    complete=complete,
  )


def title(num_images: int, split: str, average: bool) -> str:
  """Returns what a table of scores is of."""
  how = 'mean of 8 turns and flips' if average else 'one pass'
  return f'{num_images} images ({split}), {how}'


def check_metric(
  model: SegmentationModel, dataset: Dataset, best_metric: str
) -> None:
  """Raises InputError if `evaluate` can give no score of this name."""
  known = [
    f'{name}_{score}' if name else score
    for name in model.head_names
    for score in _SCORES
  ]
  if model.num_classes == 2:
    known.append(_STACK_METRIC)
  if best_metric not in known:
    raise InputError(
      f'evaluation.best_metric={best_metric!r} is not one of {known}'
    )
  if best_metric == _STACK_METRIC:
    labels = [example['label'] for example in dataset.heldout]
    sizes = {label.shape for label in labels}
    if labels and not any(np.any(label == 1) for label in labels):
      raise InputError(
        f'evaluation.best_metric={best_metric!r} scores the cells of a stack; '
        f'none of the {len(labels)} held-out labels has a pixel of class 1, '
        f'{dataset.class_names[1]!r}; {_found(dataset)}'
      )
    ignored = [
      example['name']
      for example, label in zip(dataset.heldout, labels, strict=True)
      if np.any(label == IGNORE_LABEL)
    ]
    if ignored:
      raise InputError(
        f'evaluation.best_metric={best_metric!r} scores all pixels of a stack; '
        f'the labels of {list_some(ignored)} have pixels of {IGNORE_LABEL}, '
        "which are ignored; use 'mean_iu'"
      )
    if len(sizes) > 1:
      raise InputError(
        f'evaluation.best_metric={best_metric!r} scores a stack; the held-out '
        f"images have {len(sizes)} sizes; use 'mean_iu'"
      )


def _found(dataset: Dataset) -> str:
  """Returns what a data set without a cell to score holds, and what to do."""
  names = {0: dataset.class_names[0], IGNORE_LABEL: 'ignored'}
  held = {int(v) for e in dataset.heldout for v in np.unique(e['label'])}
  found = ' and '.join(f'{v} ({names[v]})' for v in sorted(held))
  if any(np.any(example['label'] == 1) for example in dataset.train):
    return f'they hold {found} alone; hold out others'
  return f'they hold {found} alone, and those to train on no cell; mend them'


def _evaluate_stack(predict, examples, num_pictures, complete, class_names):
  """Scores of membranes and cells: `neuron.evaluate_stack` and the pixels'."""
  examples = list(examples)
  labels = np.stack([example['label'] for example in examples])
  stack = _predict_stack(predict, [example['image'] for example in examples])
  matrices = [
    confusion.confusion_matrix(
      label, np.argmax(probability, axis=-1), num_classes=stack.shape[-1]
    )
    for label, probability in zip(labels, stack, strict=True)
  ]
  counts = np.sum(matrices, axis=0)
  ius = dict(enumerate(map(_mean_iu, matrices)))
  pixels = confusion.segmentation_scores(counts)
  del pixels['iu']  # One for each class; the mean is there.
  scores = neuron.evaluate_stack(labels, stack[..., 1], warping=complete)
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
    [draw(i) for i in range(min(num_pictures, len(examples)))],
    [draw(i) for i in _best_and_worst(ius)] if complete else [],
    _sole_class(counts, class_names),
    pictures.PANEL_COLUMNS,
  )


def _predict_stack(predict, images):
  """Returns the predictions f32[N, H, W, K] of all processes."""
  last = len(images) - 1
  own = np.stack(
    [predict(images[min(i, last)]) for i in processes.share(len(images))]
  )
  stack = processes.gather(own).swapaxes(0, 1)
  return stack.reshape(-1, *own.shape[1:])[: len(images)]


def _mean_iu(matrix, present_only=False):
  """Returns the mean IU of one example, NaN if all its pixels are ignored."""
  if not matrix.any():
    return math.nan
  return confusion.segmentation_scores(matrix, present_only)['mean_iu']


def _best_and_worst(ius):
  """Returns two keys of index -> mean IU, or none if there are no two."""
  ranked = sorted((-iu, i) for i, iu in ius.items() if not math.isnan(iu))
  return [ranked[0][1], ranked[-1][1]] if len(ranked) > 1 else []


def _sole_class(matrix, class_names):
  """Returns the only class predicted, '' unless labels have several."""
  predicted = np.flatnonzero(matrix.any(axis=0))
  is_sole = len(predicted) == 1 and matrix.any(axis=1).sum() > 1
  return class_names[predicted[0]] if is_sole else ''


def _evaluate_classes(
  predict, examples, dataset, heads, num_pictures, present_only, complete
):
  """Scores of `confusion`, counted image by image and divided once.

  Those of several heads are named after them, `sem_mean_iu`; the IU of single
  classes is `iu/NAME`. Examples with instances also give `seg`, see
  `metrics.cells`, of the components of class 1.
  """
  sizes = [size for _, size in heads]
  counts = [np.zeros((size, size), np.int64) for size in sizes]
  matches = [np.zeros((0, 3), np.int64)]
  own = [i for i in processes.share(len(examples)) if i < len(examples)]
  # Spread over the set: neighbours may be frames of one film.
  spread = [i * len(own) // num_pictures for i in range(num_pictures)]
  shown = {own[i] for i in spread if i < len(own)}
  ius, panels = {}, {}

  def draw(index, example, probability, label):
    picture = pictures.segmentation_panel(
      example['image'],
      label,
      np.argmax(probability, axis=-1),
      dataset.class_names[: sizes[0]],
      dataset.palette,
    )
    panels[index] = Panel(example['name'], picture, ius[index])

  def count():
    for index in own:
      example = examples[index]
      predicted = predict(example['image'])
      if 'instances' in example:
        found = label_instances(predicted[..., 1])
        matches.append(cells.match_objects(example['instances'], found))
      split = split_heads(predicted, example['label'], sizes)
      for head, (probability, label) in enumerate(split):
        matrix = confusion.confusion_matrix(
          label, np.argmax(probability, axis=-1), num_classes=sizes[head]
        )
        counts[head] += matrix
        if head == 0:
          ius[index] = _mean_iu(matrix, present_only)
          if index in shown:
            draw(index, example, probability, label)

  def draw_extremes():
    for index in _best_and_worst(ius) if processes.is_first() else ():
      if index not in panels:  # It may be another process's.
        example = examples[index]
        predicted = predict(example['image'])
        draw(
          index, example, *next(split_heads(predicted, example['label'], sizes))
        )

  processes.together(count)
  counts = [processes.gather(matrix).sum(axis=0) for matrix in counts]
  if not all(matrix.any() for matrix in counts):
    raise InputError(
      f'all pixels of the {len(examples)} examples are ignored; at least one '
      'must have a label'
    )
  scores, soles, first = {}, [], 0
  for (name, size), matrix in zip(heads, counts, strict=True):
    prefix = f'{name}_' if name else ''
    values = confusion.segmentation_scores(matrix, present_only=present_only)
    class_ius = values.pop('iu')
    scores |= {f'{prefix}{key}': value for key, value in values.items()}
    names = dataset.class_names[first : first + size]
    if sole := _sole_class(matrix, names):
      soles.append(sole)
    others = class_ius[1:][~np.isnan(class_ius[1:])]
    if names[0] == 'background' and len(names) > 2 and len(others):
      # PASCAL-Context is a task of 59 classes, without the background.
      scores[f'{prefix}mean_iu_but_background'] = float(others.mean())
    scores |= {
      f'{prefix}iu/{key}': float(iu)
      for key, iu in zip(names, class_ius, strict=True)
    }
    first += size
  matched = processes.gather_rows(np.concatenate(matches))
  if len(matched):
    scores['seg'] = cells.mean_jaccard(matched)
  extremes = []
  if complete:
    rows = np.array([*ius.items()], np.float64).reshape(-1, 2)
    ius |= {int(index): iu for index, iu in processes.gather_rows(rows)}
    processes.together(draw_extremes)
    extremes = [panels[i] for i in _best_and_worst(ius) if i in panels]
  return Evaluation(
    scores,
    [panels[i] for i in sorted(shown)],
    extremes,
    ', '.join(soles),
    pictures.SEGMENTATION_COLUMNS,
  )


def main(_):
  processes.join()
  args = flags.FLAGS
  network = network_flags.load_from_flags()
  config = network.config
  if args.data_dir is not None:
    config.data.dir = args.data_dir
  dataset = create_dataset(config.data)
  if network.data_sha256 not in (None, dataset.digest):
    raise InputError(
      f'the data are not those that {args.workdir} was trained on: the digest '
      'of images and labels differs'
    )
  preprocessing, _ = read_prediction(config)
  networks.check_fits(network.model, dataset, preprocessing)
  examples = {
    'heldout': dataset.heldout,
    'train': dataset.train,
    'all': Chained((dataset.train, dataset.heldout)),
  }[args.split]
  if args.split == 'heldout' and not len(dataset.heldout):
    raise InputError(
      f'split {args.split!r} is empty: the config holds out no example of '
      f'data.name={config.data.name!r}; use another of {SPLITS}'
    )
  average = args.average
  if average is None:
    average = config.evaluation.average
  count = {'heldout': len(dataset.heldout), 'train': len(dataset.train)}
  count['all'] = sum(count.values())
  scores = evaluate(
    network.model, network.params, examples, config, dataset, average=average
  ).scores
  processes.say(title(count[args.split], args.split, average))
  processes.say(writers.table(scores))
