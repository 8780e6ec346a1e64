# SPDX-License-Identifier: Apache-2.0
"""The command that writes an experiment card for a folder of images and labels.

`python -m segjax.plan --images=DIR --output=mine.py` reads all images and
labels once, prints what they hold and the settings that follow from it
(`decisions`), and writes a card: a Python file of these settings, each with its
reason, to read and to change.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.cli.command_line import run

  run('plan')

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from segjax import recipes
from segjax.atomic import check_absent, remove_leftovers, replacing
from segjax.data import Dataset, create_dataset
from segjax.data.folder import FolderExamples
from segjax.data.survey import (
  Layout,
  Survey,
  find_layout,
  say_copies,
  say_sizes,
  say_values,
  survey,
)
from segjax.decisions import (
  Line,
  apply,
  decide,
  local_weights,
  read_labels,
  split,
  weigh_classes,
)
from segjax.errors import InputError, counted
from segjax.runs.writers import table


class Plan(NamedTuple):
  """The settings for a folder.

  Attributes:
    config: config of the run.
    card: text of a Python file whose `get_config` returns the config.
    report: table of what the folder holds and of the settings.
    copies: which copies of images do harm, in words, or ''; see `say_copies`.
  """

  config: ConfigDict
  card: str
  report: str
  copies: str


def plan(
  layout: Layout,
  network: str,
  *,
  init: str = '',
  pixels: str = '',
  minutes: float = 30.0,
  label_kind: str = '',
  group: str = '',
  train_list: str = '',
  heldout_list: str = '',
  heldout_fraction: float = 0.2,
  seed: int = 0,
) -> Plan:
  """Returns a config for a folder, as a card, and a table of what it holds.

  Args:
    layout: folders of the images and labels.
    network: 'unet' or 'fcn8s'.
    init: weights to start from: a file, or a name of `published.SOURCES`;
      'random' for none.
    pixels: scale of the pixels of `init`, if the file does not say it; one of
      `files.PIXELS`.
    minutes: minutes that a run may take on this machine, approximately.
    label_kind: 'classes' or 'instances'; '' infers it from the labels.
    group, train_list, heldout_list, heldout_fraction, seed: see `folder.load`.

  Raises:
    InputError: no network can be trained on the folder.
  """
  init = local_weights(network, init, pixels)  # Before what takes minutes.
  found = survey(layout, need_all=not train_list)
  num_images, (low, high) = len(found.pages), found.range
  dtype, channels = found.kind
  names, of_labels = read_labels(found, label_kind)
  why = (
    f'{counted(num_images, "image")}, {say_sizes(found.sizes)}, {dtype} from '
    f'{low:g} to {high:g}'
  )
  lines = [
    Line('data.dir', str(layout.root)),
    Line('data.images', layout.images, why),
    Line('data.labels', layout.labels),
    *([Line('data.match', layout.match)] if layout.match else []),
    *of_labels,
  ]
  if group:
    lines.append(Line('data.group', group, 'the draw divides no group'))
  if train_list:
    lines.append(Line('data.train_list', train_list))
    lines.append(Line('data.heldout_list', heldout_list))
  else:
    lines.append(split(found, heldout_fraction, layout.root, group))
    if seed:
      lines.append(Line('data.seed', seed))
  if network == 'unet':
    config = recipes.unet_folder_config(names, channels)
  else:
    config = recipes.fcn_folder_config(names)
  lines += weigh_classes(network, found, of_labels)
  apply(config, lines)
  dataset = create_dataset(config.data)
  sides = [min(size) for size, n in found.sizes.items() for _ in range(n)]
  lines += decide(
    config, int(np.median(sides)), dataset.train, init, pixels, minutes
  )
  card = _card(network, layout, found, names, lines)
  digests = dict(zip(found.pages, found.digests, strict=True))
  copies = say_copies(
    *(
      [(i.name, digests[i]) for i in cast(FolderExamples, examples).items]
      for examples in (dataset.train, dataset.heldout)
    )
  )
  report = _report(found, names, lines, dataset, copies)
  return Plan(config, card, report, copies)


def _report(
  found: Survey,
  names: Sequence[str],
  lines: Sequence[Line],
  dataset: Dataset,
  copies: str,
) -> str:
  """Returns a table of what a folder holds, and of the settings for it."""
  dtype, channels = found.kind
  low, high = found.range
  split = f'{len(dataset.train)} trained on, {len(dataset.heldout)} held out'
  if rest := len(found.pages) - len(dataset.train) - len(dataset.heldout):
    split += f', {rest} in neither list'
  if _are_objects(lines):
    labels = 'numbered objects'
    if found.num_masks > 1:
      labels = 'objects, a mask each'
  else:
    labels = say_values(found.values)
    if len(names) > 2 and found.label_channels == 1:
      labels += '; classes (or else --label_kind=instances)'
  doubt = found.colours.doubt()
  rows = [
    ('images', f'{len(found.pages)} of {say_sizes(found.sizes)}'),
    ('pixels', f'{dtype}, {channels} channel(s), from {low:g} to {high:g}'),
    ('labels', labels),
    ('classes', ', '.join(names)),
    *([('palettes', doubt)] if doubt else []),
    ('split', split),
    *([('copies', copies)] if copies else []),
  ]
  for line in lines:
    if line.reason and line.name != 'data.images':
      value = repr(line.value)
      value = value if len(value) < 40 else f'{value[:36]} ...'
      rows.append((line.name, f'{value}: {line.reason}'))
  return table(rows)


def _are_objects(lines: Sequence[Line]) -> bool:
  return any(line.name == 'data.label_kind' for line in lines)


def _card(
  network: str,
  layout: Layout,
  found: Survey,
  names: Sequence[str],
  lines: Sequence[Line],
) -> str:
  """Returns the text of the card."""
  title, recipe, arguments = 'FCN-8s', 'recipes.fcn_folder_config', ''
  if network == 'unet':
    title, recipe = 'U-Net', 'recipes.unet_folder_config'
    arguments = f', in_channels={found.kind[1]}'
  values = sorted(found.values)
  total = sum(found.values.values())
  classes = []
  for k, name in enumerate(names):
    comment = ''
    if _are_objects(lines):
      share = found.values.get(0, 0) / total
      comment = f'  # {1 - share if k else share:.2%} of the pixels'
    elif len(values) >= len(names):
      share = found.values[values[k]] / total
      comment = f'  # {values[k]}: {share:.2%} of the pixels'
    classes.append(f'  {name!r},{comment}')
  settings = []
  for line in lines:
    setting = f'  config.{line.name} = {line.value!r}'
    if not line.reason:
      settings.append(setting)
    elif len(f'{setting}  # {line.reason}') > 80:
      settings += [f'  # {line.reason}', setting]
    else:
      settings.append(f'{setting}  # {line.reason}')
  classes_text = '\n'.join(classes)
  settings_text = '\n'.join(settings)
  images = counted(len(found.pages), 'image')
  return f'''"""{title} on {images} of {layout.root}.

segjax.plan wrote this card; all of it may be changed. The settings that it does
not name are those of `{recipe}`.
"""

from segjax import recipes

CLASS_NAMES = (
{classes_text}
)


def get_config():
  config = {recipe}(CLASS_NAMES{arguments})
{settings_text}
  return config
'''


def main(_) -> None:
  args = flags.FLAGS
  output = Path(args.output)
  if output.suffix != '.py' or ':' in output.name:
    raise InputError(
      f'--output={output}: a card is a Python file, such as mine.py'
    )
  if not output.absolute().parent.is_dir():
    raise InputError(f'--output={output}: no folder {output.absolute().parent}')
  if not args.overwrite:
    check_absent([output])
  remove_leftovers(output.parent)
  layout = find_layout(
    args.images, args.labels, args.match, need_all=not args.train_list
  )
  planned = plan(
    layout,
    args.network,
    init=args.init,
    pixels=args.pixels or '',
    minutes=args.minutes,
    label_kind=args.label_kind or '',
    group=args.group,
    train_list=args.train_list,
    heldout_list=args.heldout_list,
  )
  try:
    with replacing(output, args.overwrite) as temporary:
      temporary.write_text(planned.card, encoding='utf-8')
  except OSError as e:
    raise InputError(f'{output} cannot be written: {e.strerror or e}') from e
  print(planned.report)
  card = shlex.quote(str(output))
  print(f'to train: python -m segjax.main --config={card} --workdir=RUN')
