# SPDX-License-Identifier: Apache-2.0
"""Predictions that a CRF refines: by tiles as whole, and by the commands."""

import dataclasses

import fcn_nets
import jax
import numpy as np
import pytest
from commands import tiny_config
from ml_collections import ConfigDict
from random_unets import assert_close, random_unet

from segjax.crf import OFF, Refinement, refine
from segjax.data import create_dataset
from segjax.errors import InputError
from segjax.export import export_network
from segjax.models import create_model
from segjax.models.fcn import FCN32s
from segjax.networks import Network
from segjax.predict import predict_files
from segjax.prediction import artifact
from segjax.prediction.predictor import (
  check_prediction,
  of_stored_pixels,
  predict_stored,
)
from segjax.prediction.streaming import stream_predict
from segjax.scoring.evaluation import evaluate
from segjax.settings.sections import (
  PreprocessingSettings,
  read_prediction,
  read_refinement,
)
from segjax.tiling.plans import plan_tiles
from segjax.tiling.settings import TileSettings
from segjax.tiling.turns import restored, turned

REFINEMENT = Refinement(
  iterations=2, radius_px=3, appearance_weight=3.0, intensity_width=0.2
)
PIXELS = PreprocessingSettings(0.4, 0.3, ())


def picture(height, width, channels):
  rng = np.random.default_rng([height, width])
  return rng.integers(256, size=(height, width, channels), dtype=np.uint8)


def refined_whole(model, params, image, refinement, head_sizes, **settings):
  """Logits of one pass over the image, refined by one call."""
  tiles = TileSettings(activation='logits', **settings)
  logits = predict_stored(model, params, image, PIXELS, tiles)
  heads = np.split(logits, np.cumsum(head_sizes)[:-1], axis=-1)
  unit = PIXELS.to_unit_range(image)
  refined = [jax.jit(refine)(head, unit, refinement) for head in heads]
  refined = np.concatenate(refined, axis=-1)
  assert np.abs(refined - logits).max() > 0.5
  return refined


def assert_tiled(model, params, image, expected, refinement, **settings):
  """Asserts both ways of predicting by tiles, and that there are several."""
  tiles = TileSettings(activation='logits', **settings)
  refined = of_stored_pixels(model, PIXELS, refinement)
  plan = plan_tiles(*image.shape[:2], refined.geometry, tiles)
  assert len(plan) > 1 or not settings
  at_once = predict_stored(model, params, image, PIXELS, tiles, refinement)
  assert_close(at_once, expected)
  written = np.full_like(expected, np.nan)
  stream_predict(image, written, refined, params, tiles)
  assert_close(written, expected)


@pytest.mark.parametrize('padding', ['VALID', 'SAME'])
@pytest.mark.parametrize('depth', [1, 3])
def test_tiles_of_a_unet_are_the_whole_image(depth, padding):
  model, variables = random_unet(depth, 1, padding, in_channels=3)
  image = picture(45, 83, 3)
  expected = refined_whole(model, variables['params'], image, REFINEMENT, [3])
  geometry = of_stored_pixels(model, PIXELS, REFINEMENT).geometry
  for settings in ({}, {'tile_size': geometry.input_size(24)}):
    assert_tiled(
      model, variables['params'], image, expected, REFINEMENT, **settings
    )


def test_an_image_as_large_as_a_tile_ends_where_it_ends():
  model, variables = random_unet(1, 1, 'VALID')
  geometry = of_stored_pixels(model, PIXELS, REFINEMENT).geometry
  side = geometry.input_size(20)
  image = picture(side, side, 1)
  expected = refined_whole(model, variables['params'], image, REFINEMENT, [3])
  assert_tiled(
    model, variables['params'], image, expected, REFINEMENT, tile_size=side
  )


def test_tiles_of_an_fcn_are_the_whole_image_head_by_head():
  heads = (('sem', 3), ('geo', 2))
  narrow = fcn_nets.NARROW | {'heads': heads, 'num_classes': 5}
  model = FCN32s(**narrow, padding='same')
  params = fcn_nets.random_params(model)
  refined = of_stored_pixels(model, PIXELS, REFINEMENT)
  tile = refined.geometry.tile_size(64)
  image = picture(70, tile + 101, 3)  # It ends inside of its tiles.
  expected = refined_whole(model, params, image, REFINEMENT, model.head_sizes)
  assert_tiled(model, params, image, expected, REFINEMENT, tile_size=tile)


def test_each_turn_is_refined():
  model, variables = random_unet(2, 1, 'VALID')
  params = variables['params']
  image = picture(37, 61, 1)
  transforms = [(0, False), (1, False), (3, True)]
  expected = np.mean(
    [
      restored(
        refined_whole(model, params, turned(image, *t), REFINEMENT, [3]), *t
      )
      for t in transforms
    ],
    axis=0,
  )
  geometry = of_stored_pixels(model, PIXELS, REFINEMENT).geometry
  assert_tiled(
    model,
    params,
    image,
    expected,
    REFINEMENT,
    average=transforms,
    tile_size=geometry.input_size(32),
  )


def test_a_tile_without_the_margin_is_not_the_whole_image():
  """The tests above would see a margin that is too small."""
  model, variables = random_unet(1, 1, 'VALID')
  image = picture(45, 83, 1)
  more = dataclasses.replace(REFINEMENT, iterations=6)
  expected = refined_whole(model, variables['params'], image, more, [3])
  refined = of_stored_pixels(model, PIXELS, more)
  short = dataclasses.replace(
    refined, geometry=dataclasses.replace(refined.geometry, reach_px=2)
  )
  written = np.zeros_like(expected)
  tiles = TileSettings(activation='logits', tile_size=40)
  stream_predict(image, written, short, variables['params'], tiles)
  assert np.abs(written - expected).max() > 0.01


def test_a_matrix_must_fit_each_head():
  model, _ = random_unet(1, 1, 'VALID')
  settings = dataclasses.replace(REFINEMENT, compatibility=((0, 1), (1, 0)))
  with pytest.raises(InputError, match='refinement.compatibility .*3 x 3'):
    check_prediction(model, PIXELS, TileSettings(), settings)
  check_prediction(
    model, PIXELS, TileSettings(), dataclasses.replace(settings, iterations=0)
  )


def test_a_config_and_a_flag_say_whether_to_refine():
  config = ConfigDict({})
  assert read_refinement(config) == OFF
  assert read_refinement(config, True) == Refinement()
  config.refinement = dict(iterations=2, radius_px=1)
  mine = Refinement(iterations=2, radius_px=1)
  assert read_refinement(config) == read_refinement(config, True) == mine
  assert not read_refinement(config, False).iterations
  config.refinement.iterations = 0
  assert not read_refinement(config).iterations
  assert read_refinement(config, True) == Refinement(radius_px=1)


def small_network():
  config = tiny_config()
  config.evaluation.average = False
  model = create_model(config.model)
  side = model.geometry.input_size(1)
  params = model.init(
    jax.random.key(0), np.zeros((1, side, side, model.in_channels))
  )['params']
  return Network(model, params, config)


def test_files_are_refined_and_go_on_with_the_same_settings(tmp_path, capsys):
  model, params, config = network = small_network()
  image = picture(37, 50, 1)
  np.save(tmp_path / 'in.npy', image[None, ..., 0])
  outputs = {}
  for refined in (None, True):
    output = tmp_path / f'{refined}.npy'
    predict_files(network, tmp_path / 'in.npy', output, refine=refined)
    outputs[refined] = np.load(output)
  text = 'refined by a CRF: 5 iterations in a window of 7 px'
  assert [text in line for line in capsys.readouterr().out.splitlines()] == [
    False,
    True,
  ]
  how = read_prediction(config, average=False)
  expected = predict_stored(model, params, image, *how, Refinement())
  np.testing.assert_allclose(outputs[True][0], expected[..., 1], atol=1e-5)
  assert np.abs(outputs[True] - outputs[None]).max() > 1e-3


def test_an_artifact_refines_as_its_run(tmp_path):
  network = small_network()
  network.config.refinement = dataclasses.asdict(REFINEMENT)
  export_network(network, tmp_path / 'net', size_px=64)
  loaded = Network(*artifact.load(tmp_path / 'net'))
  assert read_refinement(loaded.config) == REFINEMENT
  np.save(tmp_path / 'in.npy', picture(37, 50, 1)[None, ..., 0])
  for name, net in (('run', network), ('artifact', loaded)):
    predict_files(net, tmp_path / 'in.npy', tmp_path / f'{name}.npy')
  run, exported = (np.load(tmp_path / f'{n}.npy') for n in ('run', 'artifact'))
  np.testing.assert_allclose(run, exported, atol=1e-5)


def test_evaluation_scores_what_is_refined(tmp_path):
  model, params, config = small_network()
  config.evaluation.best_metric = 'mean_iu'
  dataset = create_dataset(config.data)
  scores = {}
  for iterations in (0, 3):
    config.refinement = dict(iterations=iterations)
    scores[iterations] = evaluate(
      model, params, dataset.heldout, config, dataset, average=False
    ).scores
  labels = [example['label'] for example in dataset.heldout]
  how = read_prediction(config, average=False)
  predicted = [
    predict_stored(model, params, e['image'], *how, Refinement(iterations=3))
    for e in dataset.heldout
  ]
  right = np.mean(np.argmax(predicted, axis=-1) == labels)
  assert scores[3]['pixel_accuracy'] == pytest.approx(right, abs=1e-4)
  assert scores[0]['loss'] != pytest.approx(scores[3]['loss'], abs=1e-4)
