# SPDX-License-Identifier: Apache-2.0
"""The settings that images and labels call for, each with its reason.

The same data give the same settings on machines with the same number of cores
and, if memory is scarce, with the same memory.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from segjax import dry_run
from segjax.convert import convert_published
from segjax.data.examples import list_some
from segjax.data.pairing import find_key
from segjax.data.preprocessing import measure_pixels
from segjax.data.survey import Survey
from segjax.errors import InputError, counted
from segjax.models import create_model
from segjax.weights import files, published

# FLOPs a second of a core: configs/unet_isbi.py:cpu, when it had no norm, took
# 4.85e10 a step, as `dry_run` counts, and 28 minutes on two cores for 2,200.
_RATE_OF_CORE = 3.2e10
_STEPS_OF_ACCELERATOR = 10_000
_STEPS_TO_FREEZE = 2000  # Shorter runs gain little from frozen norms, or lose.
_IGNORED = 255
_MOST_CLASSES = 64
_MOST_VALUES = 32  # Of classes that are not 0, 1, 2, ...
_MOST_DOUBTFUL = 12  # Values of one component each that may be classes.
# Shares of the values that are one component each: of numbered objects, and of
# objects some of which fall into pieces.
_IN_ONE_PIECE, _MAYBE_OBJECTS = 0.9, 0.7
_MANY = 5  # Components of an image from which border weights are used.
_OUTPUT_OF_PAPER = 388
_MOST_MINUTES = 100_000
_RARE = 0.05  # Share of the pixels; docs/results.md has what was measured.
_SIDE_OF_DEPTH_4 = 128
_TWO_CLASSES = 'background', 'object'


class Line(NamedTuple):
  """A setting of a card: its dotted name, its value, and the reason."""

  name: str
  value: Any
  reason: str = ''


def local_weights(network: str, init: str, pixels: str = '') -> str:
  """Returns `init` of `plan`, as a file if it names published weights.

  Raises:
    InputError: they cannot be downloaded, see `published.fetch`; or the network
      cannot start from weights, or starts from random ones and `pixels` is
      given.
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
  examples: Sequence[dict],
  init: str,
  pixels: str,
  minutes: float,
) -> list[Line]:
  """Returns, and sets, the settings that images call for in a network.

  Args:
    config: config for a folder, see `recipes`; changed in place.
    side: smaller side of a usual image, in pixels.
    examples: the training set; see `segjax.data.examples`.
    init: a file of weights or 'random'; see `local_weights`.
    pixels, minutes: see `plan`.

  Raises:
    InputError: the weights do not fit the images, or `minutes` is not above 0.
  """
  if config.model.name == 'unet':
    lines = _for_unet(config, side)
  else:
    lines = _for_fcn(side, examples, init, pixels)
  apply(config, lines)
  field, size, flops = dry_run.fit_to_memory(config)
  if size != config[field]:
    why = f'what memory allows; {config[field]} would be usual'
    lines = [line for line in lines if line.name != field]
    lines.append(Line(field, size, why))
    apply(config, lines)
  steps = _steps(config, minutes, flops)
  apply(config, steps)
  if share := share_of_frozen_norms(config):
    why = 'the last steps, by the means of prediction'
    steps.append(Line('frozen_norm_share', share, why))
    apply(config, steps[-1:])
  return [*lines, *steps]


def share_of_frozen_norms(config: ConfigDict) -> float:
  """Returns the `frozen_norm_share` that a network and its steps call for.

  What was measured, for 300 to 2,330 steps, is in docs/results.md.
  """
  has_norm = config.model.name == 'unet' and config.model.norm == 'batch'
  return 0.2 if has_norm and config.num_train_steps >= _STEPS_TO_FREEZE else 0.0


def apply(config: ConfigDict, lines: Sequence[Line]) -> None:
  """Sets the settings of lines in a config, in place."""
  with config.ignore_type():
    for line in lines:
      config.update_from_flattened_dict({line.name: line.value})


def split(found: Survey, fraction: float, root: Path, group: str) -> Line:
  """Returns the share of the images that the draw can hold out.

  Args:
    found: survey of the folder.
    fraction: share of the images that should be held out.
    root: folder of the set.
    group: see `folder.load`.

  Raises:
    InputError: all images are in one group.
  """
  if not 0 <= fraction < 1:
    raise InputError(
      f'heldout_fraction={fraction}; expected 0 or more, below 1'
    )
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


def read_labels(
  found: Survey, label_kind: str
) -> tuple[tuple[str, ...], list[Line]]:
  """Returns names of the classes, and the settings of the labels.

  Args:
    found: survey of the folder.
    label_kind: 'classes' or 'instances'; '' infers it from the labels.

  Raises:
    InputError: the labels are neither, or may be both.
  """
  values = sorted(found.values)
  if len(values) < 2:
    raise InputError(
      f'all labels hold the value {values[0]} alone; expected at least two '
      'classes'
    )
  if found.label_channels == 3:
    return _read_colours(found, label_kind)
  if values[0] < 0:
    raise InputError(
      f'labels hold {values[0]}; expected whole numbers of 0 and above'
    )
  # Such as numbered objects, or organs.
  may_number = values[0] == 0 and len(values) > 3
  in_one_piece = may_number and found.single > _IN_ONE_PIECE
  is_doubtful = may_number and found.single > _MAYBE_OBJECTS
  if in_one_piece and len(values) > _MOST_DOUBTFUL:
    is_doubtful = False
  if is_doubtful and found.num_masks == 1 and not label_kind:
    _check_rims(found, label_kind)
    raise InputError(
      f'labels hold {list_some(map(str, values))}, and {found.single:.0%} of '
      'these are one piece in an image: give --label_kind=classes, or '
      '--label_kind=instances if they number objects'
    )
  if label_kind == 'instances' or (
    not label_kind and (found.num_masks > 1 or in_one_piece)
  ):
    why = f'{found.single:.0%} of the values are one component each'
    if found.num_masks > 1:
      why = 'a mask for each object'
    return _TWO_CLASSES, [
      Line('data.label_kind', 'instances', why),
      Line('data.w0', 10.0, 'border weights between the objects'),
      Line('evaluation.best_metric', 'mean_ap', 'of objects, not of pixels'),
    ]
  found.colours.check()
  return _read_values(found, label_kind)


def weigh_classes(
  network: str, found: Survey, of_labels: Sequence[Line]
) -> list[Line]:
  """Returns the settings by which small classes count.

  Args:
    network: 'unet' or 'fcn8s'.
    found: survey of the folder.
    of_labels: the settings of `read_labels`.
  """
  settings = {line.name: line.value for line in of_labels}
  dice = Line(
    'loss', 'dice_cross_entropy', 'small classes count by their overlap'
  )
  if network == 'unet':
    if 'data.w0' in settings:  # Comes with class weights, as in the paper.
      return []
    # With class weights, too many pixels of small classes are predicted.
    return [dice, Line('data.balance', False, 'classes have no weights')]
  ignored = settings.get('data.ignore_value', ())
  counts = [n for value, n in found.values.items() if value not in ignored]
  if 'data.label_kind' in settings:
    background = found.values.get(0, 0)
    counts = [background, sum(counts) - background]
  share = min(counts) / sum(counts)
  if share >= _RARE:
    return []
  why = f'a class has {share:.2%} of the pixels'
  return [dice, Line('data.balance', True, why)]


def _read_colours(found, label_kind):
  """Returns what `read_labels` does for labels in colours."""
  values = sorted(found.values)
  if label_kind == 'instances':
    raise InputError(
      '--label_kind=instances: labels are in colours; expected one channel, '
      'which numbers the objects'
    )
  if len(values) > _MOST_CLASSES:
    raise InputError(
      f'labels hold {len(values)} colours; expected one a class, at most '
      f'{_MOST_CLASSES}. Were they resized, or saved as JPEG?'
    )
  _check_rims(found, label_kind)
  names = tuple(f'class {k}' for k in range(len(values)))
  if len(values) == 2 and values[0] == (0, 0, 0):
    names = _TWO_CLASSES
  return names, [
    Line('data.colours', tuple(values), 'all colours that the labels hold'),
    Line('data.ignore_value', (), 'set it to the colour of unlabelled pixels'),
    *_border_weights(found, names),
  ]


def _read_values(found, label_kind):
  """Returns what `read_labels` does for classes as indices or other values."""
  values = sorted(found.values)
  classes = [value for value in values if value != _IGNORED]
  if values == [0, 1, _IGNORED] and not found.num_mixed:
    raise InputError(
      'some labels hold 0 and 1, others 0 and 255, and none both 1 and 255; '
      'expected masks of one kind'
    )
  total = sum(found.values.values())

  def share(value):
    return f'{value}: {found.values.get(value, 0) / total:.2%} of the pixels'

  lines, ignored = [], ()
  most = _IGNORED if label_kind == 'classes' else _MOST_CLASSES
  if len(values) == 2:
    classes = values
    if values != [0, 1]:
      lines.append(Line('data.label_values', tuple(values), share(values[1])))
  elif classes == [*range(min(len(classes), most))]:
    ignored = (_IGNORED,) if _IGNORED in values else ()
  elif len(values) <= _MOST_VALUES:
    # Indices may leave out some classes; (0, 128, 255) are no indices.
    if classes[-1] < _MOST_CLASSES and _IGNORED in values:
      ignored = (_IGNORED,)
    else:
      classes = values
    _check_rims(found, label_kind, ignored)
    if not (ignored or found.num_mixed or label_kind):
      raise InputError(
        f'labels hold {values}, and none holds two of these above 0; expected '
        'masks of one kind, or --label_kind=classes if each value is a class'
      )
    lines.append(
      Line('data.label_values', tuple(classes), 'the values of the labels')
    )
  else:
    raise InputError(
      f'labels hold {len(values)} values, from {values[0]} to {values[-1]}, '
      'which are neither classes nor numbers of objects of one piece; masks '
      'with gray rims need a threshold, --label_kind=instances says that they '
      'number objects, and --label_kind=classes that 0, 1, ... are classes'
    )
  names = tuple(f'class {k}' for k in range(len(classes)))
  if len(values) == 2:
    names = _TWO_CLASSES
  lines.append(
    Line('data.ignore_value', ignored, share(_IGNORED) if ignored else '')
  )
  return names, lines + _border_weights(found, names)


def _border_weights(found, names):
  if len(names) != 2 or found.components < _MANY:
    return []
  pieces = counted(found.components, 'piece')
  return [Line('data.w0', 10.0, f'border weights: {pieces} in a usual image')]


def _check_rims(
  found: Survey, label_kind: str, ignored: tuple[int, ...] = ()
) -> None:
  """Raises InputError for values that may be rims between those of classes."""
  thin = [value for value in found.thin if value not in ignored]
  if thin and not label_kind:
    raise InputError(
      f'labels hold {list_some(map(str, sorted(found.values)))}, of which '
      f'{list_some(map(str, thin))} fill no block of 2 x 2 px, like the '
      'rims of masks that were resized or saved as JPEG: save such masks by a '
      'threshold, or give --label_kind=classes or instances if they are no rims'
    )


def _for_unet(config: ConfigDict, side: int) -> list[Line]:
  lines = [
    Line('preprocessing.per_image', True, 'each by its mean and deviation'),
    Line('model.norm', 'batch', 'learns in far fewer steps'),
  ]
  depth = 4 if side >= _SIDE_OF_DEPTH_4 else 3
  if depth != 4:
    lines.append(Line('model.depth', depth, f'images of {side} px are small'))
  if jax.default_backend() == 'cpu':
    lines.append(Line('model.base_width', 16, 'the paper has 64: for a CPU'))
    lines.append(Line('schedule.learning_rate', 2e-3, 'of a narrow network'))
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
  devices = jax.device_count()  # Each gets the same number of images.
  return Line('batch_size', -(-size // devices) * devices, reason)


def _pixels(measured: Mapping[str, Any]) -> list[Line]:
  dtype = np.dtype(measured['dtype'])
  full = np.iinfo(dtype).max if dtype.kind in 'iu' else 1
  ends = zip(*measured['limits'], strict=True)
  said = ', '.join(f'{a * full:.4g} to {b * full:.4g}' for a, b in ends)
  reasons = {
    'dtype': 'of the images',
    'limits': f'99.8 % of the values are in {said}',
    'mean': 'of the training images, with limits as 0 and 1',
    'std': 'of the training images, with limits as 0 and 1',
  }
  return [
    Line(f'preprocessing.{name}', value, reasons[name])
    for name, value in measured.items()
  ]


def _for_fcn(
  side: int,
  examples: Sequence[dict],
  init: str,
  pixels: str,
) -> list[Line]:
  if not init:
    raise InputError(
      'fcn8s starts from an image classifier: give --init=FILE, an .npz of '
      f'segjax.convert, or --init={", --init=".join(published.SOURCES)}, or '
      '--init=random for random weights'
    )
  first = examples[0]['image']
  channels = first.shape[-1]
  narrow = jax.default_backend() == 'cpu'
  is_random = init == 'random'
  lines = [Line('init.path', init if is_random else os.path.abspath(init))]
  if not is_random:
    arrays = files.read_arrays(init)
    pixels = files.read_metadata(init).get('pixels', pixels)
    if pixels not in files.PIXELS:
      raise InputError(
        f'{init} does not say on which pixels it was trained; give '
        f'--pixels={files.PIXELS[1]} for weights of torchvision, or '
        f'--pixels={files.PIXELS[0]} for those of Caffe'
      )
    kernel = arrays.get('conv1_1/kernel')
    if kernel is not None and kernel.shape[2] != channels:
      raise InputError(
        f'images have {channels} channel(s) and {init} takes '
        f'{kernel.shape[2]}; convert the weights with --in_channels={channels}'
      )
    if 'fc6/kernel' not in arrays:
      initial = 'fc6', 'fc7', 'score_fr', 'score_pool4', 'score_pool3'
      features = 512 if narrow else 4096
      lines.append(Line('init.initial', initial, 'not in the weights'))
      lines.append(Line('model.fc_features', features, 'of fc6 and fc7'))
  if channels != 3:
    lines.append(Line('model.in_channels', channels))
  if is_random or channels != 3:
    lines += _pixels(measure_pixels(examples))
    lines.append(Line('preprocessing.channels', ()))
  else:
    if pixels == files.PIXELS[1]:
      why = 'those of torchvision'
      lines += [
        Line('preprocessing.mean', (0.485, 0.456, 0.406), why),
        Line('preprocessing.std', (0.229, 0.224, 0.225), why),
        Line('preprocessing.channels', ()),
      ]
    if first.dtype != np.uint8:
      measured = measure_pixels(examples)
      lines += _pixels({n: measured[n] for n in ('dtype', 'limits')})
  # Crops have one size, and so one compiled program.
  tile = int(np.clip(side // 32 * 32, 64, 224 if narrow else 352))
  return [
    *lines,
    Line('tile_size_px', tile, f'crops; images have {side} px'),
    Line('batching.bucket_px', 0, 'crops have one size'),
    _batch(4, 'crops a step'),
    Line('augmentation.flip', True),
    Line('augmentation.shift_px', 16.0),
    Line('augmentation.black', 0.1),
    Line('augmentation.white', 0.1),
    Line('augmentation.log_gamma', 0.2),
  ]


def _steps(config: ConfigDict, minutes: float, flops: float) -> list[Line]:
  if not 0 < minutes <= _MOST_MINUTES:
    raise InputError(
      f'--minutes={minutes:g}; expected more than 0, at most {_MOST_MINUTES}'
    )
  steps, why = _STEPS_OF_ACCELERATOR, 'usual'
  if jax.default_backend() == 'cpu':
    seconds = flops / (_RATE_OF_CORE * (os.cpu_count() or 1))
    steps = max(int(60 * minutes / seconds) // 10 * 10, 10)
    why = f'{counted(minutes, "minute")} of about {seconds:.2g} s a step'
  lines = [
    Line('num_train_steps', steps, why),
    # Rounded up, or the last one would come shortly before the end.
    Line('evaluation.every_steps', -(-steps // 4)),
    Line('checkpoints.every_steps', -(-steps // 8)),
  ]
  if steps < 20 * config.log_every_steps:  # Or a curve would have no points.
    lines.append(Line('log_every_steps', max(steps // 20, 1)))
  if steps < 10 * config.schedule.warmup_steps:
    lines.append(Line('schedule.warmup_steps', steps // 10))
  return lines
