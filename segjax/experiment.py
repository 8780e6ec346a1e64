# SPDX-License-Identifier: Apache-2.0
"""The experiment that a config describes: model, initial state and step."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from segjax import steps
from segjax.data import IGNORE_LABEL
from segjax.devices import parallel
from segjax.devices.parallel import DataParallel
from segjax.errors import InputError
from segjax.losses import LOSSES, REDUCTIONS
from segjax.models import Segmenter, create_model
from segjax.optimizers import create_optimizer, create_schedule
from segjax.prediction.predictor import check_prediction
from segjax.settings.sections import Settings, read_settings
from segjax.steps import TrainState

# About fifteen times as many as the largest network here has.
_MOST_PARAMETERS = 2**31


class Experiment(NamedTuple):
  """The experiment that a config describes, without its data.

  Attributes:
    model: the network.
    init: () -> training state before the first step.
    devices: the training step on all devices.
    settings: the checked settings of the config.
  """

  model: Segmenter
  init: Callable[[], TrainState]
  devices: DataParallel
  settings: Settings


def create_experiment(config: ConfigDict) -> Experiment:
  """Returns the experiment of a config; computes nothing and reads no data.

  Raises:
    InputError: a setting is wrong.
  """
  settings = read_settings(config)
  model = create_model(config.model)
  schedule = create_schedule(
    **dataclasses.asdict(settings.schedule), num_steps=settings.num_train_steps
  )
  optimizer = create_optimizer(
    schedule=schedule, **dataclasses.asdict(settings.optimizer)
  )
  devices = parallel.parallelize(
    lambda axis_name, split_rows: steps.make_train_step(
      model,
      optimizer,
      schedule,
      preprocessing=settings.preprocessing,
      tile_size=settings.tile_size_px,
      augmentation=settings.augmentation,
      ignore_label=IGNORE_LABEL,
      reduction=settings.loss_reduction,
      loss=settings.loss,
      accumulate_steps=settings.accumulate_steps,
      freeze_norms_at=settings.freeze_norms_at,
      axis_name=axis_name,
      split_rows=split_rows,
    ),
    settings.parallel,
    settings.batch_size,
    settings.mesh.space,
  )
  _check(settings, model)
  init = parallel.jit_once(
    lambda: steps.init_state(model, optimizer, settings.seed)
  )
  count = sum(
    math.prod(leaf.shape)
    for leaf in jax.tree.leaves(jax.eval_shape(init).params)
  )
  if count > _MOST_PARAMETERS:
    raise InputError(
      f'the network has {count:,} parameters; expected at most '
      f'{_MOST_PARAMETERS:,}: lower its widths, such as model.base_width'
    )
  check_prediction(
    model, settings.preprocessing, settings.prediction, settings.refinement
  )
  return Experiment(model, init, devices, settings)


def _check(settings: Settings, model: nn.Module) -> None:
  """Raises InputError for settings that contradict each other."""
  if settings.batch_size % settings.accumulate_steps:
    raise InputError(
      f'batch_size={settings.batch_size} is not divisible by '
      f'accumulate_steps={settings.accumulate_steps}'
    )
  if max(model.head_sizes) > IGNORE_LABEL:
    raise InputError(
      f'model.num_classes={max(model.head_sizes)}; expected at most '
      f'{IGNORE_LABEL}, since pixels of label {IGNORE_LABEL} are ignored'
    )
  first, last = settings.profile_steps
  if not 0 <= first <= last:
    raise InputError(
      f'profile_steps={settings.profile_steps} must be the first and the last '
      'step to trace, such as (10, 12), or (0, 0) for none'
    )
  if settings.loss not in LOSSES:
    raise InputError(f'loss={settings.loss!r} is not one of {LOSSES}')
  if settings.loss_reduction not in REDUCTIONS:
    raise InputError(
      f'loss_reduction={settings.loss_reduction!r} is not one of {REDUCTIONS}'
    )
  if settings.tile_size_px == 0 and not model.geometry.takes_any_size:
    raise InputError(
      'tile_size_px=0 trains on whole images, which a U-Net cannot; give the '
      'input side of a tile'
    )
  varied = [
    name
    for name, amount in dataclasses.asdict(settings.augmentation).items()
    if amount and name != 'elastic_grid'
  ]
  if settings.tile_size_px == 0 and varied:
    raise InputError(
      f'tile_size_px=0 trains on whole images, which are not augmented; set '
      f'augmentation.{varied[0]} to 0, or the side of a tile'
    )
  bucket_px = settings.batching.bucket_px
  if settings.tile_size_px and bucket_px:
    raise InputError(
      f'batching.bucket_px={bucket_px} pads whole images, but '
      f'tile_size_px={settings.tile_size_px} trains on tiles; set one of them '
      'to 0'
    )
  if settings.tile_size_px and len(model.head_sizes) > 1:
    raise InputError(
      f'tile_size_px={settings.tile_size_px}: a network of several heads '
      'trains on whole images; use 0'
    )
