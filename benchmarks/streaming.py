# SPDX-License-Identifier: Apache-2.0
"""Streamed prediction: its memory by image size, and its speed.

`python -m benchmarks.streaming --width=16` prints a table of each. Labels are
written, as `segjax.predict --kind=labels` encodes them.

Memory is the peak resident set of a process of its own for each image, a tiled
TIFF of one tile repeated, and a .npy of the labels; by a network so narrow that
the large image takes minutes. Speed is that of a U-Net of a useful width, on
arrays in memory, beside its compiled forward on a tile that lies there, as
often as there are tiles; in interleaved rounds.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tifffile
from absl import flags

from benchmarks import sides, timing
from segjax.cli.command_line import run_command
from segjax.images.files import open_canvas, open_rasters
from segjax.models.unet import UNet
from segjax.prediction import outputs
from segjax.prediction.canvas_writer import PageWriter
from segjax.prediction.streaming import stream_predict
from segjax.tiling.plans import plan_tiles
from segjax.tiling.programs import create_program
from segjax.tiling.settings import TileSettings

_WIDTH = flags.DEFINE_integer(
  'width', 16, 'Channels at the finest level of the network that is timed.', 1
)
_SMALL = flags.DEFINE_integer(
  'small', 4096, 'Side of the small image, in pixels; its speed is compared.', 1
)
_LARGE = flags.DEFINE_integer(
  'large', 32768, 'Side of the large image, in pixels.', 1
)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Interleaved rounds.', 1)
_SOURCE = flags.DEFINE_string('source', None, 'Used by the script: an image.')
_OUTPUT = flags.DEFINE_string('output', None, 'Used by the script: a file.')

_NARROW = UNet(depth=1, convs_per_block=1, base_width=2)
_NARROW_TILE_SIZE = _NARROW.geometry.input_size(1024)


_encode = functools.partial(
  outputs.encode, kind='labels', dtype='uint8', head_sizes=(2,)
)


class Labels:
  """An array of the labels of what is written to it."""

  def __init__(self, array):
    self._array = array

  def __setitem__(self, window, predicted):
    self._array[window] = _encode(predicted)


def write_image(path, side):
  """Writes a tiled TIFF of random bytes, compressed, tile by tile."""
  tile = np.random.default_rng(0).integers(0, 16, (512, 512), np.uint8)
  tiles = (tile for _ in range((side // 512) ** 2))
  tifffile.imwrite(
    path,
    tiles,
    shape=(side, side),
    dtype=np.uint8,
    tile=(512, 512),
    compression='zlib',
    photometric='minisblack',
  )


def predict(source, output):
  """Returns the seconds of the prediction of a file, compilation included."""
  params = sides.random_params(_NARROW)
  start = time.perf_counter()
  with (
    open_rasters(source) as pages,
    open_canvas(output, (1, *pages[0].shape[:2]), np.uint8) as canvas,
  ):
    page = PageWriter(canvas, 0, _encode)
    tiles = TileSettings(tile_size=_NARROW_TILE_SIZE)
    stream_predict(pages[0], page, _NARROW, params, tiles)
  return time.perf_counter() - start


def measure_memory(side):
  """Returns peak resident MiB and pixels/s of a process of its own."""
  with tempfile.TemporaryDirectory() as folder:
    source, output = Path(folder) / 'in.tif', Path(folder) / 'out.npy'
    write_image(source, side)
    command = [sys.executable, '-m', 'benchmarks.streaming']
    process = subprocess.run(
      [*command, f'--source={source}', f'--output={output}'],
      check=True,
      capture_output=True,
      text=True,
    )
    peak, seconds = json.loads(process.stdout)
    return peak, side**2 / seconds


def compare_speed(model, side, rounds):
  """Returns the seconds and CPU seconds of `interleave`, and the plan."""
  params = sides.random_params(model)
  image = np.random.default_rng(0).random((side, side, 1), np.float32)
  written = np.empty((side, side), np.uint8)
  plan = plan_tiles(side, side, model.geometry)
  program = create_program(model, params, TileSettings(), len(plan))
  batch_size = program.batch_size
  tiles = np.zeros((batch_size, *plan.tile_shape, 1), np.float32)
  frames = np.tile(np.int32([(0, 0), plan.tile_shape]), (batch_size, 1, 1))

  def forwards(calls):
    for _ in range(calls * -(-len(plan) // batch_size)):
      output = program(tiles, frames)
    jax.block_until_ready(output)

  def streamed(calls):
    for _ in range(calls):
      stream_predict(image, Labels(written), model, params)

  cases = {'compiled forward': forwards, 'streamed': streamed}
  return *timing.interleave(cases, rounds), plan


def main(_):
  if _SOURCE.value:
    seconds = predict(_SOURCE.value, _OUTPUT.value)
    print(json.dumps([timing.peak_mib(), seconds]))
    return
  rows = []
  for side in (_SMALL.value, _LARGE.value):
    peak, rate = measure_memory(side)
    rows.append((f'{side} x {side}', f'{peak:.0f}', f'{rate / 1e6:.3g}'))
  timing.print_report(
    'Memory of streamed prediction',
    ('image', 'peak MiB', 'Mpx/s'),
    rows,
    f'A U-Net of depth {_NARROW.depth}, {_NARROW.convs_per_block} convolution '
    f'a block and {_NARROW.base_width} channels, tiles of {_NARROW_TILE_SIZE} '
    'px; compilation is in the time.',
  )
  side = _SMALL.value
  model = UNet(base_width=_WIDTH.value, dropout_rate=0.0)
  seconds, cpu_seconds, plan = compare_speed(model, side, _ROUNDS.value)
  timing.print_report(
    f'Streamed prediction of U-Net {_WIDTH.value}, {side} x {side} px, float32',
    ('', 'ms', 'Mpx/s', 'throughput', 'by CPU time'),
    [
      (
        name,
        f'{1e3 * np.median(times):.4g}',
        f'{1e-6 * side**2 / np.median(times):.3g}',
        timing.ratio(seconds['compiled forward'], times),
        timing.ratio(cpu_seconds['compiled forward'], cpu_seconds[name]),
      )
      for name, times in seconds.items()
    ],
    f'{len(plan)} tiles of {plan.tile_shape[0]} x {plan.tile_shape[1]} px. '
    f'Throughput is in parts of the forward. {timing.LEGEND}',
  )


if __name__ == '__main__':
  run_command(main)
