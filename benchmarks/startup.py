# SPDX-License-Identifier: Apache-2.0
"""From nothing to the first training step: python -m benchmarks.startup

Each row is of new processes, one a round, which run this command with --child.
The cache of compiled programs is jax's, asked for by its environment variables;
segjax doesn't set it.
"""

import json
import os
import subprocess
import sys
import tempfile
from time import perf_counter

from absl import flags

from segjax.cli.command_line import run_command

_WIDTH = flags.DEFINE_integer('width', 16, 'Channels at the finest level.', 1)
_SIZE = flags.DEFINE_integer('size', 572, 'Side of the images, in pixels.', 1)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'New processes for each row.', 1)
_CHILD = flags.DEFINE_boolean(
  'child', False, 'Take one step and print seconds, as JSON.'
)

_COLUMNS = ('import', 'initial state', 'compile', 'first step')
_CASES = ('no cache', 'cache, empty', 'cache, filled')


def main(_):
  if _CHILD.value:
    print(json.dumps(_start_and_step()))
    return
  import numpy as np  # Here, so that a child's import is of everything.

  from benchmarks import timing

  seconds = {case: [] for case in _CASES}
  for _ in range(_ROUNDS.value):
    with tempfile.TemporaryDirectory() as cache:
      for case in _CASES:
        seconds[case].append(_run_child('' if case == 'no cache' else cache))
  rows = []
  for case, runs in seconds.items():
    columns = [*zip(*runs, strict=True), [sum(run) for run in runs]]
    rows.append([case, *(f'{np.median(column):.2f}' for column in columns)])
  timing.print_report(
    f'Start of training, U-Net {_WIDTH.value}, {_SIZE.value} x {_SIZE.value} '
    'px, batch 1',
    ('seconds', *_COLUMNS, 'sum'),
    rows,
    f'Medians of {_ROUNDS.value} processes each, in turns.',
  )


def _run_child(cache):
  """Returns the seconds of `_COLUMNS` in a new process."""
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  if not cache:
    del environment['JAX_COMPILATION_CACHE_DIR']
  command = [sys.executable, '-m', 'benchmarks.startup', '--child']
  command += [f'--width={_WIDTH.value}', f'--size={_SIZE.value}']
  child = subprocess.run(
    command, env=environment, stdout=subprocess.PIPE, text=True, check=True
  )
  return json.loads(child.stdout)


def _start_and_step():
  """Returns the seconds of `_COLUMNS` in this process, which has no jax yet."""
  times = [perf_counter()]
  import segjax.train  # noqa: F401

  times.append(perf_counter())
  import jax
  import numpy as np

  from benchmarks import sides
  from segjax import steps
  from segjax.devices import parallel
  from segjax.models.unet import UNet

  model = UNet(base_width=_WIDTH.value)
  batch = sides.random_batch(model, 1, _SIZE.value)
  rate = sides.learning_rate('mean', batch['label'].size)
  optimizer = sides.create_optimizer(rate)
  init = parallel.jit_once(lambda: steps.init_state(model, optimizer, seed=0))
  times.append(perf_counter())
  state = jax.block_until_ready(init())
  times.append(perf_counter())
  step = sides.make_step(model, rate, 'mean')
  step = parallel.jit(step, donate_argnums=0)
  step = step.lower(state, batch).compile()
  times.append(perf_counter())
  _, metrics = step(state, batch)
  float(metrics['loss'])
  times.append(perf_counter())
  seconds = np.diff(times).tolist()
  return [seconds[0], *seconds[2:]]  # Without what only this file needs.


if __name__ == '__main__':
  run_command(main)
