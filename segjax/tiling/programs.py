# SPDX-License-Identifier: Apache-2.0
"""Compiled forward passes: tiles to logits or probabilities."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.contracts import FunctionModel, SegmentationModel
from segjax.devices import parallel
from segjax.errors import InputError
from segjax.tiling.settings import TileSettings


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled forward pass with its parameters, on devices of this process.

  Attributes:
    compiled: (tiles, **option) -> output; a partial of the function that `jit`
      returned.
    placement: the devices, and the functions that bring tiles to them.
    option: name of the argument that says where the image lies in a tile:
      'size', 'frame', or '' for none; see `contracts.SegmentationModel.apply`
      and `contracts.FunctionModel`.
    batch_size: N, tiles that it takes at once.
  """

  compiled: functools.partial
  placement: parallel.Placement
  option: str
  batch_size: int

  def __call__(self, tiles: np.ndarray, frames: np.ndarray) -> jax.Array:
    """Returns the output f32[N, h', w', K] of the cores of tiles.

    Args:
      tiles: [N, h, w, C], pixels that the model takes.
      frames: i32[N, 2, 2], `begin` and `size` of each tile, see
        `plans.TilePosition`.
    """
    put = self.placement.put_batch
    # Without an option, pixels beyond the image count as pixels of it.
    given = {'size': frames[:, 1], 'frame': frames}
    options = {self.option: put(given[self.option])} if self.option else {}
    return self.compiled(put(tiles), **options)

  def bytes_of(self, tile_shape: Sequence[int], dtype: np.dtype) -> int:
    """Returns the memory that a batch takes on each device, in bytes.

    The compiled program says it: parameters, intermediate values, and tiles and
    output twice, since one batch is copied while the next is computed.

    Args:
      tile_shape: h, w, C.
      dtype: dtype of the tiles.
    """
    abstract = self.placement.abstract_batch
    options = {}
    if self.option:
      sides = {'size': (2,), 'frame': (2, 2)}[self.option]
      options[self.option] = abstract((self.batch_size, *sides), np.int32)
    tiles = abstract((self.batch_size, *tile_shape), dtype)
    partial = self.compiled
    lowered = partial.func.lower(
      *partial.args, tiles, **partial.keywords, **options
    )
    used = lowered.compile().memory_analysis()
    params = sum(x.nbytes for x in jax.tree.leaves(partial.args[1:]))
    moved = used.argument_size_in_bytes + used.output_size_in_bytes - params
    return used.temp_size_in_bytes + 2 * moved + params


def create_program(
  model: SegmentationModel,
  params: Any,
  settings: TileSettings,
  num_tiles: int = 1,
  is_sized: bool = True,
) -> Program:
  """Returns the program that computes the tiles of a prediction.

  Args:
    model: the network.
    params: its parameters.
    settings: settings of the prediction.
    num_tiles: number of tiles to compute; decides whether all local devices
      are used.
    is_sized: whether images may end inside their tiles. Ignored for networks
      that take one size only.
  """
  option = ''
  if is_sized and model.geometry.takes_any_size:
    option = 'size'
  if is_sized and isinstance(model, FunctionModel) and model.takes_frame:
    option = 'frame'
  tiles_per_batch = settings.tiles_per_batch
  placement = parallel.place_locally(
    num_tiles // tiles_per_batch, settings.space
  )
  compiled = functools.partial(
    compiled_forward(),
    model.apply,
    placement.put_params(params),
    geometry=model.geometry,
    head_sizes=tuple(model.head_sizes),
    activation=settings.activation,
    mesh=placement.mesh,
  )
  return Program(
    compiled,
    placement,
    option,
    tiles_per_batch * placement.num_parts,
  )


@functools.cache
def compiled_forward() -> Callable:
  """Returns `_forward`, compiled once for each model and shape of tiles."""
  static = ('apply', 'geometry', 'head_sizes', 'activation', 'mesh')
  return parallel.jit(_forward, static_argnames=static)


def _forward(
  apply, params, tiles, *, geometry, head_sizes, activation, mesh, **options
):
  """Returns the output f32[N, h', w', K] of the cores of tiles [N, h, w, C]."""
  tiles = parallel.split_rows(tiles, mesh)
  variables = {'params': params}

  def apply_to_one(tile, options):
    options = jax.tree.map(lambda sides: sides[None], options)
    return apply(variables, tile[None], **options)[0]

  logits = jax.vmap(apply_to_one)(tiles, options)
  height, width = map(geometry.output_size, tiles.shape[1:3])
  if logits.shape[1:3] != (height, width):
    raise InputError(
      f'tiles of {tiles.shape[1:3]} px give {logits.shape[1:3]} px; the '
      f'network is not of the given {geometry}, which says {height, width}'
    )
  offset = geometry.core_offset
  core = logits[:, offset : height - offset, offset : width - offset]
  core = core.astype(jnp.float32)
  return core if activation == 'logits' else softmax_of_heads(core, head_sizes)


def softmax_of_heads(
  logits: jax.Array | np.ndarray, head_sizes: Sequence[int]
) -> jax.Array:
  """Returns probabilities f32[..., K], the softmax over each head's classes."""
  heads = jnp.split(logits, np.cumsum(head_sizes)[:-1], axis=-1)
  return jnp.concatenate([jax.nn.softmax(head) for head in heads], axis=-1)
