# SPDX-License-Identifier: Apache-2.0
"""Running means of batch normalisation, measured on images as they are stored.

Augmentation reads tiles between pixels, which blurs them a little, and varies
their gray values. So the running means that a training step moves are those of
other images than prediction sees: docs/results.md has what that costs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax import steps
from segjax.data.augment import Augmentation, augment
from segjax.data.pipeline import pad_and_stack
from segjax.devices import parallel, processes
from segjax.errors import TrainingDiverged
from segjax.models.layers import MOVE, RUNNING, RUNNING_MEANS
from segjax.settings.sections import PreprocessingSettings

_NUM_TILES = 48
_MOST_AT_ONCE = 8  # Tiles of a batch, since one device computes them.

Measure = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def make_measure(
  model: nn.Module,
  preprocessing: PreprocessingSettings,
  tile_size: int,
  batch_size: int,
  examples: Sequence[dict],
) -> Measure:
  """Returns `measure(params) -> params` with new running means.

  They are the means over batches that have up to 48 tiles together. Each batch
  is normalised by its own mean and variance as in training, with dropout. The
  tiles are random crops, not augmented, of examples that are evenly spaced,
  several crops of each if there are fewer. They are read here, once, and kept
  in memory; which they are depends on neither the step nor the devices. Each
  process computes all of them on one device, and all take the result of the
  first process.

  `measure` raises TrainingDiverged if a mean or a variance is not finite.

  Args:
    model: network with batch normalisation.
    preprocessing: turns stored pixels into the model's input.
    tile_size: side of the tiles, in pixels.
    batch_size: number of tiles that training normalises together; batches of
      more than 8 are measured by 8 tiles.
    examples: dicts with `image` [H, W, C] of one type and number of channels.

  Raises:
    InputError or OSError: an image cannot be read, or differs from the others
      in type or channels; in all processes.
  """
  output_size = model.geometry.output_size(tile_size)
  key = jax.random.key_data(jax.random.key(0))
  crop = Augmentation()
  cut = steps.make_cut(
    key, tile_size=tile_size, output_size=output_size, augmentation=crop
  )
  size = min(batch_size, _MOST_AT_ONCE)
  num_batches = _NUM_TILES // size
  batch_rows = [  # Of distant examples.
    first + num_batches * np.arange(size) for first in range(num_batches)
  ]

  @functools.lru_cache(maxsize=1)  # Crops of one image follow each other.
  def image_of(index):
    return preprocessing.by_image(examples[index]['image'])

  def cut_of(row):
    image = image_of(row * len(examples) // _NUM_TILES)
    # A copy, since a cut would keep the whole image in memory.
    return jax.tree.map(np.array, cut(0, row, {'image': image}))

  def cut_all():
    cuts = [cut_of(row) for row in range(num_batches * size)]
    return [pad_and_stack([cuts[row] for row in rows]) for rows in batch_rows]

  batches = processes.together(cut_all)

  def read(row, example):
    crop_key, _ = steps.example_keys(key, 0, row)
    image = preprocessing.to_unit_range(example['image'])
    tile, _, _ = augment(
      crop_key,
      image,
      jnp.zeros(image.shape[:2], jnp.int32),
      None,
      input_size=tile_size,
      output_size=output_size,
      amount=crop,
      size=example['size'],
      corner=example['corner'],
    )
    return preprocessing.standardise(tile)

  def add(total, params, rows, batch):
    _, dropout_key = steps.example_keys(key, 0, rows[0])
    _, updated = model.apply(
      {'params': params},
      jax.vmap(read)(rows, batch),
      train=True,
      rngs={'dropout': dropout_key},
      mutable=[RUNNING],
    )
    moved = flatten_dict(updated[RUNNING])
    return {name: total[name] + moved[name] for name in moved}

  add = parallel.jit(add)
  shapes = jax.eval_shape(lambda: steps.init_params(model, jax.random.key(0)))
  names = [n for n in flatten_dict(shapes) if n[-1] in RUNNING_MEANS]

  def measure(params):
    flat: dict[Any, Any] = flatten_dict(params)
    # From 0, what a step moves is a share of the statistics alone.
    sums = {name: jnp.zeros_like(flat[name]) for name in names}
    start = unflatten_dict(flat | sums)
    for rows, batch in zip(batch_rows, batches, strict=True):
      sums = add(sums, start, rows, batch)
    measured = {
      name: processes.gather(np.asarray(sums[name]) / (MOVE * num_batches))[0]
      for name in names
    }
    if not all(np.isfinite(value).all() for value in measured.values()):
      raise TrainingDiverged(
        'running means of training images are not finite: either training '
        'diverges, or an image has values that float32 cannot square; earlier '
        'checkpoints are kept'
      )
    return unflatten_dict(flat | measured)

  return measure
