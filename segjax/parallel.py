# SPDX-License-Identifier: Apache-2.0
"""Devices: the only file that knows how many there are, and of which kind.

The training step is written once. `parallelize` runs it data-parallel either
under `jit` with the batch sharded over a mesh (the default) or under `pmap`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

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
    put_state: host or single-device state -> what `step` takes.
    put_batch: dict of numpy arrays [B, ...] -> what `step` takes.
    get: state or metrics of `step` -> the same without the device axis.
  """

  step: Callable
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
  if mode == 'jit':
    mesh = jax.make_mesh(
      (devices,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,)
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    step = jit(
      make_step(None),
      in_shardings=(replicated, split),
      out_shardings=replicated,
      donate_argnums=0,
    )
    return DataParallel(
      step,
      lambda state: jax.device_put(state, replicated),
      lambda batch: jax.device_put(batch, split),
      lambda tree: tree,
    )
  if mode == 'pmap':
    return DataParallel(
      jax.pmap(make_step(AXIS), axis_name=AXIS, donate_argnums=0),
      jax_utils.replicate,
      lambda batch: jax.tree.map(
        lambda x: x.reshape(devices, -1, *np.shape(x)[1:]), batch
      ),
      jax_utils.unreplicate,
    )
  raise InputError(f'parallel={mode!r} is not one of {MODES}')


class Placement(NamedTuple):
  """Devices of this process, and how to bring data to them.

  Attributes:
    num_devices: D.
    put_params: tree of arrays -> the same, whole on each device.
    put_batch: array [N, ...], N a multiple of D -> the same, split.
  """

  num_devices: int
  put_params: Callable
  put_batch: Callable


def place_locally(num_batches: int) -> Placement:
  """Returns all devices of this process, or one where batches are fewer."""
  devices = jax.local_devices()
  if num_batches < len(devices):
    devices = devices[:1]
  mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
  replicated = NamedSharding(mesh, PartitionSpec())
  split = NamedSharding(mesh, PartitionSpec(AXIS))
  return Placement(
    len(devices),
    lambda params: jax.device_put(params, replicated),
    lambda batch: jax.device_put(batch, split),
  )


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
