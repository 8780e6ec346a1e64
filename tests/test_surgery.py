# SPDX-License-Identifier: Apache-2.0
"""Tests of the surgery on parameter trees."""

import jax
import numpy as np
import pytest

from segjax.errors import InputError
from segjax.weights import surgery


def random_layer(rng, *shape):
  return {
    'kernel': rng.normal(size=shape).astype(np.float32),
    'bias': rng.normal(size=shape[-1]).astype(np.float32),
  }


def convolve(params, x):
  """The layers of `params` in turn on [H, W, C], without padding."""
  x = x[None]
  for layer in params.values():
    x = jax.lax.conv_general_dilated(
      x,
      layer['kernel'],
      window_strides=(1, 1),
      padding='VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    x = x + layer['bias'].reshape(1, 1, 1, -1)
  return np.asarray(x[0])


@pytest.mark.parametrize('order', ['HWC', 'CHW'])
def test_each_cell_is_the_classifier_on_its_window(order):
  rng = np.random.default_rng(0)
  params = {
    'fc6': random_layer(rng, 2 * 3 * 4, 5),
    'fc7': random_layer(rng, 5, 6),
  }
  features = rng.normal(size=(4, 5, 4)).astype(np.float32)
  dense = convolve(
    surgery.fc_to_conv(params, {'fc6': (2, 3), 'fc7': (1, 1)}, order), features
  )
  assert dense.shape == (3, 3, 6)
  for i, j in np.ndindex(3, 3):
    x = features[i : i + 2, j : j + 3]
    x = x if order == 'HWC' else x.transpose(2, 0, 1)
    x = x.ravel()
    for layer in params.values():
      x = x @ layer['kernel'] + layer['bias']
    np.testing.assert_allclose(dense[i, j], x, rtol=1e-4, atol=1e-4)


def test_fc_to_conv():
  rng = np.random.default_rng(1)
  params = {
    'conv': random_layer(rng, 3, 3, 1, 2),
    'fc6': random_layer(rng, 8, 3),
  }
  conv = surgery.fc_to_conv(params, {'fc6': (2, 2)})
  assert params['fc6']['kernel'].shape == (8, 3)
  assert conv['conv'] is params['conv']
  assert conv['fc6']['bias'] is params['fc6']['bias']
  # Row (h W + w) C + c of the matrix.
  assert conv['fc6']['kernel'][1, 0, 1, 2] == params['fc6']['kernel'][5, 2]


@pytest.mark.parametrize(
  ('windows', 'order', 'expected'),
  [
    ({'fc9': (1, 1)}, 'HWC', "no layer 'fc9' among conv, fc6"),
    ({'fc6': (3, 3)}, 'HWC', r'fc6: kernel [8, 3] is no matrix'),
    ({'conv': (1, 1)}, 'HWC', r'conv: kernel [3, 3, 1, 2] is no matrix'),
    ({'fc6': (2, 2)}, 'WHC', "order 'WHC' is not"),
  ],
)
def test_fc_to_conv_refuses(windows, order, expected):
  rng = np.random.default_rng(2)
  params = {
    'conv': random_layer(rng, 3, 3, 1, 2),
    'fc6': random_layer(rng, 8, 3),
  }
  with pytest.raises(InputError) as caught:
    surgery.fc_to_conv(params, windows, order)
  assert expected in str(caught.value)
