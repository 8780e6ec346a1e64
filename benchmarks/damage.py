# SPDX-License-Identifier: Apache-2.0
"""Flips bits of checkpoints and cuts them short, and looks at what is restored.

`python benchmarks/damage.py --tries=300` damages the newer of two checkpoints:
four times in five a random bit of a random file, else a cut at a random place.
What is restored must be that checkpoint, where the bytes are not needed, or
the one before it, bit for bit. Exit status 1 if it ever is something else.
"""

import collections
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from segjax.runs.checkpoints import Checkpoints


def make_state(step: int) -> dict[str, Any]:
  """Returns arrays that are another step's nowhere."""
  rng = np.random.default_rng(step)
  return {
    'params': {'kernel': rng.normal(size=(64, 64)).astype(np.float32)},
    'momentum': rng.normal(size=(64, 64)).astype(np.float32),
    'key': rng.integers(0, 2**32, 2, dtype=np.uint32),
  }


def damage(file: Path, rng: random.Random) -> str:
  """Changes a file, and says how."""
  content = bytearray(file.read_bytes())
  bit = rng.randrange(8 * len(content))
  if rng.random() < 0.8:
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return 'flipped'
  file.write_bytes(content[: bit // 8])
  return 'cut'


def restored(directory: Path) -> str:
  """Which checkpoint comes out of a damaged folder: '1', '2' or 'other'."""
  with Checkpoints(directory, best_metric='score') as checkpoints:
    state = checkpoints.restore(make_state(0))
  for step in (1, 2):
    pairs = zip(
      jax.tree.leaves(state), jax.tree.leaves(make_state(step)), strict=True
    )
    if all(np.array_equal(a, b) for a, b in pairs):
      return str(step)
  return 'other'


def main(_):
  logging.set_verbosity(logging.ERROR)
  rng = random.Random(flags.FLAGS.seed)
  seen = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    whole = Path(folder, 'whole')
    with Checkpoints(whole, best_metric='score') as checkpoints:
      for step in (1, 2):
        checkpoints.save(step, make_state(step))
        checkpoints.enter_scores(step, {'score': step / 10})
    files = [path for path in whole.glob('2/**/*') if path.is_file()]
    files.append(whole / '2.record.json')
    for _ in range(flags.FLAGS.tries):
      broken = Path(folder, 'broken')
      shutil.copytree(whole, broken)
      how = damage(broken / rng.choice(files).relative_to(whole), rng)
      seen[how, restored(broken)] += 1
      shutil.rmtree(broken)
  print('damage   restored  times')
  for (how, which), times in sorted(seen.items()):
    print(f'{how:8} {which:>8} {times:6}')
  return int(any(which == 'other' for _, which in seen))


if __name__ == '__main__':
  flags.DEFINE_integer('tries', 300, 'Checkpoints to damage.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Of the damage.')
  app.run(main)
