# SPDX-License-Identifier: Apache-2.0
"""Overlap-tile prediction of images of any size (Ronneberger et al., fig. 2).

The tiles put together equal one pass over the whole image; nothing is blended.
Which tiles: `segjax.tiling.plans`. All tiles of a plan run one compiled program
and agree bit for bit where they overlap, if XLA treats all pixels of an array
alike. On CPU in float32 it does, except for odd sizes at depth 0 and for layers
of 64 channels and more, which agree to rounding (`segjax.models.convolution`).
On GPU and TPU this is not tested.

Normalise the image before, as a whole, or every pixel by the same numbers;
per-tile statistics would make seams.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.tiling.memory import fitting_tile_size
from segjax.tiling.plans import TilePlan, Window, plan_tiles
from segjax.tiling.programs import core_score
from segjax.tiling.turns import Transform, restored, transforms_of, turned


def mirror_index(index: np.ndarray, size: int) -> np.ndarray:
  """Folds coordinates into 0 .. size - 1 by reflection at the end pixels.

  The end pixels are not repeated: -1 becomes 1, as in `np.pad(mode='reflect')`.

  Args:
    index: integers of any shape, however far outside.
    size: pixels of the axis, >= 1.
  """
  last = size - 1
  return last - np.abs(last - np.mod(index, max(2 * last, 1)))


def read_mirrored(
  image: Any, origin: tuple[int, int], tile_shape: tuple[int, int]
) -> np.ndarray:
  """Returns the tile [h, w, C] of an image that is mirrored at its edges.

  Args:
    image: [H, W, C]: an array, or anything with `shape` that gives an array
      for `image[rows, columns]`, two slices within it. Only one is asked for.
    origin: row and column of the first pixel; may lie outside.
    tile_shape: h and w.
  """
  window, inner = [], []
  for first, length, size in zip(origin, tile_shape, image.shape, strict=False):
    index = mirror_index(first + np.arange(length), size)
    start = int(index.min())
    window.append(slice(start, int(index.max()) + 1))
    inner.append(index - start)
  pixels = np.asarray(image[tuple(window)])
  for axis, index in enumerate(inner):
    if not np.array_equal(index, np.arange(pixels.shape[axis])):
      pixels = pixels.take(index, axis)
  return pixels


def predict_windows(
  score: Callable[[np.ndarray, np.ndarray], jax.Array],
  read: Callable[[tuple[int, int]], np.ndarray],
  plan: TilePlan,
  *,
  windows: Iterable[Window] | None = None,
  transforms: Sequence[Transform] = ((0, False),),
  tiles_per_batch: int = 1,
) -> Iterator[tuple[Window, np.ndarray]]:
  """Yields (window, scores f32[rows, columns, K] of it) in the plan's order.

  Tiles are read in a thread ahead of the scores. It holds three batches and
  the mean of one window: neither image nor prediction. `read` decides where
  pixels come from, the caller where scores go.

  Args:
    score: maps tiles [N, h, w, C] and the sizes i32[N, 2] that they share with
      the image (see `plans.Place`) to scores [N, h', w', K]; N =
      `tiles_per_batch` always.
    read: maps the origin of a tile to its pixels [h, w, C] in the image.
    plan: tiles of one image, made for `transforms`.
    windows: those of the plan to predict; None for all.
    transforms: over which the mean is taken, in float32, of the scores of the
      turned tiles, turned back.
    tiles_per_batch: N; the last batch is filled up by repeating its last tile.
  """
  windows = plan.windows if windows is None else windows
  jobs = itertools.product(windows, range(len(transforms)))

  def load():
    batch = list(itertools.islice(jobs, tiles_per_batch))
    places = [plan.place(window, transforms[i]) for window, i in batch]
    tiles = [
      turned(read(place.origin), *transforms[i])
      for place, (_, i) in zip(places, batch, strict=True)
    ]
    missing = tiles_per_batch - len(tiles)
    sizes = [place.size for place in places]
    if batch:
      tiles = np.stack(tiles + tiles[-1:] * missing)
      sizes = np.array(sizes + sizes[-1:] * missing, np.int32)
    return batch, places, tiles, sizes

  def scored():
    with ThreadPoolExecutor(1, 'read') as pool:
      ahead = pool.submit(load)
      while True:
        batch, places, tiles, sizes = ahead.result()
        if not batch:
          return
        ahead = pool.submit(load)
        yield batch, places, score(tiles, sizes)

  def pulled():
    # The device is at work on the batch ahead while one is copied to the host.
    # (No `tee`: it keeps dozens of batches.)
    last = None
    for batch, places, scores in scored():
      if last is not None:
        yield *last[:2], np.asarray(last[2])
      last = batch, places, scores
    if last is not None:
      yield *last[:2], np.asarray(last[2])

  total = None
  for batch, places, scores in pulled():
    for (window, i), place, tile in zip(batch, places, scores, strict=False):
      part = restored(tile, *transforms[i])[place.crop]
      total = part if i == 0 else total + part
      if i == len(transforms) - 1:
        yield window, total if i == 0 else total / np.float32(len(transforms))


def predict_image(
  apply: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  image: np.ndarray,
  geometry: UNetGeometry,
  *,
  activation: str = 'probabilities',
  average: bool | Sequence[Transform] = False,
  tile_size: int | tuple[int, int] | None = None,
  max_tile_size_px: int | None = None,
  tile_memory_mib: int = 0,
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
    tile_size: as of `plan_tiles`.
    max_tile_size_px: as of `plan_tiles`.
    tile_memory_mib: instead, what a batch may take of a device, in MiB, see
      `programs.Score.bytes_of`; 0 for `max_tile_size_px`.
    tiles_per_batch: tiles computed at once, on each device.
    space: devices that share each tile, by rows; see `parallel.place_locally`.

  Raises:
    InputError: if the image is empty, not finite or not of three axes, if a
      size is inadmissible, or another argument is none of the above.
  """
  image = np.asarray(image)
  check_image(image)
  transforms = transforms_of(average)
  create_score = functools.partial(
    core_score,
    apply,
    params,
    geometry,
    activation,
    tiles_per_batch=tiles_per_batch,
    space=space,
  )
  if tile_memory_mib and tile_size is None:
    max_tile_size_px = fitting_tile_size(
      create_score(num_tiles=1).bytes_of,
      image.shape,
      np.float32,
      geometry,
      tile_memory_mib,
      transforms=transforms,
    )
  plan = plan_tiles(
    *image.shape[:2],
    geometry,
    tile_size,
    max_tile_size_px,
    transforms=transforms,
  )
  score = create_score(num_tiles=len(plan) * len(transforms))

  def read(origin):
    return read_mirrored(image, origin, plan.tile_shape).astype(np.float32)

  prediction = None
  for window, scores in predict_windows(
    score, read, plan, transforms=transforms, tiles_per_batch=score.batch_size
  ):
    if prediction is None:
      shape = (*image.shape[:2], scores.shape[-1])
      prediction = np.empty(shape, np.float32)
    prediction[window] = scores
  return prediction


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
