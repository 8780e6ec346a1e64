# SPDX-License-Identifier: Apache-2.0
"""Surgery on parameter trees: other layers, more channels, joined networks.

A tree is `{layer: {'kernel': array, 'bias': array}}`. Functions are pure: no
argument is changed, and the returned tree has the other layers as they were.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from segjax.errors import InputError

Params = Mapping[str, Mapping[str, Any]]


def fc_to_conv(
  params: Params, windows: Mapping[str, tuple[int, int]], order: str = 'HWC'
) -> dict[str, Any]:
  """Returns the tree with fully connected layers as convolutions.

  A fully connected layer on a feature map [H, W, C] is a convolution whose
  window is the whole map (Long et al. 2015, section 3.1). Run without padding
  on a larger map, it gives at each position what the layer gives for the
  window there.

  Args:
    params: tree; the kernels of the named layers are [H W C, O].
    windows: layer name -> (H, W) of the feature map that it takes, in pixels;
      for VGG16, `{'fc6': (7, 7), 'fc7': (1, 1), 'fc8': (1, 1)}`.
    order: order in which that map is flattened: 'HWC', as here and in Keras, or
      'CHW', as in Caffe and PyTorch (whose matrices are [O, C H W]: transpose
      them first).

  Returns:
    A new tree with kernels [H, W, C, O] of unchanged dtype.

  Raises:
    InputError: a layer is missing, its kernel isn't a matrix or doesn't fit its
      window, or `order` is neither 'HWC' nor 'CHW'.

  >>> import numpy, segjax
  >>> classifier = {'fc6': {'kernel': numpy.arange(72.0).reshape(36, 2)}}
  >>> net = segjax.fc_to_conv(classifier, {'fc6': (3, 3)})
  >>> net['fc6']['kernel'].shape
  (3, 3, 4, 2)
  >>> features = numpy.ones((3, 3, 4))
  >>> dense = features.reshape(-1) @ classifier['fc6']['kernel']
  >>> bool(numpy.all((features[..., None] * net['fc6']['kernel']).sum((0, 1, 2))
  ...   == dense))
  True
  """
  if order not in ('HWC', 'CHW'):
    raise InputError(f"flatten order {order!r} is not 'HWC' or 'CHW'")
  changed = {}
  for name, (h, w) in windows.items():
    layer = _layer(params, name)
    kernel = layer['kernel']
    if kernel.ndim != 2 or kernel.shape[0] % (h * w):
      raise InputError(
        f'{name}: kernel {list(kernel.shape)} is no matrix with a multiple of '
        f'{h} x {w} rows'
      )
    channels, features = kernel.shape[0] // (h * w), kernel.shape[1]
    if order == 'HWC':
      kernel = kernel.reshape(h, w, channels, features)
    else:
      kernel = kernel.reshape(channels, h, w, features).transpose(1, 2, 0, 3)
    changed[name] = {**layer, 'kernel': kernel}
  return {**params, **changed}


def add_channel(params: Params) -> dict[str, Any]:
  """Returns the tree for images with one more channel, at the end.

  This is the early fusion of the authors' `nyud-fcn32s-color-d`, which takes
  colours and depth: each weight of the new channel is the mean of the others.
  The tree fits `FCN(first_conv='conv1_1_bgrd')`.

  Args:
    params: tree; the kernel of `conv1_1` is [H, W, C, O].

  Returns:
    A new tree with `conv1_1_bgrd`, whose kernel is [H, W, C + 1, O], in place
    of `conv1_1`.

  Raises:
    InputError: `conv1_1` is missing.
  """
  old = _layer(params, 'conv1_1')
  kernel = jnp.asarray(old['kernel'])
  mean = kernel.mean(axis=2, keepdims=True)
  new = {**old, 'kernel': jnp.concatenate((kernel, mean), axis=2)}
  return {
    'conv1_1_bgrd' if name == 'conv1_1' else name: layer
    for name, layer in {**params, 'conv1_1': new}.items()
  }


def spread_channels(kernel: np.ndarray, in_channels: int) -> np.ndarray:
  """Returns the first kernel of a network for another number of channels.

  Each new channel has the mean of the old ones times C / C'. So an image whose
  channels are all equal gives the same as before, and a gray image gives the
  same as its RGB copy.

  Args:
    kernel: [H, W, C, O].
    in_channels: C', channels of the images.

  Returns:
    [H, W, C', O].
  """
  mean = kernel.mean(axis=2, keepdims=True)
  scale = kernel.shape[2] / in_channels
  return np.repeat(mean * scale, in_channels, axis=2)


def join_streams(trees: Mapping[str, Params]) -> dict[str, Any]:
  """Returns the tree of a late fusion of networks, from the tree of each.

  The authors' `nyud-fcn32s-color-hha` starts so from a network for colours and
  one for HHA. The tree fits `FCN(streams=tuple(trees))`, which then gives the
  mean of the logits of the networks.

  Args:
    trees: suffix, such as 'color' -> tree of an FCN-32s with a fixed
      deconvolution.

  Raises:
    InputError: a tree has a learned deconvolution, which cannot be joined.
  """
  joined = {}
  for suffix, params in trees.items():
    for name, layer in params.items():
      if name.startswith('upscore'):
        raise InputError(
          f'{name} of {suffix!r} is learned; networks with fixed '
          'deconvolutions can be joined'
        )
      joined[f'{name}{suffix}'] = layer
  return joined


def _layer(params: Params, name: str) -> Mapping[str, Any]:
  if name not in params:
    raise InputError(f'no layer {name!r} among {", ".join(sorted(params))}')
  return params[name]
