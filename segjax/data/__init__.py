# SPDX-License-Identifier: Apache-2.0
"""Data sets by the names that configs use, and the values of their pixels.

What an example holds: `segjax.data.examples`.
"""

import inspect
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data import (
  camvid,
  cell_tracking,
  folder,
  isbi2012,
  nyudv2,
  pascal_context,
  sift_flow,
  stacks,
  tfds,
  voc,
)
from segjax.data.examples import IGNORE_LABEL, Dataset
from segjax.errors import InputError

__all__ = (
  'IGNORE_LABEL',
  'LOADERS',
  'Dataset',
  'check_preprocessing',
  'create_dataset',
  'look_of',
  'standardise',
  'to_unit_range',
)

LOADERS = {
  'isbi2012': isbi2012.load,
  'synthetic': stacks.load_synthetic,
  'cell_tracking': cell_tracking.load,
  'folder': folder.load,
  'voc': voc.load,
  'pascal_context': pascal_context.load,
  'nyudv2': nyudv2.load,
  'sift_flow': sift_flow.load,
  'camvid': camvid.load,
  'tfds': tfds.load,
}

# Names and colours of classes that do not depend on what is on disk.
_LOOKS = {
  'isbi2012': (stacks.CLASS_NAMES, None),
  'synthetic': (stacks.CLASS_NAMES, None),
  'cell_tracking': (cell_tracking.CLASS_NAMES, None),
  'voc': (voc.CLASS_NAMES, None),
  'nyudv2': (nyudv2.CLASS_NAMES, None),
  'sift_flow': (sift_flow.SEMANTIC_NAMES + sift_flow.GEOMETRIC_NAMES, None),
  'camvid': (camvid.CLASS_NAMES, camvid.PALETTE),
}


def create_dataset(config: Mapping) -> Dataset:
  """Returns the data set that `config.name` and its other fields describe.

  Args:
    config: `name`, one of `LOADERS`, and the arguments of that function.

  Raises:
    InputError: an unknown name, fields that the loader doesn't take or lacks,
      or what the loader finds wrong.
  """
  fields = dict(config)
  name = fields.pop('name')
  if name not in LOADERS:
    raise InputError(f'data.name={name!r} is not one of {tuple(LOADERS)}')
  expected = tuple(inspect.signature(LOADERS[name]).parameters)
  if set(fields) != set(expected):
    raise InputError(
      f'data.name={name!r} takes the fields {", ".join(expected)}; the config '
      f'has {", ".join(fields)}'
    )
  return LOADERS[name](**fields)


def look_of(
  config: Mapping, num_classes: int
) -> tuple[tuple[str, ...], np.ndarray | None]:
  """Returns names and colours of the classes of a data set, without reading it.

  Args:
    config: as of `create_dataset`.
    num_classes: of all heads, for a set whose classes are named on disk.

  Returns:
    K names, and u8[K, 3] or None for the colours of VOC.
  """
  if config['name'] in _LOOKS:
    return _LOOKS[config['name']]
  fields = dict(config)
  names = tuple(fields.pop('class_names', ()))
  colours = fields.pop('colours', ())
  palette = np.array(colours, np.uint8) if colours else None
  return names or tuple(f'class {i}' for i in range(num_classes)), palette


def to_unit_range(image: jax.Array | np.ndarray) -> jax.Array:
  """Returns f32 values; integers are divided by their type's maximum."""
  if jnp.issubdtype(image.dtype, jnp.integer):
    return jnp.asarray(image, jnp.float32) / jnp.iinfo(image.dtype).max
  return jnp.asarray(image, jnp.float32)


def standardise(
  image: jax.Array,
  mean: float | Sequence[float],
  std: float | Sequence[float],
  channels: Sequence[int] = (),
) -> jax.Array:
  """Returns (image - mean) / std.

  Args:
    image: f32[..., C] in [0, 1], see `to_unit_range`.
    mean: one, or one for each channel of the result.
    std: the same. Where 0..255 minus m was trained on: m / 255 and 1 / 255.
    channels: which channels, in which order; () takes them as they are, and
      (2, 1, 0) makes BGR of RGB.
  """
  if channels:
    image = image[..., jnp.asarray(channels)]
  axes = (1,) * (image.ndim - 1) + (-1,)
  mean, std = (jnp.asarray(x, jnp.float32).reshape(axes) for x in (mean, std))
  return (image - mean) / std


def check_preprocessing(
  in_channels: int,
  mean: float | Sequence[float],
  std: float | Sequence[float],
  channels: Sequence[int],
) -> None:
  """Raises InputError for what `standardise` cannot do to C channels."""
  for name, values in (('mean', mean), ('std', std)):
    if np.size(values) not in (1, in_channels):
      raise InputError(
        f'preprocessing.{name}={values} has {np.size(values)} numbers; '
        f'expected 1, or {in_channels}, one a channel'
      )
  if np.min(std) <= 0:
    raise InputError(f'preprocessing.std={std} must be > 0')
  if channels and (
    len(channels) != in_channels or not {*channels} <= {*range(in_channels)}
  ):
    raise InputError(
      f'preprocessing.channels={channels}; expected {in_channels} indices in '
      f'0..{in_channels - 1}, or ()'
    )
