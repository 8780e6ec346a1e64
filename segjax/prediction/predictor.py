# SPDX-License-Identifier: Apache-2.0
"""Networks that take images as they are stored, and one tile shape for a run.

"As stored" means integers, or float32 in [0, 1]: see
`preprocessing.to_unit_range`.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import numpy as np

from segjax.contracts import FunctionModel, SegmentationModel
from segjax.devices import processes
from segjax.settings import PreprocessingSettings
from segjax.tiling.settings import TileSettings
from segjax.tiling.shapes import check_tiles, choose_tile_shape, most_windows
from segjax.tiling.windows import fit_to_memory, predict_image


def predict_stored(
  model: SegmentationModel,
  params: Any,
  image: np.ndarray,
  preprocessing: PreprocessingSettings,
  settings: TileSettings = TileSettings(),
) -> np.ndarray:
  """Returns `predict_image` f32[H, W, K] of an image [H, W, C] as stored."""
  prepared = np.asarray(preprocessing.prepare(image))
  return predict_image(model, params, prepared, settings)


def of_stored_pixels(
  model: SegmentationModel, preprocessing: PreprocessingSettings
) -> SegmentationModel:
  """Returns the model for images as stored, which its programs standardise.

  Equal models and settings share what was compiled.
  """
  return FunctionModel(
    _stored_apply(model.apply, preprocessing),
    model.geometry,
    model.in_channels,
    model.head_sizes,
    model.head_names,
  )


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

  So one program is compiled, and the tiles of an image are settled before it is
  begun: on another machine, a memory budget might admit other tiles. All
  processes call this; the least of their budgets' sizes is taken.

  Args:
    model: the network, see `of_stored_pixels`.
    params: its parameters.
    settings: of the prediction; a tile size in them is kept.
    sizes: height and width of each image.
    dtype: of the images, as stored.

  Raises:
    InputError: a size or the budget admits no tile.
  """
  tile_size = settings.tile_size
  if tile_size is None:
    if settings.tile_memory_mib:
      largest = (*np.max([*sizes], axis=0).tolist(), model.in_channels)
      fitted = processes.together(
        lambda: fit_to_memory(model, params, largest, dtype, settings)
      )
      limits = processes.gather(np.array(fitted.max_tile_size_px))
      settings = dataclasses.replace(fitted, max_tile_size_px=int(limits.min()))
    tile_size = choose_tile_shape(sizes, model.geometry, settings)
  elif isinstance(tile_size, int):
    tile_size = (tile_size, tile_size)
  settled = dataclasses.replace(
    settings, tile_size=tile_size, max_tile_size_px=None, tile_memory_mib=0
  )
  return dataclasses.replace(
    settled,
    most_tiles=most_windows(
      sizes, model.geometry, tile_size, settings.transforms
    ),
  )


def check_prediction(
  model: SegmentationModel,
  preprocessing: PreprocessingSettings,
  settings: TileSettings,
) -> None:
  """Raises InputError if the settings don't suit the network."""
  preprocessing.check_channels(model.in_channels)
  check_tiles(model.geometry, settings)
