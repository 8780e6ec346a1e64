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
from segjax.scores import core_score, sized_score
from segjax.tile_plans import plan_tiles
from segjax.tiling import predict_windows, read_mirrored
from segjax.turns import Transform, transforms_of

# Of an FCN; with margins of 224 px, half of a tile is computed for it alone.
MAX_FCN_TILE_SIZE = 1536


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
  tile_size: int | None = None,
  max_tile_size: int | None = None,
  tiles_per_batch: int = 1,
  bucket_px: int = 0,
  space: int = 1,
  finished: Collection[int] = (),
  on_written: Callable[[int, int], None] | None = None,
) -> None:
  """Predicts an image window by window, as `predict_image` does at once.

  Args:
    reader: the image, read as `reader[rows, columns]` -> [h, w, C], two slices
      within its `shape` [H, W, C]: an array, a memory map or
      `data.rasters.Raster`. What it gives is what `apply` gets.
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
    max_tile_size: the same; None for 1024, or for `MAX_FCN_TILE_SIZE`.
    tiles_per_batch: tiles computed at once, on each device.
    bucket_px: as of `plan_tiles`.
    space: devices that share each tile, by rows.
    finished: numbers of windows that are left out, in the order of the plan.
    on_written: (number of a window, its pixels) -> None, called in a thread
      after it was written.

  Raises:
    InputError: if an argument is none of the above. What `reader` or `writer`
      raise is passed on.
  """
  is_unet = isinstance(geometry, UNetGeometry)
  transforms = transforms_of(average)
  plan = plan_tiles(
    *reader.shape[:2],
    geometry,
    tile_size,
    max_tile_size or (1024 if is_unet else MAX_FCN_TILE_SIZE),
    transforms=transforms,
    bucket_px=bucket_px,
  )
  num_tiles = len(plan) * len(transforms)
  if is_unet:
    score, batch_size = core_score(
      apply, params, geometry, activation, num_tiles, tiles_per_batch, space
    )
  else:
    score, batch_size = sized_score(
      apply, params, head_sizes, activation, num_tiles, tiles_per_batch, space
    )
  finished = frozenset(finished)
  todo = [i for i in range(len(plan)) if i not in finished]

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
    tiles_per_batch=batch_size,
  )
  with ThreadPoolExecutor(1, 'write') as pool:
    writes = collections.deque()
    for number, (window, scores) in zip(todo, predicted, strict=True):
      writes.append(pool.submit(write, number, window, scores))
      if len(writes) > batch_size:
        writes.popleft().result()
    while writes:
      writes.popleft().result()
