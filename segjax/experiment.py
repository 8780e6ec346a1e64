# SPDX-License-Identifier: Apache-2.0
"""The experiment of a config, without data: model, initial state and step."""

import dataclasses
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
from segjax.losses import REDUCTIONS
from segjax.models import Segmenter, create_model
from segjax.optimizers import create_optimizer, create_schedule
from segjax.prediction.predictor import check_prediction
from segjax.settings import Settings, read_settings
from segjax.steps import TrainState


class Experiment(NamedTuple):
  """What a config describes.

  Attributes:
    model: the network.
    init: () -> its state before the first step.
    devices: its training step on all devices.
    settings: the sections of the config.
  """

  model: Segmenter
  init: Callable[[], TrainState]
  devices: DataParallel
  settings: Settings


def create_experiment(config: ConfigDict) -> Experiment:
  """Returns what a config describes; computes nothing and reads no data.

  Raises:
    InputError: a setting is wrong.
  """
  settings = read_settings(config)
  model = create_model(config.model)
  schedule = create_schedule(
    **config.schedule, num_steps=config.num_train_steps
  )
  optimizer = create_optimizer(schedule=schedule, **config.optimizer)
  devices = parallel.parallelize(
    lambda axis_name, split_rows: steps.make_train_step(
      model,
      optimizer,
      schedule,
      preprocessing=settings.preprocessing,
      tile_size=config.tile_size_px,
      augmentation=settings.augmentation,
      ignore_label=IGNORE_LABEL,
      reduction=config.loss_reduction,
      accumulate_steps=config.accumulate_steps,
      axis_name=axis_name,
      split_rows=split_rows,
    ),
    config.parallel,
    config.batch_size,
    settings.mesh.space,
  )
  _check(config, settings, model)
  init = parallel.jit_once(
    lambda: steps.init_state(model, optimizer, config.seed)
  )
  jax.eval_shape(init)  # Raises early.
  check_prediction(model, settings.preprocessing, settings.prediction)
  return Experiment(model, init, devices, settings)


def _check(config: ConfigDict, settings: Settings, model: nn.Module) -> None:
  """Raises InputError for what would otherwise fail in mid-run."""
  for name, least in (
    ('seed', 0),
    ('tile_size_px', 0),
    ('log_every_steps', 1),
    ('accumulate_steps', 1),
  ):
    if config[name] < least:
      raise InputError(f'{name}={config[name]} must be at least {least}')
  if config.batch_size % config.accumulate_steps:
    raise InputError(
      f'batch_size={config.batch_size} is not divisible by accumulate_steps='
      f'{config.accumulate_steps}'
    )
  match config.profile_steps:
    case (int(first), int(last)) if 0 <= first <= last:
      pass
    case _:
      raise InputError(
        f'profile_steps={config.profile_steps} must be the first and the last '
        'step to trace, such as (10, 12), or (0, 0) for none'
      )
  if config.loss_reduction not in REDUCTIONS:
    raise InputError(
      f'loss_reduction={config.loss_reduction!r} is not one of {REDUCTIONS}'
    )
  if config.tile_size_px == 0 and not model.geometry.takes_any_size:
    raise InputError(
      'tile_size_px=0 trains on whole images, which a U-Net cannot; give the '
      'input side of a tile'
    )
  varied = [
    name
    for name, amount in dataclasses.asdict(settings.augmentation).items()
    if amount and name != 'elastic_grid'
  ]
  if config.tile_size_px == 0 and varied:
    raise InputError(
      f'tile_size_px=0 trains on whole images, which are not augmented; set '
      f'augmentation.{varied[0]} to 0, or the side of a tile'
    )
  bucket_px = settings.batching.bucket_px
  if config.tile_size_px and bucket_px:
    raise InputError(
      f'batching.bucket_px={bucket_px} pads whole images, but '
      f'tile_size_px={config.tile_size_px} trains on tiles; set one of them to '
      '0'
    )
  if config.tile_size_px and len(model.head_sizes) > 1:
    raise InputError(
      f'tile_size_px={config.tile_size_px}: a network of several heads trains '
      'on whole images; use 0'
    )
