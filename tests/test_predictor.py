# SPDX-License-Identifier: Apache-2.0
"""Images of any size, taken whole: buckets, heads, turns and flips."""

import functools

import fcn_nets
import jax
import numpy as np
import pytest

from segjax.contracts import FunctionModel
from segjax.errors import InputError
from segjax.models.fcn import FCN8s
from segjax.tiling import programs
from segjax.tiling.settings import TileSettings
from segjax.tiling.windows import predict_image

MODEL = FCN8s(**fcn_nets.NARROW, padding='same')
SIZES = ((5, 9), (16, 16), (1, 1), (12, 3))


@pytest.fixture(scope='module')
def params():
  return fcn_nets.random_params(MODEL)


def image_of(height, width, seed=0):
  shape = (height, width, 3)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def predict(model, params, image, **settings):
  return predict_image(model, params, image, TileSettings(**settings))


def test_buckets_change_nothing_and_bound_the_programs(params):
  compiled = programs.compiled_forward()
  before = compiled._cache_size()
  whole = functools.partial(predict, MODEL, params, activation='logits')
  images = [image_of(*size, seed=i) for i, size in enumerate(SIZES)]
  padded = [whole(image, bucket_px=16) for image in images]
  assert compiled._cache_size() == before + 1
  for image, got in zip(images[:2], padded, strict=False):
    native = whole(image)
    assert native.shape == (*image.shape[:2], 4)
    difference = np.abs(got - native).max() / np.ptp(native)
    assert difference < 1e-5, difference
  assert compiled._cache_size() == before + 3
  assert [p.shape for p in padded] == [(*size, 4) for size in SIZES]


def fake(variables, image, size=None):
  """Logits that tell left from right: K = 3 channels of f32[1, H, W, 1]."""
  del size
  width = image.shape[2]
  columns = np.arange(width, dtype=np.float32).reshape(1, 1, width, 1)
  factors = np.float32([1, 2, -1]).reshape(1, 1, 1, 3)
  shifts = np.float32([0, 1, 0]).reshape(1, 1, 1, 3)
  return variables['params'] * image * factors + columns * shifts


def fake_model(*head_sizes):
  return FunctionModel(fake, MODEL.geometry, 1, head_sizes)


def test_average_is_that_of_the_turned_back():
  image = image_of(3, 5)[..., :1]
  got = predict(fake_model(3), 2.0, image, activation='logits', average=True)
  want = np.zeros((3, 5, 3))
  for turns in range(4):
    for flip in (False, True):
      seen = np.rot90(image[:, ::-1] if flip else image, turns)
      logits = np.rot90(
        np.asarray(fake({'params': 2.0}, seen[None])[0]), -turns
      )
      want += logits[:, ::-1] if flip else logits
  np.testing.assert_allclose(got, want / 8, rtol=1e-5, atol=1e-5)


def test_probabilities_are_of_each_head():
  image = image_of(2, 4)[..., :1]
  got = predict(fake_model(2, 1), 1.0, image)
  logits = np.asarray(fake({'params': 1.0}, image[None])[0])
  first = np.exp(logits[..., :2])
  first /= first.sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(got[..., :2], first, rtol=1e-5)
  np.testing.assert_array_equal(got[..., 2], 1)
  one = predict(fake_model(3), 1.0, image)
  np.testing.assert_allclose(one, jax.nn.softmax(logits), rtol=1e-5)


def test_bad_arguments_are_refused(params):
  whole = functools.partial(predict, fake_model(3), 1.0)
  good = image_of(2, 3)[..., :1]
  for image, changes, message in (
    (good[..., 0], {}, r'not \[H, W, C\]'),
    (np.full_like(good, np.nan), {}, '6 pixels that are NaN'),
    (good, {'activation': 'labels'}, "'labels' is not one of"),
    (good, {'average': ()}, 'no transforms'),
  ):
    with pytest.raises(InputError, match=message):
      whole(image, **changes)
  with pytest.raises(InputError, match='at least 1 x 1'):
    predict(MODEL, params, image_of(0, 3))


def test_an_image_beyond_the_limit_is_taken_by_tiles(params):
  """To the logits that it has whole."""
  side = MODEL.geometry.tile_size(32)
  image = image_of(5, side + 70)
  whole = predict(MODEL, params, image, activation='logits')
  tiles = predict(
    MODEL, params, image, activation='logits', max_tile_size_px=side + 5
  )
  np.testing.assert_allclose(tiles, whole, atol=1e-5 * np.ptp(whole))
  assert np.ptp(whole[:, -70:]) > 0.01
