# SPDX-License-Identifier: Apache-2.0
"""What a config describes, without data: the model, its state and its step."""

import functools
import math
import operator
from collections.abc import Callable

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from segjax import steps
from segjax.data import IGNORE_LABEL
from segjax.data.augment import Augmentation
from segjax.data.pipeline import ORDERS
from segjax.data.preprocessing import standardise
from segjax.devices import parallel
from segjax.devices.parallel import DataParallel
from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.losses import REDUCTIONS
from segjax.models import create_model
from segjax.optimizers import create_optimizer, create_schedule
from segjax.prediction.predictor import create_predictor
from segjax.settings import check_names
from segjax.steps import TrainState


def create_experiment(
  config: ConfigDict,
) -> tuple[nn.Module, Callable[[], TrainState], DataParallel]:
  """Returns the model, what makes its first state, and its training step.

  Computes nothing and reads no data.

  Raises:
    InputError: a setting is wrong.
  """
  check_names(config)
  _check_numbers(config)
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
      standardise=functools.partial(standardise, **config.preprocessing),
      tile_size=config.tile_size_px,
      augmentation=Augmentation(**config.augmentation),
      ignore_label=IGNORE_LABEL,
      reduction=config.loss_reduction,
      accumulate_steps=config.accumulate_steps,
      axis_name=axis_name,
      split_rows=split_rows,
    ),
    config.parallel,
    config.batch_size,
    **config.mesh,
  )
  _check(config, model)
  init = parallel.jit_once(
    lambda: steps.init_state(model, optimizer, config.seed)
  )
  jax.eval_shape(init)  # Raises early, as does
  create_predictor(model, config)
  return model, init, devices


def _check_numbers(config: ConfigDict) -> None:
  """Raises InputError for a number that nothing could be made of."""
  for name, value in flatten_dict(config.to_dict(), sep='.').items():
    for number in value if isinstance(value, (list, tuple)) else (value,):
      if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f'{name}={value} must be finite')
      # Steps and sizes are counted in 32 bits.
      if isinstance(number, int) and not abs(number) < 2**31:
        raise InputError(f'{name}={value} must be below 2**31')


def _check(config: ConfigDict, model: nn.Module) -> None:
  """Raises InputError for what would otherwise fail in mid-run."""
  least = {
    'seed': 0,
    'tile_size_px': 0,
    'log_every_steps': 1,
    'accumulate_steps': 1,
    'batching.bucket_px': 0,
    'evaluation.every_steps': 1,
    'evaluation.num_pictures': 1,
    'checkpoints.every_steps': 1,
    'checkpoints.keep.keep_last': 1,
    'checkpoints.keep.keep_best': 0,
    'augmentation.elastic_grid': 1,
  }
  for name, smallest in least.items():
    value = operator.attrgetter(name)(config)
    if value < smallest:
      raise InputError(f'{name}={value} must be at least {smallest}')
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
  if config.batching.order not in ORDERS:
    raise InputError(
      f'batching.order={config.batching.order!r} is not one of {ORDERS}'
    )
  if config.tile_size_px == 0 and isinstance(model.geometry, UNetGeometry):
    raise InputError(
      'tile_size_px=0 trains on whole images, which a U-Net cannot; give the '
      'input side of a tile'
    )
  varied = [
    name
    for name, amount in config.augmentation.items()
    if amount and name != 'elastic_grid'
  ]
  if config.tile_size_px == 0 and varied:
    raise InputError(
      f'tile_size_px=0 trains on whole images, which are not augmented; set '
      f'augmentation.{varied[0]} to 0, or the side of a tile'
    )
  if config.tile_size_px and config.batching.bucket_px:
    raise InputError(
      f'batching.bucket_px={config.batching.bucket_px} pads whole images, but '
      f'tile_size_px={config.tile_size_px} trains on tiles; set one of them to '
      '0'
    )
  if config.tile_size_px and len(model.head_sizes) > 1:
    raise InputError(
      f'tile_size_px={config.tile_size_px}: a network of several heads trains '
      'on whole images; use 0'
    )
