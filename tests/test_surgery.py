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


def score_tree():
  rng = np.random.default_rng(3)
  return {
    'fc7': random_layer(rng, 1, 1, 2, 4),
    'score_fr': random_layer(rng, 1, 1, 4, 3),
    'score_pool4': random_layer(rng, 1, 1, 2, 3),
  }


def test_new_classes_start_at_zero_and_kept_ones_stay(caplog):
  params = score_tree()
  x = np.random.default_rng(4).normal(size=(3, 3, 2)).astype(np.float32)
  before = convolve({n: params[n] for n in ('fc7', 'score_fr')}, x)

  changed = surgery.change_classes(params, 5, num_kept=2)
  after = convolve({n: changed[n] for n in ('fc7', 'score_fr')}, x)
  np.testing.assert_array_equal(after[..., :2], before[..., :2])
  assert after.shape == (3, 3, 5)
  assert not after[..., 2:].any()
  assert changed['score_pool4']['kernel'].shape == (1, 1, 2, 5)
  assert changed['fc7'] is params['fc7']
  assert params['score_fr']['kernel'].shape == (1, 1, 4, 3)
  assert 'score_fr: 3 classes become 5' in caplog.text
  assert 'score_pool4: 3 classes become 5' in caplog.text

  fresh = surgery.change_classes(params, 2)
  assert not convolve({n: fresh[n] for n in ('fc7', 'score_fr')}, x).any()


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ({'num_classes': 0}, 'num_classes=0'),
    ({'num_classes': 5, 'num_kept': 4}, 'cannot keep 4 of 3'),
    ({'num_classes': 2, 'num_kept': 3}, 'cannot keep 3 of 3 classes in 2'),
    ({'num_classes': 2, 'layers': ('fc8',)}, 'no layer fc8'),
  ],
)
def test_change_classes_refuses(arguments, expected):
  with pytest.raises(InputError) as caught:
    surgery.change_classes(score_tree(), **arguments)
  assert expected in str(caught.value)
