# SPDX-License-Identifier: Apache-2.0
"""Writes an experiment card for a folder of one's own; a command line.

`python -m segjax.plan --images=DIR --output=mine.py` reads all images and
labels once, prints what they are and what follows from it, and writes a card:
a Python file of a few settings, each with its reason, to read and to change.
The same data give the same card, on machines of as many cores and, where it is
scarce, of as much memory.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.cli.command_line import run

  run('plan')

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from segjax import dry_run, recipes
from segjax.atomic import check_absent, remove_leftovers, replacing
from segjax.convert import convert_published
from segjax.data import create_dataset
from segjax.data.examples import list_some
from segjax.data.pairing import find_key
from segjax.data.preprocessing import measure_pixels
from segjax.data.survey import (
  Layout,
  Survey,
  find_layout,
  say_sizes,
  say_values,
  survey,
)
from segjax.errors import InputError, counted
from segjax.models import create_model
from segjax.runs.writers import progress_bar, table
from segjax.weights import files, published

# FLOPs a second of a core: configs/unet_isbi.py:cpu takes 4.85e10 a step, as
# `dry_run` counts, and 2,200 steps in 28 minutes on two cores.
_RATE_OF_CORE = 3.2e10
_STEPS_OF_ACCELERATOR = 10_000
_IGNORED = 255
_MOST_CLASSES = 64
_MOST_VALUES = 32  # That are classes and do not count up from 0.
_MOST_DOUBTFUL = 12  # Values of one piece each that may be classes.
_MANY = 5  # Pieces in an image, between which border weights are of use.
_OUTPUT_OF_PAPER = 388
_MOST_MINUTES = 100_000
_SIDE_OF_DEPTH_4 = 128


class Line(NamedTuple):
  """A setting of a card: its dotted name, its value, and why."""

  name: str
  value: Any
  reason: str = ''


# Of a U-Net without border weights. Where classes weigh the same in total, the
# network predicts more of a small one than there is.
_BY_OVERLAP = (
  Line('loss', 'dice_cross_entropy', 'small classes count by their overlap'),
  Line('data.balance', False, 'and not by a weight'),
)


class Plan(NamedTuple):
  """What was decided for a folder.

  Attributes:
    config: of the run.
    card: text of a Python file whose `get_config` returns it.
    report: a table of what the folder holds and what was decided.
  """

  config: ConfigDict
  card: str
  report: str


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
) -> Plan:
  """Returns a config for a folder, as a card, and a table of what it holds.

  Args:
    layout: where the images and labels are.
    network: 'unet' or 'fcn8s'.
    init: a file of weights to start from, or a name of `published.SOURCES`;
      'random' for none.
    pixels: scale of the pixels of `init`, if the file doesn't say it; one of
      `files.PIXELS`.
    minutes: how long a run may take on this machine's processors, about.
    label_kind: 'classes' or 'instances'; '' looks at the labels.
    group: see `folder.load`.
    train_list: see `folder.load`.
    heldout_list: see `folder.load`.
    heldout_fraction: see `folder.load`.

  Raises:
    InputError: the folder cannot be trained on; says why.
  """
  init = local_weights(network, init, pixels)  # Before what takes minutes.
  with progress_bar(0, 0, desc='reading', unit='image', disable=None) as bar:

    def report(total):
      if total:
        bar.reset(total)
      else:
        bar.update()

    found = survey(layout, not train_list, report)
  if found.range[0] == found.range[1]:
    raise InputError(
      f'all pixels of the {counted(len(found.pages), "image")} are '
      f'{found.range[0]:g}; expected images that show something'
    )
  names, lines = _read_labels(found, label_kind)
  lines = [
    Line('data.dir', str(layout.root)),
    Line(
      'data.images',
      layout.images,
      f'{counted(len(found.pages), "image")}, {say_sizes(found.sizes)}',
    ),
    Line('data.labels', layout.labels),
    *([Line('data.match', layout.match)] if layout.match else []),
    *lines,
  ]
  if group:
    lines.append(Line('data.group', group, 'is not divided by the draw'))
  if train_list:
    lines.append(Line('data.train_list', train_list))
    lines.append(Line('data.heldout_list', heldout_list))
  else:
    lines.append(_split(found, heldout_fraction, layout.root, group))
  dtype, channels = found.kind
  if network == 'unet':
    base = f'recipes.unet_folder_config(CLASS_NAMES, in_channels={channels})'
    config = recipes.unet_folder_config(names, channels)
    if not any(line.name == 'data.w0' for line in lines):
      lines += _BY_OVERLAP
  else:
    base = 'recipes.fcn_folder_config(CLASS_NAMES)'
    config = recipes.fcn_folder_config(names)
  _apply(config, lines)
  dataset = create_dataset(config.data)
  measured = measure_pixels(dataset.train)
  sides = [min(size) for size, n in found.sizes.items() for _ in range(n)]
  lines += decide(
    config, int(np.median(sides)), channels, measured, init, pixels, minutes
  )
  low, high = found.range
  doubt = found.colours.doubt()
  if config.data.label_kind == 'instances':
    labels = (
      'objects, a mask each' if found.num_masks > 1 else 'numbered objects'
    )
  else:
    labels = say_values(found.values)
    if len(names) > 2 and found.label_channels == 1:
      labels += '; classes (or else --label_kind=instances)'
  rows = [
    ('images', f'{len(found.pages)} of {say_sizes(found.sizes)}'),
    ('pixels', f'{dtype}, {channels} channel(s), from {low:g} to {high:g}'),
    ('labels', labels),
    ('classes', ', '.join(names)),
    *([('palettes', doubt)] if doubt else []),
    ('split', f'{len(dataset.train)} trained on, {len(dataset.heldout)} held'),
  ]
  rows += [
    (line.name, f'{_short(line.value)}{line.reason and f": {line.reason}"}')
    for line in lines
    if line.reason and not line.name.startswith('data.images')
  ]
  card = _card(network, layout, names, found, base, lines)
  return Plan(config, card, table(rows))


def local_weights(network: str, init: str, pixels: str = '') -> str:
  """Returns `init` of `plan`, as a file where it names published weights.

  Raises:
    InputError: they cannot be downloaded, see `published.fetch`; or the network
      starts from no weights, or from random ones and `pixels` is given.
  """
  if pixels and (network == 'unet' or init == 'random'):
    raise InputError(
      f'pixels={pixels} is what weights were trained on, and this {network} '
      'starts from random ones; leave it out'
    )
  if network == 'unet' and init not in ('', 'random'):
    raise InputError(
      f'init={init}: unet starts from random weights; give network=fcn8s, or '
      'no init'
    )
  return str(convert_published(init)) if published.is_name(init) else init


def decide(
  config: ConfigDict,
  side: int,
  channels: int,
  measured: Mapping[str, Any],
  init: str,
  pixels: str,
  minutes: float,
) -> list[Line]:
  """Returns, and sets, what follows from the images for the network.

  Args:
    config: of a folder, see `recipes`; changed in place.
    side: the smaller side of a usual image, in pixels.
    channels: channels of the images.
    measured: see `measure_pixels`.
    init: see `plan`.
    pixels: see `plan`.
    minutes: see `plan`.

  Raises:
    InputError: the weights don't fit the images, or `minutes` is not above 0.
  """
  if config.model.name == 'unet':
    lines = _for_unet(side, measured)
  else:
    lines = _for_fcn(side, channels, measured, init, pixels)
  _apply(config, lines)
  field, size, flops = dry_run.fit_to_memory(config)
  if size != config[field]:
    why = f'what memory allows; {config[field]} would be usual'
    lines = [line for line in lines if line.name != field]
    lines.append(Line(field, size, why))
    _apply(config, lines)
  steps = _steps(config, minutes, flops)
  _apply(config, steps)
  return [*lines, *steps]


def _split(found: Survey, fraction: float, root: Path, group: str) -> Line:
  files = {page.files[0] for page in found.pages}
  units = {find_key(file, root, group) for file in files} if group else files
  if len(found.pages) == 1:
    return Line('data.heldout_fraction', 0.0, 'there is one image')
  if len(files) == 1:
    return Line('data.heldout_fraction', fraction, 'the last pages')
  if len(units) == 1:
    raise InputError(
      f'{group!r} finds one group in all images, {units.pop()!r}; expected at '
      'least two, of which one can be held out'
    )
  fraction = min(max(fraction, 1 / len(units)), 0.5) if fraction else fraction
  unit = 'groups' if group else 'files'
  return Line('data.heldout_fraction', round(fraction, 4), f'drawn by {unit}')


def _short(value):
  text = repr(value)
  return text if len(text) < 40 else f'{text[:36]} ...'


def _read_labels(
  found: Survey, label_kind: str
) -> tuple[tuple[str, ...], list[Line]]:
  """Returns names of the classes, and the settings of the labels."""
  values = sorted(found.values)
  if len(values) < 2:
    raise InputError(
      f'all labels hold the value {values[0]} alone; expected two classes at '
      'least'
    )
  if label_kind == 'instances' and found.label_channels == 3:
    raise InputError(
      '--label_kind=instances: labels are in colours; expected one channel, '
      'which numbers the objects'
    )
  if found.label_channels == 1 and values[0] < 0:
    raise InputError(
      f'labels hold {values[0]}; expected whole numbers of 0 and above'
    )
  two = 'background', 'object'
  total = sum(found.values.values())

  def share(value):
    return f'{value}: {found.values.get(value, 0) / total:.2%} of the pixels'

  if found.label_channels == 3:
    if len(values) > _MOST_CLASSES:
      raise InputError(
        f'labels hold {len(values)} colours; expected one a class, at most '
        f'{_MOST_CLASSES}. Were they resized, or saved as JPEG?'
      )
    _check_rims(found, label_kind)
    names = tuple(f'class {k}' for k in range(len(values)))
    if len(values) == 2 and values[0] == (0, 0, 0):
      names = two
    return names, [
      Line('data.colours', tuple(values), 'all colours that the labels hold'),
      Line(
        'data.ignore_value', (), 'set it to the colour of unlabelled pixels'
      ),
    ]
  # Such as objects that are numbered, or organs.
  in_one_piece = values[0] == 0 and len(values) > 3 and found.single > 0.9
  is_doubtful = in_one_piece and found.num_masks == 1 and not label_kind
  if is_doubtful and len(values) <= _MOST_DOUBTFUL:
    _check_rims(found, label_kind)
    raise InputError(
      f'labels hold {values}, and nearly all of these are one piece in an '
      'image: give --label_kind=classes, or --label_kind=instances if they '
      'number objects'
    )
  is_instances = label_kind == 'instances' or (
    not label_kind and (found.num_masks > 1 or in_one_piece)
  )
  if is_instances:
    why = (
      'a mask for each object'
      if found.num_masks > 1
      else f'{found.single:.0%} of the values are one component each'
    )
    return two, [
      Line('data.label_kind', 'instances', why),
      Line('data.w0', 10.0, 'border weights between the objects'),
      Line('evaluation.best_metric', 'mean_ap', 'of objects, not of pixels'),
    ]
  found.colours.check()
  lines = []
  classes = [value for value in values if value != _IGNORED]
  if values == [0, 1, _IGNORED] and not found.num_with_255:
    raise InputError(
      'some labels hold 0 and 1, others 0 and 255, and none both 1 and 255; '
      'expected masks of one kind'
    )
  if len(values) == 2:
    names, ignored = two, ()
    if values != [0, 1]:
      lines.append(Line('data.label_values', tuple(values), share(values[1])))
  elif classes == [*range(min(len(classes), _MOST_CLASSES))]:
    ignored = (_IGNORED,) if _IGNORED in values else ()
  elif len(values) <= _MOST_VALUES:
    # Other indices leave out some; (0, 128, 255) are none.
    indices = classes[-1] < _MOST_CLASSES and _IGNORED in values
    _check_rims(found, label_kind, (_IGNORED,) if indices else ())
    classes = classes if indices else values
    ignored = (_IGNORED,) if indices else ()
    lines.append(
      Line('data.label_values', tuple(classes), 'the values of the labels')
    )
  else:
    raise InputError(
      f'labels hold {len(values)} values, from {values[0]} to {values[-1]}, '
      'which are neither classes nor numbers of objects of one piece; masks '
      'with gray rims need a threshold, and --label_kind=instances says that '
      'they number objects'
    )
  if len(values) > 2:
    names = tuple(f'class {k}' for k in range(len(classes)))
  lines.append(
    Line('data.ignore_value', ignored, share(_IGNORED) if ignored else '')
  )
  if len(names) == 2 and found.components >= _MANY:
    why = (
      f'border weights: {counted(found.components, "piece")} in a usual image'
    )
    lines.append(Line('data.w0', 10.0, why))
  return names, lines


def _check_rims(
  found: Survey, label_kind: str, ignored: tuple[int, ...] = ()
) -> None:
  """Raises InputError for values that may be rims between those of classes."""
  thin = [value for value in found.thin if value not in ignored]
  if thin and not label_kind:
    raise InputError(
      f'labels hold {list_some(map(str, sorted(found.values)))}, of which '
      f'{list_some(map(str, thin))} fill no block of 2 x 2 px, as the '
      'rims of masks that were resized or saved as JPEG: save them by a '
      'threshold, or give --label_kind=classes, or instances, if they are none'
    )


def _for_unet(side: int, measured: Mapping[str, Any]) -> list[Line]:
  narrow = jax.default_backend() == 'cpu'
  lines = [Line('preprocessing.measured', (), ''), *_pixels(measured)]
  lines.append(Line('model.norm', 'batch', 'learns in far fewer steps'))
  depth = 4 if side >= _SIDE_OF_DEPTH_4 else 3
  if depth != 4:
    lines.append(Line('model.depth', depth, f'images of {side} px are small'))
  if narrow:
    lines.append(Line('model.base_width', 16, 'the paper has 64: for a CPU'))
    lines.append(Line('schedule.learning_rate', 2e-3, 'of a narrow network'))
  config = recipes.unet_folder_config(('a', 'b'))
  config.model.depth = depth
  geometry = create_model(config.model).geometry
  tile = geometry.input_size(min(side, _OUTPUT_OF_PAPER))
  output = geometry.output_size(tile)
  lines.append(
    Line('tile_size_px', tile, f'{output} px come out; images have {side}')
  )
  batch = int(np.clip(_OUTPUT_OF_PAPER**2 // output**2, 1, 8))
  lines.append(_batch(batch, 'about as many pixels as the paper has'))
  return lines


def _batch(size: int, reason: str) -> Line:
  devices = jax.device_count()  # All get as many images.
  return Line('batch_size', -(-size // devices) * devices, reason)


def _pixels(measured: Mapping[str, Any]) -> list[Line]:
  dtype = np.dtype(measured['dtype'])
  full = np.iinfo(dtype).max if dtype.kind in 'iu' else 1
  ends = zip(*measured['limits'], strict=True)
  said = ', '.join(f'{a * full:.4g} to {b * full:.4g}' for a, b in ends)
  reasons = {
    'dtype': 'of the images',
    'limits': f'99.8 % of the values are in {said}',
    'mean': 'of the training images, where limits are 0 and 1',
    'std': 'the same',
  }
  return [
    Line(f'preprocessing.{name}', value, reasons[name])
    for name, value in measured.items()
  ]


def _for_fcn(
  side: int,
  channels: int,
  measured: Mapping[str, Any],
  init: str,
  pixels: str,
) -> list[Line]:
  if not init:
    raise InputError(
      'fcn8s starts from an image classifier: give --init=FILE, an .npz of '
      f'segjax.convert, or --init={", --init=".join(published.SOURCES)}, or '
      '--init=random for a network that knows nothing'
    )
  lines = [
    Line('init.path', init if init == 'random' else os.path.abspath(init))
  ]
  narrow = jax.default_backend() == 'cpu'
  if init != 'random':
    arrays = files.read_arrays(init)
    pixels = files.read_metadata(init).get('pixels', pixels)
    if pixels not in files.PIXELS:
      raise InputError(
        f'{init} does not say on which pixels it was trained; give '
        f'--pixels={files.PIXELS[1]} for weights of torchvision, or '
        f'--pixels={files.PIXELS[0]} for those of Caffe'
      )
    first = arrays.get('conv1_1/kernel')
    if first is not None and first.shape[2] != channels:
      raise InputError(
        f'images have {channels} channel(s) and {init} takes {first.shape[2]}; '
        f'give convert --in_channels={channels}'
      )
    initial = ('score_fr', 'score_pool4', 'score_pool3')
    if 'fc6/kernel' not in arrays:
      lines.append(
        Line('init.initial', ('fc6', 'fc7', *initial), 'not in the weights')
      )
      lines.append(
        Line('model.fc_features', 512 if narrow else 4096, 'of fc6 and fc7')
      )
  if channels != 3:
    lines.append(Line('model.in_channels', channels))
  if init == 'random' or channels != 3:
    lines += [*_pixels(measured), Line('preprocessing.channels', ())]
  else:
    if pixels == files.PIXELS[1]:
      why = 'those of torchvision'
      lines += [
        Line('preprocessing.mean', (0.485, 0.456, 0.406), why),
        Line('preprocessing.std', (0.229, 0.224, 0.225), why),
        Line('preprocessing.channels', ()),
      ]
    if measured['dtype'] != 'uint8':
      lines += _pixels({n: measured[n] for n in ('dtype', 'limits')})
  # Crops have one size, and so one compiled program.
  tile = int(np.clip(side // 32 * 32, 64, 224 if narrow else 352))
  lines += [
    Line('tile_size_px', tile, f'crops; images have {side} px'),
    Line('batching.bucket_px', 0, 'crops have one size'),
    _batch(4, 'crops a step'),
    Line('augmentation.flip', True),
    Line('augmentation.shift_px', 16.0),
    Line('augmentation.black', 0.1),
    Line('augmentation.white', 0.1),
    Line('augmentation.log_gamma', 0.2),
  ]
  return lines


def _steps(config: ConfigDict, minutes: float, flops: float) -> list[Line]:
  if not 0 < minutes <= _MOST_MINUTES:
    raise InputError(
      f'--minutes={minutes:g}; expected more than 0, at most {_MOST_MINUTES}'
    )
  if jax.default_backend() == 'cpu':
    rate = _RATE_OF_CORE * (os.cpu_count() or 1)
    seconds = flops / rate
    steps = int(60 * minutes / seconds)
    steps = max(steps // 10 * 10, 10)
    why = f'{counted(minutes, "minute")} of about {seconds:.2g} s a step'
  else:
    steps, why = _STEPS_OF_ACCELERATOR, 'usual'
  lines = [
    Line('num_train_steps', steps, why),
    # Rounded up, or the last one would come shortly before the end.
    Line('evaluation.every_steps', -(-steps // 4)),
    Line('checkpoints.every_steps', -(-steps // 8)),
  ]
  if steps < 20 * config.log_every_steps:  # Else a curve has no points.
    lines.append(Line('log_every_steps', max(steps // 20, 1)))
  if steps < 10 * config.schedule.warmup_steps:
    lines.append(Line('schedule.warmup_steps', steps // 10))
  return lines


def _apply(config: ConfigDict, lines: Sequence[Line]) -> None:
  with config.ignore_type():
    for line in lines:
      config.update_from_flattened_dict({line.name: line.value})


def _card(
  network: str,
  layout: Layout,
  names: Sequence[str],
  found: Survey,
  base: str,
  lines: Sequence[Line],
) -> str:
  """Returns the text of the card."""
  title = 'U-Net' if network == 'unet' else 'FCN-8s'
  values = sorted(found.values)
  total = sum(found.values.values())
  classes = []
  is_numbered = any(line.name == 'data.label_kind' for line in lines)
  for k, name in enumerate(names):
    comment = ''
    if is_numbered:
      share = found.values.get(0, 0) / total
      share = 1 - share if k else share
      comment = f'  # {share:.2%} of the pixels'
    elif len(values) >= len(names):
      value = values[k]
      comment = f'  # {value}: {found.values[value] / total:.2%} of the pixels'
    classes.append(f'  {name!r},{comment}')
  settings = []
  for line in lines:
    setting = f'  config.{line.name} = {line.value!r}'
    comment = f'  # {line.reason}'.rstrip(' #')
    if len(setting + comment) > 80 and comment:
      settings.append(f'  {comment.strip()}')
      comment = ''
    settings.append(setting + comment)
  settings_text = '\n'.join(settings)
  classes_text = '\n'.join(classes)
  images = counted(len(found.pages), 'image')
  return f'''"""{title} on {images} of {layout.root}.

segjax.plan wrote this card; all of it may be changed. The settings that it does
not name are those of `{base.partition('(')[0]}`.
"""

from segjax import recipes

CLASS_NAMES = (
{classes_text}
)


def get_config():
  config = {base}
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
