# SPDX-License-Identifier: Apache-2.0
"""Prediction of images as stored, with one tile shape for all images of a run.

Stored pixels are integers, or float32 in [0, 1]; see
`preprocessing.to_unit_range`.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.contracts import FunctionModel, SegmentationModel
from segjax.crf import OFF, Refinement, read_compatibility, refine
from segjax.data.preprocessing import image_statistics, subtract_statistics
from segjax.devices import processes
from segjax.errors import InputError
from segjax.geometry import FilteredGeometry
from segjax.images.windows import Raster
from segjax.settings.sections import PreprocessingSettings
from segjax.tiling.settings import TileSettings
from segjax.tiling.shapes import check_tiles, choose_tile_shape, most_windows
from segjax.tiling.windows import limit_tiles, predict_image


def predict_stored(
  model: SegmentationModel,
  params: Any,
  image: np.ndarray,
  preprocessing: PreprocessingSettings,
  settings: TileSettings = TileSettings(),
  refinement: Refinement = OFF,
) -> np.ndarray:
  """Returns the prediction f32[H, W, K] of an image [H, W, C] as stored.

  It is `predict_image` of the prepared image. A refinement changes the logits
  first; see `of_stored_pixels`.
  """
  image = preprocessing.by_image(image)
  if not refinement.iterations:
    prepared = np.asarray(preprocessing.prepare(image))
    return predict_image(model, params, prepared, settings)
  unit = np.asarray(preprocessing.to_unit_range(image))
  of_unit = dataclasses.replace(preprocessing, limits=(), per_image=False)
  refined = of_stored_pixels(model, of_unit, refinement)
  return predict_image(refined, params, unit, settings)


def page_by_image(page: Raster, preprocessing: PreprocessingSettings) -> Raster:
  """Returns a page whose windows are those of `preprocessing.by_image`.

  With `per_image`, the page is read once here for its mean and deviation.
  """
  if not preprocessing.per_image:
    return page
  mean, std = image_statistics(page)

  def read(rows, columns):
    return subtract_statistics(page[rows, columns], mean, std)

  return Raster(page.shape, np.dtype(np.float32), read)


def of_stored_pixels(
  model: SegmentationModel,
  preprocessing: PreprocessingSettings,
  refinement: Refinement = OFF,
) -> SegmentationModel:
  """Returns a model that takes images as stored and prepares them itself.

  With `preprocessing.per_image` it takes what `preprocessing.by_image` returns.

  Equal models and settings share compiled programs.

  Args:
    model: the network.
    preprocessing: settings that turn stored pixels into input of the network.
    refinement: settings of `refine`, which changes the logits of each head by
      the pixels in the unit range. The margins of tiles grow by its reach.
      Test-time augmentation refines each turned image. 0 iterations refine
      nothing.

  Raises:
    InputError: `refinement.compatibility` does not fit a head.
  """
  _check_compatibility(model, refinement)
  is_refined = refinement.iterations > 0
  if is_refined:
    apply = _refined_apply(
      model.apply,
      model.geometry,
      tuple(model.head_sizes),
      preprocessing,
      refinement,
    )
  else:
    apply = _stored_apply(model.apply, preprocessing)
  return FunctionModel(
    apply,
    _filtered(model.geometry, refinement),
    model.in_channels,
    model.head_sizes,
    model.head_names,
    takes_frame=is_refined,
  )


def _filtered(geometry, refinement):
  if not refinement.iterations:
    return geometry
  return FilteredGeometry(geometry, refinement.reach_px)


def _check_compatibility(model, refinement):
  for size in model.head_sizes if refinement.iterations else ():
    try:
      read_compatibility(refinement, size)
    except InputError as error:
      raise InputError(f'refinement.{error}') from error


@functools.cache
def _refined_apply(apply, geometry, head_sizes, preprocessing, refinement):
  def apply_refined(variables, image, frame=None):
    unit = preprocessing.to_unit_range(image)
    sizes = {}
    if frame is not None and geometry.takes_any_size:
      sizes['size'] = frame[:, 1]
    logits = apply(variables, preprocessing.standardise(unit), **sizes)
    offset = geometry.core_offset
    height, width = (side - 2 * offset for side in logits.shape[1:3])
    logits = logits[:, offset : offset + height, offset : offset + width]
    # The core lies in the middle of the tile.
    top, left = (unit.shape[1] - height) // 2, (unit.shape[2] - width) // 2
    unit = unit[:, top : top + height, left : left + width]
    if frame is None:
      frame = jnp.array([[(0, 0), image.shape[1:3]]] * len(image))

    def refine_one(logits, unit, frame):
      rows, columns = top + jnp.arange(height), left + jnp.arange(width)
      (first_row, first_column), (end_row, end_column) = frame
      in_rows = (first_row <= rows) & (rows < end_row)
      in_columns = (first_column <= columns) & (columns < end_column)
      present = in_rows[:, None] & in_columns[None]
      heads = jnp.split(logits, np.cumsum(head_sizes)[:-1], axis=-1)
      refined = [refine(head, unit, refinement, present) for head in heads]
      return jnp.concatenate(refined, axis=-1)

    return jax.vmap(refine_one)(logits, unit, frame)

  return apply_refined


@functools.cache
def _stored_apply(apply, preprocessing):
  def apply_stored(variables, image, **sizes):
    return apply(variables, preprocessing.prepare(image), **sizes)

  return apply_stored


def settle_tiles(
  model: SegmentationModel,
  params: Any,
  settings: TileSettings,
  sizes: Collection[tuple[int, int]],
  dtype: np.dtype,
) -> TileSettings:
  """Returns the settings with tiles of one shape for all images of a run.

  So one program is compiled, and the tiles are known before an output is begun:
  a memory budget might admit other tiles on another machine. All processes must
  call this; the smallest of their tile limits counts.

  Args:
    model: the network, see `of_stored_pixels`.
    params: its parameters.
    settings: settings of the prediction; a tile size in them is kept.
    sizes: height and width of each image, in pixels.
    dtype: dtype of the images as stored.

  Raises:
    InputError: a size or the budget admits no tile.
  """
  tile_size = settings.tile_size
  if tile_size is None:
    if settings.tile_memory_mib:
      largest = (*np.max([*sizes], axis=0).tolist(), model.in_channels)
      fitted = processes.together(
        lambda: limit_tiles(model, params, largest, dtype, settings)
      )
      limits = processes.gather(np.array(fitted.max_tile_size_px))
      settings = dataclasses.replace(fitted, max_tile_size_px=int(limits.min()))
    tile_size = choose_tile_shape(sizes, model.geometry, settings)
  elif isinstance(tile_size, int):
    tile_size = (tile_size, tile_size)
  return dataclasses.replace(
    settings,
    tile_size=tile_size,
    max_tile_size_px=None,
    tile_memory_mib=0,
    most_tiles=most_windows(
      sizes, model.geometry, tile_size, settings.transforms
    ),
  )


def check_prediction(
  model: SegmentationModel,
  preprocessing: PreprocessingSettings,
  settings: TileSettings,
  refinement: Refinement = OFF,
) -> None:
  """Raises InputError if the settings do not fit the network."""
  preprocessing.check_channels(model.in_channels)
  _check_compatibility(model, refinement)
  check_tiles(_filtered(model.geometry, refinement), settings)
