# SPDX-License-Identifier: Apache-2.0
"""The network's published sizes and parameter counts, and its wiring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import InputError
from segjax.models.unet import UNet, UNet2015


def shapes(model, size=572):
  image = jnp.zeros((1, size, size, model.in_channels))
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return variables, jax.eval_shape(model.apply, variables, image).shape


def num_params(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  'model, count',
  [
    (UNet(), 31_030_658),
    (UNet(in_channels=3), 31_031_810),
    (UNet(num_classes=1), 31_030_593),
    (UNet2015(), 31_100_354),
  ],
)
@pytest.mark.smoke
def test_published_sizes(model, count):
  variables, shape = shapes(model)
  assert num_params(variables) == count
  assert shape == (1, 388, 388, model.num_classes)


def test_the_paper_has_23_convolutional_layers():
  variables, _ = shapes(UNet())
  kernels = [x for x in jax.tree.leaves(variables) if x.ndim == 4]
  assert len(kernels) == 23


@pytest.mark.parametrize('model', [UNet, UNet2015])
@pytest.mark.parametrize('padding', ['VALID', 'SAME'])
def test_every_parameter_carries_gradient(model, padding):
  model = model(base_width=8, depth=2, padding=padding)
  image = jax.random.normal(jax.random.key(0), (1, 44, 44, 1))
  params = model.init(jax.random.key(1), image)
  # Positive biases, so that no ReLU of this narrow net is dead.
  params = jax.tree.map(lambda x: x + 0.1 if x.ndim == 1 else x, params)
  gradient = jax.jit(
    jax.grad(lambda p: jnp.sum(model.apply(p, image)[..., 0] ** 2))
  )(params)
  for path, leaf in jax.tree.leaves_with_path(gradient):
    assert np.any(leaf != 0), jax.tree_util.keystr(path)


@pytest.mark.smoke
def test_each_skip_reaches_the_output():
  # With the way through the up-convolution cut, only the skip is left.
  model = UNet(base_width=4, depth=3)
  size = model.geometry.input_size(1)
  images = jax.random.normal(jax.random.key(0), (2, size, size, 1))
  params = model.init(jax.random.key(1), images)['params']
  for level in range(3):
    cut = jax.tree.map(lambda x: x, params)
    cut[f'up{level}']['upconv'] = jax.tree.map(
      jnp.zeros_like, params[f'up{level}']['upconv']
    )
    logits = model.apply({'params': cut}, images)
    assert not np.allclose(logits[0], logits[1]), level


def test_concatenation_order():
  image = jax.random.normal(jax.random.key(0), (1, 18, 18, 1))
  first = UNet(base_width=4, depth=1)
  second = UNet(base_width=4, depth=1, skip_first=False)
  params = first.init(jax.random.key(1), image)['params']
  swapped = jax.tree.map(lambda x: x, params)
  swapped['up0']['conv0']['kernel'] = jnp.roll(
    params['up0']['conv0']['kernel'], 4, axis=2
  )
  np.testing.assert_allclose(
    first.apply({'params': params}, image),
    second.apply({'params': swapped}, image),
    atol=1e-6,
  )


def test_dropout_acts_in_training_only_and_on_the_deepest_skip():
  model = UNet(base_width=4, depth=2)
  image = jax.random.normal(jax.random.key(0), (1, 44, 44, 1))
  variables = model.init(jax.random.key(1), image)

  def train(key, model=model):
    return model.apply(
      variables, image, train=True, rngs={'dropout': jax.random.key(key)}
    )

  assert not np.allclose(train(0), train(1))
  np.testing.assert_array_equal(train(0), train(0))
  np.testing.assert_array_equal(
    train(0, model.clone(dropout_rate=0.0)), model.apply(variables, image)
  )
  # Nothing arrives from the bottleneck, so what differs came by the skip.
  cut = variables['params']
  cut['up1']['upconv'] = jax.tree.map(jnp.zeros_like, cut['up1']['upconv'])
  assert not np.allclose(train(0), train(1))
  only_bottleneck = model.clone(dropout_blocks=(-1,))
  np.testing.assert_array_equal(
    train(0, only_bottleneck), train(1, only_bottleneck)
  )


def test_bfloat16_computes_but_does_not_store():
  model = UNet(base_width=4, depth=2, dtype=jnp.bfloat16)
  image = jax.random.normal(jax.random.key(0), (1, 44, 44, 1))
  variables = model.init(jax.random.key(1), image)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype('float32')}
  logits = model.apply(variables, image)
  assert logits.dtype == jnp.float32
  exact = model.clone(dtype=jnp.float32).apply(variables, image)
  assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize('size', [571, 573, 187, 16])
def test_inadmissible_sizes_are_refused(size):
  with pytest.raises(InputError, match='nearest'):
    shapes(UNet(), size)


def test_channels_are_checked():
  with pytest.raises(InputError, match='in_channels=1'):
    UNet(depth=1).init(jax.random.key(0), jnp.zeros((1, 18, 18, 3)))
