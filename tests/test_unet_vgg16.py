# SPDX-License-Identifier: Apache-2.0
"""U-Net on VGG16: its trunk, its skips, its weights and its tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_unets import (
  assert_close,
  image_of,
  random_variables,
  whole_pass,
)

from segjax import networks
from segjax.convert import convert
from segjax.errors import InputError
from segjax.models import create_model
from segjax.models.unet_vgg16 import UNetVGG16
from segjax.models.vgg import VGG16
from segjax.tiling.settings import TileSettings
from segjax.tiling.windows import predict_image
from segjax.weights import files, surgery
from segjax.weights.matching import Tensor

RNG = np.random.default_rng(0)
NARROW = {'width': 1 / 32, 'num_classes': 3}


def test_the_trunk_is_that_of_the_classifier():
  model = UNetVGG16(width=1 / 16)
  variables = random_variables(model)
  image = RNG.normal(size=(1, 64, 64, 3)).astype(np.float32)
  _, state = model.apply(variables, image, capture_intermediates=True)
  names = state['intermediates']
  x = image
  for block, convs in enumerate((2, 2, 3, 3, 3), start=1):
    for i in range(1, convs + 1):
      layer = variables['params'][f'conv{block}_{i}']
      x = jax.lax.conv_general_dilated(
        x,
        layer['kernel'],
        (1, 1),
        'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      x = x + layer['bias'].reshape(1, 1, 1, -1)
      [got] = names[f'conv{block}_{i}']['__call__']
      np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-4)
      x = jnp.maximum(x, 0)
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
  assert model.apply(variables, image).shape == (1, 64, 64, 2)


def test_every_layer_carries_gradient_and_the_full_network_has_its_sizes():
  model = UNetVGG16(**NARROW)
  variables = random_variables(model)
  image = RNG.normal(size=(1, 32, 48, 3)).astype(np.float32)

  def loss(params):
    return jnp.sum(jnp.square(model.apply({'params': params}, image)))

  gradient = jax.grad(loss)(variables['params'])
  assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
  full = UNetVGG16()
  size = full.geometry.input_size(1)
  shapes = jax.eval_shape(
    full.init, jax.random.key(0), np.zeros((1, size, size, 3))
  )['params']
  # The convolutions of VGG16, as published.
  trunk = [shapes[name] for name in shapes if name.startswith('conv')]
  assert sum(map(np.size, jax.tree.leaves(trunk))) == 14_714_688
  assert shapes['up3']['conv0']['kernel'].shape == (3, 3, 1024, 512)
  assert shapes['up0']['upconv']['kernel'].shape == (2, 2, 128, 64)


@pytest.mark.parametrize('padding', ['VALID', 'SAME'])
@pytest.mark.parametrize('norm', ['none', 'batch'])
def test_tiles_are_the_whole_image(padding, norm):
  model = UNetVGG16(**NARROW, padding=padding, norm=norm)
  variables = random_variables(model)
  image = image_of(70, 90, 3)
  tile_size = model.geometry.input_size(32)
  tiled = predict_image(
    model,
    variables['params'],
    image,
    TileSettings(tile_size=tile_size, activation='logits'),
  )
  assert_close(tiled, whole_pass(model, variables, image))


@pytest.mark.parametrize('in_channels', [3, 1, 4])
def test_training_starts_from_the_convolutions_of_a_classifier(
  tmp_path, in_channels
):
  classifier = VGG16(
    convolutional=True, width=1 / 32, fc_features=4, num_classes=5
  )
  params = classifier.init(jax.random.key(0), np.zeros((1, 224, 224, 3)))
  source = {
    f'{layer}/{name}': Tensor(layer, np.asarray(array), 'HWIO')
    for layer, leaves in params['params'].items()
    for name, array in leaves.items()
  }
  converted, report = convert(source, classifier.clone(in_channels=in_channels))
  assert ('spread over' in str(report)) == (in_channels != 3)
  files.write_params(tmp_path / 'vgg16.npz', converted, False, {})
  model = create_model(
    {'name': 'unet_vgg16', 'in_channels': in_channels, **NARROW}
  )
  start = {
    'initial': ('up3', 'up2', 'up1', 'up0', 'head'),
    'ignore': ('fc6', 'fc7', 'fc8'),
  }
  got, _ = networks.starting_params(
    model, '0..255', tmp_path / 'vgg16.npz', **start
  )
  assert {path.partition('_')[0] for path in got} == {
    f'conv{block}' for block in range(1, 6)
  }
  np.testing.assert_array_equal(
    got['conv5_3/kernel'], params['params']['conv5_3']['kernel']
  )
  with pytest.raises(InputError, match='initial=up4 is no layer among'):
    networks.starting_params(
      model, '0..255', tmp_path / 'vgg16.npz', ('up4',), ()
    )


@pytest.mark.parametrize('in_channels', [1, 2, 5])
def test_a_spread_kernel_gives_what_it_gave_where_all_channels_are_equal(
  in_channels,
):
  kernel = RNG.normal(size=(3, 3, 3, 4))
  gray = RNG.normal(size=(3, 3, 1))
  new = surgery.spread_channels(kernel, in_channels)
  assert new.shape == (3, 3, in_channels, 4)
  np.testing.assert_allclose(
    np.einsum('hwi,hwio->o', np.repeat(gray, in_channels, 2), new),
    np.einsum('hwi,hwio->o', np.repeat(gray, 3, 2), kernel),
  )


def test_wrong_fields_are_refused():
  for wrong, message in (
    ({'norm': 'layer'}, 'model.norm='),
    ({'width': 0.0}, 'model.width='),
    ({'padding': 'FULL'}, 'padding='),
  ):
    with pytest.raises(InputError, match=message):
      create_model({'name': 'unet_vgg16'} | wrong)
  model = UNetVGG16(**NARROW)
  for shape in ((1, 32, 33, 3), (1, 32, 32, 1)):
    with pytest.raises(InputError):
      jax.eval_shape(model.init, jax.random.key(0), np.zeros(shape))
