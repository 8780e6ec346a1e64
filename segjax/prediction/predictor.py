# SPDX-License-Identifier: Apache-2.0
"""From the pixels of an image, as stored, to the scores of a network.

The one place that knows how each kind of network takes an image of any size: a
U-Net by overlap tiles; an FCN whole, or by tiles where images are streamed.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from segjax.data.preprocessing import (
  check_preprocessing,
  standardise,
  to_unit_range,
)
from segjax.devices import parallel, processes
from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.prediction.streaming import fit_tiles, stream_predict
from segjax.tiling.plans import TilePlan, plan_tiles
from segjax.tiling.programs import ACTIVATIONS, compiled_whole_scores
from segjax.tiling.shapes import choose_tile_shape, most_windows
from segjax.tiling.turns import Transform, transforms_of, turned
from segjax.tiling.windows import check_image, predict_image


def create_predictor(
  model: nn.Module,
  config: ConfigDict,
  average: bool = False,
  activation: str = 'probabilities',
) -> Callable[[Any, np.ndarray], np.ndarray]:
  """Returns predict(params, image) -> scores f32[H, W, K].

  Args:
    model: a U-Net or an FCN.
    config: of a run; reads `preprocessing`, `prediction` and `mesh`.
    average: whether to take the mean over the eight turns and flips.
    activation: 'probabilities' (softmax, of each head) or 'logits'.

  The image is [H, W, C] as stored: integers, or f32 in [0, 1].

  Raises:
    InputError: a setting in `prediction` or `preprocessing` is wrong.
  """
  check_prediction(model, config)
  if isinstance(model.geometry, UNetGeometry):
    predict = functools.partial(predict_image, geometry=model.geometry)
  else:
    predict = functools.partial(predict_whole, head_sizes=model.head_sizes)

  settings = dict(config.prediction)
  if not isinstance(model.geometry, UNetGeometry):
    for name in ('tile_size', 'tile_memory_mib'):
      settings.pop(name, None)  # Of streams; here images are whole.

  def predict_stored(params, image):
    return predict(
      model.apply,
      {'params': params},
      np.asarray(standardise(to_unit_range(image), **config.preprocessing)),
      average=average,
      activation=activation,
      space=config.mesh.space,
      **settings,
    )

  return predict_stored


def create_streamer(
  model: nn.Module,
  config: ConfigDict,
  average: bool = False,
  activation: str = 'probabilities',
) -> Callable[..., TilePlan]:
  """Returns stream(params, reader, writer, **options) -> plan.

  It writes what `create_predictor` would return, of an image of any size;
  `options` are of `streaming.stream_predict`, the arguments of
  `create_predictor`.
  """
  check_prediction(model, config)
  apply = _stored_apply(model, config)

  def stream(params, reader, writer, **options):
    return stream_predict(
      reader,
      writer,
      apply,
      {'params': params},
      model.geometry,
      head_sizes=model.head_sizes,
      average=average,
      activation=activation,
      space=config.mesh.space,
      **config.prediction,
      **options,
    )

  return stream


def settle_tiles(
  model: nn.Module,
  params: Any,
  config: ConfigDict,
  sizes: Collection[tuple[int, int]],
  dtype: np.dtype,
  average: bool = False,
  activation: str = 'probabilities',
) -> ConfigDict:
  """Returns the config with tiles of one shape for all images of a run.

  So one program is compiled, and the tiles of an image are settled before it is
  begun: of what was compiled elsewhere a budget might admit others. All
  processes call this; the least of their budgets' sizes is taken.

  Args:
    params: of the model.
    sizes: height and width of each image.
    dtype: of the images, as stored.

  The others are of `create_predictor`. A config with a tile size keeps it.

  Raises:
    InputError: a size or the budget admits no tile, or as `create_predictor`.
  """
  check_prediction(model, config)
  settings = dict(config.prediction)
  tile_size = settings.pop('tile_size', None)
  memory_mib = settings.pop('tile_memory_mib', 0)
  transforms = transforms_of(average)
  if tile_size is None:
    limit = settings.get('max_tile_size_px')
    if memory_mib:
      largest = np.max([*sizes], axis=0)
      limit = processes.together(
        lambda: fit_tiles(
          (*map(int, largest), model.in_channels),
          dtype,
          _stored_apply(model, config),
          {'params': params},
          model.geometry,
          memory_mib,
          head_sizes=model.head_sizes,
          activation=activation,
          average=average,
          tiles_per_batch=settings.get('tiles_per_batch', 1),
          bucket_px=settings.get('bucket_px', 0),
          space=config.mesh.space,
        )
      )
      limit = int(processes.gather(np.array(limit)).min())
    tile_size = choose_tile_shape(
      sizes,
      model.geometry,
      limit,
      transforms=transforms,
      bucket_px=settings.get('bucket_px', 0),
    )
  elif not np.ndim(tile_size):
    tile_size = (tile_size, tile_size)
  settings['tile_size'] = tile_size
  settings['most_tiles'] = most_windows(
    sizes, model.geometry, tile_size, transforms
  )
  settled = config.to_dict()
  settled['prediction'] = settings
  return ConfigDict(settled)


def _stored_apply(model, config):
  """Returns `apply` for images as stored; the same for the same settings."""
  preprocessing = {
    name: tuple(value) if np.ndim(value) else value
    for name, value in config.preprocessing.items()
  }
  return _apply_stored(model.apply, **preprocessing)


@functools.cache
def _apply_stored(apply, mean, std, channels):
  def apply_stored(params, image, **sizes):
    image = standardise(to_unit_range(image), mean, std, channels)
    return apply(params, image, **sizes)

  return apply_stored


def check_prediction(model: nn.Module, config: ConfigDict) -> None:
  """Raises InputError if `prediction` or `preprocessing` is wrong."""
  check_preprocessing(model.in_channels, **config.preprocessing)
  settings, geometry = config.prediction, model.geometry
  if isinstance(geometry, UNetGeometry):
    if settings.tiles_per_batch < 1:
      raise InputError(
        f'prediction.tiles_per_batch={settings.tiles_per_batch} must be at '
        'least 1'
      )
    # Of the images, the smallest that may need more than one tile.
    side = geometry.period
    plan_tiles(side, side, geometry, max_tile_size_px=settings.max_tile_size_px)
  elif settings.bucket_px < 0:
    raise InputError(
      f'prediction.bucket_px={settings.bucket_px} must be at least 0'
    )


def predict_whole(
  apply: Callable[..., jax.Array],
  params: Any,
  image: np.ndarray,
  *,
  head_sizes: Sequence[int],
  activation: str = 'probabilities',
  average: bool | Sequence[Transform] = False,
  bucket_px: int = 0,
  space: int = 1,
) -> np.ndarray:
  """Returns the prediction f32[H, W, K] of an image, taken whole.

  Args:
    apply: maps (params, image f32[1, H, W, C], size=i32[1, 2]) to logits
      f32[1, H, W, K], such as `FCN.apply`. Pass the same function again to
      reuse what was compiled.
    params: first argument of `apply`.
    image: f[H, W, C], standardised; any size.
    head_sizes: numbers of classes, of sum K; the softmax is over each.
    activation: 'probabilities' or 'logits'.
    average: as in `windows.predict_image`.
    bucket_px: pads the image at its ends to a multiple of this, which changes
      no score, so that images of many sizes share few compiled programs. 0
      compiles for each size.
    space: devices that share the image, by rows; see `parallel.place_locally`.

  Raises:
    InputError: as `windows.predict_image`.
  """
  image = np.asarray(image)
  check_image(image)
  if activation not in ACTIVATIONS:
    raise InputError(f'activation {activation!r} is not in {[*ACTIVATIONS]}')
  transforms = transforms_of(average)
  place = parallel.place_locally(1, space)
  params = place.put_params(params)  # Once, not with every transform.
  score = functools.partial(
    compiled_whole_scores(),
    apply,
    params,
    mesh=place.mesh,
    head_sizes=tuple(head_sizes),
    activation=activation,
  )
  total = np.zeros((*image.shape[:2], sum(head_sizes)), np.float32)
  for transform in transforms:
    source = turned(image, *transform)
    height, width = source.shape[:2]
    if bucket_px:
      pads = [(0, -size % bucket_px) for size in (height, width)]
      size = np.array([[height, width]], np.int32)
      scores = score(np.pad(source, (*pads, (0, 0)))[None], size=size)
    else:
      scores = score(np.ascontiguousarray(source)[None])
    scores = np.asarray(scores)[0, :height, :width]
    turned(total, *transform)[...] += scores
  total /= len(transforms)
  return total
