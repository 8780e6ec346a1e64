# SPDX-License-Identifier: Apache-2.0
"""Streamed tiles of U-Nets: as the whole pass, and as each other."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_unets import (
  assert_close,
  image_of,
  random_unet,
  streamed,
  whole_pass,
)

from segjax.tiling import windows
from segjax.tiling.plans import plan_tiles
from segjax.tiling.programs import create_program
from segjax.tiling.settings import TileSettings


# Few, because every example is compiled.
@pytest.mark.parametrize(
  ('depth', 'norm'),
  [(1, 'none'), (2, 'none'), (3, 'none'), (1, 'batch'), (2, 'batch')],
)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(
  convs_per_block=st.integers(1, 2),
  padding=st.sampled_from(['VALID', 'SAME']),
  height=st.integers(1, 80),
  width_beyond=st.integers(1, 60),
  periods=st.integers(3, 6),
)
def test_streamed_tiles_are_the_whole_pass_whatever_the_tiling(
  depth, convs_per_block, padding, norm, height, width_beyond, periods
):
  model, variables = random_unet(depth, convs_per_block, padding, norm=norm)
  geometry = model.geometry
  core = periods * geometry.period
  tile_size = geometry.input_size(core)
  image = image_of(height, core + width_beyond)
  actual = streamed(
    image, model, variables, tile_size=tile_size, activation='logits'
  )
  assert_close(actual, whole_pass(model, variables, image))
  tiles = TileSettings(tile_size=tile_size, activation='logits')
  plan = plan_tiles(*image.shape[:2], geometry, tiles)
  # The windows of smaller tiles, each by a tile of the same shape as before.
  smaller = plan_tiles(
    *image.shape[:2],
    geometry,
    TileSettings(tile_size=tile_size - geometry.period),
  )
  others = dataclasses.replace(smaller, tile_shape=plan.tile_shape)
  assert others.columns != plan.columns
  written = np.full_like(actual, np.nan)
  for window, output in windows.predict_windows(
    create_program(model, variables['params'], tiles),
    lambda origin: windows.read_mirrored(image, origin, plan.tile_shape),
    others,
  ):
    written[window] = output
  np.testing.assert_array_equal(written, actual)
