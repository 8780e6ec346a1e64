# SPDX-License-Identifier: Apache-2.0
"""Data parallelism: the only file that knows how many devices there are.

The training step is written once. `parallelize` runs it data-parallel either
under `jit` with the batch sharded over a mesh (the default) or under `pmap`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.errors import InputError

MODES = ('jit', 'pmap')
AXIS = 'data'
_SPACE = 'space'

# Options of XLA by backend; those that it doesn't know are left out.
_FAST = {
  # By default XLA:CPU leaves convolutions and products to a library that is
  # slower at most of ours, and in jaxlib 0.10.2 gets some products wrong (jax
  # issue 39103). Figures of jaxlib 0.10.0, 0.10.2 and 0.12.0 are in
  # benchmarks/README.md: without the option a U-Net's forward pass gains less
  # in the first and the last of them than FCN-8s loses.
  'cpu': {'xla_cpu_experimental_ynn_fusion_type': ''}
}
# Random initial values take XLA:CPU far longer to optimise than to compute; not
# optimised at all, those of VGG16 take 13 s instead of 2.
_ONCE = {'cpu': {'xla_backend_optimization_level': 1}}


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
  make_step: Callable[[str | None, Callable], Callable],
  mode: str,
  batch_size: int,
  space: int = 1,
) -> DataParallel:
  """Returns the step made parallel over all devices.

  Groups of `space` devices share the batch; the devices of a group share each
  of its images.

  Args:
    make_step: (axis name of the split batch, None under 'jit'; function that
      splits arrays [B, h, w, ...] by rows) -> step.
    mode: 'jit' or 'pmap'.
    batch_size: number of images in the global batch, a multiple of the number
      of groups.
    space: parts of each image, by rows, under 'jit'. XLA exchanges the rows
      that neighbours need, and no part need be as large as the next.

  Raises:
    InputError: there is no such mode, `batch_size` is no multiple of the number
      of groups, or `space` does not divide the number of devices.
  """
  devices = jax.device_count()
  if mode not in MODES:
    raise InputError(f'parallel={mode!r} is not one of {MODES}')
  if devices % space:
    raise InputError(
      f'mesh.space={space} does not divide the {devices} devices; use 1, or '
      'another divisor'
    )
  data = devices // space
  if mode == 'pmap' and space > 1:
    raise InputError(
      f"mesh.space={space} splits images under parallel='jit' only; use 1"
    )
  if batch_size < 1 or batch_size % data:
    raise InputError(
      f'batch_size={batch_size} is not divisible by the {data} '
      + (f'groups of mesh.space={space} devices' if space > 1 else 'devices')
      + f'; use a positive multiple of {data}'
    )
  mesh = _mesh(data, space, jax.devices())
  replicated = NamedSharding(mesh, PartitionSpec())
  if mode == 'jit':
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    rows = _own_rows(split, batch_size)
    step = jit(
      make_step(None, functools.partial(split_rows, mesh=mesh)),
      in_shardings=(replicated, split),
      out_shardings=replicated,
      donate_argnums=0,
    )
    return DataParallel(
      step,
      rows,
      # By the host: what a process restored to a device of its own would be
      # sent to other processes, which most backends cannot do.
      lambda state: put_on_all(jax.tree.map(np.asarray, state), mesh),
      lambda batch: jax.tree.map(
        lambda x: _from_rows(x, rows, split, batch_size), batch
      ),
      _as_it_is,
    )
  share = batch_size // jax.process_count()
  first = share * jax.process_index()
  return DataParallel(
    jax.pmap(make_step(AXIS, _as_it_is), axis_name=AXIS, donate_argnums=0),
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


def split_rows(tree: Any, mesh: Mesh) -> Any:
  """Splits arrays [B, h, w, ...] over the devices of a mesh, inside jit.

  The devices along `space` share the rows. XLA splits what follows in the same
  way and exchanges the rows that neighbours need.
  """
  if mesh.shape[_SPACE] == 1:
    return tree
  by_rows = NamedSharding(mesh, PartitionSpec(AXIS, _SPACE))
  return jax.lax.with_sharding_constraint(tree, by_rows)


def put_on_all(tree: Any, mesh: Mesh) -> Any:
  """Returns arrays that all devices of a mesh hold."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _mesh(data: int, space: int, devices: Sequence[Any]) -> Mesh:
  axis_types = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh(
    (data, space), (AXIS, _SPACE), axis_types=axis_types, devices=devices
  )


def to_local(tree: Any) -> Any:
  """Returns a result of `get` on one device of this process alone.

  Computing with it concerns no other process.
  """
  return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _as_it_is(tree: Any) -> Any:
  return tree


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


class Placement(NamedTuple):
  """Devices of this process, and how to bring data to them.

  Attributes:
    mesh: mesh of the devices, for `split_rows`.
    num_parts: D, number of parts of a batch.
    put_params: tree of arrays -> the same, whole on each device.
    put_batch: array [N, ...], N a multiple of D -> the same, split.
    abstract_batch: shape (N, ...), dtype -> the abstract array from which a
      program is compiled.
  """

  mesh: Mesh
  num_parts: int
  put_params: Callable
  put_batch: Callable
  abstract_batch: Callable


def place_locally(num_batches: int, space: int = 1) -> Placement:
  """Returns the devices of this process that compute batches.

  Args:
    num_batches: number of batches to compute. If they are fewer than the groups
      of devices, the first group computes them all.
    space: number of devices in a group, which share each image by rows. If this
      process has fewer devices, each is a group: a run may go on elsewhere.
  """
  devices = jax.local_devices()
  space = space if space <= len(devices) else 1
  data = len(devices) // space
  data = data if num_batches >= data else 1
  mesh = _mesh(data, space, devices[: data * space])
  split = NamedSharding(mesh, PartitionSpec(AXIS))
  return Placement(
    mesh,
    data,
    functools.partial(put_on_all, mesh=mesh),
    lambda batch: jax.device_put(batch, split),
    functools.partial(jax.ShapeDtypeStruct, sharding=split),
  )


def jit(function: Callable, **options) -> Callable:
  """`jax.jit` with the compiler options that make this backend fast."""
  return jax.jit(function, compiler_options=_known(_FAST), **options)


def jit_once(function: Callable) -> Callable:
  """`jax.jit` for a function that runs once: compiled faster, run slower."""
  return jax.jit(function, compiler_options=_known(_ONCE))


def _known(options: dict[str, dict]) -> dict | None:
  """Returns the options that XLA knows on this backend; None for none."""
  own = options.get(jax.default_backend(), {}).items()
  return {name: value for name, value in own if _is_known(name, value)} or None


@functools.cache
def _is_known(name: str, value: Any) -> bool:
  try:
    jax.jit(jnp.negative, compiler_options={name: value})(0.0)
  except jax.errors.JaxRuntimeError:
    return False
  return True
