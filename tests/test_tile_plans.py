# SPDX-License-Identifier: Apache-2.0
"""Which tiles cover an image: integers only, no network runs."""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.models.fcn import FCN8s, FCN16s, FCN32s, FCNAlexNet, FCNGoogLeNet
from segjax.tiling import axes, plans, shapes
from segjax.tiling.settings import TileSettings
from segjax.tiling.turns import DIHEDRAL_GROUP, is_reversed

pytestmark = pytest.mark.smoke

PAPER = UNetGeometry()
GEOMETRIES = [
  UNetGeometry(*arguments)
  for arguments in itertools.product(range(5), (1, 2, 3), ('VALID', 'SAME'))
]


@pytest.mark.parametrize(
  ('size', 'max_tile_size_px', 'tile_size', 'count'),
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
def test_plan_of_the_paper_network(size, max_tile_size_px, tile_size, count):
  tiles = TileSettings(max_tile_size_px=max_tile_size_px)
  plan = plans.plan_tiles(size, 1, PAPER, tiles)
  assert plan.tile_shape == (tile_size, 188)
  assert len(plan) == count


def test_more_tiles_are_chosen_where_they_waste_less():
  geometry = UNetGeometry(4, 1)
  # 9 x 254 = 2286 pixels; the largest tile, 286, would take 8 x 286 = 2288.
  assert axes.least_waste_tile_size(1411, geometry, 300) == 254
  assert len(axes.plan_axis(1411, geometry, 254)) == 9
  assert len(axes.plan_axis(1411, geometry, 286)) == 8


def test_paper_tile_of_572_has_a_stride_of_384():
  plan = plans.plan_tiles(1, 1000, PAPER, TileSettings(tile_size=572))
  positions = [plan.position(window) for window in plan.windows]
  assert [position.origin[1] for position in positions] == [-92, 292, 676]
  windows = [columns for _, columns in plan.windows]
  assert windows == [slice(0, 384), slice(384, 768), slice(768, 1000)]


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_plan_covers_once_on_phase_with_full_context(geometry):
  rng = np.random.default_rng(0)
  for _ in range(20):
    height, width = rng.integers(1, (700, 50))
    least = geometry.input_size(geometry.period)
    max_tile_size_px = least + int(rng.integers(20, 300))
    plan = plans.plan_tiles(
      height,
      width,
      geometry,
      TileSettings(max_tile_size_px=max_tile_size_px),
    )
    writes = np.zeros((height, width), int)
    for window in plan.windows:
      writes[window] += 1
      origin = plan.position(window).origin
      for first, side, tile_size in zip(
        origin, window, plan.tile_shape, strict=True
      ):
        assert side.start == first + geometry.margin
        assert side.stop + geometry.margin <= first + tile_size
        assert side.start % geometry.period == 0
    assert (writes == 1).all()
    for tile_size in plan.tile_shape:
      assert tile_size <= max_tile_size_px
      geometry.output_size(tile_size)


@pytest.mark.parametrize('geometry', GEOMETRIES[::5], ids=str)
def test_no_admissible_tile_computes_fewer_pixels(geometry):
  least = geometry.input_size(1)
  max_tile_size_px = least + 200
  for size in (1, 2, 5, 16, 17, 63, 150, 333, 999):
    costs = []
    for tile_size in range(least, max_tile_size_px + 1, geometry.period):
      core = tile_size - 2 * geometry.margin
      covered, count = core, 1
      stride = core - core % geometry.period
      while covered < size and stride > 0:
        covered, count = covered + stride, count + 1
      if covered >= size:
        costs.append(count * tile_size)
    chosen = axes.least_waste_tile_size(size, geometry, max_tile_size_px)
    windows = axes.plan_axis(size, geometry, chosen)
    assert len(windows) * chosen == min(costs)


def test_same_tile_without_a_core_is_refused():
  geometry = UNetGeometry(2, 2, 'SAME')
  with pytest.raises(InputError, match='leaves 0 px .* use 52 or more'):
    axes.plan_axis(9, geometry, 2 * geometry.margin)


@settings(max_examples=60, deadline=None)
@given(
  st.sampled_from([(0, 1), (1, 2), (3, 1), (4, 2)]),
  st.sampled_from(['VALID', 'SAME']),
  st.tuples(st.integers(1, 400), st.integers(1, 400)),
  st.integers(0, 12),
)
def test_places_hold_the_windows_on_phase_in_every_turn(
  net, padding, shape, more
):
  geometry = UNetGeometry(*net, padding)
  least = geometry.input_size(2 * geometry.period)
  plan = plans.plan_tiles(
    *shape,
    geometry,
    TileSettings(tile_size=least + more * geometry.period, average=True),
  )
  for window in plan.windows:
    for transform in DIHEDRAL_GROUP:
      position = plan.position(window, transform)
      backwards = is_reversed(*transform)
      for side, crop, first, tile, length, is_backwards in zip(
        window,
        position.crop,
        position.origin,
        plan.tile_shape,
        shape,
        backwards,
        strict=True,
      ):
        assert side.start == first + geometry.margin + crop.start
        assert 0 <= crop.start and crop.stop <= tile - 2 * geometry.margin
        phase = length - first - tile if is_backwards else first
        assert (phase + geometry.margin) % geometry.period == 0


FCNS = [FCN32s, FCN16s, FCN8s, FCNAlexNet, FCNGoogLeNet]


@pytest.mark.parametrize('padding', ['pad100', 'same'])
@pytest.mark.parametrize(
  'create', FCNS, ids=['32', '16', '8', 'alex', 'google']
)
def test_fcn_plans_hold_the_margin(create, padding):
  geometry = create(padding=padding).geometry
  least = 2 * geometry.margin + 64
  for size in (1, least, least + 1, 1000, 1777, 3333):
    for slack in (0, size % 32):
      for tile in (least, least + 32, 1024):
        windows = axes.plan_axis(size, geometry, tile, slack)
        ends = [0, *(window.stop for window in windows)]
        assert ends[-1] == size and sorted(set(ends)) == ends
        for window in windows:
          first = max(0, window.start - geometry.margin) if size > tile else 0
          assert first % 32 == 0
          assert min(size, window.stop + geometry.margin) <= max(
            first + tile, tile
          )


def test_fcn_tiles_that_are_turned_fit_both_sides():
  """The shorter side is no multiple of the period, and within the limit."""
  geometry = FCN32s(padding='same').geometry
  turn = [(1, False)]
  for max_tile_size_px in (1696, 1693):
    plan = plans.plan_tiles(
      1692,
      1943,
      geometry,
      TileSettings(max_tile_size_px=max_tile_size_px, average=turn),
    )
    pixels = []
    for side in range(32, max_tile_size_px + 1, 32):
      with contextlib.suppress(InputError):
        tiles = TileSettings(tile_size=side, average=turn)
        other = plans.plan_tiles(1692, 1943, geometry, tiles)
        pixels.append(len(other) * side * side)
    side = plan.tile_shape[0]
    assert plan.tile_shape == (side, side)
    assert len(plan) * side * side == min(pixels)


SETS = {
  'one': [(512, 300)],
  'equal': [(512, 300)] * 3,
  'turned': [(375, 500), (500, 375)],
  'many small': [(90, 70)] * 9 + [(512, 600)],
  'few small': [(90, 70)] + [(512, 600)] * 9,
  'random': np.random.default_rng(0).integers(1, 900, (12, 2)),
}


@pytest.mark.parametrize('transforms', [[(0, False)], DIHEDRAL_GROUP])
@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize(
  'geometry', [UNetGeometry(3, 2), FCN32s(padding='same').geometry], ids=type
)
def test_images_share_a_tile_that_costs_least(geometry, name, transforms):
  sizes = [tuple(map(int, size)) for size in SETS[name]]

  def tiles(shape):
    return TileSettings(tile_size=shape, average=transforms)

  def cost(shape):
    try:
      covering = [
        plans.plan_tiles(*size, geometry, tiles(shape)) for size in sizes
      ]
    except InputError:
      return np.inf
    return sum(map(len, covering)) * shape[0] * shape[1]

  limit = 700
  limited = TileSettings(max_tile_size_px=limit, average=transforms)
  shape = shapes.choose_tile_shape(sizes, geometry, limited)
  assert max(shape) <= limit
  assert np.isfinite(cost(shape))
  for size in sizes:  # Each one's own.
    plan = plans.plan_tiles(*size, geometry, limited)
    assert cost(shape) <= cost(plan.tile_shape)
  if name == 'equal':
    assert plan.tile_shape == shape
  assert shapes.most_windows(sizes, geometry, shape, transforms) == max(
    len(plans.plan_tiles(*size, geometry, tiles(shape))) for size in sizes
  )
  if name == 'turned' and not geometry.clips_tiles:
    assert cost(shape) == min(
      cost((height, width))
      for height in range(geometry.input_size(1), limit + 1, 8)
      for width in range(geometry.input_size(1), limit + 1, 8)
      if height == width or transforms == [(0, False)]
    )


def test_tiles_of_quarter_turns_are_square():
  with pytest.raises(InputError, match='188 x 204 px; .* must be square'):
    plans.plan_tiles(
      4, 5, PAPER, TileSettings(tile_size=(188, 204), average=True)
    )
