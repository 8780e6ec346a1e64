# SPDX-License-Identifier: Apache-2.0
"""Pixels whose limits, mean and deviation come from the training images."""

import numpy as np
import pytest
from commands import tiny_config

from segjax.data.preprocessing import measure_pixels
from segjax.errors import InputError
from segjax.experiment import create_experiment
from segjax.settings.sections import PreprocessingSettings

RNG = np.random.default_rng(0)
LABELS = np.zeros((8, 48, 48), np.int32)
LABELS[:, 10:30, 8:40] = 1
EIGHT_BITS = np.uint8(40 + 60 * LABELS + RNG.integers(0, 50, LABELS.shape))


def examples_of(images):
  return [
    {'image': image, 'label': label, 'name': str(i)}
    for i, (image, label) in enumerate(zip(images, LABELS, strict=True))
  ]


def test_what_is_measured_is_what_numpy_says():
  images = RNG.normal(500, 60, (5, 60, 70, 2)).astype(np.float32)
  images[..., 1] *= 3
  found = measure_pixels(examples_of(np.resize(images, (8, 60, 70, 2))))
  low, high = np.percentile(images, (0.1, 99.9), axis=(0, 1, 2))
  np.testing.assert_allclose(found['limits'], (low, high), rtol=0.05)
  settings = PreprocessingSettings(channels=(), **found)
  prepared = np.asarray(settings.prepare(images))
  np.testing.assert_allclose(prepared.mean((0, 1, 2)), 0, atol=0.05)
  np.testing.assert_allclose(prepared.std((0, 1, 2)), 1, atol=0.05)


def test_a_constant_channel_is_no_division_by_zero():
  images = np.full((8, 48, 48, 1), 7, np.uint8)
  found = measure_pixels(examples_of(images))
  prepared = PreprocessingSettings(channels=(), **found).prepare(images)
  np.testing.assert_allclose(prepared, 0, atol=1e-5)


def losses_of(images, num_steps=100):
  images = images[..., None]
  config = tiny_config()
  config.batch_size = 8
  with config.ignore_type():
    config.preprocessing.update(measure_pixels(examples_of(images)))
  _, init, devices, _ = create_experiment(config)
  state = devices.put_state(init())
  batch = {
    'image': images,
    'label': LABELS,
    'weight': np.ones(LABELS.shape, np.float32),
  }
  losses = []
  for _ in range(num_steps):
    state, metrics = devices.step(state, devices.put_batch(batch))
    losses.append(float(devices.get(metrics)['loss']))
  return losses


def test_12_bits_in_16_train_as_their_8_bit_copy_does():
  """Gray values vary in units of what occurs, not of what 16 bits can hold."""
  assert tiny_config().augmentation.white > 0
  eight = losses_of(EIGHT_BITS)
  twelve = losses_of(np.uint16(EIGHT_BITS) * 16)
  np.testing.assert_allclose(twelve, eight, atol=1e-3)
  assert np.ptp(eight) > 0.05  # They are trained at all.


def test_images_of_another_type_are_refused():
  settings = PreprocessingSettings(0.5, 0.2, (), (0.1, 0.4), 'uint16')
  settings.check_dtype(np.dtype(np.uint16), 'a.tif')
  with pytest.raises(InputError, match='a.tif: pixels of uint8; .* on uint16'):
    settings.check_dtype(np.dtype(np.uint8), 'a.tif')


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'limits': (0.5,)}, r'limits=\(0.5,\); expected \(low, high\)'),
    ({'limits': (0.5, 0.5)}, 'low < high'),
    ({'limits': ((0, 1), (1, 1))}, 'low < high'),
    ({'measured': ('range',)}, "measured=.* has 'range'; expected 'limits'"),
  ],
)
def test_limits_that_mean_nothing_are_refused(fields, message):
  with pytest.raises(InputError, match=message):
    PreprocessingSettings(0.5, 0.2, (), **fields)


def test_limits_for_other_channels_are_refused():
  settings = PreprocessingSettings(0.5, 0.2, (), ((0.0, 0.0), (1.0, 0.5)))
  settings.check_channels(2)
  with pytest.raises(InputError, match='expected 1 or 3 numbers'):
    settings.check_channels(3)
