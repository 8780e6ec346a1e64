# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import numpy as np
import pytest
from random_unets import (
  assert_close,
  image_of,
  predicted,
  random_unet,
  whole_pass,
)

from segjax.contracts import FunctionModel
from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.tiling import plans, windows
from segjax.tiling.settings import TileSettings

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize('size', [1, 2, 3, 8])
def test_mirror_index_equals_np_pad_at_any_distance(size):
  expected = np.pad(np.arange(size), (50, 61), mode='reflect')
  actual = windows.mirror_index(np.arange(-50, size + 61), size)
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
  ('depth', 'convs', 'padding', 'shape', 'core'),
  [
    (0, 1, 'VALID', (9, 14), 5),
    (0, 3, 'SAME', (1, 7), None),
    (1, 3, 'VALID', (1, 7), 3),
    (1, 2, 'SAME', (350, 280), 100),
    (2, 2, 'VALID', (101, 64), 30),
    (2, 1, 'SAME', (3, 200), 60),
    (3, 2, 'VALID', (3, 200), 70),
    (3, 1, 'VALID', (90, 41), None),
    (4, 2, 'VALID', (1, 1), None),
    (4, 1, 'VALID', (70, 31), 30),
    (4, 2, 'SAME', (33, 5), 16),
  ],
)
def test_tiles_equal_the_whole_image_pass(depth, convs, padding, shape, core):
  model, variables = random_unet(depth, convs, padding)
  geometry = model.geometry
  image = image_of(*shape)
  tile_size = None if core is None else geometry.input_size(core)
  assert core is None or core + geometry.period < max(shape)
  actual = predicted(
    image, model, variables, activation='logits', tile_size=tile_size
  )
  expected = whole_pass(model, variables, image)
  assert shape == (1, 1) or expected.std() > 0.01
  assert_close(actual, expected)


def test_tiles_agree_bit_for_bit_at_shifts_by_the_period_only():
  model, variables = random_unet(2, 2, 'VALID')
  geometry = model.geometry
  predict = functools.partial(
    predicted,
    model=model,
    variables=variables,
    activation='logits',
    tile_size=geometry.input_size(24),
    tiles_per_batch=2,
  )
  image = image_of(150, 131)
  prediction = predict(image=image)
  # Beyond it, neither prediction sees the mirrored pixels at its first edges.
  inner = geometry.margin + geometry.period

  def largest_difference(rows, columns):
    shifted = predict(image=image[rows:, columns:])
    difference = prediction[rows:, columns:] - shifted
    return np.abs(difference[inner:, inner:]).max()

  assert largest_difference(12, 4) == 0
  assert largest_difference(0, 20) == 0
  assert largest_difference(2, 0) > 0.01
  assert largest_difference(0, 1) > 0.01


def test_stride_off_the_period_differs_from_the_whole_image_pass():
  model, variables = random_unet(2, 1, 'VALID')
  geometry = model.geometry
  image = image_of(40, 18)
  expected = whole_pass(model, variables, image)
  tile_size = geometry.input_size(18)
  core = geometry.output_size(tile_size)
  assert core == 18 and core % geometry.period == 2

  apply = jax.jit(model.apply)

  def program(tiles, sizes):
    return apply(variables, tiles)

  program.batch_size = 1

  def largest_difference(stride):
    starts = range(0, 40 - core + stride, stride)
    plan = plans.TilePlan(
      (40, 18),
      (tile_size, tile_size),
      rows=tuple(slice(i, min(i + core, 40)) for i in starts),
      columns=(slice(0, 18),),
      period=1,  # Else the plan would put the tiles on phase.
      margin=geometry.margin,
      is_clipped=False,
    )
    prediction = np.full_like(expected, np.nan)
    read = functools.partial(
      windows.read_mirrored, image, tile_shape=plan.tile_shape
    )
    for window, output in windows.predict_windows(program, read, plan):
      prediction[window] = output
    return np.abs(prediction - expected).max()

  assert largest_difference(16) < 1e-5
  assert largest_difference(core) > 0.01


def test_batches_are_filled_up_and_compiled_once_for_an_apply():
  model, variables = random_unet(1, 1, 'VALID')
  geometry = model.geometry
  traces = []

  def apply(variables, tile):
    traces.append(tile.shape)
    return model.apply(variables, tile)

  tile_size = geometry.input_size(16)
  for shape, factor in (((40, 41), 1.0), ((9, 55), 0.5)):
    scaled = jax.tree.map(lambda leaf, factor=factor: factor * leaf, variables)
    image = image_of(*shape)
    predict = functools.partial(
      predicted, image, variables=scaled, tile_size=tile_size
    )
    traced = FunctionModel(apply, geometry, 1, model.head_sizes)
    assert_close(predict(model=traced, tiles_per_batch=4), predict(model=model))
  assert traces == [(1, tile_size, tile_size, 1)]


def test_next_batch_is_dispatched_before_the_last_is_pulled():
  events = []

  class Output:
    batch_size = 1

    def __init__(self, tiles, sizes):
      events.append(f'dispatch {tiles[0, 0, 0, 0]:.0f}')
      self.tiles = tiles

    def __array__(self, dtype=None, copy=None):
      events.append(f'pull {self.tiles[0, 0, 0, 0]:.0f}')
      return self.tiles

  plan = plans.plan_tiles(1, 5, UNetGeometry(0, 1), TileSettings(tile_size=4))
  origins = [plan.position(window).origin for window in plan.windows]
  assert len(origins) == 3
  tiles = {
    origin: np.full((2, 2, 1), i, np.float32)
    for i, origin in enumerate(origins)
  }
  written = list(windows.predict_windows(Output, tiles.__getitem__, plan))
  assert events == [
    'dispatch 0',
    'dispatch 1',
    'pull 0',
    'dispatch 2',
    'pull 1',
    'pull 2',
  ]
  assert [output.shape for _, output in written] == [(1, 2, 1)] * 2 + [
    (1, 1, 1)
  ]


def test_probabilities_are_the_softmax_of_logits():
  model, variables = random_unet(1, 1, 'VALID', in_channels=2)
  image = image_of(21, 30, channels=2)
  predict = functools.partial(predicted, image, model, variables)
  exponentials = np.exp(predict(activation='logits').astype(np.float64))
  expected = exponentials / exponentials.sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(predict(), expected, rtol=0, atol=1e-6)


@pytest.fixture(name='predict_small')
def _predict_small():
  model, variables = random_unet(2, 1, 'VALID')
  return functools.partial(
    predicted,
    model=model,
    variables=variables,
    tile_size=model.geometry.input_size(20),
    tiles_per_batch=2,
  )


def test_averaging_over_the_group_commutes_with_turns_and_flips(predict_small):
  image = image_of(37, 22)
  average = predict_small(image=image, average=True)
  turned = predict_small(image=np.rot90(image), average=True)
  np.testing.assert_allclose(turned, np.rot90(average), rtol=0, atol=1e-6)
  flipped = predict_small(image=image[::-1], average=True)
  np.testing.assert_allclose(flipped, average[::-1], rtol=0, atol=1e-6)
  plain = predict_small(image=np.rot90(image))
  assert np.abs(plain - np.rot90(predict_small(image=image))).max() > 0.01
  np.testing.assert_allclose(average.sum(axis=-1), 1, rtol=0, atol=1e-6)


def test_average_of_a_list_is_the_mean_of_probabilities(predict_small):
  image = image_of(37, 22)
  plain = predict_small(image=image)
  identity = predict_small(image=image, average=[(0, False)])
  np.testing.assert_array_equal(identity, plain)
  turned = np.rot90(predict_small(image=np.rot90(image, 3)), -3)
  flipped = np.rot90(image[:, ::-1], 1)
  flipped = np.rot90(predict_small(image=flipped), -1)[:, ::-1]
  actual = predict_small(image=image, average=[(0, False), (3, False), (1, 1)])
  expected = (plain + turned + flipped) / 3
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'image': np.full((4, 5, 1), np.nan, np.float32)}, '20 pixels .* NaN'),
    ({'image': np.full((4, 5, 1), np.inf, np.float32)}, 'row 0, column 0'),
    ({'image': image_of(4, 5)[..., 0]}, r'\(4, 5\) is not \[H, W, C\]'),
    ({'image': np.zeros((4, 5, 1), np.uint8)}, 'uint8'),
    ({'image': image_of(4, 5, channels=3)}, '3 channels'),
    ({'image': np.zeros((0, 5, 1), np.float32)}, '0 x 5 pixels is empty'),
    ({'tile_size': 35}, 'nearest: 34 and 38'),
    ({'tile_size': 22}, '22 px is too small .* 24 px: .* 2 px .* use 26 or'),
    ({'max_tile_size_px': 25}, 'max_tile_size_px=25 .* 24 px give 26'),
    ({'activation': 'sigmoid'}, 'sigmoid'),
    ({'average': []}, 'no transforms'),
    ({'tiles_per_batch': 0}, 'tiles_per_batch=0'),
  ],
)
def test_bad_input_is_an_input_error_that_names_it(changes, message):
  model, variables = random_unet(2, 1, 'VALID')
  arguments = {'image': image_of(24, 24)} | changes
  with pytest.raises(InputError, match=message):
    predicted(model=model, variables=variables, **arguments)


def test_geometry_of_another_network_is_refused():
  with pytest.raises(InputError, match=r'\(24, 24\) px give \(24, 24\)'):
    windows.predict_image(
      FunctionModel(lambda _, tile: tile, UNetGeometry(0, 2), 1, (1,)),
      {},
      image_of(20, 20),
    )
