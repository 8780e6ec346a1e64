# SPDX-License-Identifier: Apache-2.0
"""Streamed prediction: its memory by image size, and its speed.

`python -m benchmarks.streaming --large=32768` prints a table. Memory is the
peak resident set of a process of its own for each image, a tiled TIFF of one
tile repeated; the prediction is a .npy of labels. Speed is compared, in
interleaved rounds, with the compiled forward on tiles that are in memory.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tifffile
from absl import app, flags

from benchmarks import timing
from segjax.data import canvases, rasters
from segjax.models.unet import UNet
from segjax.page_streams import Page
from segjax.scores import core_score
from segjax.streaming import stream_predict

MODEL = UNet(depth=1, convs_per_block=1, base_width=2)
TILE_SIZE = MODEL.geometry.input_size(1024)


def initial_params():
  tile = np.zeros((1, TILE_SIZE, TILE_SIZE, 1), np.float32)
  return jax.jit(MODEL.init)(jax.random.key(0), tile)


def labels(scores):
  return (scores[..., 1] > scores[..., 0]).astype(np.uint8)


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
  """Returns the seconds of the prediction, compilation included."""
  params = initial_params()
  start = time.perf_counter()
  with (
    rasters.open_rasters(source) as pages,
    canvases.open_canvas(output, (1, *pages[0].shape[:2]), np.uint8) as canvas,
  ):
    stream_predict(
      pages[0],
      Page(canvas, 0),
      MODEL.apply,
      params,
      MODEL.geometry,
      encode=labels,
      tile_size=TILE_SIZE,
    )
  return time.perf_counter() - start


def measure_memory(side):
  """Returns peak resident MiB and pixels/s of a process of its own."""
  with tempfile.TemporaryDirectory() as folder:
    source, output = Path(folder) / 'in.tif', Path(folder) / 'out.npy'
    write_image(source, side)
    process = subprocess.run(
      [
        sys.executable,
        '-m',
        'benchmarks.streaming',
        f'--source={source}',
        f'--output={output}',
      ],
      check=True,
      capture_output=True,
      text=True,
    )
    peak, seconds = json.loads(process.stdout)
    return peak, side**2 / seconds


def compare_speed(side, rounds):
  """Returns the median seconds of streaming an image and of its forwards."""
  params = initial_params()
  image = np.random.default_rng(0).random((side, side, 1), np.float32)
  written = np.empty((side, side), np.uint8)
  num_tiles = (side // 1024) ** 2
  score = core_score(
    MODEL.apply, params, MODEL.geometry, 'probabilities', num_tiles, 1
  )
  batch_size = score.batch_size
  tiles = np.zeros((batch_size, TILE_SIZE, TILE_SIZE, 1), np.float32)
  sizes = np.full((batch_size, 2), TILE_SIZE, np.int32)

  def forwards():
    for _ in range(num_tiles // batch_size):
      scores = score(tiles, sizes)
    scores.block_until_ready()

  def stream():
    stream_predict(
      image,
      written,
      MODEL.apply,
      params,
      MODEL.geometry,
      encode=labels,
      tile_size=TILE_SIZE,
    )

  seconds = {forwards: [], stream: []}
  for round in range(rounds + 1):
    for work, times in seconds.items():
      start = time.perf_counter()
      work()
      if round:  # The first compiles.
        times.append(time.perf_counter() - start)
  return statistics.median(seconds[stream]), statistics.median(
    seconds[forwards]
  )


def main(_):
  args = flags.FLAGS
  if args.source:
    seconds = predict(args.source, args.output)
    print(json.dumps([timing.peak_mib(), seconds]))
    return
  print('| image | peak MiB | Mpx/s |\n|---|---|---|')
  for side in (args.small, args.large):
    peak, rate = measure_memory(side)
    print(f'| {side} x {side} | {peak:.0f} | {rate / 1e6:.2f} |', flush=True)
  streamed, bare = compare_speed(args.small, args.rounds)
  print(
    f'{args.small} px: streamed {streamed:.2f} s, forwards {bare:.2f} s, '
    f'throughput {100 * bare / streamed:.0f} %'
  )


if __name__ == '__main__':
  flags.DEFINE_integer('small', 4096, 'Side of the small image, in pixels.')
  flags.DEFINE_integer('large', 32768, 'Side of the large image, in pixels.')
  flags.DEFINE_integer('rounds', 5, 'Of the comparison of speeds.')
  flags.DEFINE_string('source', None, 'Used by the script: what to predict.')
  flags.DEFINE_string('output', None, 'Used by the script: to which file.')
  app.run(main)
