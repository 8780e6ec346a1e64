# SPDX-License-Identifier: Apache-2.0
"""Training of a network in one call, for notebooks."""

import atexit
import numbers
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax import networks, recipes
from segjax.data import arrays
from segjax.data.folder import KINDS
from segjax.data.survey import find_layout, say_copies, survey_arrays
from segjax.decisions import (
  apply,
  decide,
  local_weights,
  read_labels,
  share_of_frozen_norms,
  weigh_classes,
)
from segjax.devices import processes
from segjax.errors import InputError
from segjax.networks import Network
from segjax.plan import plan
from segjax.train import train_and_evaluate

Images = str | os.PathLike | Sequence[np.ndarray] | np.ndarray

# Settings of a folder that arrays have, too.
_OF_LABELS = (
  *('class_names', 'label_kind', 'label_values', 'ignore_value'),
  *('w0', 'sigma_px', 'balance'),
)


def fit(
  images: Images,
  labels: Images | None = None,
  *,
  network: str = 'unet',
  init: str = '',
  pixels: str = '',
  num_train_steps: int | None = None,
  minutes: float = 30.0,
  class_names: Sequence[str] = (),
  label_kind: str = '',
  heldout_fraction: float = 0.2,
  base_width: int | None = None,
  seed: int = 0,
  workdir: str | os.PathLike | None = None,
) -> Network:
  """Returns a network that has been trained on images and labels.

  All other settings follow from the images, as in `segjax.plan`.

  Args:
    images: arrays [H, W] or [H, W, C] of any sizes, uint8, uint16 or float; or
      a folder or pattern, as for `segjax.plan`.
    labels: arrays of integers [H, W], which are read as files are: classes,
      with 255 for ignored pixels if the others are 0, 1, ..., or numbered
      objects; or a folder or pattern.
    network: 'unet' or 'fcn8s'.
    init: weights that fcn8s starts from; see `plan`.
    pixels: scale of the pixels of `init`, if the file does not say it.
    num_train_steps: number of steps; None for as many as `minutes` allow.
    minutes: minutes that training may take here, approximately.
    class_names: names of the classes, in the order of their values; () names
      two 'background' and 'object', and more 'class 0', 'class 1', ...
    label_kind: 'classes', or 'instances' if labels number objects; '' infers it
      from the labels.
    heldout_fraction: share of the images that are held out for the scores.
    base_width: channels at the top of a U-Net; None decides as `plan` does.
    seed: random seed of the split, the initial values and the augmentation.
    workdir: folder for checkpoints, metrics and pictures, in which an
      interrupted run is resumed; None for a folder that Python removes when it
      ends.

  Raises:
    InputError: an argument is wrong, or images and labels do not fit together.
    TrainingDiverged: the loss or the gradient is NaN or infinite.

  >>> import numpy as np, segjax
  >>> from segjax.data import synthetic
  >>> images, labels = synthetic.neuron_stack(num_slices=4, size_px=80, seed=0)
  >>> net = segjax.fit(images, labels, num_train_steps=2, base_width=4)
  ... # doctest: +ELLIPSIS
  block ...
  >>> probabilities = segjax.predict_image(
  ...   net.model, net.params, net.prepare(images[0, ..., None]))
  >>> probabilities.shape
  (80, 80, 2)
  """
  if network not in ('unet', 'fcn8s'):
    raise InputError(f"network={network!r} is not one of 'unet', 'fcn8s'")
  if label_kind not in ('', *KINDS):
    raise InputError(f'label_kind={label_kind!r} is not one of {KINDS}')
  for name, value, least in (
    ('num_train_steps', num_train_steps, 1),
    ('base_width', base_width, 1),
    ('seed', seed, 0),
  ):
    is_whole = isinstance(value, numbers.Integral)
    if value is not None and not (is_whole and value >= least):
      raise InputError(
        f'{name}={value!r}; expected a whole number of at least {least}'
      )
  dataset = None
  if isinstance(images, (str, os.PathLike)):
    if not isinstance(labels, (str, os.PathLike, type(None))):
      raise InputError('images are a folder; expected a folder of labels, too')
    config, _, _, copies = plan(
      find_layout(images, labels),
      network,
      init=init,
      pixels=pixels,
      minutes=minutes,
      label_kind=label_kind,
      heldout_fraction=heldout_fraction,
      seed=seed,
    )
    if len(class_names):
      config.data.class_names = _checked_names(
        class_names, config.data.class_names
      )
  else:
    if isinstance(labels, (str, os.PathLike)):
      raise InputError('labels are a folder; expected one of images, too')
    images, labels = arrays.check_arrays(images, labels)
    found = survey_arrays(images, labels)
    names, of_labels = read_labels(found, label_kind)
    if network == 'unet':
      config = recipes.unet_folder_config(names, found.kind[1])
    else:
      config = recipes.fcn_folder_config(names)
    apply(config, [*of_labels, *weigh_classes(network, found, of_labels)])
    data = {name: config.data[name] for name in _OF_LABELS}
    data['heldout_fraction'] = heldout_fraction
    if len(class_names):
      data['class_names'] = _checked_names(class_names, names)
    config.data = dict(name='arrays', **data)
    dataset = arrays.make_dataset(images, labels, data, seed)
    copies = say_copies(
      *(
        [(e['name'], found.digests[int(e['name'])]) for e in examples]
        for examples in (dataset.train, dataset.heldout)
      )
    )
    sides = [min(image.shape[:2]) for image in images]
    decide(
      config,
      int(np.median(sides)),
      dataset.train,
      local_weights(network, init, pixels),
      pixels,
      minutes,
    )
  if copies:
    processes.say(f'copies: {copies}')
  config.seed = seed
  if base_width is not None:
    config.model.base_width = base_width
  if num_train_steps is not None:
    config.num_train_steps = num_train_steps
    if network == 'unet':
      config.frozen_norm_share = share_of_frozen_norms(config)
    config.schedule.warmup_steps = min(
      config.schedule.warmup_steps, num_train_steps // 10
    )
  if workdir is None:
    folder = tempfile.mkdtemp(prefix='segjax-')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    workdir = Path(folder) / 'run'
  train_and_evaluate(config, workdir, dataset)
  return networks.load_run(workdir)


def _checked_names(
  class_names: Sequence[str], found: Sequence[str]
) -> tuple[str, ...]:
  if isinstance(class_names, str) or len(class_names) != len(found):
    raise InputError(
      f'class_names={class_names!r} for labels of {len(found)} classes; '
      'expected a name for each'
    )
  return (*map(str, class_names),)
