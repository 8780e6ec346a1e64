# SPDX-License-Identifier: Apache-2.0
"""What is timed of segjax: a network forward, and its training step.

Training is segjax's own step, so its metrics and the norm of its gradient are
in its time, without augmentation and dropout, which no twin could repeat.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from benchmarks import timing
from segjax import steps
from segjax.data import IGNORE_LABEL
from segjax.data.augment import Augmentation
from segjax.devices import parallel
from segjax.settings.sections import PreprocessingSettings

STEPS = 2  # Of training, whose updates are compared.
MOMENTUM = 0.99  # U-Net's and FCN's.
_LEARNING_RATE = 1e-3  # Of a mean over pixels.


class Side(NamedTuple):
  """One of the sides of a comparison.

  Attributes:
    case: what is timed.
    result: returns what both sides must agree on, arrays by name: the logits,
      or the updates of the first `STEPS` steps. To be called before `case`.
    flops: operations of a call, see `timing.flops`; 0 where not counted.
  """

  case: timing.Case
  result: Callable[[], dict[str, np.ndarray]]
  flops: float = 0.0


def random_params(model: nn.Module, seed: int = 0) -> dict:
  """Returns parameters of which none is zero: each shows in the logits."""
  shapes = jax.eval_shape(
    functools.partial(steps.init_params, model), jax.random.key(0)
  )
  rng = np.random.default_rng(seed)

  def draw(x):
    fan_in = np.prod(x.shape[:-1]) if len(x.shape) > 1 else 100
    return rng.standard_normal(x.shape, np.float32) * (2 / fan_in) ** 0.5

  return jax.tree.map(draw, shapes)


def random_batch(model: nn.Module, batch_size: int, size: int) -> dict:
  """Returns images of `size` px and labels of the pixels that come out."""
  rng = np.random.default_rng(0)
  shape = (batch_size, size, size, model.in_channels)
  side = model.geometry.output_size(size)
  return {
    'image': rng.standard_normal(shape, np.float32),
    'label': rng.integers(
      model.num_classes, size=(batch_size, side, side), dtype=np.int32
    ),
  }


def forward(model: nn.Module, params: dict, batch: dict) -> Side:
  """Returns segjax's side of the logits of a batch."""
  # A function of its own: jit would take an equal model's for the same.
  apply = parallel.jit(lambda *args: model.apply(*args))
  args = jax.device_put(({'params': params}, batch['image']))

  def case(calls):
    for _ in range(calls):
      logits = apply(*args)
    logits.block_until_ready()

  def result():
    return {'logits': np.asarray(apply(*args))}

  return Side(case, result, timing.flops(model.apply, *args))


def learning_rate(reduction: str, num_pixels: int) -> float:
  """Returns that of a loss that is the 'mean' or 'sum' over pixels.

  Both make the same updates.
  """
  return _LEARNING_RATE / (num_pixels if reduction == 'sum' else 1)


def create_optimizer(rate: float) -> optax.GradientTransformation:
  """Returns SGD with `MOMENTUM`."""
  return optax.chain(optax.scale_by_learning_rate(rate), optax.trace(MOMENTUM))


def make_step(
  model: nn.Module,
  rate: float,
  reduction: str,
  axis_name: str | None = None,
  split_rows: Callable = lambda pixels: pixels,
) -> Callable:
  """Returns segjax's training step by SGD, of tiles as they come."""
  return steps.make_train_step(
    model,
    create_optimizer(rate),
    optax.constant_schedule(rate),
    preprocessing=PreprocessingSettings(0.0, 1.0, ()),
    tile_size=0,
    augmentation=Augmentation(),
    ignore_label=IGNORE_LABEL,
    reduction=reduction,
    axis_name=axis_name,
    split_rows=split_rows,
  )


def train(
  model: nn.Module, params: dict, batch: dict, reduction: str = 'mean'
) -> Side:
  """Returns segjax's side of training steps on a batch, always the same.

  The loss is the 'mean' or 'sum' of the cross-entropy over all pixels.
  """
  rate = learning_rate(reduction, batch['label'].size)
  make = functools.partial(make_step, model, rate, reduction)
  devices = parallel.parallelize(make, 'jit', len(batch['image']))
  state = steps.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(jnp.array, params),  # Copies: the step takes them.
    opt_state=create_optimizer(rate).init(params),
    key=jax.random.key_data(jax.random.key(0)),
  )
  flops = timing.flops(make(), state, batch)
  state, batch = devices.put_state(state), devices.put_batch(batch)

  def case(calls):
    nonlocal state
    for _ in range(calls):
      state, _ = devices.step(state, batch)
    jax.block_until_ready(state)

  def result():
    before = _flattened(params)
    case(STEPS)
    after = _flattened(state.params)
    return {name: after[name] - before[name] for name in after}

  return Side(case, result, flops)


def _flattened(params):
  arrays = traverse_util.flatten_dict(params, sep='/')
  # A copy: the next step takes the buffers.
  return {name: np.array(array) for name, array in arrays.items()}


def difference(
  got: dict[str, np.ndarray], want: dict[str, np.ndarray]
) -> float:
  """Returns |got - want| / |want|, norms over all arrays together."""
  norms = [
    np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in arrays))
    for arrays in ([got[name] - want[name] for name in want], want.values())
  ]
  return norms[0] / norms[1]
