# SPDX-License-Identifier: Apache-2.0
"""Scores of a network on whole images; also a command line.

`python -m segjax.evaluate --workdir=DIR` prints the table of a run again, and
`--config=CONFIG --params=FILE` that of converted weights. `--images=DIR` scores
a folder that is not the run's.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.command_line import run

  run('evaluate')

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from segjax import losses, network_flags, networks, pictures
from segjax.command_flags import SPLITS
from segjax.contracts import SegmentationModel
from segjax.data import Dataset, create_dataset, folder
from segjax.data.examples import IGNORE_LABEL, Chained, list_some
from segjax.data.label_counts import count_labels
from segjax.data.sets import look_of
from segjax.data.survey import find_layout
from segjax.devices import parallel, processes
from segjax.errors import InputError, counted
from segjax.metrics import boundaries, cells, confusion, neuron
from segjax.prediction.components import label_instances
from segjax.prediction.predictor import check_prediction, predict_stored
from segjax.runs import writers
from segjax.runs.integrity import is_digest_of
from segjax.settings import read_prediction, read_refinement

# Asks for the scores of ISBI 2012, of a stack of membranes and cells.
_STACK_METRIC = 'v_rand'
_SCORES = (
  'pixel_accuracy',
  'mean_accuracy',
  'mean_iu',
  'frequency_weighted_iu',
  'mean_dice',
)
# Settings of a folder that say what the values of labels mean.
_CODING = ('colours', 'ignore_value', 'label_values', 'label_kind')
_OBJECT_SCORES = (
  *('seg', 'mean_ap'),
  *(f'ap/{threshold:.2f}' for threshold in cells.THRESHOLDS),
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
  detail: bool = False,
) -> Evaluation:
  """Returns the scores and pictures of a network on whole images.

  Process p of P predicts examples p, p + P, p + 2P, ...; all get the scores of
  all examples, and process 0 the pictures; `panels` are of its own examples
  where each image counts for itself.

  Args:
    model: of the run.
    params: its parameters, on one device of this process.
    examples: what to predict; their labels are the truth.
    config: of the run; reads `evaluation`, `preprocessing`, `prediction`,
      `refinement` and what says how its loss is computed.
    dataset: names and colours of the classes.
    average: whether to predict by the mean over the eight turns and flips.
    complete: whether to compute what takes long: the warping error, and which
      examples are the best and the worst.
    detail: whether to add the scores of `metrics.boundaries`: `boundary_iou`,
      the mean over classes, that of each class, and `trimap_mean_iu/R` of the
      pixels within R px of a border.
  """
  preprocessing, tiles = read_prediction(config, average=average)
  refinement = read_refinement(config)

  def predict(image):
    return predict_stored(
      model, params, image, preprocessing, tiles, refinement
    )

  if config.evaluation.best_metric == _STACK_METRIC:
    return _evaluate_stack(
      predict,
      examples,
      config,
      complete,
      dataset.class_names,
      detail,
    )
  return _evaluate_classes(
    predict,
    examples,
    dataset,
    heads=(*zip(model.head_names, model.head_sizes, strict=True),),
    config=config,
    complete=complete,
    detail=detail,
  )


def title(num_images: int, split: str, average: bool) -> str:
  """Returns what a table of scores is of."""
  how = 'one pass'
  if average:
    how = 'test-time augmentation: mean of 8 turns and flips'
  return f'{counted(num_images, "image")} ({split}), {how}'


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
  examples = dataset.heldout if len(dataset.heldout) else dataset.train
  if 'instances' in examples[0]:
    known += _OBJECT_SCORES
  kind, _, name = best_metric.partition('/')
  if kind in ('iu', 'dice') and name in dataset.class_names:
    _check_class(model.head_sizes, dataset, best_metric, name)
  elif best_metric not in known:
    raise InputError(
      f'evaluation.best_metric={best_metric!r} is not one of {known}, nor '
      f'iu/CLASS or dice/CLASS of the classes {list_some(dataset.class_names)}'
    )
  if best_metric in _OBJECT_SCORES:
    if not any(np.any(example['instances']) for example in examples):
      raise InputError(
        f'evaluation.best_metric={best_metric!r} scores objects; none of '
        f"{len(examples)} labels has one; hold out others, or use 'mean_iu'"
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


def _check_class(head_sizes, dataset, best_metric, name):
  """Raises InputError if no held-out label has the class to be scored."""
  index, head = dataset.class_names.index(name), 0
  while index >= head_sizes[head]:
    index -= head_sizes[head]
    head += 1
  for example in dataset.heldout:
    label = example['label']
    if np.any((label if len(head_sizes) == 1 else label[..., head]) == index):
      return
  if len(dataset.heldout):
    raise InputError(
      f'evaluation.best_metric={best_metric!r}: none of the '
      f'{len(dataset.heldout)} held-out labels has a pixel of class {name!r}; '
      "hold out others, or use 'mean_iu'"
    )


def _found(dataset: Dataset) -> str:
  """Returns what a data set without a cell to score holds, and what to do."""
  names = {0: dataset.class_names[0], IGNORE_LABEL: 'ignored'}
  held = {int(v) for e in dataset.heldout for v in np.unique(e['label'])}
  found = ' and '.join(f'{v} ({names[v]})' for v in sorted(held))
  if any(np.any(example['label'] == 1) for example in dataset.train):
    return f'they hold {found} alone; hold out others'
  return f'they hold {found} alone, and those to train on no cell; mend them'


def _evaluate_stack(predict, examples, config, complete, class_names, detail):
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
  del pixels['iu'], pixels['dice']  # By class; the means are there.
  if detail:
    totals = _no_detail(stack.shape[-1])
    for label, probability in zip(labels, stack, strict=True):
      _add_detail(totals, label, probability)
    present_only = config.evaluation.present_only
    pixels |= _detail_scores(totals, class_names, present_only)
  scores = neuron.evaluate_stack(labels, stack[..., 1], warping=complete)
  heads = [stack.shape[-1]]
  image_losses = [
    _image_loss(probability, e['label'], e.get('weight'), heads, config.loss)
    for probability, e in zip(stack, examples, strict=True)
  ]
  pixels['loss'] = _mean_loss(image_losses, config)
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


def _image_loss(probability, label, weight, head_sizes, loss):
  """Returns the loss of an image, summed over pixels, and their number.

  Logarithms of probabilities are logits. Pixels are padded to a power of two
  by ignored ones, so that few programs serve images of all sizes.

  Args:
    probability: f32[h, w, K], of all heads.
    label: i32[h, w], or i32[h, w, T] for T heads.
    weight: f32[h, w], or None.
    head_sizes: number of classes of each head.
    loss: see `losses.image_loss`.
  """
  num_pixels = probability.shape[0] * probability.shape[1]
  spare = (1 << (num_pixels - 1).bit_length()) - num_pixels

  def flat(array, value):
    array = array.reshape(num_pixels, *array.shape[2:])
    ends = [(0, spare), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array, ends, constant_values=value)

  weight = None if weight is None else flat(weight, 0)
  heads = losses.split_heads(flat(probability, 1), flat(label, 255), head_sizes)
  program = _loss_program(loss)
  sums = [program(scores, truth, weight) for scores, truth in heads]
  return np.sum(np.array(sums, np.float64), axis=0)


@functools.cache
def _loss_program(loss):
  least = np.finfo(np.float32).tiny

  def compute(probability, label, weight):
    logits = jnp.log(jnp.maximum(probability, least))
    return losses.image_loss(logits, label, weight, IGNORE_LABEL, loss)

  return parallel.jit(compute)


def _mean_loss(image_losses, config):
  """Returns the loss of all images, as that of a batch of the training.

  With the reduction 'sum', which grows with the batch, it is that of an average
  batch.
  """
  reduced = [
    losses.reduce_image(total, count, config.loss_reduction)
    for total, count in image_losses
  ]
  total, divisor = np.sum(np.array(reduced, np.float64), axis=0)
  if config.loss_reduction == 'sum':
    divisor = len(image_losses) / config.batch_size
  return float(total / divisor)


def _evaluate_classes(
  predict, examples, dataset, heads, config, complete, detail
):
  """Scores of `confusion`, counted image by image and divided once.

  Those of several heads are named after them, `sem_mean_iu`; IU and Dice of
  single classes are `iu/NAME` and `dice/NAME`. Examples with instances also
  give `seg`, `ap/THRESHOLD` and `mean_ap`, see `metrics.cells`, of the
  components of class 1, and the numbers of objects, `objects/true` and
  `objects/predicted`. Average precision is the mean over the images that have
  an object in truth or prediction.
  """
  num_pictures = config.evaluation.num_pictures
  present_only = config.evaluation.present_only
  sizes = [size for _, size in heads]
  image_losses = [np.zeros((0, 2))]
  counts = [np.zeros((size, size), np.int64) for size in sizes]
  details = [_no_detail(size) for size in sizes]
  matches = [np.zeros((0, 3), np.int64)]
  # A row for each image: hits by threshold, true objects, predicted objects.
  hits = [np.zeros((0, len(cells.THRESHOLDS) + 2), np.int64)]
  own = [i for i in processes.share(len(examples)) if i < len(examples)]
  # Spread over the set: neighbours may be frames of one film.
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
      summed = _image_loss(predicted, label, weight, sizes, config.loss)
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
          _add_detail(details[head], truth, probability)
        if head == 0:
          ius[index] = _mean_iu(matrix, present_only)
          if index in shown:
            draw(index, example, probability, truth)

  def draw_extremes():
    for index in _best_and_worst(ius) if processes.is_first() else ():
      if index not in panels:  # It may be another process's.
        example = examples[index]
        predicted = predict(example['image'])
        draw(
          index,
          example,
          *next(losses.split_heads(predicted, example['label'], sizes)),
        )

  processes.together(count)
  counts = [processes.gather(matrix).sum(axis=0) for matrix in counts]
  if not all(matrix.any() for matrix in counts):
    raise InputError(
      f'all pixels of the {len(examples)} examples are ignored; at least one '
      'must have a label'
    )
  scores, soles, first = {}, [], 0
  for (name, size), matrix, totals in zip(heads, counts, details, strict=True):
    prefix = f'{name}_' if name else ''
    values = confusion.segmentation_scores(matrix, present_only=present_only)
    class_ius, class_dices = values.pop('iu'), values.pop('dice')
    scores |= {f'{prefix}{key}': value for key, value in values.items()}
    names = dataset.class_names[first : first + size]
    if sole := _sole_class(matrix, names):
      soles.append(sole)
    counts_in_mean = (
      matrix.any(axis=1) if present_only else ~np.isnan(class_ius)
    )
    others = class_ius[1:][counts_in_mean[1:]]
    if names[0] == 'background' and len(names) > 2 and len(others):
      # PASCAL-Context is a task of 59 classes, without the background.
      scores[f'{prefix}mean_iu_but_background'] = float(others.mean())
    scores |= {
      f'{prefix}iu/{key}': float(iu)
      for key, iu in zip(names, class_ius, strict=True)
    }
    scores |= {
      f'{prefix}dice/{key}': float(dice)
      for key, dice in zip(names, class_dices, strict=True)
    }
    if detail:
      totals = [processes.gather(total).sum(axis=0) for total in totals]
      found = _detail_scores(totals, names, present_only)
      scores |= {f'{prefix}{key}': value for key, value in found.items()}
    first += size
  summed = processes.gather_rows(np.concatenate(image_losses))
  scores['loss'] = _mean_loss(summed, config)
  matched = processes.gather_rows(np.concatenate(matches))
  if len(matched):
    scores['seg'] = cells.mean_jaccard(matched)
  found = processes.gather_rows(np.concatenate(hits))
  if len(found):
    scores |= _object_scores(found)
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


def _no_detail(num_classes):
  """Returns the counts of `metrics.boundaries` before the first image."""
  shapes = (num_classes, 3), (len(boundaries.RADII_PX), *[num_classes] * 2)
  return [np.zeros(shape, np.int64) for shape in shapes]


def _add_detail(totals, label, probability):
  """Adds an image to the counts of `_no_detail`."""
  pair = label, np.argmax(probability, axis=-1), probability.shape[-1]
  totals[0] += boundaries.boundary_counts(*pair)
  totals[1] += boundaries.trimap_counts(*pair)


def _detail_scores(totals, class_names, present_only):
  """Returns boundary IoU and the trimap curve; see `evaluate`."""
  ious = boundaries.boundary_iou(totals[0])
  counted = totals[0][:, 1] > 0 if present_only else ~np.isnan(ious)
  curve = boundaries.trimap_curve(totals[1], present_only)
  mean = float(ious[counted].mean()) if counted.any() else math.nan
  scores = {'boundary_iou': mean}
  scores |= {
    f'boundary_iou/{name}': float(iou)
    for name, iou in zip(class_names, ious, strict=True)
  }
  return scores | {
    f'trimap_mean_iu/{radius}': float(iu)
    for radius, iu in zip(boundaries.RADII_PX, curve, strict=True)
  }


def _object_scores(rows):
  """Average precision and numbers of objects from rows of `count_hits`."""
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


def main(_):
  processes.join()
  args = flags.FLAGS
  network = network_flags.load_from_flags()
  config = network.config
  refinement = read_refinement(config, args.refine)
  with config.unlocked():
    config.refinement = dataclasses.asdict(refinement)
  check_prediction(network.model, *read_prediction(config), refinement)
  if args.images is not None:
    dataset = _open_folder(network, args.images, args.labels, args.match)
    _print_scores(network, dataset, dataset.heldout, args.images, args.tta)
    return
  if args.data_dir is not None:
    config.data.dir = args.data_dir
  dataset = create_dataset(config.data)
  known = network.data_sha256
  if known is not None and not is_digest_of(known, dataset.digest):
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
  _print_scores(network, dataset, examples, args.split, args.tta)


def _print_scores(network, dataset, examples, what, tta):
  model, params, config = network
  average = config.evaluation.average if tta is None else tta
  scores = evaluate(
    model,
    params,
    examples,
    config,
    dataset,
    average=average,
    detail=flags.FLAGS.detail,
  ).scores
  processes.say(title(len(examples), what, average))
  if text := read_refinement(config).describe():
    processes.say(text)
  processes.say(writers.table(scores))


def _open_folder(network, images, labels, match):
  """Returns the pairs of a folder as held-out examples, and checks them.

  Labels are stored as those of the run if these were in a folder, else as class
  indices. All of them are read once.
  """
  model, _, config = network
  if len(model.head_sizes) > 1:
    raise InputError(
      f'--images={images}: a folder has one label for a pixel; the network has '
      f'{len(model.head_sizes)} heads'
    )
  names, palette = look_of(config.data, model.num_classes)

  def load():
    coding = {'colours': (), 'ignore_value': (IGNORE_LABEL,)}
    own_match = ''
    if config.data.name == 'folder':
      data = config.data.to_dict()
      coding |= {name: data[name] for name in _CODING if name in data}
      own_match = data.get('match', '')
    root, found_images, found_labels, found_match = find_layout(
      images, labels, match or own_match
    )
    loaded = folder.load(
      dir=str(root),
      images=found_images,
      labels=found_labels,
      match=found_match,
      class_names=names,
      train_list='',
      heldout_list='',
      heldout_fraction=0.0,
      seed=0,
      **coding,
    )
    return dataclasses.replace(
      loaded, train=(), heldout=loaded.train, palette=palette
    )

  dataset = processes.together(load)
  channels = dataset.heldout[0]['image'].shape[-1]
  if channels != model.in_channels:
    raise InputError(
      f'--images={images} has {channels} channel(s); the network takes '
      f'{model.in_channels}'
    )
  networks.check_fits(model, dataset, read_prediction(config)[0])
  counts = count_labels(dataset.heldout)
  _check_counts(counts.pixels[0], dataset, images)
  if doubt := counts.colours.doubt():
    processes.say(f'labels: {doubt}')
  if config.evaluation.best_metric == _STACK_METRIC:
    try:
      check_metric(model, dataset, _STACK_METRIC)
    except InputError:
      processes.say(
        f'{_STACK_METRIC} is of images of one size that show cells and have no '
        'ignored pixel; the scores are of pixels alone'
      )
      config.evaluation.best_metric = 'mean_iu'
  return dataset


def _check_counts(counts, dataset, images):
  """Says which classes a folder lacks; refuses labels that show no class."""
  names = dataset.class_names
  missing = [name for k, name in enumerate(names) if not counts[k]]
  if counts[IGNORE_LABEL] and not counts[1 : len(names)].any():
    values = ', '.join(
      f'{value} is {name}'
      for value, name in zip(dataset.stored, (*names, 'ignored'), strict=False)
    )
    raise InputError(
      f'--images={images}: in {len(dataset.heldout)} labels {counts[0]:,} px '
      f'are {names[0]} and {counts[IGNORE_LABEL]:,} px are ignored, and no '
      f'other class is there{values and f"; in labels of the run {values}"}'
    )
  if missing:
    processes.say(
      f'no label has a pixel of class {list_some(map(repr, missing))}'
    )
