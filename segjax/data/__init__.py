# SPDX-License-Identifier: Apache-2.0
"""Data sets and the contract that they share.

An example is a dict of host arrays:

    image   uint8, uint16 or f32 in [0, 1], [H, W, C]
    label   i32[H, W], class index, or `IGNORE_LABEL`
    weight  f32[H, W], loss weight of each pixel
    name    str

A batch is the same with a leading B, and without names.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data import border_weights, isbi2012, synthetic
from segjax.errors import InputError

IGNORE_LABEL = 255
DATASETS = ('isbi2012', 'synthetic')


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Examples to train on and examples held out.

  Attributes:
    class_names: names of classes 0..K-1.
    train: examples to train on.
    heldout: examples to evaluate on; may be empty.
  """

  class_names: tuple[str, ...]
  train: Sequence[dict]
  heldout: Sequence[dict]

  def digest(self) -> str:
    """Returns the SHA-256 of all images and labels, in hexadecimal."""
    digest = hashlib.sha256()
    for example in (*self.train, *self.heldout):
      for name in ('image', 'label'):
        digest.update(np.ascontiguousarray(example[name]))
    return digest.hexdigest()


def create_dataset(config: Mapping, weights: Mapping) -> Dataset:
  """Returns a stack of cells and membranes, split into train and held-out.

  Border weights are computed here, once for each image.

  Args:
    config: `name` ('isbi2012' or 'synthetic'); `fold` and `gap` (see
      `isbi2012.fold_split`); for isbi2012 `dir` (see `isbi2012.find`), for
      synthetic the arguments of `synthetic.neuron_stack`.
    weights: `w0`, `sigma_px` (see `border_weights.border_weights`) and
      `balance`, whether rare classes weigh more.
  """
  if config['name'] == 'isbi2012':
    images, labels = isbi2012.load(config['dir'])
  elif config['name'] == 'synthetic':
    images, labels = synthetic.neuron_stack(
      config['num_slices'], config['size_px'], config['seed']
    )
    images = images[..., None]
  else:
    raise InputError(f'data.name={config["name"]!r} is not one of {DATASETS}')
  train, heldout = isbi2012.fold_split(
    len(images), config['fold'], gap=config['gap']
  )
  class_weights = None
  if weights['balance']:
    class_weights = border_weights.class_balance(
      border_weights.class_counts(labels[train], 2)
    )

  def example(index):
    instances = border_weights.find_instances(labels[index])
    return {
      'image': images[index],
      'label': labels[index].astype(np.int32),
      'weight': border_weights.border_weights(
        instances,
        w0=weights['w0'],
        sigma=weights['sigma_px'],
        class_weights=class_weights,
      ),
      'name': f'slice-{index:02}',
    }

  return Dataset(
    class_names=('membrane', 'cell'),
    train=[example(index) for index in train],
    heldout=[example(index) for index in heldout],
  )


def to_unit_range(image: jax.Array | np.ndarray) -> jax.Array:
  """Returns f32 gray values; integers are divided by their type's maximum."""
  if jnp.issubdtype(image.dtype, jnp.integer):
    return jnp.asarray(image, jnp.float32) / jnp.iinfo(image.dtype).max
  return jnp.asarray(image, jnp.float32)


def standardise(image: jax.Array, mean: float, std: float) -> jax.Array:
  """Returns (image - mean) / std for gray values in [0, 1]."""
  return (image - mean) / std
