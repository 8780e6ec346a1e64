# SPDX-License-Identifier: Apache-2.0
"""GoogLeNet (Szegedy et al., CVPR 2015) without the auxiliary classifiers."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.errors import InputError
from segjax.geometry import Footprint
from segjax.models.backbone import (
  AveragePool,
  Backbone,
  Classifier,
  Convolution,
  Dropout,
  LocalResponseNorm,
  MaxPool,
  scaled,
)

# Channels of 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj (table 1).
_INCEPTION = {
  '3a': (64, 96, 128, 16, 32, 32),
  '3b': (128, 128, 192, 32, 96, 64),
  '4a': (192, 96, 208, 16, 48, 64),
  '4b': (160, 112, 224, 24, 64, 64),
  '4c': (128, 128, 256, 24, 64, 64),
  '4d': (112, 144, 288, 32, 64, 64),
  '4e': (256, 160, 320, 32, 128, 128),
  '5a': (256, 160, 320, 32, 128, 128),
  '5b': (384, 192, 384, 48, 128, 128),
}

# Names of parameters that lack the slash of Caffe's names.
_SLASHED = {
  name.replace('/', '_'): name
  for name in (
    'conv1/7x7_s2',
    'conv2/3x3_reduce',
    'conv2/3x3',
    'loss3/classifier',
  )
}


def caffe_name(path: Sequence[str]) -> str:
  """Returns Caffe's name of the layer at `path` in a parameter tree.

  ('inception_3a', '5x5_reduce') gives 'inception_3a/5x5_reduce', ('conv2_3x3',)
  gives 'conv2/3x3', and names of other networks stay: ('fc6',) gives 'fc6'.
  """
  name = '/'.join(path)
  return _SLASHED.get(name, name)


class InceptionModule(nn.Module):
  """Four parallel branches, concatenated; ReLU after every convolution.

  Attributes:
    features: channels of `1x1`, `3x3_reduce`, `3x3`, `5x5_reduce`, `5x5` and
      `pool_proj`.
    dtype: compute dtype.
  """

  features: tuple[int, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: jax.Array, extent: jax.Array | None = None
  ) -> jax.Array:
    """Maps [B, H, W, C] to [B, H, W, C'], the branches one after another.

    Args:
      x: feature maps, zero beyond `extent`.
      extent: i32[B,2], true rows and columns of each map; None for all.
    """
    one, reduce3, three, reduce5, five, projection = self.features

    def convolution(name, features, x, kernel=1):
      footprint = Footprint(kernel, pad=kernel // 2)
      # Each sets zeros beyond the extent: a 1x1 leaves its bias there, which
      # the 3x3 or 5x5 after it would see over the edge.
      return Convolution(name, features, footprint)(
        x, False, self.dtype, extent
      )

    pooled = nn.max_pool(x, (3, 3), padding='SAME')
    branches = (
      convolution('1x1', one, x),
      convolution('3x3', three, convolution('3x3_reduce', reduce3, x), 3),
      convolution('5x5', five, convolution('5x5_reduce', reduce5, x), 5),
      convolution('pool_proj', projection, pooled),
    )
    return jnp.concatenate(branches, axis=-1)


@dataclasses.dataclass(frozen=True)
class Inception:
  """`InceptionModule` as a row, with the footprint of its widest branch."""

  name: str
  features: tuple[int, ...]
  footprint: Footprint = Footprint(5, pad=2)

  def __call__(self, x, train, dtype, extent=None):
    return InceptionModule(self.features, dtype, name=self.name)(x, extent)


def googlenet(
  width: float = 1.0,
  fc_features: int | None = None,
  dropout_rate: float | None = None,
  padding: str = 'native',
  dense: bool = False,
) -> Backbone:
  """Returns GoogLeNet, with layer names that `caffe_name` turns into Caffe's.

  Args:
    width: multiplies the channels of the convolutions.
    fc_features: None, since GoogLeNet has no fc6 and fc7.
    dropout_rate: dropout rate before the last layer; None for 0.4.
    padding: 'native', 'pad100' or 'same'. 'same' equals 'native', since no
      fully connected layer takes anything off the borders.
    dense: unused, since GoogLeNet has no fc6 and fc7.
  """
  if fc_features is not None:
    raise InputError(
      f'fc_features={fc_features}; GoogLeNet has no fc6 and fc7, so None'
    )
  del dense
  rate = 0.4 if dropout_rate is None else dropout_rate
  pool = Footprint(3, 2, ceil=True)

  def inceptions(stage):
    return tuple(
      Inception(f'inception_{block}', tuple(scaled(n, width) for n in features))
      for block, features in _INCEPTION.items()
      if block.startswith(stage)
    )

  first_pad = 100 if padding == 'pad100' else 3
  narrow, wide = scaled(64, width), scaled(192, width)
  trunk = (
    Convolution('conv1_7x7_s2', narrow, Footprint(7, 2, first_pad)),
    MaxPool('pool1', pool),
    LocalResponseNorm('norm1'),
    Convolution('conv2_3x3_reduce', narrow, Footprint()),
    Convolution('conv2_3x3', wide, Footprint(3, pad=1)),
    LocalResponseNorm('norm2'),
    MaxPool('pool2', pool),
    *inceptions('3'),
    MaxPool('pool3', pool),
    *inceptions('4'),
    MaxPool('pool4', pool),
    *inceptions('5'),
  )
  return Backbone(
    trunk,
    pool=(AveragePool('pool5', Footprint(7)),),
    head=(Dropout('drop7', rate),),
    classifier='loss3_classifier',
    native_size=224,
    upscore_kernel=63,
  )


GoogLeNet = functools.partial(Classifier, googlenet)
