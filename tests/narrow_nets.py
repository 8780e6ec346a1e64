# SPDX-License-Identifier: Apache-2.0
"""Networks a few channels wide, and their weights as Caffe has them."""

import functools

import jax
import numpy as np

from segjax import convert
from segjax.models import fcn
from segjax.models.backbone import Classifier
from segjax.models.vgg import vgg16

NARROW = {'width': 1 / 64, 'fc_features': 5}
FCN32s = functools.partial(fcn.FCN32s, **NARROW)
FCN8s = functools.partial(fcn.FCN8s, **NARROW)
AtOnce = functools.partial(fcn.FCN8sAtOnce, **NARROW)
VGG16 = functools.partial(Classifier, vgg16, **NARROW)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_params(model):
  """A parameter tree of normal noise, path -> array."""
  shapes = jax.eval_shape(
    functools.partial(convert._init, model), jax.random.key(0)
  )
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): normal(
      *leaf.shape, seed=i
    )
    for i, (path, leaf) in enumerate(leaves)
  }


def caffe_layers(params):
  """Blobs, as Caffe has them, of a tree of convolutions."""
  layers = {}
  for path, values in sorted(params.items(), reverse=True):  # kernel, bias
    layer = path.rpartition('/')[0]
    if values.ndim == 4:
      o_i_h_w = (2, 3, 0, 1) if 'upscore' in layer else (3, 2, 0, 1)
      values = values.transpose(o_i_h_w)
    layers.setdefault(layer, []).append(values)
  return layers


def dense_bilinear(kernel, classes):
  """Caffe's bilinear deconvolution by its definition, element by element."""
  f = -(-kernel // 2)
  values = np.zeros((classes, classes, kernel, kernel), np.float32)
  for i, j in np.ndindex(kernel, kernel):
    y, x = abs(i - (kernel - 1) / 2) / f, abs(j - (kernel - 1) / 2) / f
    for c in range(classes):
      values[c, c, i, j] = (1 - y) * (1 - x)
  return values


def at_once_layers(classes=3):
  """What the authors' FCN-8s at once holds, narrow, and the parameters."""
  params = random_params(AtOnce(num_classes=classes))
  layers = caffe_layers(params)
  layers['upscore2'] = [dense_bilinear(4, classes)]
  layers['upscore_pool4'] = [dense_bilinear(4, classes)]
  layers['upscore8'] = [dense_bilinear(16, classes)]
  layers['scale_pool4'] = [np.full(8, 0.01, np.float32)]
  layers['scale_pool3'] = [np.full(4, 0.0001, np.float32)]
  return layers, params


def flat(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def assert_equal(actual, expected):
  assert set(actual) == set(expected)
  for path, values in expected.items():
    np.testing.assert_array_equal(actual[path], values, err_msg=path)
    assert actual[path].dtype == np.float32
