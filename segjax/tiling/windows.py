# SPDX-License-Identifier: Apache-2.0
"""Overlap-tile prediction of images of any size (Ronneberger et al., fig. 2).

The tiles put together equal one pass over the whole image; nothing is blended.
`segjax.tiling.plans` decides which tiles. All tiles of a plan run one compiled
program and agree bit for bit where they overlap, if XLA treats all pixels of an
array alike. On CPU in float32 it does, except for odd sizes at depth 0 and for
layers of 64 channels and more, which agree to rounding
(`segjax.models.convolution`). On GPU and TPU this is not tested.

Normalise the image before, as a whole, or every pixel by the same numbers;
per-tile statistics would make seams.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from segjax.contracts import SegmentationModel
from segjax.errors import InputError
from segjax.tiling.memory import fitting_tile_size
from segjax.tiling.plans import TilePlan, Window, plan_tiles
from segjax.tiling.programs import Program, create_program
from segjax.tiling.settings import TileSettings
from segjax.tiling.turns import Transform, restored, turned


def mirror_index(index: np.ndarray, size: int) -> np.ndarray:
  """Returns coordinates reflected at the end pixels into 0 .. size - 1.

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
    image: [H, W, C]: an array, or any object with a `shape` whose
      `image[rows, columns]`, two slices within it, is an array. It is read
      once.
    origin: row and column of the first pixel; may lie outside the image.
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
  program: Program,
  read: Callable[[tuple[int, int]], np.ndarray],
  plan: TilePlan,
  *,
  windows: Iterable[Window] | None = None,
  transforms: Sequence[Transform] = ((0, False),),
) -> Iterator[tuple[Window, np.ndarray]]:
  """Yields each window and its output f32[rows, columns, K], in plan order.

  A thread reads tiles ahead of the program. Memory holds three batches and one
  window, but neither the image nor the prediction: `read` decides where pixels
  come from, the caller where the output goes.

  Args:
    program: maps `program.batch_size` tiles to their output. The last batch is
      filled up by repeating its last tile.
    read: maps the origin of a tile to its pixels [h, w, C] in the image.
    plan: tiles of one image, made for `transforms`.
    windows: the windows of the plan to predict; None for all.
    transforms: turns and flips of the tiles; their outputs are turned back and
      averaged in float32.
  """
  tiles_per_batch = program.batch_size
  windows = plan.windows if windows is None else windows
  jobs = itertools.product(windows, range(len(transforms)))

  def load():
    batch = list(itertools.islice(jobs, tiles_per_batch))
    if not batch:
      return None
    positions = [plan.position(window, transforms[i]) for window, i in batch]
    tiles = [
      turned(read(position.origin), *transforms[i])
      for position, (_, i) in zip(positions, batch, strict=True)
    ]
    missing = tiles_per_batch - len(tiles)
    frames = [(position.begin, position.size) for position in positions]
    return (
      batch,
      positions,
      np.stack(tiles + tiles[-1:] * missing),
      np.array(frames + frames[-1:] * missing, np.int32),
    )

  def computed():
    with ThreadPoolExecutor(1, 'read') as pool:
      ahead = pool.submit(load)
      while True:
        loaded = ahead.result()
        if loaded is None:
          return
        batch, positions, tiles, frames = loaded
        ahead = pool.submit(load)
        yield batch, positions, program(tiles, frames)

  def pulled():
    # One batch is copied to the host while the device computes the next.
    # (No `tee`: it keeps dozens of batches.)
    last = None
    for batch, positions, output in computed():
      if last is not None:
        yield *last[:2], np.asarray(last[2])
      last = batch, positions, output
    if last is not None:
      yield *last[:2], np.asarray(last[2])

  total = None
  for batch, positions, output in pulled():
    for (window, i), position, tile in zip(
      batch, positions, output, strict=False
    ):
      part = restored(tile, *transforms[i])[position.crop]
      total = part if i == 0 else total + part
      if i == len(transforms) - 1:
        yield window, total if i == 0 else total / np.float32(len(transforms))


def predict_image(
  model: SegmentationModel,
  params: Any,
  image: np.ndarray,
  settings: TileSettings = TileSettings(),
) -> np.ndarray:
  """Returns the prediction f32[H, W, K] of an image of any size.

  A U-Net takes the image mirrored at its edges, an FCN as it is. An image that
  is larger than a tile may be is predicted by tiles. Without settings, the
  prediction is the probabilities of the classes.

  Args:
    model: U-Net, FCN, exported artifact, or any `SegmentationModel`. Models
      that are equal share compiled programs.
    params: its parameters, without {'params': ...} around them.
    image: f[H, W, C], normalised as the training images were.
    settings: averaging, activation and tiles; for example
      `TileSettings(average=True)`.

  Raises:
    InputError: the image is empty, not finite or not of three axes, or a size
      in the settings is inadmissible.

  >>> import jax, numpy, segjax
  >>> model = segjax.UNet(depth=2, base_width=4)
  >>> tile = jax.numpy.zeros((1, 60, 60, 1))
  >>> params = jax.jit(model.init)(jax.random.key(0), tile)['params']
  >>> image = numpy.random.default_rng(0).normal(size=(70, 90, 1))
  >>> probabilities = segjax.predict_image(model, params, image)
  >>> probabilities.shape
  (70, 90, 2)
  >>> settings = segjax.TileSettings(tile_size=60)
  >>> tiled = segjax.predict_image(model, params, image, settings)
  >>> bool(numpy.allclose(tiled, probabilities, atol=1e-6))
  True
  """
  image = np.asarray(image)
  check_image(image)
  if settings.tile_memory_mib and settings.tile_size is None:
    settings = limit_tiles(
      model, params, image.shape, np.dtype(np.float32), settings
    )
  height, width, _ = image.shape
  plan = plan_tiles(height, width, model.geometry, settings)
  transforms = settings.transforms
  program = create_program(
    model,
    params,
    settings,
    num_tiles=len(plan) * len(transforms),
    is_sized=settings.bucket_px > 0
    or plan.tile_shape != image.shape[:2]
    or not plan.is_clipped,
  )

  def read(origin):
    return read_mirrored(image, origin, plan.tile_shape).astype(np.float32)

  prediction = np.empty((*image.shape[:2], model.num_classes), np.float32)
  for window, output in predict_windows(
    program, read, plan, transforms=transforms
  ):
    prediction[window] = output
  return prediction


def limit_tiles(
  model: SegmentationModel,
  params: Any,
  image_shape: tuple[int, int, int],
  dtype: np.dtype,
  settings: TileSettings,
) -> TileSettings:
  """Returns the settings with the tile limit that `tile_memory_mib` admits.

  Args:
    model: the network.
    params: its parameters.
    image_shape: H, W, C.
    dtype: dtype of the pixels that the model is given.
    settings: settings of the prediction.

  Raises:
    InputError: the smallest tile takes more memory.
  """
  limit = fitting_tile_size(
    create_program(model, params, settings).bytes_of,
    image_shape,
    dtype,
    model.geometry,
    settings,
  )
  return dataclasses.replace(
    settings, max_tile_size_px=limit, tile_memory_mib=0
  )


def check_image(image: np.ndarray) -> None:
  """Raises InputError unless an image is a finite f[H, W, C]."""
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
