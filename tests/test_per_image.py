# SPDX-License-Identifier: Apache-2.0
"""Images that lose their own mean and deviation before a network sees them."""

import json

import numpy as np
import pytest
from commands import tiny_config
from test_export import unet

from segjax.crf import Refinement
from segjax.data import preprocessing
from segjax.data.examples import Dataset
from segjax.data.preprocessing import image_statistics
from segjax.errors import InputError
from segjax.experiment import create_experiment
from segjax.images.files import read_stack, write_stack
from segjax.images.windows import Raster
from segjax.networks import metadata
from segjax.predict import predict_files
from segjax.prediction.predictor import predict_stored
from segjax.settings.sections import PreprocessingSettings, read_prediction
from segjax.train import train_and_evaluate
from segjax.weights import files

RNG = np.random.default_rng(0)
SETTINGS = PreprocessingSettings(0.5, 0.25, (), (-2.0, 2.0), per_image=True)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_statistics_are_numpys_however_it_is_read(dtype, monkeypatch):
  image = RNG.normal(40, 3, (70, 50, 3)) * [1, 2, 0]
  if dtype != np.uint8:
    image += 60_000  # Sums of squares would lose the deviation in float32.
  image = image.astype(dtype)
  expected = image.astype(float).mean((0, 1)), image.astype(float).std((0, 1))
  monkeypatch.setattr(preprocessing, '_STRIP_VALUES', 50 * 3 * 16)
  mean, std = image_statistics(image)
  np.testing.assert_allclose(mean, expected[0], rtol=1e-12)
  np.testing.assert_allclose(std[:2], expected[1][:2], rtol=1e-9)
  assert std[2] == 1  # A constant channel is divided by nothing.
  page = Raster(image.shape, image.dtype, lambda y, x: image[y, x])
  assert np.array_equal(image_statistics(page), (mean, std))


def test_a_deviation_that_float32_cannot_hold_is_no_division_by_zero():
  image = np.zeros((8, 9, 1))
  image[3, 3] = 1e-50
  assert np.array_equal(SETTINGS.by_image(image), np.zeros_like(image))


def test_brightness_range_and_type_make_no_difference():
  image = RNG.integers(0, 64, (30, 40, 2), np.uint8)
  expected = np.asarray(SETTINGS.prepare(SETTINGS.by_image(image)))
  np.testing.assert_allclose(expected.mean((0, 1)), 0, atol=1e-5)
  np.testing.assert_allclose(expected.std((0, 1)), 1, atol=1e-5)
  for other in (
    image + np.uint8(100),
    image.astype(np.uint16) * 16,
    image * np.float32(-3.5) * -1 - 700,
  ):
    got = SETTINGS.prepare(SETTINGS.by_image(other))
    np.testing.assert_allclose(got, expected, atol=2e-5)


def network_of_images():
  network = unet()
  with network.config.ignore_type():
    network.config.preprocessing.update(
      per_image=True, limits=(-2.0, 2.0), mean=0.5, std=0.25
    )
  return network


def test_a_file_is_predicted_as_the_array_is(tmp_path):
  """By tiles of a part each; of another type and brightness, too."""
  network = network_of_images()
  image = RNG.integers(0, 100, (90, 75, 1), np.uint8)
  image[:40] += 100  # The halves have other means than the whole.
  pixels, tiles = read_prediction(network.config)
  expected = predict_stored(*network[:2], image, pixels, tiles)
  prepared = network.prepare(image)
  assert np.array_equal(network.prepare(image[..., 0]), prepared)
  np.testing.assert_allclose(np.mean(prepared), 0, atol=1e-5)
  for name, stored in (
    ('a.tif', image),
    ('b.tif', image.astype(np.uint16) * 200 + 1000),
  ):
    write_stack(tmp_path / name, stored[None])
    output = tmp_path / f'of_{name}'
    predict_files(
      network,
      tmp_path / name,
      output,
      dtype='float32',
      average=False,
      tile_size_px=network.model.geometry.input_size(30),
    )
    got = read_stack(output)[0, ..., 0]
    assert np.ptp(got) > 0.01
    np.testing.assert_allclose(got, expected[..., 1], atol=1e-5)


def test_an_overlay_shows_the_image_as_it_is(tmp_path):
  write_stack(tmp_path / 'a.png', np.full((1, 40, 50, 1), 90, np.uint8))
  network = network_of_images()
  predict_files(network, tmp_path / 'a.png', tmp_path / 'b.png', kind='overlay')
  shown = read_stack(tmp_path / 'b.png')
  network.config.preprocessing.per_image = False
  predict_files(network, tmp_path / 'a.png', tmp_path / 'c.png', kind='overlay')
  background = {45, 90, *np.unique(read_stack(tmp_path / 'c.png'))}
  assert background.issuperset(np.unique(shown))


def losses_of(workdir, images, labels):
  config = tiny_config()
  config.num_train_steps = 4
  config.batch_size = 8
  config.log_every_steps = 1
  with config.ignore_type():
    config.preprocessing.update(
      per_image=True, limits=(-2.0, 2.0), mean=0.5, std=0.25
    )
  examples = [
    {'image': image[..., None], 'label': label, 'name': str(i)}
    for i, (image, label) in enumerate(zip(images, labels, strict=True))
  ]
  dataset = Dataset(('a', 'b'), examples, [], 'digest')
  train_and_evaluate(config, workdir, dataset)
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [line for line in map(loss_in, lines) if line is not None]


def loss_in(line):
  return json.loads(line).get('train/loss')


@pytest.mark.parametrize('sizes', [1, 2])
def test_training_sees_whole_images(sizes, tmp_path):
  """The statistics are those of an image, not of the region that is cut."""
  shapes = [(90, 80), (70, 100)][:sizes] * 2
  labels = [np.arange(h * w).reshape(h, w) // 7 % 2 for h, w in shapes]
  images = [
    np.uint8(50 + 40 * label + RNG.integers(0, 40, label.shape))
    for label in labels
  ]
  for image in images:
    image[:30] //= 2
  losses = losses_of(tmp_path / 'a', images, labels)
  assert len(losses) == 4
  # Each image has a scale and a brightness of its own now.
  others = [np.uint16(x) * (i + 2) + 900 * i for i, x in enumerate(images)]
  np.testing.assert_allclose(
    losses_of(tmp_path / 'b', others, labels), losses, atol=1e-4
  )
  plain = [x.astype(np.float32) for x in images]
  plain[0][:30] += 100  # Changes the statistics of the rest of the image, too.
  changed = losses_of(tmp_path / 'c', plain, labels)
  assert not np.allclose(changed, losses, atol=1e-3)


def test_weights_say_so():
  config = network_of_images().config
  assert metadata(config)['pixels'] == files.PER_IMAGE
  config.preprocessing.per_image = False
  assert metadata(config)['pixels'] in files.PIXELS


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'measured': ('mean',)}, 'each image is measured by itself'),
    ({'dtype': 'uint8'}, 'each image is measured by itself'),
    ({}, r'^(preprocessing\.)?per_image=True with limits=\(\).*\(-2.0, 2.0\)'),
  ],
)
def test_what_contradicts_it_or_lacks_is_refused(fields, message):
  with pytest.raises(InputError, match=message):
    PreprocessingSettings(0.5, 0.25, (), per_image=True, **fields)
  config = tiny_config()
  with config.ignore_type():
    config.preprocessing.update(per_image=True, **fields)
  with pytest.raises(InputError, match=message):
    create_experiment(config)


def test_the_limits_that_the_message_names_give_the_deviations_themselves():
  image = np.random.default_rng(0).normal(7, 3, (9, 11, 2)).astype(np.float32)
  found = np.asarray(SETTINGS.prepare(SETTINGS.by_image(image)))
  expected = (image - image.mean((0, 1))) / image.std((0, 1))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_refinement_of_it_predicts():
  model, params, config = network_of_images()
  image = np.random.default_rng(0).integers(0, 99, (20, 24, 1), np.uint8)
  refined = predict_stored(
    model, params, image, SETTINGS, refinement=Refinement(iterations=1)
  )
  assert refined.shape == (20, 24, 2)
