# SPDX-License-Identifier: Apache-2.0
"""Training state and the pure training step: all the math, no input or output.

The step is the same function under `jit` over a sharded batch and under `pmap`.
The randomness of an example is a function of (root key, step, position in the
global batch), so neither the devices nor a restart change it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax import losses
from segjax.data.augment import (
  Augmentation,
  augment,
  cut_region,
  region_corner,
  region_side,
)
from segjax.errors import InputError
from segjax.models.layers import RUNNING, if_frozen
from segjax.settings.sections import PreprocessingSettings

_EXAMPLES = 'examples'  # Name of the `vmap` axis over the batch.


class TrainState(flax.struct.PyTreeNode):
  """Everything that training changes: arrays only.

  Attributes:
    step: i32[], number of updates made.
    params: parameter tree of the model, with the running means of its norms.
    opt_state: state of the optimizer.
    key: u32[2], data of the root key; constant.
  """

  step: jax.Array
  params: Mapping[str, Any]
  opt_state: optax.OptState
  key: jax.Array


def init_params(model: nn.Module, key: jax.Array) -> Mapping[str, Any]:
  """Returns the initial parameters of a model, a function of `key` alone."""
  size = model.geometry.input_size(1)
  image = jnp.zeros((1, size, size, model.in_channels))
  return model.init(key, image)['params']


def init_state(
  model: nn.Module, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
  """Returns the state before the first step, a function of `seed` alone."""
  init_key, root_key = jax.random.split(jax.random.key(seed))
  params = init_params(model, init_key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    key=jax.random.key_data(root_key),
  )


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  preprocessing: PreprocessingSettings,
  tile_size: int,
  augmentation: Augmentation,
  ignore_label: int,
  reduction: str,
  loss: str = 'cross_entropy',
  accumulate_steps: int = 1,
  freeze_norms_at: int | None = None,
  axis_name: str | None = None,
  split_rows: Callable[[Any], Any] = lambda pixels: pixels,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """Returns `train_step(state, batch) -> (state, metrics)`, pure.

  The batch holds `image` [B, H, W, C] uint8, uint16 or f32 in [0, 1], `label`
  i32[B, H, W], or i32[B, H, W, T] for T heads, and may hold `weight`
  f32[B, H, W] and, where images are padded at their ends, `size` i32[B, 2]; for
  tiles of images of many sizes it holds what `make_cut` returns. The metrics
  are f32 scalars: `loss`, `pixel_accuracy` (on the batch), `grad_norm` and
  `learning_rate`.

  Args:
    model: maps [B, s, s, C] to logits [B, o, o, K].
    optimizer: optax transformation of the gradient.
    schedule: step -> learning rate, for the metrics only.
    preprocessing: turns stored pixels into the model's input; the augmentation
      takes place in between, in the unit range.
    tile_size: s, in pixels; 0 trains on whole images, which are not augmented.
    augmentation: ranges of the augmentation of tiles.
    ignore_label: label of pixels that count nowhere.
    reduction: reduction of the losses of images; see `losses.reduce_image`.
    loss: loss of an image; see `losses.image_loss`.
    accumulate_steps: number of parts of the batch that are computed one after
      another (gradient accumulation), for as many times less memory. Sums over
      the batch do not change. A norm takes the statistics of each part, and the
      running means follow the mean of the parts.
    freeze_norms_at: number of updates after which norms keep to their running
      means, see `BatchNorm`; None never freezes them.
    axis_name: name of the `pmap` axis that splits the batch; None under `jit`.
    split_rows: spreads arrays [B, h, w, ...] over devices; changes no value.

  Raises:
    InputError: the model cannot take `tile_size`; or, when the step is traced,
      a device's images are not divisible by `accumulate_steps`.
  """
  if tile_size:
    output_size = model.geometry.output_size(tile_size)
  is_normed = getattr(model, 'norm', 'none') != 'none'
  axis_names = (_EXAMPLES, *([axis_name] if axis_name else []))

  def prepare(key, example):
    image = preprocessing.to_unit_range(example['image'])
    label, weight = example['label'], example.get('weight')
    ends = {
      name: example[name] for name in ('size', 'corner') if name in example
    }
    if tile_size:
      image, label, weight = augment(
        key,
        image,
        label,
        weight,
        input_size=tile_size,
        output_size=output_size,
        amount=augmentation,
        **ends,
      )
      ends = {}
    return preprocessing.standardise(image), label, weight, ends

  def example_loss(params, frozen, dropout_key, image, label, weight, padded):
    norm = {'axis_names': axis_names, 'frozen_norm': frozen}
    logits, updated = model.apply(
      {'params': params},
      image[None],
      train=True,
      rngs={'dropout': dropout_key},
      mutable=[RUNNING],
      **(norm if is_normed else {}),
      **jax.tree.map(lambda size: size[None], padded),
    )
    sums = [
      (
        *losses.image_loss(scores, truth, weight, ignore_label, loss),
        jnp.sum(jnp.argmax(scores, -1) == truth, dtype=jnp.float32),
      )
      for scores, truth in losses.split_heads(
        logits[0], label, model.head_sizes
      )
    ]
    total, count, correct = jax.tree.map(lambda *terms: sum(terms), *sums)
    reduced, divisor = losses.reduce_image(total, count, reduction)
    return reduced, (divisor, count, correct, updated.get(RUNNING, {}))

  def batch_loss(params, frozen, keys, prepared):
    loss_of = functools.partial(example_loss, params, frozen)
    sums = jax.vmap(loss_of, axis_name=_EXAMPLES)(keys, *prepared)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

  sums_and_gradient = jax.value_and_grad(batch_loss, has_aux=True)

  def summed(params, frozen, keys, batch):
    part_sums = functools.partial(sums_and_gradient, params, frozen)
    if accumulate_steps == 1:
      return part_sums(keys, batch)
    # Every part has examples of all devices, so that no example has to move.
    parts = jax.tree.map(
      lambda x: x.reshape(-1, accumulate_steps, *x.shape[1:]).swapaxes(0, 1),
      (keys, batch),
    )
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(part_sums, *first),
    )

    def add(total, part):
      return jax.tree.map(jnp.add, total, part_sums(*part)), ()

    return jax.lax.scan(add, zeros, parts)[0]

  def train_step(state, batch):
    size = batch['image'].shape[0]
    if size % accumulate_steps:
      raise InputError(
        f'{size} images on a device are not divisible by accumulate_steps='
        f'{accumulate_steps}'
      )
    first = size * jax.lax.axis_index(axis_name) if axis_name else 0
    batch_size = size * jax.lax.axis_size(axis_name) if axis_name else size
    augment_keys, dropout_keys = jax.vmap(
      example_keys, (None, None, 0), out_axes=1
    )(state.key, state.step, first + jnp.arange(size))
    *pixels, padded = jax.vmap(prepare)(augment_keys, batch)
    prepared = (*split_rows(pixels), padded)
    frozen = freeze_norms_at is not None and state.step >= freeze_norms_at
    sums, gradient = summed(state.params, frozen, dropout_keys, prepared)
    if axis_name:
      sums, gradient = jax.lax.psum((sums, gradient), axis_name)
    total, (divisor, count, correct, running) = sums
    scale = 1.0 / jnp.maximum(divisor, 1.0)
    gradient = jax.tree.map(lambda g: g * scale, gradient)
    updates, opt_state = optimizer.update(
      gradient, state.opt_state, state.params
    )
    metrics = {
      'loss': total * scale,
      'pixel_accuracy': correct / jnp.maximum(count, 1.0),
      'grad_norm': optax.tree.norm(gradient),
      'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
    }
    params: dict[Any, Any] = flatten_dict(
      optax.apply_updates(state.params, updates)
    )
    flat_running: dict[Any, Any] = flatten_dict(running)
    for name, moved in flat_running.items():
      # Examples of a part have equal means: this is the mean of the parts. Sums
      # round, so that means which are to stay are taken as they are.
      params[name] = if_frozen(frozen, params[name], moved / batch_size)
    state = state.replace(
      step=state.step + 1,
      params=unflatten_dict(params),
      opt_state=opt_state,
    )
    return state, metrics

  return train_step


def make_cut(
  key: jax.Array,
  *,
  tile_size: int,
  output_size: int,
  augmentation: Augmentation,
) -> Callable[[int, int, dict], dict]:
  """Returns `cut(step, row, example) -> example`, for the host.

  It cuts out the region of an example that the training step reads: a square of
  one size for images of all sizes, so that the step is compiled once. It adds
  `size` i32[2], the size of the image, and `corner` i32[2], the row and column
  of the image where the region begins.

  Args:
    key: u32[2], the key of the state.
    tile_size: see `make_train_step`.
    output_size: output size of the model for `tile_size`, in pixels.
    augmentation: see `make_train_step`.
  """
  side = region_side(tile_size, augmentation)

  @jax.jit
  def corner_of(key, step, row, size):
    return region_corner(
      example_keys(key, step, row)[0],
      size,
      side=side,
      output_size=output_size,
      amount=augmentation,
    )

  try:  # Devices are busy with the step; the CPU is not.
    device = jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS leaves it out.
    device = jax.local_devices()[0]
  key_data = np.asarray(key)

  def cut(step, row, example):
    size = np.array(example['image'].shape[:2], np.int32)
    with jax.default_device(device):
      corner = np.asarray(corner_of(key_data, step, row, size))
    cuts = {name: cut_region(example[name], corner, side) for name in example}
    return cuts | {'size': size, 'corner': corner}

  return cut


def example_keys(key, step, row):
  """Returns the keys of an example's augmentation and dropout.

  Args:
    key: u32[2], the key of the state.
    step: the step of the state.
    row: position of the example in the global batch.
  """
  step_key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
  return jax.random.split(jax.random.fold_in(step_key, row))
