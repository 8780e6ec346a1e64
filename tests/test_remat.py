# SPDX-License-Identifier: Apache-2.0
"""Blocks computed again for the gradient: the same numbers, more work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from narrow_nets import normal

from segjax.models.fcn import FCN8s, FCN32s
from segjax.models.unet import UNet

NARROW = dict(num_classes=3, width=1 / 64, fc_features=4, padding='same')
NETS = {
  'unet': functools.partial(UNet, base_width=4, depth=1, dropout_blocks=(0,)),
  'unet_norm': functools.partial(UNet, base_width=4, depth=1, norm='batch'),
  'fcn8s': functools.partial(FCN8s, **NARROW),
  'streams': functools.partial(
    FCN32s, streams=('a', 'b'), in_channels=6, **NARROW
  ),
}


def lowered(name, remat):
  """Loss and gradient of a net, not compiled, and what they take."""
  model = NETS[name](remat=remat)
  image = normal(2, 36, 36, model.in_channels)
  size = (
    {} if name.startswith('unet') else {'size': jnp.array([[36, 36], [30, 25]])}
  )
  params = jax.jit(model.init)(jax.random.key(0), image)
  # Scores begin at zero, which no gradient gets past.
  params = jax.tree.map(lambda x: x if x.any() else x + 0.1, params)

  def loss(params):
    rngs = {'dropout': jax.random.key(1)}
    logits = model.apply(params, image, train=True, rngs=rngs, **size)
    return jnp.mean(jnp.square(logits - 1))

  return jax.jit(jax.value_and_grad(loss)).lower(params), params


@pytest.mark.parametrize('name', NETS)
def test_the_same_numbers_for_more_work(name):
  (plain, params), (remat, again) = (lowered(name, x) for x in (False, True))
  assert jax.tree.structure(params) == jax.tree.structure(again)
  (loss, gradient), (other_loss, other) = (
    program.compile()(params) for program in (plain, remat)
  )
  assert loss > 0.1
  np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
  for a, b in zip(*map(jax.tree.leaves, (gradient, other)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(a).max())
  # Nets this narrow have dead layers.
  assert np.mean([np.any(x) for x in jax.tree.leaves(gradient)]) > 0.5
  # A forward pass is a third of a step, and almost all of it is repeated.
  flops = [x.cost_analysis()['flops'] for x in (plain, remat)]
  assert 1.2 < flops[1] / flops[0] < 1.4
