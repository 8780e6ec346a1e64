# SPDX-License-Identifier: Apache-2.0
import functools
import itertools

import jax
import numpy as np
import pytest

from segjax import tile_plans, tiling
from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.models.unet import UNet
from segjax.turns import DIHEDRAL_GROUP, turned

PAPER = UNetGeometry()
GEOMETRIES = [
  UNetGeometry(*arguments)
  for arguments in itertools.product(range(5), (1, 2, 3), ('VALID', 'SAME'))
]


@functools.cache
def _network(depth, convs_per_block, padding, in_channels=1):
  """Returns a narrow U-Net and random variables with live biases."""
  model = UNet(
    depth=depth,
    convs_per_block=convs_per_block,
    base_width=4,
    num_classes=3,
    padding=padding,
    in_channels=in_channels,
  )
  side = model.geometry.input_size(1)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), np.zeros((1, side, side, in_channels))
  )
  rng = np.random.default_rng(0)

  def draw(leaf):
    fan_in = np.prod(leaf.shape[:-1])
    scale = np.sqrt(2 / fan_in) if len(leaf.shape) > 1 else 0.1
    return rng.normal(scale=scale, size=leaf.shape).astype(np.float32)

  return model, jax.tree.map(draw, shapes)


def _image(height, width, channels=1):
  rng = np.random.default_rng([height, width])
  return rng.normal(size=(height, width, channels)).astype(np.float32)


def _whole_pass(model, variables, image):
  """One apply to the image padded with np.pad, cropped to the image."""
  geometry = model.geometry
  margin = geometry.margin
  pads = [
    (margin, geometry.input_size(size) - margin - size)
    for size in image.shape[:2]
  ]
  padded = np.pad(image, [*pads, (0, 0)], mode='reflect')
  logits = np.asarray(jax.jit(model.apply)(variables, padded[None])[0])
  offset = geometry.core_offset
  height, width = image.shape[:2]
  return logits[offset : offset + height, offset : offset + width]


def _assert_close(actual, expected):
  scale = max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize('size', [1, 2, 3, 8])
def test_mirror_index_equals_np_pad_at_any_distance(size):
  expected = np.pad(np.arange(size), (50, 61), mode='reflect')
  actual = tiling.mirror_index(np.arange(-50, size + 61), size)
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
  ('size', 'max_tile_size', 'tile_size', 'count'),
  [
    (512, 1024, 700, 1),
    (512, 699, 444, 2),
    (1024, 700, 700, 2),
    (1024, 699, 540, 3),
    (2048, 1024, 876, 3),
    (2048, 875, 700, 4),
    (4, 1024, 188, 1),
    (5, 1024, 204, 1),
  ],
)
def test_plan_of_the_paper_network(size, max_tile_size, tile_size, count):
  plan = tile_plans.plan_tiles(size, 1, PAPER, max_tile_size=max_tile_size)
  assert plan.tile_shape == (tile_size, 188)
  assert len(plan) == count


def test_more_tiles_are_chosen_where_they_waste_less():
  geometry = UNetGeometry(4, 1)
  # 9 x 254 = 2286 pixels; the largest tile, 286, would take 8 x 286 = 2288.
  assert tile_plans.least_waste_tile_size(1411, geometry, 300) == 254
  assert len(tile_plans.plan_axis(1411, geometry, 254)) == 9
  assert len(tile_plans.plan_axis(1411, geometry, 286)) == 8


def test_paper_tile_of_572_has_a_stride_of_384():
  plan = tile_plans.plan_tiles(1, 1000, PAPER, 572)
  places = [plan.place(window) for window in plan.windows]
  assert [place.origin[1] for place in places] == [-92, 292, 676]
  windows = [columns for _, columns in plan.windows]
  assert windows == [slice(0, 384), slice(384, 768), slice(768, 1000)]


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_plan_covers_once_on_phase_with_full_context(geometry):
  rng = np.random.default_rng(0)
  for _ in range(20):
    height, width = rng.integers(1, (700, 50))
    least = geometry.input_size(geometry.period)
    max_tile_size = least + int(rng.integers(20, 300))
    plan = tile_plans.plan_tiles(
      height, width, geometry, max_tile_size=max_tile_size
    )
    writes = np.zeros((height, width), int)
    for window in plan.windows:
      writes[window] += 1
      origin = plan.place(window).origin
      for first, side, tile_size in zip(
        origin, window, plan.tile_shape, strict=True
      ):
        assert side.start == first + geometry.margin
        assert side.stop + geometry.margin <= first + tile_size
        assert side.start % geometry.period == 0
    assert (writes == 1).all()
    for tile_size in plan.tile_shape:
      assert tile_size <= max_tile_size
      geometry.output_size(tile_size)


@pytest.mark.parametrize('geometry', GEOMETRIES[::5], ids=str)
def test_no_admissible_tile_computes_fewer_pixels(geometry):
  least = geometry.input_size(1)
  max_tile_size = least + 200
  for size in (1, 2, 5, 16, 17, 63, 150, 333, 999):
    costs = []
    for tile_size in range(least, max_tile_size + 1, geometry.period):
      core = tile_size - 2 * geometry.margin
      covered, count = core, 1
      stride = core - core % geometry.period
      while covered < size and stride > 0:
        covered, count = covered + stride, count + 1
      if covered >= size:
        costs.append(count * tile_size)
    chosen = tile_plans.least_waste_tile_size(size, geometry, max_tile_size)
    windows = tile_plans.plan_axis(size, geometry, chosen)
    assert len(windows) * chosen == min(costs)


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
  model, variables = _network(depth, convs, padding)
  geometry = model.geometry
  image = _image(*shape)
  tile_size = None if core is None else geometry.input_size(core)
  assert core is None or core + geometry.period < max(shape)
  actual = tiling.predict_image(
    model.apply,
    variables,
    image,
    geometry,
    activation='logits',
    tile_size=tile_size,
  )
  expected = _whole_pass(model, variables, image)
  assert shape == (1, 1) or expected.std() > 0.01
  _assert_close(actual, expected)


def test_tiles_agree_bit_for_bit_at_shifts_by_the_period_only():
  model, variables = _network(2, 2, 'VALID')
  geometry = model.geometry
  predict = functools.partial(
    tiling.predict_image,
    model.apply,
    variables,
    geometry=geometry,
    activation='logits',
    tile_size=geometry.input_size(24),
    tiles_per_batch=2,
  )
  image = _image(150, 131)
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
  model, variables = _network(2, 1, 'VALID')
  geometry = model.geometry
  image = _image(40, 18)
  expected = _whole_pass(model, variables, image)
  tile_size = geometry.input_size(18)
  core = geometry.output_size(tile_size)
  assert core == 18 and core % geometry.period == 2

  apply = jax.jit(model.apply)

  def score(tiles, sizes):
    return apply(variables, tiles)

  def largest_difference(stride):
    starts = range(0, 40 - core + stride, stride)
    plan = tile_plans.TilePlan(
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
      tiling.read_mirrored, image, tile_shape=plan.tile_shape
    )
    for window, scores in tiling.predict_windows(score, read, plan):
      prediction[window] = scores
    return np.abs(prediction - expected).max()

  assert largest_difference(16) < 1e-5
  assert largest_difference(core) > 0.01


def test_batches_are_filled_up_and_compiled_once_for_an_apply():
  model, variables = _network(1, 1, 'VALID')
  geometry = model.geometry
  traces = []

  def apply(variables, tile):
    traces.append(tile.shape)
    return model.apply(variables, tile)

  tile_size = geometry.input_size(16)
  for shape, factor in (((40, 41), 1.0), ((9, 55), 0.5)):
    scaled = jax.tree.map(lambda leaf, factor=factor: factor * leaf, variables)
    image = _image(*shape)
    predict = functools.partial(
      tiling.predict_image,
      params=scaled,
      image=image,
      geometry=geometry,
      tile_size=tile_size,
    )
    _assert_close(predict(apply, tiles_per_batch=4), predict(model.apply))
  assert traces == [(1, tile_size, tile_size, 1)]


def test_next_batch_is_dispatched_before_the_last_is_pulled():
  events = []

  class Scores:
    def __init__(self, tiles, sizes):
      events.append(f'dispatch {tiles[0, 0, 0, 0]:.0f}')
      self.tiles = tiles

    def __array__(self, dtype=None, copy=None):
      events.append(f'pull {self.tiles[0, 0, 0, 0]:.0f}')
      return self.tiles

  plan = tile_plans.plan_tiles(1, 5, UNetGeometry(0, 1), tile_size=4)
  origins = [plan.place(window).origin for window in plan.windows]
  assert len(origins) == 3
  tiles = {
    origin: np.full((2, 2, 1), i, np.float32)
    for i, origin in enumerate(origins)
  }
  written = list(tiling.predict_windows(Scores, tiles.__getitem__, plan))
  assert events == [
    'dispatch 0',
    'dispatch 1',
    'pull 0',
    'dispatch 2',
    'pull 1',
    'pull 2',
  ]
  assert [scores.shape for _, scores in written] == [(1, 2, 1)] * 2 + [
    (1, 1, 1)
  ]


def test_probabilities_are_the_softmax_of_logits():
  model, variables = _network(1, 1, 'VALID', in_channels=2)
  image = _image(21, 30, channels=2)
  predict = functools.partial(
    tiling.predict_image, model.apply, variables, image, model.geometry
  )
  exponentials = np.exp(predict(activation='logits').astype(np.float64))
  expected = exponentials / exponentials.sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(predict(), expected, rtol=0, atol=1e-6)


@pytest.fixture(name='predict_small')
def _predict_small():
  model, variables = _network(2, 1, 'VALID')
  return functools.partial(
    tiling.predict_image,
    model.apply,
    variables,
    geometry=model.geometry,
    tile_size=model.geometry.input_size(20),
    tiles_per_batch=2,
  )


def test_averaging_over_the_group_commutes_with_turns_and_flips(predict_small):
  image = _image(37, 22)
  average = predict_small(image=image, average=True)
  turned = predict_small(image=np.rot90(image), average=True)
  np.testing.assert_allclose(turned, np.rot90(average), rtol=0, atol=1e-6)
  flipped = predict_small(image=image[::-1], average=True)
  np.testing.assert_allclose(flipped, average[::-1], rtol=0, atol=1e-6)
  plain = predict_small(image=np.rot90(image))
  assert np.abs(plain - np.rot90(predict_small(image=image))).max() > 0.01
  np.testing.assert_allclose(average.sum(axis=-1), 1, rtol=0, atol=1e-6)


def test_average_of_a_list_is_the_mean_of_probabilities(predict_small):
  image = _image(37, 22)
  plain = predict_small(image=image)
  identity = predict_small(image=image, average=[(0, False)])
  np.testing.assert_array_equal(identity, plain)
  turned = np.rot90(predict_small(image=np.rot90(image, 3)), -3)
  flipped = np.rot90(image[:, ::-1], 1)
  flipped = np.rot90(predict_small(image=flipped), -1)[:, ::-1]
  actual = predict_small(image=image, average=[(0, False), (3, False), (1, 1)])
  expected = (plain + turned + flipped) / 3
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_dihedral_group_has_eight_different_members():
  square = np.arange(9).reshape(3, 3)
  images = {
    turned(square, *transform).tobytes() for transform in DIHEDRAL_GROUP
  }
  assert len(images) == 8


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'image': np.full((4, 5, 1), np.nan, np.float32)}, '20 pixels .* NaN'),
    ({'image': np.full((4, 5, 1), np.inf, np.float32)}, 'row 0, column 0'),
    ({'image': _image(4, 5)[..., 0]}, r'\(4, 5\) is not \[H, W, C\]'),
    ({'image': np.zeros((4, 5, 1), np.uint8)}, 'uint8'),
    ({'image': _image(4, 5, channels=3)}, '3 channels'),
    ({'image': np.zeros((0, 5, 1), np.float32)}, '0 x 5 pixels is empty'),
    ({'tile_size': 35}, 'nearest: 34 and 38'),
    ({'tile_size': 22}, '22 px is too small .* 24 px: .* 2 px .* use 26 or'),
    ({'max_tile_size': 25}, 'max_tile_size=25 .* 24 px is 26'),
    ({'activation': 'sigmoid'}, 'sigmoid'),
    ({'average': []}, 'no transforms'),
    ({'tiles_per_batch': 0}, 'tiles_per_batch=0'),
  ],
)
def test_bad_input_is_an_input_error_that_names_it(changes, message):
  model, variables = _network(2, 1, 'VALID')
  arguments = {'image': _image(24, 24), 'geometry': model.geometry} | changes
  with pytest.raises(InputError, match=message):
    tiling.predict_image(model.apply, variables, **arguments)


def test_same_tile_without_a_core_is_refused():
  geometry = UNetGeometry(2, 2, 'SAME')
  with pytest.raises(InputError, match='leaves 0 px .* use 52 or more'):
    tile_plans.plan_axis(9, geometry, 2 * geometry.margin)


def test_geometry_of_another_network_is_refused():
  with pytest.raises(InputError, match=r'\(24, 24\) px give \(24, 24\)'):
    tiling.predict_image(
      lambda params, tile: tile, {}, _image(20, 20), UNetGeometry(0, 2)
    )
