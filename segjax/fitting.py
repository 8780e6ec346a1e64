# SPDX-License-Identifier: Apache-2.0
"""Training of a network in one call, for notebooks."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax import networks, recipes
from segjax.data.examples import (
  IGNORE_LABEL,
  Dataset,
  check_label,
  digest_of_arrays,
  list_some,
)
from segjax.data.survey import find_layout
from segjax.decisions import decide, local_weights
from segjax.errors import InputError
from segjax.networks import Network
from segjax.plan import plan
from segjax.train import train_and_evaluate

Images = str | os.PathLike | Sequence[np.ndarray] | np.ndarray

_MOST_CLASSES = 60  # More values look like numbers of objects.


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
    labels: arrays of integers [H, W], classes 0..K-1, and 255 for ignored
      pixels; or a folder or pattern.
    network: 'unet' or 'fcn8s'.
    init: weights that fcn8s starts from; see `plan`.
    pixels: scale of the pixels of `init`, if the file does not say it.
    num_train_steps: number of steps; None for as many as `minutes` allow.
    minutes: minutes that training may take here, approximately.
    class_names: names of classes 0..K-1; () gives at most 60 classes the names
      'class 0', 'class 1', ...
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
  dataset = None
  if isinstance(images, (str, os.PathLike)):
    if not isinstance(labels, (str, os.PathLike, type(None))):
      raise InputError('images are a folder; expected a folder of labels, too')
    config = plan(
      find_layout(images, labels),
      network,
      init=init,
      pixels=pixels,
      minutes=minutes,
      heldout_fraction=heldout_fraction,
    ).config
    if class_names:
      config.data.class_names = tuple(class_names)
    config.data.seed = seed
  else:
    dataset = _dataset_of_arrays(
      images, labels, class_names, heldout_fraction, seed
    )
    names = dataset.class_names
    first = dataset.train[0]['image']
    if network == 'unet':
      config = recipes.unet_folder_config(names, first.shape[-1])
    else:
      config = recipes.fcn_folder_config(names)
    config.loss = 'dice_cross_entropy'  # Arrays have no weights.
    config.data = dict(name='arrays', class_names=names)
    sides = [min(example['image'].shape[:2]) for example in dataset.train]
    decide(
      config,
      int(np.median(sides)),
      dataset.train,
      local_weights(network, init, pixels),
      pixels,
      minutes,
    )
  config.seed = seed
  if base_width is not None:
    config.model.base_width = base_width
  if num_train_steps is not None:
    config.num_train_steps = num_train_steps
    config.schedule.warmup_steps = min(
      config.schedule.warmup_steps, num_train_steps // 10
    )
  if workdir is None:
    folder = tempfile.mkdtemp(prefix='segjax-')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    workdir = Path(folder) / 'run'
  train_and_evaluate(config, workdir, dataset)
  return networks.load_run(workdir)


def _dataset_of_arrays(
  images, labels, class_names, heldout_fraction, seed
) -> Dataset:
  counts = [0 if group is None else len(group) for group in (images, labels)]
  if counts[0] != counts[1] or not counts[0]:
    raise InputError(
      f'{counts[0]} images and {counts[1]} labels; expected one for each'
    )
  num_heldout = round(heldout_fraction * counts[0])
  if not 0 <= heldout_fraction < 1 or num_heldout == counts[0]:
    raise InputError(
      f'heldout_fraction={heldout_fraction} of {counts[0]} images; expected 0 '
      'or more, and some images left to train on'
    )
  labels = [np.asarray(label) for label in labels]
  for i, label in enumerate(labels):
    if label.ndim != 2 or label.dtype.kind not in 'iub':
      raise InputError(
        f'label {i} is {label.dtype}{list(label.shape)}; expected integers '
        '[H, W]'
      )
  values = np.unique(np.concatenate([np.unique(label) for label in labels]))
  classes = values[values != IGNORE_LABEL]
  if {*values.tolist()} == {0, IGNORE_LABEL}:
    raise InputError(
      'labels hold 0 and 255, where 255 is ignored; expected classes 0..K-1, '
      'such as label > 0'
    )
  if not class_names and classes.size > _MOST_CLASSES:
    raise InputError(
      f'labels hold {classes.size} values from {classes.min()} to '
      f'{classes.max()}, which look like numbers of objects; give label > 0; '
      'or a folder, whose objects are found and scored; or class_names'
    )
  num_classes = len(class_names) or int(classes.max(initial=0)) + 1
  if not 2 <= num_classes < IGNORE_LABEL:
    raise InputError(
      f'labels hold {list_some(map(str, values))}; expected at least two '
      'classes, 0..K-1'
    )
  examples = []
  for i, (image, label) in enumerate(zip(images, labels, strict=True)):
    image = np.asarray(image)
    if image.dtype == np.float64:
      image = image.astype(np.float32)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[:2] != label.shape:
      raise InputError(
        f'image {i} is {image.dtype}{list(image.shape)} and its label '
        f'{list(label.shape)}; expected [H, W] or [H, W, C] and [H, W]'
      )
    if image.dtype not in ('uint8', 'uint16', 'float32'):
      raise InputError(
        f'image {i} is {image.dtype}; expected uint8, uint16 or float32'
      )
    if image.dtype.kind == 'f' and not np.isfinite(image).all():
      raise InputError(f'image {i} has pixels that are NaN or infinite')
    first = examples[0]['image'] if examples else image
    if (image.dtype, image.shape[-1]) != (first.dtype, first.shape[-1]):
      raise InputError(
        f'image {i} is {image.dtype} of {image.shape[-1]} channel(s), image 0 '
        f'{first.dtype} of {first.shape[-1]}; expected one kind'
      )
    label = check_label(label, num_classes, f'label {i}')
    examples.append({'image': image, 'label': label, 'name': str(i)})
  order = np.random.default_rng(seed).permutation(len(examples))
  held = {*order[:num_heldout].tolist()}
  train = [e for i, e in enumerate(examples) if i not in held]
  return Dataset(
    class_names=tuple(class_names)
    or tuple(f'class {k}' for k in range(num_classes)),
    train=train,
    heldout=[e for i, e in enumerate(examples) if i in held],
    digest=digest_of_arrays(examples),
  )
