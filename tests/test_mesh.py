# SPDX-License-Identifier: Apache-2.0
"""Images split over devices by rows: the numbers of one device, less memory."""

import functools

import jax
import numpy as np
import pytest
from commands import tiny_config

from segjax import steps, train
from segjax.data.augment import Augmentation
from segjax.devices import parallel
from segjax.errors import InputError
from segjax.models.fcn import FCN8s
from segjax.models.unet import UNet
from segjax.optimizers import create_optimizer, create_schedule
from segjax.settings.sections import PreprocessingSettings
from segjax.tiling.settings import TileSettings
from segjax.tiling.windows import predict_image

UNET = UNet(base_width=4, depth=1)
NORMALISED = UNET.clone(norm='batch')
FCN = FCN8s(num_classes=2, width=1 / 64, fc_features=4, padding='same')
SCHEDULE = create_schedule('constant', 0.05, 0, 100)
OPTIMIZER = create_optimizer('sgd', SCHEDULE, 0.9, 1e-4, 0.0)
STILL = dict(elastic_sigma_px=0.0, rotation_deg=0.0, flip=False, shift_px=0.0)
# No number of rows is a multiple of four, here or in most layers.
CASES = {
  'unet': (UNET, 50, Augmentation(**STILL | {'elastic_sigma_px': 3.0})),
  'unet_norm': (NORMALISED, 50, Augmentation(**STILL)),
  'fcn': (FCN, 0, Augmentation(**STILL)),
}
SIZE = 53
init_params = jax.jit(steps.init_params, static_argnums=0)


def make_step(case, axis_name=None, split_rows=lambda x: x):
  model, tile_size, augmentation = CASES[case]
  return steps.make_train_step(
    model,
    OPTIMIZER,
    SCHEDULE,
    preprocessing=PreprocessingSettings(0.5, 0.2, ()),
    tile_size=tile_size,
    augmentation=augmentation,
    ignore_label=255,
    reduction='mean',
    axis_name=axis_name,
    split_rows=split_rows,
  )


def batch_of(model):
  rng = np.random.default_rng(0)
  label = rng.integers(0, 2, (2, SIZE, SIZE)).astype(np.int32)
  noise = rng.integers(0, 128, (*label.shape, model.in_channels))
  image = (noise + 100 * label[..., None]).astype(np.uint8)
  batch = {'image': image, 'label': label}
  if model is FCN:
    batch['size'] = np.array([[SIZE, SIZE], [SIZE - 9, SIZE - 20]], np.int32)
  return batch


@pytest.mark.parametrize('case', CASES)
def test_two_by_four_devices_train_as_one(case):
  model = CASES[case][0]
  batch = batch_of(model)
  init = jax.jit(steps.init_state, static_argnums=(0, 1))
  start = init(model, OPTIMIZER, 0)
  # On the host: the step takes the state's arrays for its own.
  start = jax.tree.map(np.asarray, start.replace(params=varied(start.params)))
  one = jax.jit(make_step(case)).lower(start, batch).compile()
  run = parallel.parallelize(
    functools.partial(make_step, case), 'jit', 2, space=4
  )
  state, expected = run.put_state(start), start
  compiled = run.step.lower(state, run.put_batch(batch)).compile()
  for _ in range(2):
    state, metrics = compiled(state, run.put_batch(batch))
    expected, expected_metrics = one(expected, batch)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, expected)
  assert max(jax.tree.leaves(moved.params)) > 1e-4  # Ten times the bound.
  for a, b in zip(
    jax.tree.leaves((state.params, metrics)),
    jax.tree.leaves((expected.params, expected_metrics)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)
  # An eighth of the images, and the rows around each part, which weigh here.
  # Of one image in two, whole, it would be half.
  memory = [
    each.memory_analysis().temp_size_in_bytes for each in (compiled, one)
  ]
  assert memory[0] < 0.45 * memory[1]
  assert 'collective-permute' in compiled.as_text()  # Rows of neighbours.


@pytest.mark.parametrize('bucket_px', [0, 16])
def test_an_fcn_predicts_as_on_one_device(bucket_px):
  params = varied(init_params(FCN, jax.random.key(0)))
  image = np.random.default_rng(1).normal(size=(SIZE, 40, 3))
  image = image.astype(np.float32)

  def predict(**devices):
    settings = TileSettings(bucket_px=bucket_px, activation='logits', **devices)
    return predict_image(FCN, params, image, settings)

  expected = predict()
  assert np.ptp(expected) > 0.1
  np.testing.assert_allclose(predict(space=4), expected, atol=1e-5)


def test_a_unet_predicts_as_on_one_device():
  params = init_params(UNET, jax.random.key(0))
  image = np.random.default_rng(1).normal(size=(SIZE, 40, 1))
  image = image.astype(np.float32)

  def predict(**devices):
    settings = TileSettings(activation='logits', max_tile_size_px=48, **devices)
    return predict_image(UNET, params, image, settings)

  expected = predict()
  assert np.ptp(expected) > 0.1
  np.testing.assert_allclose(predict(space=4), expected, atol=1e-5)
  # Where there are too few devices, one of them does it.
  np.testing.assert_array_equal(predict(space=9), expected)
  with pytest.raises(InputError, match='space=0'):
    predict(space=0)


def varied(params):
  """Parameters without zeros, so that scores depend on every layer."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x if np.any(x) else rng.normal(0, 0.1, x.shape).astype('f'),
    params,
  )


def test_a_run_splits_its_tiles(tmp_path):
  config = tiny_config()
  config.batch_size = 2
  config.num_train_steps = 2
  config.mesh = dict(space=4)
  scores = train.train_and_evaluate(config, tmp_path)
  assert all(np.isfinite(value) for value in scores.values())


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(space=3), r'mesh\.space=3 does not divide the 8 devices'),
    (dict(space=2), r'batch_size=2 is not divisible by the 4 groups'),
    (dict(mode='pmap', space=4), r"parallel='jit' only"),
  ],
)
def test_another_mesh_is_refused(settings, message):
  with pytest.raises(InputError, match=message):
    parallel.parallelize(make_step, **{'mode': 'jit'} | settings, batch_size=2)
