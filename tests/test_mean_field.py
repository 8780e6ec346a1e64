# SPDX-License-Identifier: Apache-2.0
"""The CRF as a layer of an FCN: what it computes, learns and takes of tiles."""

import dataclasses

import fcn_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_unets import image_of, streamed

from segjax.crf import Refinement, refine
from segjax.errors import InputError
from segjax.models.fcn import FCN32s
from segjax.models.mean_field import MeanField

HEADS = (('sem', 3), ('geo', 2))


def fcn(**fields):
  return FCN32s(
    **fcn_nets.NARROW | {'heads': HEADS, 'num_classes': 5},
    padding='same',
    **fields,
  )


MODEL = fcn(crf_iterations=2, crf_radius_px=2, crf_intensity_width=0.8)


def random_params():
  params = fcn_nets.random_params(fcn())
  variables = jax.jit(MODEL.init)(jax.random.key(0), np.zeros((1, 8, 8, 3)))
  crfs = {name: variables['params'][name] for name in ('crf_sem', 'crf_geo')}
  moved = jax.tree.map(
    lambda x: x + 0.003 * np.arange(x.size).reshape(x.shape), crfs
  )
  return params | moved


def test_before_training_it_is_refine():
  start = Refinement(iterations=2, radius_px=2, intensity_width=0.8)
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(2, 9, 8, 3)).astype(np.float32)
  image = rng.normal(size=(2, 9, 8, 1)).astype(np.float32)
  layer = MeanField(start)
  variables = layer.init(jax.random.key(0), scores, image)
  actual = layer.apply(variables, scores, image)
  for i in range(2):
    expected = refine(scores[i], image[i], start)
    np.testing.assert_allclose(
      jax.nn.softmax(actual[i]), jax.nn.softmax(expected), atol=1e-5
    )
  learned = variables['params']
  learned['log_appearance_weight'] += jnp.log(2.0) / 30
  learned['compatibility'] = (1 - jnp.eye(3)) / 30
  twice = layer.apply(variables, scores, image)
  twofold = dataclasses.replace(
    start, appearance_weight=8.0, compatibility=2 * (1 - np.eye(3))
  )
  np.testing.assert_allclose(
    jax.nn.softmax(twice[0]),
    jax.nn.softmax(refine(scores[0], image[0], twofold)),
    atol=1e-5,
  )


def test_every_parameter_learns():
  params, image = random_params(), image_of(20, 23, 3)

  def loss(params):
    logits = MODEL.apply({'params': params}, image[None])
    sem, geo = logits[..., :3], logits[..., 3:]
    return jnp.var(jax.nn.softmax(sem)) + jnp.var(jax.nn.softmax(geo))

  slopes = jax.jit(jax.grad(loss))(params)
  assert {*slopes['crf_sem']} == {
    *('log_appearance_weight', 'log_appearance_width_px'),
    *('log_intensity_width', 'log_smoothness_weight'),
    *('log_smoothness_width_px', 'compatibility'),
  }
  for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
    assert np.isfinite(slope).all() and np.any(slope), path


def test_tiles_and_padded_images_are_the_whole_image():
  params = {'params': random_params()}
  apply = jax.jit(MODEL.apply)
  tile = MODEL.geometry.tile_size(40)
  assert MODEL.geometry.margin > fcn().geometry.margin - 1
  image = image_of(40, tile + 65, 3)
  expected = np.asarray(apply(params, image[None])[0])
  actual = streamed(image, MODEL, params, tile_size=tile, activation='logits')
  assert np.abs(actual - expected).max() < 1e-5 * np.ptp(expected)
  plain = jax.jit(fcn().apply)(params, image[None])[0]
  assert np.abs(plain - expected).max() > 0.1
  padded = np.pad(image, [(0, 5), (0, 9), (0, 0)], constant_values=7)
  size = np.array([image.shape[:2]], np.int32)
  alone = apply(params, padded[None], size=size)[0, :40, : tile + 65]
  assert np.abs(alone - expected).max() < 1e-5 * np.ptp(expected)


def test_the_margin_has_the_reach_of_the_crf():
  wide = fcn(crf_iterations=10, crf_radius_px=10).geometry.margin
  assert wide - fcn().geometry.margin in (96, 128)


@pytest.mark.parametrize(
  ('field', 'value'),
  [('iterations', -1), ('radius_px', 0), ('intensity_width', 0.0)],
)
def test_settings_out_of_range_are_refused(field, value):
  with pytest.raises(InputError, match=f'crf_{field}={value} must be'):
    _ = fcn(**{f'crf_{field}': value}).geometry
