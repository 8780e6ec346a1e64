# SPDX-License-Identifier: Apache-2.0
"""The tile that fits into a budget, by what the compiler says of it."""

import dataclasses
import math

import fcn_nets
import numpy as np
import pytest
from random_unets import image_of, predicted, random_unet, streamed
from tiny_network import tiny_network

from segjax.contracts import FunctionModel
from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.models.fcn import FCN32s
from segjax.predict import predict_files
from segjax.tiling import programs
from segjax.tiling.memory import fitting_tile_size
from segjax.tiling.plans import plan_tiles
from segjax.tiling.settings import TileSettings
from segjax.tiling.turns import DIHEDRAL_GROUP

MIB = 2**20
PAPER = UNetGeometry()


def test_bytes_of_a_product_are_those_of_its_arrays():
  geometry = UNetGeometry(0, 1, 'SAME')
  program = programs.create_program(
    FunctionModel(lambda v, tile: tile * v['params'], geometry, 2, (2,)),
    np.ones((), np.float32),
    TileSettings(activation='logits', tiles_per_batch=3),
  )
  # One factor; three tiles of 20 x 30 x 2 and their cores, all twice.
  tiles = 3 * 20 * 30 * 2 * 4
  margin = geometry.core_offset
  cores = 3 * (20 - 2 * margin) * (30 - 2 * margin) * 2 * 4
  expected = 4 + 2 * (tiles + cores)
  assert program.bytes_of((20, 30, 2), np.float32) == expected


def test_the_choice_is_within_the_budget_and_the_next_is_not():
  model, variables = random_unet()
  geometry = model.geometry
  settings = TileSettings(tiles_per_batch=2, tile_memory_mib=3)
  program = programs.create_program(model, variables['params'], settings)
  size = fitting_tile_size(
    program.bytes_of, (900, 950, 1), np.float32, geometry, settings
  )
  for tile_size, fits in ((size, True), (size + geometry.period, False)):
    used = program.bytes_of((tile_size, tile_size, 1), np.float32)
    assert (used <= 3 * MIB) == fits, (tile_size, used)
  # At least the first layer of two tiles, 4 channels in float32, is held.
  assert geometry.input_size(20) < size < math.sqrt(3 * MIB / (2 * 4 * 4))


def by_area(calls=None, fixed=0):
  """What a network of the paper's width might take, and counts the calls."""

  def bytes_of(shape, dtype):
    height, width, _ = shape
    if calls is not None:
      calls.append(shape)
    return fixed + 512 * height * width + 900 * (height + width)

  return bytes_of


@pytest.mark.parametrize('memory_mib', [80, 300, 999, 5000, 70000])
@pytest.mark.parametrize('shape', [(32768, 30000, 1), (3000, 100, 1)])
@pytest.mark.parametrize('fixed', [0, 40 * MIB])
def test_few_sizes_are_compiled_for_the_largest(memory_mib, shape, fixed):
  calls = []
  bytes_of = by_area(calls, fixed)
  settings = TileSettings(tile_memory_mib=memory_mib)
  size = fitting_tile_size(bytes_of, shape, np.uint8, PAPER, settings)
  assert len(calls) <= 6
  needed = [PAPER.input_size(side) for side in shape[:2]]
  fits = {
    side: bytes_of((*(min(side, most) for most in needed), 1), None)
    <= memory_mib * MIB
    for side in range(220, max(needed) + 1, 16)
  }
  assert size == max(side for side in fits if fits[side])


@pytest.mark.parametrize('transforms', [[(0, False)], DIHEDRAL_GROUP])
def test_plans_within_the_choice_are_within_the_budget(transforms):
  rng = np.random.default_rng(0)
  fcn = FCN32s(padding='same').geometry
  for geometry, bucket_px in ((PAPER, 0), (fcn, 0), (fcn, 96)):
    for _ in range(20):
      shape = (*rng.integers(1, 4000, 2).tolist(), 1)
      memory_mib = int(rng.integers(300, 2000))
      settings = TileSettings(
        average=transforms, bucket_px=bucket_px, tile_memory_mib=memory_mib
      )
      size = fitting_tile_size(by_area(), shape, np.uint8, geometry, settings)
      settings = dataclasses.replace(settings, max_tile_size_px=size)
      plan = plan_tiles(*shape[:2], geometry, settings)
      used = by_area()((*plan.tile_shape, 1), None)
      assert used <= memory_mib * MIB, (plan.tile_shape, shape)


def test_too_little_is_refused():
  with pytest.raises(
    InputError, match='=20 is too small: .* of 220 x 220 px, takes 25 MiB'
  ):
    fitting_tile_size(
      by_area(),
      (999, 999, 1),
      np.uint8,
      PAPER,
      TileSettings(tile_memory_mib=20),
    )


def test_a_budget_decides_and_changes_no_result(monkeypatch):
  model, variables = random_unet()
  image = image_of(300, 310)
  plain = predicted(image, model, variables)
  shapes = []
  monkeypatch.setattr(
    'segjax.tiling.programs.Program.__call__',
    lambda self, tiles, sizes, call=programs.Program.__call__: (
      shapes.append(tiles.shape) or call(self, tiles, sizes)
    ),
  )
  options = dict(tile_memory_mib=1, max_tile_size_px=9999)
  small = predicted(image, model, variables, **options)
  written = streamed(image, model, variables, **options)
  assert len(set(shapes)) == 1 and max(shapes[0]) < 300
  np.testing.assert_allclose(small, plain, atol=1e-6)
  np.testing.assert_array_equal(written, small)


def test_an_fcn_has_a_budget_too():
  model = FCN32s(**fcn_nets.NARROW, padding='same')
  params = fcn_nets.random_params(model)
  program = programs.create_program(model, params, TileSettings())
  least = 2 * (model.geometry.margin + 32)
  used = program.bytes_of((least, least, 3), np.uint8)
  assert used > 2 * least**2 * (3 + 4 * 4)
  budget = math.ceil(used / MIB)
  size = fitting_tile_size(
    program.bytes_of,
    (5000, 5000, 3),
    np.uint8,
    model.geometry,
    TileSettings(tile_memory_mib=budget),
  )
  assert least <= size < 1.2 * least


def test_predict_settles_the_tile_and_prints_it(tmp_path, capsys):
  rng = np.random.default_rng(0)
  np.save(tmp_path / 'in.npy', rng.integers(0, 256, (400, 410), np.uint8))
  network = tiny_network()
  network.config.prediction.max_tile_size_px = 70
  written = []
  for memory_mib in (0, 1):
    network.config.prediction.tile_memory_mib = memory_mib
    output = tmp_path / f'{memory_mib}.npy'
    predict_files(network, tmp_path / 'in.npy', output)
    written.append(np.load(output))
  np.testing.assert_allclose(*written, atol=1e-6)
  shapes = [
    tuple(map(int, line.split()[-4:-1:2]))
    for line in capsys.readouterr().out.splitlines()
  ]
  assert max(shapes[0]) <= 70 < min(shapes[1])
  assert max(shapes[1]) < 400
