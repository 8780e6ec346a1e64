# SPDX-License-Identifier: Apache-2.0
"""FCN-8s on VGG16 against PyTorch: python -m benchmarks.fcn"""

import functools

from absl import flags

from benchmarks import compare, torch_nets
from segjax.errors import run_command
from segjax.models.backbone import scaled
from segjax.models.fcn import FCN8s

_FEATURES = (64, 128, 256, 512, 512)  # VGG16's.
_WIDTH = flags.DEFINE_float('width', 1.0, "Multiplies VGG16's channels.", 0.02)
_FC_FEATURES = flags.DEFINE_integer('fc_features', 4096, 'Of fc6 and fc7.', 1)
_SIZE = flags.DEFINE_integer('size', 500, 'Side of the images, in pixels.', 1)


def main(_):
  width, fc_features, size = _WIDTH.value, _FC_FEATURES.value, _SIZE.value
  compare.compare(
    f'FCN-8s, VGG16 x {width:g}, {size} x {size} px',
    FCN8s(width=width, fc_features=fc_features, dropout_rate=0.0),
    functools.partial(
      torch_nets.FCN8s,
      tuple(scaled(features, width) for features in _FEATURES),
      fc_features,
    ),
    size,
  )


if __name__ == '__main__':
  run_command(main)
