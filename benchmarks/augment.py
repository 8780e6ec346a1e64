# SPDX-License-Identifier: Apache-2.0
"""Elastic augmentation against scipy: python -m benchmarks.augment

An image with label and weights is read at a smooth displacement field, which is
interpolated from random nodes, in three calls of scipy's. scipy has no cubic
convolution, so it reads the image by cubic splines. Beside it a training step,
without augmentation, of the U-Net that takes such images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy import ndimage

from benchmarks import sides, timing
from segjax.cli.command_line import run_command
from segjax.data import augment
from segjax.devices import parallel
from segjax.models.unet import UNet

_WIDTH = flags.DEFINE_integer(
  'width', 64, 'Channels at the finest level of the network that is trained.', 1
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ('float32', 'bfloat16'), 'That network computes in.'
)
_SIZE = flags.DEFINE_integer('size', 572, 'Side of the tile, in pixels.', 1)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Interleaved rounds.', 1)
_CALLS = flags.DEFINE_integer('calls', 1, 'Calls of a case in a round.', 1)

_SIGMA_PX, _GRID = 10.0, 3
_BY_MATRIX, _BY_SPLINE = 'scipy, field by matrices', 'scipy, field by splines'


def main(_):
  size, rng = _SIZE.value, np.random.default_rng(0)
  key = jax.random.key(0)
  image, label, weight = (
    rng.uniform(size=(size, size, 1)).astype(np.float32),
    rng.integers(2, size=(size, size), dtype=np.int32),
    rng.uniform(1, 10, (size, size)).astype(np.float32),
  )
  # Everything else is off, so that scipy needs the nodes alone.
  amount = augment.Augmentation(elastic_sigma_px=_SIGMA_PX, elastic_grid=_GRID)
  elastic_key = jax.random.split(jax.random.split(key)[0], 4)[0]
  nodes = _SIGMA_PX * jax.random.normal(elastic_key, (2, _GRID, _GRID))
  nodes, matrix = np.asarray(nodes), augment.cubic_matrix(size, _GRID)
  pixels = np.stack(np.mgrid[:size, :size]).astype(np.float32)
  at_nodes = pixels * (_GRID - 1) / (size - 1)

  @parallel.jit
  def draw(key, *example):
    return augment.augment(
      key, *example, input_size=size, output_size=size, amount=amount
    )

  example = jax.device_put((image, label, weight))

  def ours(calls):
    for _ in range(calls):
      tile = draw(key, *example)
    jax.block_until_ready(tile)

  def read(displacement):
    at = pixels + displacement
    return (
      ndimage.map_coordinates(image[..., 0], at, order=3, mode='mirror'),
      ndimage.map_coordinates(label, at, order=0, mode='mirror'),
      ndimage.map_coordinates(weight, at, order=1, mode='mirror'),
    )

  def by_matrices():
    return read(matrix @ nodes @ matrix.T)

  def by_splines():
    field = [
      ndimage.map_coordinates(component, at_nodes, order=3, mode='nearest')
      for component in nodes
    ]
    return read(np.stack(field))

  def repeat(function):
    def case(calls):
      for _ in range(calls):
        function()

    return case

  model = UNet(
    base_width=_WIDTH.value, dropout_rate=0.0, dtype=jnp.dtype(_DTYPE.value)
  )
  params = sides.random_params(model)
  step = sides.train(model, params, sides.random_batch(model, 1, size)).case

  got, want = map(np.asarray, (draw(key, *example)[2], by_matrices()[2]))
  difference = np.abs(got - want).max() / np.ptp(weight)
  if not difference < 1e-3:
    raise ArithmeticError(f'the weights differ by {difference:.1e}')
  seconds, _ = timing.interleave(
    {
      'segjax': ours,
      _BY_MATRIX: repeat(by_matrices),
      _BY_SPLINE: repeat(by_splines),
      f'training step, U-Net {_WIDTH.value}, {_DTYPE.value}': step,
    },
    _ROUNDS.value,
    _CALLS.value,
  )
  timing.print_report(
    f'Elastic augmentation, image, label and weight of {size} x {size} px',
    ('', 'ms', 'segjax / this'),
    [
      (
        name,
        f'{1e3 * np.median(times):.3g}',
        timing.ratio(seconds['segjax'], times, digits=4),
      )
      for name, times in seconds.items()
    ],
    f'{timing.LEGEND} The weights, read linearly by both, differ by '
    f'{difference:.1e} of their range at most; splines of the field give '
    'another one, as smooth. The ratio to a training step, which is without '
    'augmentation, is its share.',
  )


if __name__ == '__main__':
  run_command(main)
