# SPDX-License-Identifier: Apache-2.0
"""FCNs a few channels wide, all parameters random, and Caffe's view of them."""

import caffe_nets
import jax
import jax.numpy as jnp
import numpy as np

from segjax.models.googlenet import caffe_name

CLASSES = 4
NARROW = dict(num_classes=CLASSES, width=1 / 16, fc_features=24)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def param_shapes(model):
  image = jnp.zeros((1, 1, 1, model.in_channels))
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


def output_shape(model, params, *shape):
  image = jax.ShapeDtypeStruct((*shape, model.in_channels), jnp.float32)
  return jax.eval_shape(model.apply, {'params': params}, image).shape


def random_params(model, seed=0):
  """Every parameter random: scores, biases and deconvolutions, too.

  What follows a small feature scale gets weights as much larger, so that no
  path is too faint to be compared.
  """
  rng = np.random.default_rng(seed)
  gains = {
    'score_pool4': 1 / model.pool4_scale,
    'score_pool3': 1 / model.pool3_scale,
  }

  def draw(path, x):
    name = path[0].key
    fan_in = np.prod(x.shape[:-1]) if x.ndim > 1 else 8
    if name.startswith('upscore'):
      fan_in = 2 * x.shape[-1]
    gain = gains.get(name, 1) if x.ndim > 1 else 1
    return np.float32(rng.normal(0, gain * np.sqrt(2 / fan_in), x.shape))

  return jax.tree_util.tree_map_with_path(draw, param_shapes(model))


def caffe_layers(model, params):
  """The parameters in Caffe's names and layouts, deconvolutions included."""
  layers = {}
  leaves = jax.tree_util.tree_flatten_with_path(
    params, is_leaf=lambda x: 'kernel' in x
  )[0]
  for path, leaf in leaves:
    name = caffe_name([key.key for key in path])
    if 'upscore' in name:
      layers[name] = [leaf['kernel'].transpose(2, 3, 0, 1)]
    else:
      layers[name] = [leaf['kernel'].transpose(3, 2, 0, 1), leaf['bias']]
  for up in model.geometry.decoder:
    for name, classes in zip(
      model.head_layers(up.name), model.head_sizes, strict=True
    ):
      if name not in layers:
        layers[name] = [caffe_nets.bilinear(up.layer.kernel, classes)]
  return layers


def assert_equals_caffe(folder, model, text, size, extra=()):
  params = random_params(model)
  image = 50 * normal(1, 1, *size, model.in_channels)
  layers = caffe_layers(model, params) | dict(extra)
  want = caffe_nets.run_caffe(folder, text, layers, image)
  got = jax.jit(model.apply)({'params': params}, image)
  assert got.shape == want.shape == (1, *size, model.num_classes)
  difference = np.abs(got - want).max() / np.ptp(want)
  print(f'largest difference from Caffe, of the range: {difference:.1e}')
  assert difference < 1e-5, difference
  for edge in (want[:, 0], want[:, -1], want[:, :, 0], want[:, :, -1]):
    assert np.ptp(edge) > 1e-3 * np.ptp(want)
