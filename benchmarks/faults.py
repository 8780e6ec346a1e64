# SPDX-License-Identifier: Apache-2.0
"""Kills runs at random moments, and compares what they end with.

`python benchmarks/faults.py --kills=40` trains a tiny network, saving after
every second step, once undisturbed and then with a SIGKILL at a random moment;
each of those is started again to its end. Says how many end with the arrays of
the undisturbed run, parameters, optimizer and key, bit for bit. `--kind` names
the network and how it is trained, one of `KINDS`; `--kind=predict` kills
predictions of a folder of images and compares the bytes of all files. Exit
status 1 if not all of them end as the undisturbed one.
"""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from segjax.images.files import write_stack
from segjax.runs.checkpoints import load_params
from segjax.runs.integrity import read_record

STEPS = 40
IMAGES = 24
_UNET = (
  '--config=configs/unet_isbi.py:demo',
  '--config.model.depth=1',
  '--config.model.base_width=4',
  '--config.model.dropout_rate=0.5',
  '--config.tile_size_px=34',
  '--config.data.num_slices=5',
  '--config.data.size_px=64',
)
_FCN = (
  '--config=configs/fcn8s_folder.py',
  '--config.model.width=0.03125',
  '--config.model.fc_features=8',
  '--config.init.path=random',
  '--config.optimizer.name=sgd',
  '--config.optimizer.momentum=0.99',
  '--config.schedule.learning_rate=1e-3',
  '--config.schedule.warmup_steps=4',
  '--config.batching.order=with_replacement',
)
# Flags of segjax.main. 'adam' has dropout and elastic augmentation, too.
KINDS = {
  'adam': _UNET,
  'norm': (*_UNET, '--config.model.norm=batch'),
  'fcn': _FCN,
  'bfloat16': (
    *_UNET,
    '--config.model.dtype=bfloat16',
    '--config.batch_size=2',
    '--config.accumulate_steps=2',
  ),
  'pmap': (*_UNET, '--config.parallel=pmap', '--config.batch_size=2'),
  'processes': (*_UNET, '--config.batch_size=2'),
}
_DEVICES = {'pmap': 2}
_PROCESSES = {'processes': 2}


def write_images(folder: Path, count: int) -> None:
  """Writes a folder of images, and one of labels, of unequal sizes."""
  rng = np.random.default_rng(0)
  for i in range(count):
    size = 40 + 4 * (i % 3), 48
    for kind, array in (
      ('images', rng.integers(0, 256, (*size, 3))),
      ('labels', rng.integers(0, 2, size)),
    ):
      (folder / kind).mkdir(parents=True, exist_ok=True)
      write_stack(folder / kind / f'{i}.png', array.astype(np.uint8)[None])


class Run:
  """A run of one kind, of which all processes can be killed.

  Attributes:
    flags: of segjax.main, but for the workdir.
    devices: devices of a process.
    processes: how many processes make one run.
  """

  def __init__(self, kind: str, data: Path):
    self.flags = (
      *KINDS[kind],
      f'--config.num_train_steps={STEPS}',
      '--config.evaluation.every_steps=10',
      '--config.checkpoints.every_steps=2',
    )
    if kind == 'fcn':
      self.flags += (f'--config.data.dir={data}',)
    self.devices = _DEVICES.get(kind, 1)
    self.processes = _PROCESSES.get(kind, 1)

  def start(self, workdir: Path) -> subprocess.Popen:
    """Starts the run of `workdir`; returns when its loop is about to start."""
    environment = os.environ | {
      # Compiling takes most of the time.
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'JAX_NUM_CPU_DEVICES': str(self.devices),
    }
    command = (sys.executable, '-m', 'segjax.main', *self.flags)
    command += (f'--workdir={workdir}',)
    if self.processes > 1:
      command = ('launch/local_processes.sh', str(self.processes), *command)
    process = subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      cwd=Path(__file__).parents[1],
      env=environment,
      start_new_session=True,
    )
    for line in process.stdout:
      if ': from step ' in line:
        break
    return process

  def finish(self, workdir: Path) -> dict[str, str]:
    """Runs to the end; returns the digests of the last state."""
    process = self.start(workdir)
    process.communicate()
    if process.returncode:
      raise RuntimeError(f'{workdir} ended with status {process.returncode}')
    folder = workdir / 'checkpoints'
    load_params(folder, STEPS)  # Raises unless files and digests agree.
    return read_record(folder, STEPS)['sha256']


class Prediction:
  """Predictions of a folder by a trained run, which are killed like a run."""

  def __init__(self, run: Path, images: Path):
    self.command = (
      *(sys.executable, '-m', 'segjax.predict', f'--workdir={run}'),
      *(f'--input={images}', '--kind=labels'),
    )

  def start(self, output: Path) -> subprocess.Popen:
    """Starts predicting."""
    return subprocess.Popen(
      (*self.command, f'--output={output}'),
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      cwd=Path(__file__).parents[1],
      env=os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
      start_new_session=True,
    )

  def finish(self, output: Path) -> dict[str, str]:
    """Predicts to the end; returns the digests of all files."""
    # Killed after its last file, it has nothing to go on with.
    if files_in(output) < IMAGES or [*output.glob('.unfinished*')]:
      process = self.start(output)
      process.communicate()
      if process.returncode:
        raise RuntimeError(f'{output} ended with status {process.returncode}')
    return {
      str(file.relative_to(output)): hashlib.sha256(
        file.read_bytes()
      ).hexdigest()
      for file in sorted(output.rglob('*'))
      if file.is_file()
    }


def files_in(output: Path) -> int:
  """How many files of a prediction are complete."""
  return len([*output.glob('*.png')])


def newest(workdir: Path) -> int:
  """Step of the newest complete checkpoint; 0 without any."""
  names = (p.name for p in (workdir / 'checkpoints').glob('*'))
  return max((int(name) for name in names if name.isdecimal()), default=0)


def main(_):
  kind = flags.FLAGS.kind
  rng = random.Random(flags.FLAGS.seed)
  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    write_images(folder / 'data', IMAGES)
    if kind == 'predict':
      Run('fcn', folder / 'data').finish(folder / 'trained')
      work = Prediction(folder / 'trained', folder / 'data/images')
      done, moments = files_in, IMAGES
    else:
      work, done, moments = Run(kind, folder / 'data'), newest, STEPS
    expected = work.finish(folder / 'unbroken')
    print('run  killed at  in a save  bit for bit', flush=True)
    equal = in_save = killed = 0
    for i in range(flags.FLAGS.kills):
      workdir = folder / f'run{i}'
      process = work.start(workdir)
      moment = rng.randrange(moments)
      while process.poll() is None and done(workdir) < moment:
        time.sleep(0.002)
      time.sleep(rng.uniform(0, 0.2))
      killed += process.poll() is None
      with contextlib.suppress(ProcessLookupError):  # It has ended by itself.
        os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
      saved = done(workdir)
      saving = any(
        'orbax-checkpoint-tmp' in file.name or file.suffix == '.tmp'
        for file in workdir.rglob('*')
      )
      same = work.finish(workdir) == expected
      in_save += saving
      equal += same
      print(f'{i:3} {saved:10} {saving!s:>10} {same!s:>12}', flush=True)
  print(
    f'{kind}: {killed} killed, {in_save} of them in a save; {equal} of '
    f'{flags.FLAGS.kills} ended bit for bit as the unbroken one'
  )
  return int(equal < flags.FLAGS.kills)


if __name__ == '__main__':
  flags.DEFINE_integer('kills', 40, 'Runs to kill.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Of the moments.')
  flags.DEFINE_enum('kind', 'adam', [*KINDS, 'predict'], 'What is killed.')
  app.run(main)
