# SPDX-License-Identifier: Apache-2.0
"""VGG16 (Simonyan and Zisserman, ICLR 2015, configuration D)."""

import functools

from segjax.geometry import Footprint
from segjax.models.backbone import (
  Backbone,
  Classifier,
  Convolution,
  MaxPool,
  fc_head,
  scaled,
)

# Channels and convolutions of each block.
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

# Zeros around the inputs of conv1_1 and fc6, by `padding`. fc6 takes 6 cells of
# 32 px off its map. FCN pads the image by 100 px, so that what is left covers
# the image; 'same' adds the 6 cells at fc6.
_PADS = {'native': (1, 0), 'pad100': (100, 0), 'same': (1, 3)}


def vgg16(
  width: float = 1.0,
  fc_features: int | None = None,
  dropout_rate: float | None = None,
  padding: str = 'native',
  dense: bool = False,
) -> Backbone:
  """Returns VGG16 with Caffe's layer names, `conv1_1` to `fc7` and `fc8`.

  Args:
    width: multiplies the channels of the convolutions.
    fc_features: channels of fc6 and fc7; None for 4096.
    dropout_rate: dropout rate after fc6 and fc7; None for 0.5.
    padding: 'native', 'pad100' or 'same'.
    dense: whether fc6 and fc7 are dense layers.
  """
  first_pad, fc_pad = _PADS[padding]
  trunk = []
  for block, (features, convs) in enumerate(BLOCKS, start=1):
    for i in range(1, convs + 1):
      footprint = Footprint(3, pad=1 if trunk else first_pad)
      features_out = scaled(features, width)
      trunk.append(Convolution(f'conv{block}_{i}', features_out, footprint))
    trunk.append(MaxPool(f'pool{block}', Footprint(2, 2, ceil=True)))
  return Backbone(
    tuple(trunk),
    pool=(),
    head=fc_head(7, fc_pad, fc_features, dropout_rate, dense),
    classifier='fc8',
    native_size=224,
    upscore_kernel=64,
    strides=(32, 16, 8),
  )


VGG16 = functools.partial(Classifier, vgg16)
