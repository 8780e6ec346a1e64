# SPDX-License-Identifier: Apache-2.0
"""Kills runs at random moments, and compares what they end with.

`python benchmarks/faults.py --kills=40` trains a tiny U-Net, saving after every
second step, once undisturbed and then with a SIGKILL at a random moment; each
of those is started again to its end. Says how many end with the arrays of the
undisturbed run, parameters, optimizer and key, bit for bit. Exit status 1 if
not all of them do.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from segjax.runs.checkpoints import load_params
from segjax.runs.integrity import read_record

STEPS = 40
COMMAND = (
  sys.executable,
  '-m',
  'segjax.main',
  '--config=configs/unet_isbi.py:demo',
  '--config.model.depth=1',
  '--config.model.base_width=4',
  '--config.model.dropout_rate=0.5',
  '--config.tile_size_px=34',
  '--config.data.num_slices=5',
  '--config.data.size_px=64',
  f'--config.num_train_steps={STEPS}',
  '--config.evaluation.every_steps=10',
  '--config.checkpoints.every_steps=2',
)


def start(workdir: Path) -> subprocess.Popen:
  """Starts the run of `workdir`; returns when its loop is about to start."""
  process = subprocess.Popen(
    (*COMMAND, f'--workdir={workdir}'),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    cwd=Path(__file__).parents[1],
    # Compiling takes most of the time.
    env=os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
  )
  for line in process.stdout:
    if ': from step ' in line:
      break
  return process


def newest(workdir: Path) -> int:
  """Step of the newest complete checkpoint; 0 without any."""
  names = (p.name for p in (workdir / 'checkpoints').glob('*'))
  return max((int(name) for name in names if name.isdecimal()), default=0)


def finish(workdir: Path) -> dict[str, str]:
  """Runs to the end; returns the digests of the last state."""
  process = start(workdir)
  process.communicate()
  if process.returncode:
    raise RuntimeError(f'{workdir} ended with status {process.returncode}')
  folder = workdir / 'checkpoints'
  load_params(
    folder, STEPS
  )  # Raises unless the files are those of the digests.
  return read_record(folder, STEPS)['sha256']


def main(_):
  rng = random.Random(flags.FLAGS.seed)
  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    expected = finish(folder / 'unbroken')
    print('run  killed at checkpoint  in a save  bit for bit', flush=True)
    equal = in_save = killed = 0
    for i in range(flags.FLAGS.kills):
      workdir = folder / f'run{i}'
      process = start(workdir)
      moment = rng.randrange(STEPS)
      while process.poll() is None and newest(workdir) < moment:
        time.sleep(0.002)
      time.sleep(rng.uniform(0, 0.2))
      process.kill()
      process.communicate()
      names = os.listdir(workdir / 'checkpoints')
      saved = newest(workdir)
      saving = any('orbax-checkpoint-tmp' in name for name in names)
      same = finish(workdir) == expected
      killed += process.returncode == -9
      in_save += saving
      equal += same
      print(f'{i:3} {saved:21} {saving!s:>10} {same!s:>12}', flush=True)
  print(
    f'{killed} killed, {in_save} of them in a save; {equal} of '
    f'{flags.FLAGS.kills} ended bit for bit as the unbroken run'
  )
  return int(equal < flags.FLAGS.kills)


if __name__ == '__main__':
  flags.DEFINE_integer('kills', 40, 'Runs to kill.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Of the moments.')
  app.run(main)
