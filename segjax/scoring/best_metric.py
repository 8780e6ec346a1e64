# SPDX-License-Identifier: Apache-2.0
"""The score by which a run chooses its best checkpoint."""

import numpy as np

from segjax.contracts import SegmentationModel
from segjax.data import Dataset
from segjax.data.examples import IGNORE_LABEL, list_some
from segjax.errors import InputError
from segjax.metrics import cells

# This metric selects the scores of ISBI 2012: a stack of membranes and cells.
STACK_METRIC = 'v_rand'
_SCORES = (
  'pixel_accuracy',
  'mean_accuracy',
  'mean_iu',
  'frequency_weighted_iu',
  'mean_dice',
)
_OBJECT_SCORES = (
  *('seg', 'mean_ap'),
  *(f'ap/{threshold:.2f}' for threshold in cells.THRESHOLDS),
)


def check_metric(
  model: SegmentationModel, dataset: Dataset, best_metric: str
) -> None:
  """Raises InputError if `evaluate` cannot compute a score.

  Args:
    model: the network.
    dataset: held-out examples, or if there are none, training examples.
    best_metric: name of the score.
  """
  known = [
    f'{name}_{score}' if name else score
    for name in model.head_names
    for score in _SCORES
  ]
  if model.num_classes == 2:
    known.append(STACK_METRIC)
  examples = dataset.heldout if len(dataset.heldout) else dataset.train
  if 'instances' in examples[0]:
    known += _OBJECT_SCORES
  given = f'evaluation.best_metric={best_metric!r}'
  kind, _, name = best_metric.partition('/')
  if kind in ('iu', 'dice') and name in dataset.class_names:
    _check_class(model.head_sizes, dataset, given, name)
  elif best_metric not in known:
    raise InputError(
      f'{given} is not one of {known}, nor iu/CLASS or dice/CLASS of the '
      f'classes {list_some(dataset.class_names)}'
    )
  if best_metric in _OBJECT_SCORES and not any(
    np.any(example['instances']) for example in examples
  ):
    raise InputError(
      f'{given} scores objects; none of {len(examples)} labels has one; hold '
      "out others, or use 'mean_iu'"
    )
  if best_metric == STACK_METRIC:
    labels = [example['label'] for example in dataset.heldout]
    if labels and not any(np.any(label == 1) for label in labels):
      raise InputError(
        f'{given} scores the cells of a stack; none of the {len(labels)} '
        'held-out labels has a pixel of class 1, '
        f'{dataset.class_names[1]!r}; {_found(dataset)}'
      )
    ignored = [
      example['name']
      for example, label in zip(dataset.heldout, labels, strict=True)
      if np.any(label == IGNORE_LABEL)
    ]
    if ignored:
      raise InputError(
        f'{given} scores all pixels of a stack; the labels of '
        f'{list_some(ignored)} have pixels of {IGNORE_LABEL}, which are '
        "ignored; use 'mean_iu'"
      )
    sizes = {label.shape for label in labels}
    if len(sizes) > 1:
      raise InputError(
        f'{given} scores a stack; the held-out images have {len(sizes)} sizes; '
        "use 'mean_iu'"
      )


def _check_class(head_sizes, dataset, given, name):
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
      f'{given}: none of the {len(dataset.heldout)} held-out labels has a '
      f"pixel of class {name!r}; hold out others, or use 'mean_iu'"
    )


def _found(dataset: Dataset) -> str:
  """Returns the classes of held-out labels without a cell, and what to do."""
  names = {0: dataset.class_names[0], IGNORE_LABEL: 'ignored'}
  held = {int(v) for e in dataset.heldout for v in np.unique(e['label'])}
  found = ' and '.join(f'{v} ({names[v]})' for v in sorted(held))
  if any(np.any(example['label'] == 1) for example in dataset.train):
    return f'they hold only {found}; hold out others'
  return f'they hold only {found}, and no training label has a cell; mend them'
