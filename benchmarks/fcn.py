# SPDX-License-Identifier: Apache-2.0
"""FCN-8s on VGG16 against PyTorch: python -m benchmarks.fcn"""

import functools

from absl import flags

from benchmarks import compare, torch_nets
from segjax.cli.command_line import run_command
from segjax.models.backbone import scaled
from segjax.models.fcn import FCN8s

_FEATURES = (64, 128, 256, 512, 512)  # VGG16's.
_WIDTH = flags.DEFINE_integer(
  'width', 64, 'Channels of the first block; others are in proportion.', 1
)
_SIZE = flags.DEFINE_integer('size', 500, 'Side of the images, in pixels.', 1)


def main(_):
  width, size = _WIDTH.value / _FEATURES[0], _SIZE.value
  fc_features = scaled(4096, width)
  compare.compare(
    f'FCN-8s, VGG16 x {width:g}, {size} x {size} px',
    FCN8s(width=width, fc_features=fc_features, dropout_rate=0.0),
    functools.partial(
      torch_nets.FCN8s,
      tuple(scaled(features, width) for features in _FEATURES),
      fc_features,
    ),
    size,
    reduction='sum',  # As the authors train.
  )


if __name__ == '__main__':
  run_command(main)
