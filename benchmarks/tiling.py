# SPDX-License-Identifier: Apache-2.0
"""Overlap tiles against MONAI's sliding window: python -m benchmarks.tiling

A U-Net with padded convolutions, whose tiles are as large as their scores. All
get the tiles that segjax plans, so that they compute the same; MONAI is given
the image mirrored at its edges, and weights that are zero where a tile sees its
own padding. Loops are what one writes without a library. Differences are from
passes over whole rows, which know nothing of tiles. Peak memory is that of a
process of its own with one prediction.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags
from monai.inferers import sliding_window_inference

from benchmarks import sides, timing, torch_nets, whole_passes
from segjax.cli.command_line import run_command
from segjax.devices import parallel
from segjax.models.unet import UNet
from segjax.tiling import plans, windows
from segjax.tiling.settings import TileSettings

_WIDTH = flags.DEFINE_integer('width', 16, 'Channels at the finest level.', 1)
_SIZE = flags.DEFINE_integer('size', 2048, 'Side of the image, in pixels.', 1)
_MAX_TILE_SIZE = flags.DEFINE_integer(
  'max_tile_size_px', 1024, 'Limit to the side of a tile, in pixels.', 1
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ('float32', 'bfloat16'), 'To compute in.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Interleaved rounds.', 1)
_ONLY = flags.DEFINE_string(
  'only', None, 'Used by the script: predicts by this once, prints its peak.'
)
# Side of an image that one pass takes whole, and rows of a pass over a larger.
_MAX_WHOLE_SIZE, _BAND_SIZE = 2048, 512
_TOLERANCES = {'float32': 1e-4, 'bfloat16': 0.1}


def main(_):
  torch_nets.check_device()
  size, dtype = _SIZE.value, _DTYPE.value
  model = UNet(
    base_width=_WIDTH.value,
    padding='SAME',
    dropout_rate=0.0,
    dtype=jnp.dtype(dtype),
  )
  geometry = model.geometry
  params = sides.random_params(model)
  module = torch_nets.load(torch_nets.UNet(_WIDTH.value, pad=1), params)
  module = module.to(torch_nets.DEVICE, memory_format=torch.channels_last)
  module.eval()

  rng = np.random.default_rng(0)
  image = rng.standard_normal((size, size, 1), np.float32)
  tiles = TileSettings(max_tile_size_px=_MAX_TILE_SIZE.value)
  plan = plans.plan_tiles(size, size, geometry, tiles)
  # Square, as the image is.
  tile, margin = plan.tile_shape[0], geometry.margin
  origins = [plan.position(window).origin for window in plan.windows]
  starts = sorted({row for row, _ in origins})
  padded = windows.read_mirrored(
    image, (starts[0],) * 2, (starts[-1] + tile - starts[0],) * 2
  )
  padded = torch.tensor(padded.transpose(2, 0, 1)[None])

  def ours():
    return windows.predict_image(model, params, image, tiles)

  apply = parallel.jit(lambda *args: jax.nn.softmax(model.apply(*args)))

  def jax_loop():
    scores = np.empty((size, size, model.num_classes), np.float32)
    for origin, window in zip(origins, plan.windows, strict=True):
      pixels = windows.read_mirrored(image, origin, (tile, tile))
      core = np.asarray(apply({'params': params}, pixels[None])[0])
      height, width = (side.stop - side.start for side in window)
      scores[window] = core[margin : margin + height, margin : margin + width]
    return scores

  def score(tiles):
    tiles = tiles.to(torch_nets.DEVICE, memory_format=torch.channels_last)
    with torch_nets.autocast(dtype):
      return torch.softmax(module(tiles).float(), dim=1)

  @torch.inference_mode()
  def loop():
    scores = torch.empty(1, model.num_classes, size, size)
    for (row, column), window in zip(origins, plan.windows, strict=True):
      row, column = row - starts[0], column - starts[0]
      core = score(padded[..., row : row + tile, column : column + tile])
      height, width = (side.stop - side.start for side in window)
      scores[(..., *window)] = core[
        ..., margin : margin + height, margin : margin + width
      ].cpu()
    return scores[0].permute(1, 2, 0).numpy()

  weights = torch.zeros(tile, tile)
  weights[margin : tile - margin, margin : tile - margin] = 1
  stride = starts[1] - starts[0] if len(starts) > 1 else tile

  @torch.inference_mode()
  def monai():
    scores = sliding_window_inference(
      padded,
      roi_size=tile,
      sw_batch_size=1,
      predictor=score,
      overlap=max(1 - (stride + 0.5) / tile, 0),  # It rounds strides down.
      roi_weight_map=weights,
      sw_device=torch_nets.DEVICE,
      device='cpu',
    )
    inside = slice(margin, margin + size)
    return scores[0, :, inside, inside].permute(1, 2, 0).numpy()

  runs = {
    'segjax': ours,
    'JAX, loop': jax_loop,
    'PyTorch, loop': loop,
    'MONAI': monai,
  }
  if _ONLY.value:
    runs[_ONLY.value]()
    print(timing.peak_mib())
    return
  band_size = _BAND_SIZE if size > _MAX_WHOLE_SIZE else size
  want = whole_passes.predict_rows(model, params, image, band_size)
  differences = {
    name: whole_passes.largest_differences(run(), want, plan)
    for name, run in runs.items()
  }
  for name, (difference, _) in differences.items():
    if not difference <= _TOLERANCES[dtype]:
      raise ArithmeticError(f'{name} differs by {difference:.1e}')

  def repeated(run):
    return lambda calls: [run() for _ in range(calls)]

  seconds, cpu_seconds = timing.interleave(
    {name: repeated(run) for name, run in runs.items()}, _ROUNDS.value
  )
  timing.print_report(
    f'Tiles of U-Net {_WIDTH.value}, padded convolutions, {size} x {size} px, '
    f'{dtype}',
    (
      *('', 'ms', 'Mpx/s', 'segjax / this', 'CPU time', 'peak MiB'),
      *('difference', 'at seams'),
    ),
    [
      (
        name,
        f'{1e3 * np.median(times):.4g}',
        f'{1e-6 * size**2 / np.median(times):.3g}',
        timing.ratio(seconds['segjax'], times),
        timing.ratio(cpu_seconds['segjax'], cpu_seconds[name]),
        f'{_peak(name):.0f}',
        *(f'{difference:.1e}' for difference in differences[name]),
      )
      for name, times in seconds.items()
    ],
    f'{len(plan)} tiles of {tile} x {tile} px, {margin} px of them '
    f'margin. {timing.LEGEND} Differences are the largest of a probability, '
    'from plain passes over '
    + (
      'the whole image.'
      if band_size == size
      else f'all columns and {geometry.input_size(band_size)} rows.'
    )
    + f' Seams are pixels within {plan.period} of two tiles.',
  )


def _peak(name):
  """Returns the peak resident MiB of a process that predicts once."""
  process = subprocess.run(
    [sys.executable, '-m', 'benchmarks.tiling', *sys.argv[1:]]
    + [f'--only={name}'],
    check=True,
    capture_output=True,
    text=True,
  )
  return float(process.stdout.split()[-1])


if __name__ == '__main__':
  run_command(main)
