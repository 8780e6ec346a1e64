# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning-rate schedules."""

from collections.abc import Sequence

import optax
from flax import traverse_util

from segjax.errors import InputError
from segjax.models.layers import RUNNING_MEANS

OPTIMIZERS = ('sgd', 'adamw')
SCHEDULES = ('constant', 'cosine')


def create_schedule(
  name: str, learning_rate: float, warmup_steps: int, num_steps: int
) -> optax.Schedule:
  """Returns step -> learning rate.

  The rate rises linearly from 0 over `warmup_steps` (see `shorten_warmup`).
  Then it is constant, or falls to 0 at `num_steps` along a half cosine.

  Raises:
    InputError: there is no schedule of this name, or a value is out of range.
  """
  if name not in SCHEDULES:
    raise InputError(f'schedule.name={name!r} is not one of {SCHEDULES}')
  if learning_rate <= 0:
    raise InputError(f'schedule.learning_rate={learning_rate} must be > 0')
  for field, value, least in (
    ('schedule.warmup_steps', warmup_steps, 0),
    ('num_train_steps', num_steps, 1),
  ):
    if value < least:
      raise InputError(f'{field}={value} must be at least {least}')
  warmup_steps = shorten_warmup(warmup_steps, num_steps)
  if name == 'cosine':
    return optax.warmup_cosine_decay_schedule(
      0.0 if warmup_steps else learning_rate,
      learning_rate,
      warmup_steps,
      num_steps,
    )
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1)),
      optax.constant_schedule(learning_rate),
    ],
    [warmup_steps],
  )


def shorten_warmup(warmup_steps: int, num_steps: int) -> int:
  """Returns the steps of warm-up: a tenth of all if they are too many."""
  return warmup_steps if warmup_steps < num_steps else num_steps // 10


def create_optimizer(
  name: str,
  schedule: optax.Schedule,
  momentum: float,
  weight_decay: float,
  clip_norm: float,
  bias_rate: float = 1.0,
  bias_decay: bool = False,
  bias_layers: Sequence[str] = ('',),
) -> optax.GradientTransformation:
  """Returns an optax transformation from gradients to updates.

  Args:
    name: 'sgd' (Caffe's: v <- momentum v - rate gradient, w <- w + v) or
      'adamw' (b1 = momentum, b2 = 0.999).
    schedule: step -> learning rate.
    momentum: momentum of sgd, or b1 of adamw.
    weight_decay: for sgd it is added to the gradient (L2, as Caffe does); for
      adamw it is decoupled.
    clip_norm: bound on the global norm of the gradient; 0 does not clip.
    bias_rate: factor on the learning rate of the biases of `bias_layers`
      (Caffe's lr_mult; 2 in FCN).
    bias_decay: whether those biases decay (decay_mult; not in FCN).
    bias_layers: prefixes of the names of these layers; ('',) means all layers.
      Other biases learn as kernels do.

  Raises:
    InputError: there is no optimizer of this name, or a value is out of range;
      or, at initialisation, a prefix of `bias_layers` begins no layer's name.
  """
  if bias_rate <= 0:
    raise InputError(f'optimizer.bias_rate={bias_rate} must be > 0')
  for field, value in (
    ('weight_decay', weight_decay),
    ('clip_norm', clip_norm),
  ):
    if value < 0:
      raise InputError(f'optimizer.{field}={value} must be >= 0')

  def biases(params):
    for prefix in bias_layers:
      if not any(layer.startswith(prefix) for layer in params):
        raise InputError(
          f'optimizer.bias_layers has {prefix!r}, with which no layer begins; '
          f'there are {", ".join(params)}'
        )
    return traverse_util.path_aware_map(
      lambda path, _: (
        path[-1] == 'bias' and str(path[0]).startswith(tuple(bias_layers))
      ),
      params,
    )

  def decaying(params):
    # Frozen norms keep their running means.
    return traverse_util.path_aware_map(
      lambda path, is_bias: (
        (bias_decay or not is_bias) and path[-1] not in RUNNING_MEANS
      ),
      biases(params),
    )

  decay = optax.add_decayed_weights(weight_decay, mask=decaying)
  faster = optax.masked(optax.scale(bias_rate), biases)
  if not 0 <= momentum < 1:
    raise InputError(f'optimizer.momentum={momentum} must be >= 0 and < 1')
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm > 0 else []
  rate = optax.scale_by_learning_rate(schedule)
  if name == 'sgd':
    # The rate comes first: Caffe scales the gradient, not the velocity.
    update = [decay, faster, rate, optax.trace(momentum)]
  elif name == 'adamw':
    update = [optax.scale_by_adam(b1=momentum), decay, faster, rate]
  else:
    raise InputError(f'optimizer.name={name!r} is not one of {OPTIMIZERS}')
  return optax.chain(*clip, *update)
