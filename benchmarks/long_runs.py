# SPDX-License-Identifier: Apache-2.0
"""Memory, threads and open files of long runs, which must not grow.

`python benchmarks/long_runs.py --steps=20000 --images=5000` trains a tiny U-Net
with 200 evaluations and 400 saves, and then predicts a folder of tiny images
with it. Prints a table of each: resident memory (RSS), the part that is no
copy of a file (which the system drops when memory is short), threads and file
descriptors of the process, at its start and then twenty times. Linux only.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

SAMPLES = 20
EVALUATIONS = 200
SAVES = 400
SIDE = 64
TRAIN = (
  'segjax.main',
  '--config=configs/unet_isbi.py:demo',
  '--config.model.depth=1',
  '--config.model.base_width=4',
  '--config.tile_size_px=34',
  '--config.batch_size=1',
  '--config.data.num_slices=5',
  f'--config.data.size_px={SIDE}',
  '--config.log_every_steps=10',
)


def samples(
  command: tuple[str, ...], pattern: str, every: int
) -> Iterator[tuple[int, float, float, int, int]]:
  """Runs a command; yields what it has at some of the lines that it prints.

  Args:
    command: arguments of `python -m`.
    pattern: what the lines that count match. Its group is the number of steps
      that are done; without a group each line counts one.
    every: steps between two samples.

  Yields:
    Steps that are done, RSS and its anonymous part in MiB, threads, files.

  Raises:
    RuntimeError: the command fails.
  """
  with subprocess.Popen(
    (sys.executable, '-m', *command),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=Path(__file__).parents[1],
  ) as process:
    lines = done = due = 0
    for line in process.stdout or ():
      if not (found := re.search(pattern, line)):
        continue
      lines += 1
      done = int(found[1]) if found.groups() else lines
      if done >= due:
        due = done - done % every + every
        status = Path(f'/proc/{process.pid}/status').read_text()
        rss, anonymous, threads = (
          int(re.findall(rf'{name}:\s+(\d+)', status)[0])
          for name in ('VmRSS', 'RssAnon', 'Threads')
        )
        files = len(os.listdir(f'/proc/{process.pid}/fd'))
        yield done, rss / 2**10, anonymous / 2**10, threads, files
  if process.returncode:
    raise RuntimeError(f'{command[0]} ended with status {process.returncode}')


def show(
  title: str, rows: Iterator[tuple[int, float, float, int, int]]
) -> None:
  """Prints the rows as they come, and the growth in the second half."""
  print(f'{title:>7}  RSS MiB  anonymous  threads  files', flush=True)
  sizes = []
  for done, rss, anonymous, threads, files in rows:
    sizes.append(anonymous)
    print(
      f'{done:7,} {rss:8.1f} {anonymous:10.1f} {threads:8} {files:6}',
      flush=True,
    )
  growth = sizes[-1] - sizes[len(sizes) // 2]
  print(f'anonymous, in the second half: {growth:+.1f} MiB\n', flush=True)


def main(_):
  steps, images = flags.FLAGS.steps, flags.FLAGS.images
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as folder:
    train = (
      *TRAIN,
      f'--workdir={folder}/run',
      f'--config.num_train_steps={steps}',
      f'--config.evaluation.every_steps={max(1, steps // EVALUATIONS)}',
      f'--config.checkpoints.every_steps={max(1, steps // SAVES)}',
    )
    show('step', samples(train, r'^step (\d+)/', max(1, steps // SAMPLES)))
    Path(folder, 'images').mkdir()
    for i in range(images):
      pixels = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
      Image.fromarray(pixels).save(f'{folder}/images/{i:05}.png')
    predict = (
      'segjax.predict',
      f'--workdir={folder}/run',
      f'--input={folder}/images',
      f'--output={folder}/maps',
    )
    show('image', samples(predict, ': prob', max(1, images // SAMPLES)))


if __name__ == '__main__':
  flags.DEFINE_integer('steps', 20_000, 'Steps to train.', lower_bound=1)
  flags.DEFINE_integer('images', 5_000, 'Images to predict.', lower_bound=1)
  app.run(main)
