# SPDX-License-Identifier: Apache-2.0
"""Running means of batch normalisation, measured on images as they are stored.

Augmentation reads tiles between pixels, which blurs them a little, and varies
their gray values. So the running means that a training step moves are those of
other images than prediction sees: docs/results.md has what that costs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax import steps
from segjax.data.augment import Augmentation, augment
from segjax.devices import parallel, processes
from segjax.models.layers import MOVE, RUNNING
from segjax.settings.sections import PreprocessingSettings

_NUM_TILES = 48
_MOST_AT_ONCE = 8  # Tiles of a batch, since one device computes them.

Measure = Callable[[Mapping[str, Any], Sequence[dict]], Mapping[str, Any]]


def make_measure(
  model: nn.Module,
  preprocessing: PreprocessingSettings,
  tile_size: int,
  batch_size: int,
) -> Measure:
  """Returns `measure(params, examples) -> params` with new running means.

  They are the means over batches that have up to 48 tiles together. Each batch
  is normalised by its own mean and variance as in training, with dropout. The
  tiles are random crops, not augmented, of examples that are evenly spaced,
  several crops of each if there are fewer. Which they are depends on neither
  the step nor the devices. Each process computes all of them on one device, and
  all take the result of the first process.

  `measure` raises InputError or OSError in all processes if one cannot read an
  image.

  Args:
    model: network with batch normalisation.
    preprocessing: turns stored pixels into the model's input.
    tile_size: side of the tiles, in pixels.
    batch_size: number of tiles that training normalises together; batches of
      more than 8 are measured by 8 tiles.
  """
  output_size = model.geometry.output_size(tile_size)
  key = jax.random.key_data(jax.random.key(0))
  crop = Augmentation()
  cut = steps.make_cut(
    key, tile_size=tile_size, output_size=output_size, augmentation=crop
  )

  size = min(batch_size, _MOST_AT_ONCE)
  num_batches = _NUM_TILES // size

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

  def add(total, params, rows, examples):
    _, dropout_key = steps.example_keys(key, 0, rows[0])
    _, updated = model.apply(
      {'params': params},
      jax.vmap(read)(rows, examples),
      train=True,
      rngs={'dropout': dropout_key},
      mutable=[RUNNING],
    )
    moved = flatten_dict(updated[RUNNING])
    return {name: total[name] + moved[name] for name in moved}

  add = parallel.jit(add)
  shapes = jax.eval_shape(lambda: steps.init_params(model, jax.random.key(0)))
  names = [n for n in flatten_dict(shapes) if n[-1] in ('mean', 'var')]

  def cut_of(row, examples):
    image = examples[row * len(examples) // _NUM_TILES]['image']
    return cut(0, row, {'image': preprocessing.by_image(image)})

  def measure(params, examples):
    flat: dict[Any, Any] = flatten_dict(params)
    # From 0, what a step moves is a share of the statistics alone.
    total = {name: jnp.zeros_like(flat[name]) for name in names}
    start = unflatten_dict(flat | total)

    def add_all():
      sums = total
      for first in range(num_batches):
        rows = first + num_batches * np.arange(size)  # Of distant examples.
        cuts = [cut_of(row, examples) for row in rows]
        batch = jax.tree.map(lambda *arrays: np.stack(arrays), *cuts)
        sums = add(sums, start, rows, batch)
      return {name: np.asarray(sums[name]) for name in names}

    sums = processes.together(add_all)
    measured = {
      name: processes.gather(sums[name] / (MOVE * num_batches))[0]
      for name in names
    }
    return unflatten_dict(flat | measured)

  return measure
