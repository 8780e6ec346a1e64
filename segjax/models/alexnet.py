# SPDX-License-Identifier: Apache-2.0
"""CaffeNet, the form of AlexNet (Krizhevsky et al. 2012) in FCN-AlexNet.

CaffeNet pools before it normalises. The paper's AlexNet and Caffe's
bvlc_alexnet normalise first, so the weights of one do not fit the other.
"""

import functools

from segjax.geometry import Footprint
from segjax.models.backbone import (
  Backbone,
  Classifier,
  Convolution,
  LocalResponseNorm,
  MaxPool,
  fc_head,
  scaled,
)

# Zeros around the inputs of conv1 and fc6, by `padding`; see vgg.py.
_PADS = {'native': (0, 0), 'pad100': (100, 0), 'same': (5, 3)}


def caffenet(
  width: float = 1.0,
  fc_features: int | None = None,
  dropout_rate: float | None = None,
  padding: str = 'native',
  dense: bool = False,
) -> Backbone:
  """Returns CaffeNet with Caffe's layer names, `conv1` to `fc7` and `fc8`.

  Arguments are those of `vgg.vgg16`.
  """
  first_pad, fc_pad = _PADS[padding]
  pool = Footprint(3, 2, ceil=True)

  def convolution(name, features, footprint, groups=1):
    # An even number, since the next layer may split them into two groups.
    features = scaled(features, width, multiple_of=2)
    return Convolution(name, features, footprint, groups)

  trunk = (
    convolution('conv1', 96, Footprint(11, 4, first_pad)),
    MaxPool('pool1', pool),
    LocalResponseNorm('norm1'),
    convolution('conv2', 256, Footprint(5, pad=2), groups=2),
    MaxPool('pool2', pool),
    LocalResponseNorm('norm2'),
    convolution('conv3', 384, Footprint(3, pad=1)),
    convolution('conv4', 384, Footprint(3, pad=1), groups=2),
    convolution('conv5', 256, Footprint(3, pad=1), groups=2),
    MaxPool('pool5', pool),
  )
  return Backbone(
    trunk,
    pool=(),
    head=fc_head(6, fc_pad, fc_features, dropout_rate, dense),
    classifier='fc8',
    native_size=227,
    upscore_kernel=63,
  )


CaffeNet = functools.partial(Classifier, caffenet)
