# SPDX-License-Identifier: Apache-2.0
"""The cost of a run: parameters, FLOPs and memory of its training step.

The step is compiled for the devices at hand, but not run. Memory for
evaluation, which `config.prediction` decides, and memory that other programs
use are not counted.
"""

import functools
import math
import os
import socket
import zlib
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from segjax.devices import processes
from segjax.errors import InputError
from segjax.experiment import create_experiment
from segjax.geometry import Geometry
from segjax.runs.writers import table
from segjax.steps import TrainState
from segjax.tiling.memory import largest_that_fits

_ASSUMED_SIDE = 512  # Side of whole images, since no data are read.
_MOST = 2**31  # Sizes are counted in 32 bits.


def describe(config: ConfigDict) -> str:
  """Returns a table of the cost of a training step, and of what would fit.

  With `config.parallel='pmap'` the figures are those of 'jit', which does the
  same. Images are assumed to have the size of a tile, or 512 x 512 px, rounded
  up to the bucket, if training takes whole images. The last row is the largest
  tile of a U-Net, or the largest batch of an FCN, that fits with all other
  settings as they are.

  Args:
    config: config of an experiment.

  Raises:
    InputError: a setting is wrong.
  """
  create_experiment(config)  # Checks the settings that are changed below.
  config = config.copy_and_resolve_references()
  config.parallel = 'jit'
  whole = config.copy_and_resolve_references()
  whole.accumulate_steps = 1  # Parts are a loop, which is counted once.
  model, state, lowered = _lower(whole)
  field = _size_field(model.geometry)
  bytes_with = functools.cache(functools.partial(_bytes_with, config, field))
  limit, source = _limit()
  fits = _largest(config, model.geometry, bytes_with, limit)
  count = jax.device_count()
  kind = jax.devices()[0].device_kind
  side = _image_side(config)
  assumed = '' if config.tile_size_px else ', which is assumed'
  cost = lowered.cost_analysis()
  rows = (
    ('devices', f'{count} x {kind}, of {source}'),
    ('images', f'{config.batch_size} x {side} x {side} px{assumed}'),
    ('parameters', f'{sum(map(np.size, jax.tree.leaves(state.params))):,}'),
    ('FLOPs per step', 'unknown' if cost is None else f'{cost["flops"]:.4g}'),
    ('bytes per device', f'{bytes_with(config[field]):,}'),
    ('of', f'{limit:,}'),
    (f'largest {field} that fits', 'none' if fits is None else str(fits)),
  )
  return table(rows)


def _size_field(geometry: Geometry) -> str:
  """Returns the setting that decides on the memory of a step."""
  return 'batch_size' if geometry.takes_any_size else 'tile_size_px'


def fit_to_memory(config: ConfigDict) -> tuple[str, int, float]:
  """Returns the setting that decides on memory, a value that fits, and FLOPs.

  A step needs no more memory than it reads and writes in all, so it is compiled
  only if that is more than the devices have.

  Args:
    config: config of an experiment.

  Returns:
    'tile_size_px' for a U-Net, otherwise 'batch_size'; its value in `config`,
    or the largest that fits if that is too large; and the FLOPs of a training
    step with this value, NaN if the backend does not count them.

  Raises:
    InputError: not even the smallest value fits.
  """
  model, _, lowered = _lower(config)
  field = _size_field(model.geometry)
  limit, source = _limit()
  cost = lowered.cost_analysis() or {}
  bytes_with = functools.cache(functools.partial(_bytes_with, config, field))
  size = config[field]
  most = cost.get('bytes accessed', math.inf)
  if most > limit and bytes_with(size) > limit:
    fits = _largest(config, model.geometry, bytes_with, limit)
    if fits is None:
      raise InputError(
        f'no {field} fits: a device has {limit:,} bytes, of {source}; a '
        'narrower network needs less'
      )
    config = config.copy_and_resolve_references()
    config[field] = size = fits
    cost = _lower(config)[-1].cost_analysis() or {}
  return field, size, cost.get('flops', math.nan)


def _limit() -> tuple[int, str]:
  """Returns the least memory of a device, in bytes, and the kind of memory."""
  own, source = _bytes_per_device()
  # All processes must agree, since they compile the same programs.
  return int(processes.gather(np.array(own)).min()), source


def _largest(
  config: ConfigDict,
  geometry: Geometry,
  bytes_with: Callable[[int], float],
  limit: int,
) -> int | None:
  field = _size_field(geometry)
  if field == 'tile_size_px':
    sizes, power = range(geometry.smallest_input, _MOST, geometry.period), 2
  else:
    step = jax.device_count() // config.mesh.space * config.accumulate_steps
    sizes, power = range(step, _MOST, step), 1
  return largest_that_fits(
    bytes_with, sizes, limit, lambda size: size**power, start=config[field]
  )


def _bytes_with(config: ConfigDict, field: str, value: int) -> float:
  config = config.copy_and_resolve_references()
  config[field] = value
  return _compiled_bytes(_lower(config)[-1])


def _lower(
  config: ConfigDict,
) -> tuple[nn.Module, TrainState, jax.stages.Lowered]:
  """Returns the model, the shapes of its state, and the step, not compiled."""
  model, init, devices, _ = create_experiment(config)
  state = jax.eval_shape(init)
  side = _image_side(config)
  shape = (config.batch_size, side, side)
  heads = len(model.head_sizes)
  batch = {
    'image': ((*shape, model.in_channels), np.uint8),
    'label': ((*shape, heads) if heads > 1 else shape, np.int32),
  }
  if 'w0' in config.data:
    batch['weight'] = (shape, np.float32)
  if config.batching.bucket_px:
    batch['size'] = ((config.batch_size, 2), np.int32)
  batch = {name: jax.ShapeDtypeStruct(*like) for name, like in batch.items()}
  return model, state, devices.step.lower(state, batch)


def _image_side(config: ConfigDict) -> int:
  bucket = max(config.batching.bucket_px, 1)
  return config.tile_size_px or -(-_ASSUMED_SIDE // bucket) * bucket


def _compiled_bytes(lowered: jax.stages.Lowered) -> float:
  """Returns the bytes per device; infinite if the device has too few."""
  try:
    memory = lowered.compile().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return math.inf
  if memory is None:
    raise InputError(
      f'{jax.default_backend()} does not say how much memory a program takes'
    )
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes  # The new state replaces the old one.
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )


def _bytes_per_device() -> tuple[int, str]:
  """Returns the memory of a local device, in bytes, and the kind of memory."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit'], 'their own memory'
  file = Path('/proc/meminfo')
  if file.is_file():
    lines = dict(line.split(':') for line in file.read_text().splitlines())
    available = 1024 * int(lines['MemAvailable'].split()[0])
  else:
    available = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return available // _devices_of_host(), "this host's available memory"


def _devices_of_host() -> int:
  """Returns how many devices of this run share this host's memory."""
  name = zlib.crc32(socket.gethostname().encode())
  own = np.array([name, jax.local_device_count()])
  return sum(count for host, count in processes.gather(own) if host == name)
