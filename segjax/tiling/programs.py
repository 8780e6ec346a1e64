# SPDX-License-Identifier: Apache-2.0
"""What is compiled: from tiles or images to the scores of a network."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.devices import parallel
from segjax.errors import InputError
from segjax.geometry import UNetGeometry

ACTIVATIONS = {
  'probabilities': functools.partial(jax.nn.softmax, axis=-1),
  'logits': lambda logits: logits,
}


@dataclasses.dataclass(frozen=True)
class Score:
  """A `score` of `predict_windows`, on devices of this process.

  Attributes:
    compiled: (tiles) -> scores, or (tiles, size=sizes) -> scores; a partial of
      what `jit` returned, of `apply` and params.
    place: the devices.
    is_sized: whether it takes sizes.
    batch_size: N.
  """

  compiled: functools.partial
  place: parallel.Placement
  is_sized: bool
  batch_size: int

  def __call__(self, tiles: np.ndarray, sizes: np.ndarray) -> jax.Array:
    """Maps tiles [N, h, w, C] and sizes i32[N, 2] to [N, h', w', K]."""
    put = self.place.put_batch
    # Without sizes, the pixels beyond are as good as others.
    options = {'size': put(sizes)} if self.is_sized else {}
    return self.compiled(put(tiles), **options)

  def bytes_of(self, tile_shape: Sequence[int], dtype: np.dtype) -> int:
    """Returns the memory that a batch takes of each device.

    That is what the compiled program says: parameters and intermediate values,
    and twice tiles and scores, for those of one batch come or go while the next
    is computed.

    Args:
      tile_shape: h, w, C.
      dtype: of the tiles.
    """
    abstract = self.place.abstract_batch
    options = {}
    if self.is_sized:
      options['size'] = abstract((self.batch_size, 2), np.int32)
    tiles = abstract((self.batch_size, *tile_shape), dtype)
    partial = self.compiled
    lowered = partial.func.lower(
      *partial.args, tiles, **partial.keywords, **options
    )
    used = lowered.compile().memory_analysis()
    params = sum(x.nbytes for x in jax.tree.leaves(partial.args[1:]))
    moved = used.argument_size_in_bytes + used.output_size_in_bytes - params
    return used.temp_size_in_bytes + 2 * moved + params


def core_score(
  apply: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  geometry: UNetGeometry,
  activation: str,
  num_tiles: int,
  tiles_per_batch: int,
  space: int = 1,
) -> Score:
  """Returns the `score` of `predict_windows` for a U-Net.

  Args:
    num_tiles: to be computed; decides whether all local devices are used.
    tiles_per_batch: tiles computed at once, on each device.
    space: devices that share each tile, by rows.

  The others are as of `predict_image`.

  Raises:
    InputError: if an argument is none of those.
  """
  check_settings(activation, tiles_per_batch)
  place = parallel.place_locally(num_tiles // tiles_per_batch, space)
  compiled = functools.partial(
    _compiled_core_scores(),
    apply,
    place.put_params(params),
    geometry=geometry,
    activation=activation,
    mesh=place.mesh,
  )
  return Score(compiled, place, False, tiles_per_batch * place.num_parts)


def sized_score(
  apply: Callable[..., jax.Array],
  params: Any,
  head_sizes: Sequence[int],
  activation: str,
  num_tiles: int,
  tiles_per_batch: int,
  space: int = 1,
) -> Score:
  """Returns what `core_score` does, for an FCN.

  Args:
    apply: maps (params, tiles [N, h, w, C], size=i32[N, 2]) to logits
      f32[N, h, w, K], such as `FCN.apply`.
    head_sizes: numbers of classes, of sum K; the softmax is over each.
  """
  check_settings(activation, tiles_per_batch)
  place = parallel.place_locally(num_tiles // tiles_per_batch, space)
  compiled = functools.partial(
    compiled_whole_scores(),
    apply,
    place.put_params(params),
    head_sizes=tuple(head_sizes),
    activation=activation,
    mesh=place.mesh,
  )
  return Score(compiled, place, True, tiles_per_batch * place.num_parts)


def check_settings(activation: str, tiles_per_batch: int) -> None:
  """Raises InputError for what is none."""
  if activation not in ACTIVATIONS:
    raise InputError(f'activation {activation!r} is not in {[*ACTIVATIONS]}')
  if tiles_per_batch < 1:
    raise InputError(f'tiles_per_batch={tiles_per_batch} must be at least 1')


@functools.cache
def _compiled_core_scores() -> Callable:
  static = ('apply', 'geometry', 'activation', 'mesh')
  return parallel.jit(_core_scores, static_argnames=static)


def _core_scores(apply, params, tiles, *, geometry, activation, mesh):
  """Maps tiles f32[N, h, w, C] to the scores f32[N, h', w', K] of cores."""
  tiles = parallel.split_rows(tiles, mesh)
  logits = jax.vmap(lambda tile: apply(params, tile[None])[0])(tiles)
  height, width = map(geometry.output_size, tiles.shape[1:3])
  if logits.shape[1:3] != (height, width):
    raise InputError(
      f'tiles of {tiles.shape[1:3]} px give {logits.shape[1:3]} px; the '
      f'network is not of the given {geometry}, which says {height, width}'
    )
  offset = geometry.core_offset
  core = logits[:, offset : height - offset, offset : width - offset]
  return ACTIVATIONS[activation](core.astype(jnp.float32))


@functools.cache
def compiled_whole_scores() -> Callable:
  """Returns (apply, params, image, size=None) -> scores, compiled once."""
  static = ('apply', 'head_sizes', 'activation', 'mesh')
  return parallel.jit(_whole_scores, static_argnames=static)


def _whole_scores(
  apply, params, image, *, head_sizes, activation, mesh, **padded
):
  image = parallel.split_rows(image, mesh)
  logits = apply(params, image, **padded).astype(jnp.float32)
  activate = ACTIVATIONS[activation]
  heads = jnp.split(logits, np.cumsum(head_sizes)[:-1], axis=-1)
  return jnp.concatenate([activate(head) for head in heads], axis=-1)
