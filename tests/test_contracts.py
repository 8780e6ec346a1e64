# SPDX-License-Identifier: Apache-2.0
"""The two contracts: networks and their sizes; settings as one argument."""

import dataclasses
import importlib
import inspect
import operator
import pkgutil

import pytest
from commands import tiny_config

from segjax import crf, prediction, tiling
from segjax.contracts import FunctionModel, SegmentationModel
from segjax.errors import InputError
from segjax.geometry import FilteredGeometry, Geometry, UNetGeometry
from segjax.models.fcn import FCN8s
from segjax.models.unet import UNet
from segjax.prediction.artifact import AnySizeGeometry, describe_geometry
from segjax.settings import sections as settings
from segjax.tiling.settings import TileSettings

FCN = FCN8s(padding='same').geometry
GEOMETRIES = [
  UNetGeometry(),
  UNetGeometry(3, 1, 'SAME'),
  FCN,
  AnySizeGeometry(**describe_geometry(FCN)),
  FilteredGeometry(UNetGeometry(), 15),
  FilteredGeometry(UNetGeometry(2, 1, 'SAME'), 5),
  FilteredGeometry(FCN, 33),
]


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_geometries_say_what_tiles_need(geometry):
  assert isinstance(geometry, Geometry)
  # A tile of several: a core, and margins, whose sizes are a period apart.
  for core in (1, 5, 40, 77):
    tile = geometry.tile_size(core)
    left = tile - 2 * geometry.margin - core
    assert 0 <= left < geometry.period
    outside = 0 if geometry.clips_tiles else geometry.margin
    cropped = geometry.output_size(tile) - 2 * geometry.core_offset
    assert cropped == tile - 2 * outside
  smallest = geometry.smallest_input
  geometry.output_size(smallest)
  with pytest.raises(InputError):
    geometry.output_size(smallest - 1)
  if geometry.takes_any_size:
    assert geometry.output_size(smallest + 1) == smallest + 1
  else:
    with pytest.raises(InputError, match='nearest: '):
      geometry.output_size(smallest + 1)


def test_an_artifact_plans_as_its_network():
  for name in ('period', 'margin', 'clips_tiles', 'default_max_tile_size_px'):
    assert getattr(GEOMETRIES[3], name) == getattr(FCN, name)


@pytest.mark.parametrize(
  'model',
  [UNet(), FCN8s(), FunctionModel(UNet().apply, UNetGeometry(), 1, (2,))],
  ids=['unet', 'fcn', 'function'],
)
def test_models_fulfil_the_contract(model):
  assert isinstance(model, SegmentationModel)
  assert sum(model.head_sizes) == model.num_classes
  assert len(model.head_names) == len(model.head_sizes)


def functions_of(package):
  """Yields the functions and methods that the modules of a package define."""
  for found in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):
    module = importlib.import_module(found.name)
    for owner in (module, *vars(module).values()):
      if inspect.ismodule(owner) or inspect.isclass(owner):
        for function in vars(owner).values():
          if (
            inspect.isfunction(function)
            and function.__module__ == module.__name__
            # Made from the fields of a dataclass or a NamedTuple.
            and function.__code__.co_filename == module.__file__
          ):
            yield function


@pytest.mark.parametrize('package', [tiling, prediction], ids=['t', 'p'])
def test_no_function_takes_more_than_eight_arguments(package):
  count = {
    f'{f.__module__}.{f.__qualname__}': len(inspect.signature(f).parameters)
    for f in functions_of(package)
  }
  assert len(count) > 30
  assert max(count.values()) <= 8, {n: c for n, c in count.items() if c > 8}


def test_a_section_of_a_card_is_its_dataclass():
  config = tiny_config()
  read = settings.read_settings(config)
  sections = config.to_dict()
  # A card has a part of them.
  sections['prediction'] = (
    dataclasses.asdict(TileSettings()) | sections['prediction']
  )
  # Off unless a card has it.
  sections['refinement'] = dataclasses.asdict(crf.OFF)
  assert dataclasses.asdict(read) == sections
  config.refinement = dict(radius_px=2, compatibility=((0, 1), (2, 0)))
  assert settings.read_settings(config).refinement == crf.Refinement(
    radius_px=2, compatibility=((0, 1), (2, 0))
  )


@pytest.mark.parametrize(
  ('section', 'name', 'value', 'message'),
  [
    ('mesh', 'space', 0, 'mesh.space=0 must be at least 1'),
    ('batching', 'bucket_px', -1, 'batching.bucket_px=-1 must be at least 0'),
    ('batching', 'order', 'sorted', "batching.order='sorted' is not one of"),
    ('augmentation', 'elastic_grid', 0, 'augmentation.elastic_grid=0 must'),
    ('evaluation', 'num_pictures', 0, 'evaluation.num_pictures=0 must be'),
    ('checkpoints', 'every_steps', 0, 'checkpoints.every_steps=0 must be'),
    ('checkpoints.keep', 'keep_last', 0, 'checkpoints.keep.keep_last=0 must'),
    ('prediction', 'tile_memory_mib', -1, 'prediction.tile_memory_mib=-1'),
    ('refinement', 'intensity_width', 0.0, 'refinement.intensity_width=0.0 m'),
    ('refinement', 'radius_px', 0, 'refinement.radius_px=0 must be at least 1'),
    ('refinement', 'radius', 5, 'did you mean radius_px?'),
    ('mesh', 'data', None, 'config.mesh.data is no setting; there are space'),
  ],
)
def test_a_wrong_setting_is_named_with_its_section(
  section, name, value, message
):
  config = tiny_config()
  config.refinement = {}
  operator.attrgetter(section)(config)[name] = value
  with pytest.raises(InputError, match=message):
    settings.read_settings(config)


def test_a_config_may_leave_out_what_has_a_default_in_a_prediction():
  """As the config of an older run does."""
  config = tiny_config()
  del config.prediction.tile_memory_mib
  _, tiles = settings.read_prediction(config, average=True)
  assert tiles == TileSettings(
    max_tile_size_px=config.prediction.max_tile_size_px,
    tiles_per_batch=config.prediction.tiles_per_batch,
    average=True,
  )
  config.prediction.tile_sise = 5
  with pytest.raises(InputError, match='did you mean tile_size?'):
    settings.read_prediction(config)
