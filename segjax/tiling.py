# SPDX-License-Identifier: Apache-2.0
"""Overlap-tile prediction of images of any size (Ronneberger et al., fig. 2).

The tiles put together equal one pass over the whole image, mirrored at its
edges; nothing is blended. For that, tiles read all the context of the pixels
they write, and their origins differ by multiples of the pooling period: a
network with pooling is equivariant to those shifts only. All tiles of a plan
run one compiled program and agree bit for bit where they overlap, if XLA treats
all pixels of an array alike. On CPU it does, but for odd sizes at depth 0.

Normalise the image before, as a whole; per-tile statistics would make seams.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import parallel
from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.turns import Transform, transforms_of, turned

ACTIVATIONS = {
  'probabilities': functools.partial(jax.nn.softmax, axis=-1),
  'logits': lambda logits: logits,
}


@dataclasses.dataclass(frozen=True)
class TilePlan:
  """Tiles of one shape that cover an image, row by row.

  Attributes:
    tile_shape: height and width of every tile, in input pixels.
    origins: (row, column) of the first pixel that each tile reads. Tiles
      reach beyond the image, where it is mirrored.
    windows: the image pixels that each tile writes, which are the first rows
      and columns of its core. They partition the image.
  """

  tile_shape: tuple[int, int]
  origins: tuple[tuple[int, int], ...]
  windows: tuple[tuple[slice, slice], ...]


def mirror_index(index: np.ndarray, size: int) -> np.ndarray:
  """Folds coordinates into 0 .. size - 1 by reflection at the end pixels.

  The end pixels are not repeated: -1 becomes 1, as in `np.pad(mode='reflect')`.

  Args:
    index: integers of any shape, however far outside.
    size: pixels of the axis, >= 1.
  """
  last = size - 1
  return last - np.abs(last - np.mod(index, max(2 * last, 1)))


def plan_axis(
  size: int, geometry: UNetGeometry, tile_size: int
) -> tuple[list[int], list[slice]]:
  """Returns origins and windows of the fewest tiles that cover one axis.

  The stride is the largest multiple of the period P within the core, often
  smaller than the core: the paper's tile of 572 writes 384 of its 388 pixels,
  and the last tile all that the image still has.

  Raises:
    InputError: if `tile_size` is inadmissible, or too small: no core, or a core
      below P where one tile doesn't cover.
  """
  core = geometry.output_size(tile_size) - 2 * geometry.core_offset
  stride = core // geometry.period * geometry.period
  if core < 1 or (stride == 0 and core < size):
    raise InputError(
      f'tile size {tile_size} px is too small for an image side of {size} px: '
      f'it leaves {max(core, 0)} px to write; '
      f'use {_smallest_tile(size, geometry)} or more'
    )
  count = 1 if size <= core else math.ceil((size - core) / stride) + 1
  starts = [i * stride for i in range(count)]
  windows = list(map(slice, starts, [*starts[1:], size]))
  return [start - geometry.margin for start in starts], windows


def least_waste_tile_size(
  size: int, geometry: UNetGeometry, max_tile_size: int
) -> int:
  """Returns the tile size that covers `size` with the fewest pixels computed.

  With r the remainder of core sizes modulo the period P, T tiles of stride S
  and core S + r cover T S + r pixels. So S = P ceil((size - r) / (P T)), and
  T makes T x tile size least; the fewer tiles at a tie.

  Raises:
    InputError: if no tile within `max_tile_size` works.
  """
  period = geometry.period
  remainder = geometry.smallest_core % period
  choices = []
  for count in range(1, math.ceil(size / period) + 1):
    stride = math.ceil((size - remainder) / (period * count)) * period
    tile_size = geometry.input_size(stride + remainder)
    if tile_size <= max_tile_size:
      choices.append((count * tile_size, count, tile_size))
  if not choices:
    raise InputError(
      f'max_tile_size={max_tile_size} px is too small: the smallest tile for '
      f'an image side of {size} px is {_smallest_tile(size, geometry)}'
    )
  return min(choices)[-1]


def plan_tiles(
  height: int,
  width: int,
  geometry: UNetGeometry,
  tile_size: int | None = None,
  max_tile_size: int = 1024,
) -> TilePlan:
  """Plans the tiles of an image of `height` x `width` pixels.

  Args:
    tile_size: height and width of a tile, in input pixels; None chooses each
      so that the fewest pixels are computed.
    max_tile_size: limit to that choice, in input pixels.

  Raises:
    InputError: for an empty image or a tile size that the network can't take.
  """
  if height < 1 or width < 1:
    raise InputError(
      f'image of {height} x {width} pixels is empty; at least 1 x 1 is needed'
    )
  tile_shape = (tile_size, tile_size)
  if tile_size is None:
    tile_shape = tuple(
      least_waste_tile_size(size, geometry, max_tile_size)
      for size in (height, width)
    )
  row_origins, row_windows = plan_axis(height, geometry, tile_shape[0])
  column_origins, column_windows = plan_axis(width, geometry, tile_shape[1])
  return TilePlan(
    tile_shape,
    origins=tuple(itertools.product(row_origins, column_origins)),
    windows=tuple(itertools.product(row_windows, column_windows)),
  )


def read_mirrored(
  image: np.ndarray, origin: tuple[int, int], tile_shape: tuple[int, int]
) -> np.ndarray:
  """Returns the tile f32[h, w, C] of an image that is mirrored at its edges."""
  rows = mirror_index(origin[0] + np.arange(tile_shape[0]), image.shape[0])
  columns = mirror_index(origin[1] + np.arange(tile_shape[1]), image.shape[1])
  return image[np.ix_(rows, columns)].astype(np.float32)


def predict_tiles(
  score: Callable[[np.ndarray], jax.Array],
  read: Callable[[tuple[int, int]], np.ndarray],
  plan: TilePlan,
  tiles_per_batch: int = 1,
) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
  """Yields (window, scores f[rows, columns, K] of it) in the plan's order.

  It holds two batches and neither image nor prediction: `read` decides where
  pixels come from, the caller where scores go.

  Args:
    score: maps tiles f32[N, h, w, C] to the scores of their cores, f[N, h', w',
      K]; N = `tiles_per_batch` always.
    read: maps an origin of the plan to the tile f32[h, w, C].
    plan: tiles of one image.
    tiles_per_batch: N; the last batch is filled up by repeating its last tile.
  """

  def dispatch():
    for first in range(0, len(plan.origins), tiles_per_batch):
      batch = slice(first, first + tiles_per_batch)
      tiles = [read(origin) for origin in plan.origins[batch]]
      tiles += tiles[-1:] * (tiles_per_batch - len(tiles))
      yield plan.windows[batch], score(np.stack(tiles))

  # The device is at work on the batch ahead while this one is copied to host.
  batches, ahead = itertools.tee(dispatch())
  next(ahead)
  for (windows, batch_scores), _ in itertools.zip_longest(batches, ahead):
    for window, scores in zip(windows, np.asarray(batch_scores), strict=False):
      rows, columns = (side.stop - side.start for side in window)
      yield window, scores[:rows, :columns]


def predict_image(
  apply: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  image: np.ndarray,
  geometry: UNetGeometry,
  *,
  activation: str = 'probabilities',
  average: bool | Sequence[Transform] = False,
  tile_size: int | None = None,
  max_tile_size: int = 1024,
  tiles_per_batch: int = 1,
  space: int = 1,
) -> np.ndarray:
  """Returns the prediction f32[H, W, K] of an image of any size.

  Args:
    apply: maps (params, tile f32[1, h, w, C]) to logits [1, h', w', K], such as
      `model.apply`. Pass the same function again to reuse what was compiled.
    params: first argument of `apply`; for linen, {'params': ...}.
    image: f[H, W, C], normalised as the training images were.
    geometry: sizes of the network behind `apply`.
    activation: 'probabilities' (softmax over K) or 'logits'.
    average: True takes the mean, in float32, of the activations of the image in
      the eight turns and flips of the square, each turned back; a sequence of
      (quarter turns, flip), as in `turns.DIHEDRAL_GROUP`, takes those.
    tile_size: input pixels; None chooses, see `plan_tiles`.
    max_tile_size: limit to that choice, in input pixels.
    tiles_per_batch: tiles computed at once.
    space: devices that share each tile, by rows; see `parallel.local_mesh`.

  Raises:
    InputError: if the image is empty, not finite or not of three axes, if a
      size is inadmissible, or another argument is none of the above.
  """
  image = np.asarray(image)
  check_image(image)
  if activation not in ACTIVATIONS:
    raise InputError(f'activation {activation!r} is not in {[*ACTIVATIONS]}')
  if tiles_per_batch < 1:
    raise InputError(f'tiles_per_batch={tiles_per_batch} must be at least 1')
  transforms = transforms_of(average)

  mesh = parallel.local_mesh(space)
  params = parallel.put_on_all(params, mesh)  # Once, not with every batch.
  static = dict(geometry=geometry, activation=activation, mesh=mesh)
  score = functools.partial(_compiled_core_scores(), apply, params, **static)
  total = None
  for transform in transforms:
    source = turned(image, *transform)
    plan = plan_tiles(*source.shape[:2], geometry, tile_size, max_tile_size)
    read = functools.partial(read_mirrored, source, tile_shape=plan.tile_shape)
    for window, scores in predict_tiles(score, read, plan, tiles_per_batch):
      if total is None:
        total = np.zeros((*image.shape[:2], scores.shape[-1]), np.float32)
      # A view: adding to it turns the scores back.
      turned(total, *transform)[window] += scores
  total /= len(transforms)
  return total


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


def _smallest_tile(size: int, geometry: UNetGeometry) -> int:
  """Least tile whose core covers `size` pixels or allows a stride."""
  return geometry.input_size(min(size, geometry.period))


def check_image(image: np.ndarray) -> None:
  """Raises InputError unless it is a finite f[H, W, C]."""
  if image.ndim != 3:
    raise InputError(f'image of shape {image.shape} is not [H, W, C]')
  if not np.issubdtype(image.dtype, np.floating):
    raise InputError(f'image of {image.dtype} is not normalised floating point')
  bad = np.argwhere(~np.isfinite(image).all(axis=-1))
  if len(bad):
    raise InputError(
      f'image has {len(bad)} pixels that are NaN or infinite, the first at '
      f'row {bad[0, 0]}, column {bad[0, 1]}; all must be finite'
    )
