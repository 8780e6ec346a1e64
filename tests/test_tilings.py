# SPDX-License-Identifier: Apache-2.0
"""Streamed tiles of U-Nets: as the whole pass, and as each other."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from random_unets import (
  assert_close,
  image_of,
  random_unet,
  streamed,
  whole_pass,
)

from segjax import tiling
from segjax.scores import core_score
from segjax.tile_plans import plan_axis, plan_tiles

NETS = st.tuples(
  st.integers(1, 3), st.integers(1, 2), st.sampled_from(['VALID', 'SAME'])
)


# Compiling takes seconds an example.
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
  net=NETS,
  shape=st.tuples(st.integers(1, 75), st.integers(1, 75)),
  more=st.integers(1, 12),
  slack=st.integers(1, 7),
)
def test_streamed_tiles_are_the_whole_pass_whatever_the_tiling(
  net, shape, more, slack
):
  model, variables = random_unet(*net)
  geometry = model.geometry
  image = image_of(*shape)
  tile_size = geometry.input_size((2 + more) * geometry.period)
  actual = streamed(
    image, model, variables, tile_size=tile_size, activation='logits'
  )
  assert_close(actual, whole_pass(model, variables, image))
  # Other windows of tiles of the same shape, in batches.
  plan = plan_tiles(*shape, geometry, tile_size)
  rows, columns = (
    tuple(plan_axis(size, geometry, tile_size, slack % geometry.period))
    for size in shape
  )
  others = dataclasses.replace(plan, rows=rows, columns=columns)
  written = np.full_like(actual, np.nan)
  for window, scores in tiling.predict_windows(
    core_score(model.apply, variables, geometry, 'logits', 1, 1),
    lambda origin: tiling.read_mirrored(image, origin, plan.tile_shape),
    others,
  ):
    written[window] = scores
  np.testing.assert_array_equal(written, actual)
