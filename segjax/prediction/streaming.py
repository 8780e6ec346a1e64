# SPDX-License-Identifier: Apache-2.0
"""Prediction of images that need not fit in memory.

Reading the next batch, computing one and writing the last overlap. Memory is
that of a few batches, whatever the size of the image.
"""

import collections
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from segjax.geometry import UNetGeometry
from segjax.tiling.memory import fitting_tile_size
from segjax.tiling.plans import TilePlan, plan_tiles
from segjax.tiling.programs import core_score, sized_score
from segjax.tiling.turns import Transform, transforms_of
from segjax.tiling.windows import predict_windows, read_mirrored


def stream_predict(
  reader: Any,
  writer: Any,
  apply: Callable[..., jax.Array],
  params: Any,
  geometry: Any,
  *,
  head_sizes: Sequence[int] = (),
  encode: Callable[[np.ndarray], np.ndarray] | None = None,
  activation: str = 'probabilities',
  average: bool | Sequence[Transform] = False,
  tile_size: int | tuple[int, int] | None = None,
  max_tile_size_px: int | None = None,
  tile_memory_mib: int = 0,
  tiles_per_batch: int = 1,
  most_tiles: int = 0,
  bucket_px: int = 0,
  space: int = 1,
  finished: Collection[int] = (),
  share: slice = slice(None),
  on_written: Callable[[int, int], None] | None = None,
) -> TilePlan:
  """Predicts an image window by window, as `predict_image` does at once.

  Args:
    reader: the image, read as `reader[rows, columns]` -> [h, w, C], two slices
      within its `shape` [H, W, C]: an array, a memory map or
      `images.windows.Raster`. What it gives is what `apply` gets.
    writer: of what is predicted, written as `writer[rows, columns] = values`.
    apply: of a U-Net as for `predict_image`; of an FCN with `size`, as its
      `apply`.
    params: first argument of `apply`.
    geometry: of the network behind `apply`, as of `plan_tiles`.
    head_sizes: of an FCN, numbers of classes of its heads.
    encode: maps the scores f32[h, w, K] to the values; None for themselves.
    activation: 'probabilities' (of each head) or 'logits'.
    average: as of `predict_image`.
    tile_size: as of `plan_tiles`.
    max_tile_size_px: the same.
    tile_memory_mib: as of `predict_image`.
    tiles_per_batch: tiles computed at once, on each device.
    most_tiles: tiles of the image that has most, where several share what is
      compiled; too few for all devices go to one. 0 for this image's.
    bucket_px: as of `plan_tiles`.
    space: devices that share each tile, by rows.
    finished: numbers of windows that are left out, in the order of the plan.
    share: the windows, in that order, that are done here, of processes that
      write one output.
    on_written: (number of a window, its pixels) -> None, called in a thread
      after it was written.

  Returns:
    The plan that it followed.

  Raises:
    InputError: if an argument is none of the above. What `reader` or `writer`
      raise is passed on.
  """
  transforms = transforms_of(average)
  if tile_memory_mib and tile_size is None:
    max_tile_size_px = fit_tiles(
      reader.shape,
      read_mirrored(reader, (0, 0), (1, 1)).dtype,
      apply,
      params,
      geometry,
      tile_memory_mib,
      head_sizes=head_sizes,
      activation=activation,
      average=average,
      tiles_per_batch=tiles_per_batch,
      bucket_px=bucket_px,
      space=space,
    )
  plan = plan_tiles(
    *reader.shape[:2],
    geometry,
    tile_size,
    max_tile_size_px,
    transforms=transforms,
    bucket_px=bucket_px,
  )
  score = _create_score(
    apply,
    params,
    geometry,
    head_sizes,
    activation,
    len(range(most_tiles or len(plan))[:: share.step]) * len(transforms),
    tiles_per_batch,
    space,
  )
  finished = frozenset(finished)
  todo = [i for i in range(len(plan))[share] if i not in finished]

  def write(number, window, scores):
    writer[window] = scores if encode is None else encode(scores)
    if on_written is not None:
      on_written(number, scores.shape[0] * scores.shape[1])

  predicted = predict_windows(
    score,
    lambda origin: read_mirrored(reader, origin, plan.tile_shape),
    plan,
    windows=map(plan.window, todo),
    transforms=transforms,
    tiles_per_batch=score.batch_size,
  )
  with ThreadPoolExecutor(1, 'write') as pool:
    writes = collections.deque()
    for number, (window, scores) in zip(todo, predicted, strict=True):
      writes.append(pool.submit(write, number, window, scores))
      if len(writes) > score.batch_size:
        writes.popleft().result()
    while writes:
      writes.popleft().result()
  return plan


def fit_tiles(
  image_shape: tuple[int, int, int],
  dtype: np.dtype,
  apply: Callable[..., jax.Array],
  params: Any,
  geometry: Any,
  tile_memory_mib: int,
  *,
  head_sizes: Sequence[int] = (),
  activation: str = 'probabilities',
  average: bool | Sequence[Transform] = False,
  tiles_per_batch: int = 1,
  bucket_px: int = 0,
  space: int = 1,
) -> int:
  """Returns the `max_tile_size_px` that `stream_predict` takes for a budget.

  Args:
    image_shape: H, W, C.
    dtype: of its pixels.

  The others are as of `stream_predict`.

  Raises:
    InputError: as `memory.fitting_tile_size`.
  """
  score = _create_score(
    apply, params, geometry, head_sizes, activation, 1, tiles_per_batch, space
  )
  return fitting_tile_size(
    score.bytes_of,
    image_shape,
    dtype,
    geometry,
    tile_memory_mib,
    transforms=transforms_of(average),
    bucket_px=bucket_px,
  )


def _create_score(apply, params, geometry, head_sizes, *settings):
  if isinstance(geometry, UNetGeometry):
    return core_score(apply, params, geometry, *settings)
  return sized_score(apply, params, head_sizes, *settings)
