# SPDX-License-Identifier: Apache-2.0
"""Scores of a network on whole images; also a command line.

`python -m segjax.evaluate --workdir=DIR` prints the table of a run again.
"""

from collections.abc import Sequence

import flax.linen as nn
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from segjax import tiling, workdir, writers
from segjax.data import create_dataset, standardise, to_unit_range
from segjax.errors import InputError, run_command
from segjax.metrics import confusion, neuron

SPLITS = ('heldout', 'train', 'all')


def predict_examples(
  model: nn.Module,
  params: dict,
  examples: Sequence[dict],
  config: ConfigDict,
  average: bool = False,
) -> list[np.ndarray]:
  """Returns the class probabilities f32[H, W, K] of each example's image.

  Reads `config.gray` and `config.tiling`; `average` is over the eight turns
  and flips (`tiling.predict_image`).
  """
  return [
    tiling.predict_image(
      model.apply,
      {'params': params},
      standardise(to_unit_range(example['image']), **config.gray),
      model.geometry,
      **config.tiling,
      average=average,
    )
    for example in examples
  ]


def score(
  probabilities: Sequence[np.ndarray],
  examples: Sequence[dict],
  *,
  warping: bool = True,
) -> dict[str, float]:
  """Returns the scores of a stack of membranes and cells.

  Those of `neuron.evaluate_stack` for the probability of cell (class 1), and
  those of `confusion.scores` for the more probable class.

  Args:
    probabilities: f32[H, W, 2] of each example.
    examples: with `label` i32[H, W].
    warping: whether to compute the warping error, which takes longest.
  """
  labels = np.stack([example['label'] for example in examples])
  stack = np.stack(probabilities)
  counts = confusion.confusion_matrix(
    labels, np.argmax(stack, axis=-1), num_classes=stack.shape[-1]
  )
  pixels = confusion.scores(counts)
  del pixels['iu']  # One for each class; the mean is there.
  return neuron.evaluate_stack(labels, stack[..., 1], warping=warping) | pixels


def main(_):
  args = flags.FLAGS
  model, params, config = workdir.load_run(args.workdir, args.checkpoint)
  if args.data_dir is not None:
    config.data.dir = args.data_dir
  dataset = create_dataset(config.data, config.weights)
  if dataset.digest() != config.data_sha256:
    raise InputError(
      f'the data are not those that {args.workdir} was trained on: the digest '
      'of images and labels differs'
    )
  examples = {
    'heldout': dataset.heldout,
    'train': dataset.train,
    'all': [*dataset.train, *dataset.heldout],
  }[args.split]
  if not examples:
    raise InputError(
      f'split {args.split!r} is empty: the run has data.fold='
      f'{config.data.fold}; use another of {SPLITS}'
    )
  average = args.average
  if average is None:
    average = config.evaluation.average
  probabilities = predict_examples(model, params, examples, config, average)
  print(writers.table(score(probabilities, examples)))


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'Folder of a run.', required=True)
  flags.DEFINE_enum('split', 'heldout', SPLITS, 'Which examples to score.')
  flags.DEFINE_string(
    'checkpoint',
    'latest',
    "'latest', 'best' (by the held-out score, which flatters it) or the number "
    'of a step.',
  )
  flags.DEFINE_string(
    'data_dir', None, 'Where the data are now; None where the run had them.'
  )
  flags.DEFINE_bool(
    'average', None, 'Average over the 8 turns and flips; None as the run did.'
  )
  run_command(main)
