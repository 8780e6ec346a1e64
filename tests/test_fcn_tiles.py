# SPDX-License-Identifier: Apache-2.0
"""FCNs by tiles against whole passes."""

import fcn_nets
import jax
import numpy as np
import pytest
from random_unets import image_of, streamed

from segjax.models.fcn import FCN8s, FCN32s
from segjax.turns import restored, turned


@pytest.mark.parametrize('create', [FCN8s, FCN32s], ids=['8', '32'])
@pytest.mark.parametrize('padding', ['pad100', 'same'])
def test_fcn_tiles_equal_the_whole_pass(create, padding):
  model = create(**fcn_nets.NARROW, padding=padding)
  params = {'params': fcn_nets.random_params(model)}
  tile = 2 * model.geometry.margin + 96
  image = image_of(130, tile + 201, 3)
  options = dict(head_sizes=model.head_sizes, activation='logits')
  actual = streamed(image, model, params, tile_size=tile, **options)
  expected = np.asarray(jax.jit(model.apply)(params, image[None])[0])
  difference = np.abs(actual - expected).max() / np.ptp(expected)
  assert difference < 1e-5, difference


def test_fcn_averages_by_tiles():
  model = FCN32s(**fcn_nets.NARROW, padding='same')
  params = {'params': fcn_nets.random_params(model)}
  tile = 2 * model.geometry.margin + 64
  image = image_of(40, tile + 77, 3)
  options = dict(head_sizes=model.head_sizes, activation='logits')
  transforms = [(0, False), (2, False), (0, True)]
  actual = streamed(
    image,
    model,
    params,
    tile_size=tile,
    average=transforms,
    **options,
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
