# SPDX-License-Identifier: Apache-2.0
"""FCNs by tiles against whole passes."""

import fcn_nets
import jax
import numpy as np
import pytest
from random_unets import image_of, streamed

from segjax.models.fcn import FCN8s, FCN16s, FCN32s, FCNAlexNet, FCNGoogLeNet
from segjax.tiling.turns import restored, turned


@pytest.mark.parametrize(
  ('create', 'padding'),
  [
    (FCN8s, 'pad100'),
    (FCN8s, 'same'),
    (FCN16s, 'same'),
    (FCN32s, 'pad100'),
    (FCN32s, 'same'),
    (FCNAlexNet, 'pad100'),
    (FCNGoogLeNet, 'same'),
  ],
  ids=['8', '8 same', '16', '32', '32 same', 'alex', 'google'],
)
def test_fcn_tiles_equal_the_whole_pass(create, padding):
  narrow = dict(fcn_nets.NARROW)
  if create is FCNGoogLeNet:
    del narrow['fc_features']
  model = create(**narrow, padding=padding)
  params = {'params': fcn_nets.random_params(model)}
  tile = 2 * model.geometry.margin + 96
  image = image_of(130, tile + 201, 3)
  actual = streamed(image, model, params, tile_size=tile, activation='logits')
  expected = np.asarray(jax.jit(model.apply)(params, image[None])[0])
  difference = np.abs(actual - expected).max() / np.ptp(expected)
  assert difference < 1e-5, difference


def test_fcn_averages_by_tiles():
  model = FCN32s(**fcn_nets.NARROW, padding='same')
  params = {'params': fcn_nets.random_params(model)}
  tile = 2 * model.geometry.margin + 64
  image = image_of(40, tile + 77, 3)
  transforms = [(0, False), (2, False), (0, True)]
  actual = streamed(
    image,
    model,
    params,
    tile_size=tile,
    average=transforms,
    activation='logits',
  )
  apply = jax.jit(model.apply)
  expected = np.mean(
    [
      restored(np.asarray(apply(params, turned(image, *t)[None])[0]), *t)
      for t in transforms
    ],
    axis=0,
  )
  assert np.abs(actual - expected).max() < 1e-5 * np.ptp(expected)
