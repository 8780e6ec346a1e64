# SPDX-License-Identifier: Apache-2.0
"""Print the scores of a network on whole images.

`python -m segjax.evaluate --workdir=DIR` prints the table of a run again. Give
`--config=CONFIG --params=FILE` instead to score converted weights, and
`--images=DIR` to score another folder than the data of the run.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.cli.command_line import run

  run('evaluate')

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from absl import flags

from segjax import networks
from segjax.cli import network_flags
from segjax.cli.command_flags import SPLITS
from segjax.data import create_dataset, folder
from segjax.data.examples import IGNORE_LABEL, Chained, file_of, list_some
from segjax.data.label_counts import CARVED, count_labels
from segjax.data.sets import look_of
from segjax.data.survey import find_layout
from segjax.devices import processes
from segjax.errors import InputError
from segjax.prediction.predictor import check_prediction
from segjax.runs import writers
from segjax.runs.integrity import is_digest_of
from segjax.scoring.best_metric import STACK_METRIC, check_metric
from segjax.scoring.evaluation import evaluate, title
from segjax.settings.sections import read_prediction, read_refinement

# Settings of a folder that define the meaning of label values.
_CODING = ('colours', 'ignore_value', 'label_values', 'label_kind')


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
      f'--split={args.split}: the run holds out no image; use another of '
      f'{SPLITS}, or --images=DIR for other images'
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
  processes.say(title(len(examples), what, average, read_refinement(config)))
  processes.say(writers.table(scores))


def _open_folder(network, images, labels, match):
  """Returns the pairs of a folder as held-out examples, and checks them.

  The values of labels mean what they meant in the run, if it was trained on a
  folder or on arrays; otherwise they are class indices. All labels are read
  once.
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
    data = config.data.to_dict()
    if config.data.name in ('folder', 'arrays'):
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
  seen = processes.together(lambda: _find_trained(network, dataset.heldout))
  if seen:
    processes.say(
      f'{len(seen)} of the images are copies of files that the run was trained '
      f'on, so scores are too high: {list_some(seen)}'
    )
  channels = dataset.heldout[0]['image'].shape[-1]
  if channels != model.in_channels:
    raise InputError(
      f'--images={images}: {file_of(dataset.heldout, 0)} has {channels} '
      f'channel(s); the network takes {model.in_channels}'
    )
  networks.check_fits(model, dataset, read_prediction(config)[0])
  counts = count_labels(dataset.heldout)
  _check_counts(counts.pixels[0], dataset, images)
  if doubt := counts.colours.doubt():
    processes.say(f'labels: {doubt}')
  if 'instances' in dataset.heldout[0]:
    processes.say(CARVED)
  if config.evaluation.best_metric == STACK_METRIC:
    try:
      check_metric(model, dataset, STACK_METRIC)
    except InputError:
      processes.say(
        f'{STACK_METRIC} needs images of one size, with cells and without '
        'ignored pixels; only scores of pixels are printed'
      )
      config.evaluation.best_metric = 'mean_iu'
  return dataset


def _find_trained(network, examples):
  """Returns the names of examples that the run was trained on.

  These are pages of files with the bytes of a training file. Finds none if the
  run was trained on another kind of data set, or if its folder is no longer
  there as it was.
  """
  config, known = network.config, network.data_sha256
  if config.data.name != 'folder' or known is None:
    return []
  try:
    dataset = create_dataset(config.data)
  except InputError:
    return []
  if not is_digest_of(known, dataset.digest):
    return []
  trained = cast(folder.FolderExamples, dataset.train).items
  files, own_files = (
    {item.files[0] for item in items} for items in (examples.items, trained)
  )
  own, given = _digests(own_files, files), _digests(files, own_files)
  pages = {(own[item.files[0]], item.number) for item in trained}
  return [
    item.name
    for item in examples.items
    if given[item.files[0]] and (given[item.files[0]], item.number) in pages
  ]


def _digests(files: Iterable[Path], like: Iterable[Path]) -> dict[Path, str]:
  """Returns file -> SHA-256; '' if no file of `like` has its size."""
  sizes = {file.stat().st_size for file in like}
  digests = dict.fromkeys(files, '')
  for path in digests:
    if path.stat().st_size in sizes:
      with open(path, 'rb') as file:
        digests[path] = hashlib.file_digest(file, 'sha256').hexdigest()
  return digests


def _check_counts(counts, dataset, images):
  """Prints the classes that no label has; refuses labels without any class."""
  names = dataset.class_names
  missing = [name for k, name in enumerate(names) if not counts[k]]
  if counts[IGNORE_LABEL] and not counts[1 : len(names)].any():
    values = ', '.join(
      f'{value} is {name}'
      for value, name in zip(dataset.stored, (*names, 'ignored'), strict=False)
    )
    raise InputError(
      f'--images={images}: in {len(dataset.heldout)} labels {counts[0]:,} px '
      f'are {names[0]} and {counts[IGNORE_LABEL]:,} px are ignored; no pixel '
      f'has another class{values and f"; in labels of the run {values}"}'
    )
  if missing:
    processes.say(
      f'no label has a pixel of class {list_some(map(repr, missing))}'
    )
