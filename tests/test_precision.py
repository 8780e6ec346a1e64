# SPDX-License-Identifier: Apache-2.0
"""The precision of every product of a network, forwards and backwards."""

import jax
import numpy as np
import pytest
from random_unets import random_variables

from segjax.errors import InputError
from segjax.models import convolution, create_model, layers, make_model

NETWORKS = {
  'unet': dict(depth=1, base_width=2, dropout_rate=0.0),
  'unet_2015': dict(depth=1, base_width=2, norm='batch', dropout_rate=0.0),
  'unet_vgg16': dict(width=1 / 64, dropout_rate=0.0),
  'fcn8s': dict(width=1 / 64, fc_features=2, learned=('upscore2',)),
  'fcn_googlenet': dict(width=1 / 64),
}


def products(jaxpr):
  """Yields the equations of products of a jaxpr and of those in it."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('conv_general_dilated', 'dot_general'):
      yield equation
    for value in jax.tree.leaves(
      equation.params, is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from products(inner)


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('precision', layers.PRECISIONS)
def test_every_product_has_the_precision(name, precision, monkeypatch):
  # As on a GPU; those of a CPU are in float32 whatever this says.
  def plain(x, *args, cpu, default):
    return default(x, *args)

  monkeypatch.setattr(convolution, 'by_backend', plain)
  monkeypatch.setattr(layers, 'by_backend', plain)
  model = make_model(name, precision=precision, **NETWORKS[name])
  side = model.geometry.input_size(1)
  image = np.zeros((1, side, side, model.in_channels), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']

  def loss(params, image):
    return model.apply({'params': params}, image).sum()

  jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(shapes, image)
  found = [equation.params['precision'] for equation in products(jaxpr.jaxpr)]
  wanted = None
  if precision != 'default':
    wanted = (jax.lax.Precision[precision.upper()],) * 2
  # The interpolation of FCN is exact whatever is asked for.
  exact = (jax.lax.Precision.HIGHEST,) * 2
  assert wanted in found and {*found} <= {wanted, exact}
  assert found.count(wanted) > 10


def test_default_leaves_it_to_the_variable_of_jax():
  model = make_model('unet', depth=0, base_width=2, dropout_blocks=())
  image = np.zeros((1, 8, 8, 1), np.float32)
  variables = random_variables(model)
  with jax.default_matmul_precision('highest'):
    jaxpr = jax.make_jaxpr(model.apply)(variables, image)
  found = {equation.params['precision'] for equation in products(jaxpr.jaxpr)}
  assert found == {(jax.lax.Precision.HIGHEST,) * 2}


def test_another_precision_is_refused():
  with pytest.raises(InputError, match="model.precision='exact' is not one of"):
    create_model({'name': 'unet', 'precision': 'exact'})
