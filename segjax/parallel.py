# SPDX-License-Identifier: Apache-2.0
"""Devices: the only file that knows how many there are, and of which kind.

The training step is written once. `parallelize` runs it data-parallel either
under `jit` with the batch sharded over a mesh (the default) or under `pmap`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils
from jax.sharding import NamedSharding, PartitionSpec

from segjax.errors import InputError

MODES = ('jit', 'pmap')
AXIS = 'data'

# XLA:CPU sends convolutions of jaxlib 0.10 down a path that is several times
# slower for valid convolutions and weight gradients than its older one.
_FAST_ON_CPU = {
  'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_DOT'
}
# Random initial values take XLA:CPU far longer to optimise than to compute.
_ONCE_ON_CPU = {'xla_backend_optimization_level': 0}


class DataParallel(NamedTuple):
  """A training step on all devices, and how to bring data to and from it.

  Attributes:
    step: (state, batch) -> (state, metrics); donates the state.
    rows: i[n], ascending; the examples of the global batch that this process
      reads.
    put_state: host or single-device state -> what `step` takes.
    put_batch: dict of numpy arrays [n, ...] -> what `step` takes.
    get: state or metrics of `step` -> the same without the device axis; each
      process holds all of it, and a checkpoint can be made of it.
  """

  step: Callable
  rows: np.ndarray
  put_state: Callable
  put_batch: Callable
  get: Callable


def parallelize(
  make_step: Callable[[str | None], Callable], mode: str, batch_size: int
) -> DataParallel:
  """Returns the step made data-parallel over all devices.

  Args:
    make_step: axis name of the split batch (None under 'jit') -> step.
    mode: 'jit' or 'pmap'.
    batch_size: global; must be divisible by the number of devices.

  Raises:
    InputError: for another mode or an indivisible batch.
  """
  devices = jax.device_count()
  if batch_size < 1 or batch_size % devices:
    raise InputError(
      f'batch_size={batch_size} is not divisible by the {devices} devices; '
      f'use a positive multiple of {devices}'
    )
  mesh = jax.make_mesh(
    (devices,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,)
  )
  replicated = NamedSharding(mesh, PartitionSpec())
  if mode == 'jit':
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    rows = _own_rows(split, batch_size)
    step = jit(
      make_step(None),
      in_shardings=(replicated, split),
      out_shardings=replicated,
      donate_argnums=0,
    )
    return DataParallel(
      step,
      rows,
      lambda state: jax.device_put(state, replicated),
      lambda batch: jax.tree.map(
        lambda x: _from_rows(x, rows, split, batch_size), batch
      ),
      lambda tree: tree,
    )
  if mode == 'pmap':
    share = batch_size // jax.process_count()
    first = share * jax.process_index()
    return DataParallel(
      jax.pmap(make_step(AXIS), axis_name=AXIS, donate_argnums=0),
      first + np.arange(share),
      jax_utils.replicate,
      lambda batch: jax.tree.map(
        lambda x: x.reshape(jax.local_device_count(), -1, *np.shape(x)[1:]),
        batch,
      ),
      lambda tree: jax.tree.map(
        lambda x: _without_device_axis(x, replicated), tree
      ),
    )
  raise InputError(f'parallel={mode!r} is not one of {MODES}')


def to_local(tree: Any) -> Any:
  """Returns what `get` returned on one device of this process alone.

  Computing with it concerns no other process.
  """
  return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _own_rows(split: NamedSharding, batch_size: int) -> np.ndarray:
  """Returns the rows of a split batch that lie on devices of this process."""
  rows = np.arange(batch_size)
  indices = split.addressable_devices_indices_map(rows.shape).values()
  return np.unique(np.concatenate([rows[index] for index in indices]))


def _from_rows(
  own: np.ndarray, rows: np.ndarray, split: NamedSharding, batch_size: int
) -> jax.Array:
  """Returns the global array [batch_size, ...] of each process's own rows."""

  def read(index):
    wanted = range(*index[0].indices(batch_size))
    return own[np.searchsorted(rows, wanted)]

  shape = (batch_size, *own.shape[1:])
  return jax.make_array_from_callback(shape, split, read)


def _without_device_axis(x: jax.Array, replicated: NamedSharding) -> jax.Array:
  """Returns a result of `pmap`, the same on all devices, as one array."""
  shape = x.shape[1:]
  copies = [shard.data.reshape(shape) for shard in x.addressable_shards]
  return jax.make_array_from_single_device_arrays(shape, replicated, copies)


def jit(function: Callable, **options) -> Callable:
  """`jax.jit` with the compiler options that make this backend fast."""
  return jax.jit(function, compiler_options=_known(_FAST_ON_CPU), **options)


def jit_once(function: Callable) -> Callable:
  """`jax.jit` for what runs once: less time to compile, more to run."""
  return jax.jit(function, compiler_options=_known(_ONCE_ON_CPU))


def _known(cpu_options: dict) -> dict | None:
  """Returns the options if this backend is a CPU whose XLA knows them."""
  if jax.default_backend() != 'cpu':
    return None
  return cpu_options if _is_known(tuple(cpu_options.items())) else None


@functools.cache
def _is_known(options: tuple) -> bool:
  try:
    jax.jit(jnp.negative, compiler_options=dict(options))(0.0)
  except jax.errors.JaxRuntimeError:
    return False
  return True
