# SPDX-License-Identifier: Apache-2.0
"""U-Net against PyTorch: python -m benchmarks.unet --width=64"""

import functools

from absl import flags

from benchmarks import compare, torch_nets
from segjax.cli.command_line import run_command
from segjax.models.unet import UNet

_WIDTH = flags.DEFINE_integer('width', 64, 'Channels at the finest level.', 1)
_SIZE = flags.DEFINE_integer('size', 572, 'Side of the images, in pixels.', 1)


def main(_):
  width, size = _WIDTH.value, _SIZE.value
  compare.compare(
    f'U-Net {width}, {size} x {size} px',
    UNet(base_width=width, dropout_rate=0.0),
    functools.partial(torch_nets.UNet, width),
    size,
  )


if __name__ == '__main__':
  run_command(main)
