# SPDX-License-Identifier: Apache-2.0
"""A U-Net with random parameters, and a command that predicts with it.

As a program it predicts $SOURCE to $OUTPUT, resting for $PAUSE seconds after
every window.
"""

import os
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from segjax.cli.command_line import run_command
from segjax.models.unet import UNet
from segjax.networks import Network
from segjax.predict import predict_files
from segjax.prediction import canvas_writer, partial


def tiny_network(num_classes=2):
  model = UNet(
    depth=1, convs_per_block=1, base_width=2, num_classes=num_classes
  )
  side = model.geometry.input_size(1)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), np.zeros((1, side, side, 1))
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
  )
  config = {
    'data': {'name': 'isbi2012'},
    'evaluation': {'average': False},
    'mesh': {'space': 1},
    'preprocessing': {'mean': 0.5, 'std': 0.5, 'channels': ()},
    'prediction': {
      'max_tile_size_px': model.geometry.input_size(16),
      'tiles_per_batch': 1,
    },
  }
  return Network(model, variables['params'], ConfigDict(config))


def main(_):
  partial.RECORD_EVERY_SECONDS = 0
  write = canvas_writer.PageWriter.__setitem__

  def write_slowly(*arguments):
    write(*arguments)
    time.sleep(float(os.environ['PAUSE']))

  canvas_writer.PageWriter.__setitem__ = write_slowly
  predict_files(tiny_network(), os.environ['SOURCE'], os.environ['OUTPUT'])


if __name__ == '__main__':
  run_command(main)
