# SPDX-License-Identifier: Apache-2.0
"""A run of an older segjax evaluates, predicts and goes on as it did then.

`data/run_e372bb7` is a workdir that commit e372bb7 wrote on 2026-11-28 (CPU,
float32, jax 0.10.2): the command `main` with the flags `commands.DEMO` and the
environment `commands.QUICKLY`. Its pictures and its tensorboard are left out.
The same commit then made what the tests compare with: SCORES, and in
`expected.npz` the probabilities of `image()` and the parameters of step 6. On
the machine that wrote them the parameters are equal bit for bit; the tolerances
are for other machines, whose compilers round in another order.
"""

import shutil

import jax
import numpy as np
import pytest
from commands import DEMO, REPOSITORY, run

import segjax

OLD_RUN = REPOSITORY / 'tests' / 'data' / 'run_e372bb7'
# As `evaluate --split=heldout` of commit e372bb7 printed them.
SCORES = {
  'v_rand': 0.5370,
  'v_info': 0.6305,
  'v_rand_threshold': 0.3,
  'v_info_threshold': 0.3,
  'pixel_error': 0.1903,
  'rand_error': 0.5380,
  'warping_error': 0.0,
  'pixel_accuracy': 0.4128,
  'mean_accuracy': 0.5,
  'mean_iu': 0.2064,
  'frequency_weighted_iu': 0.1704,
}


def image():
  """Returns the image that the old commit predicted, uint8[40,56]."""
  values = np.add.outer(7 * np.arange(40), 5 * np.arange(56)) % 256
  return values.astype(np.uint8)


@pytest.fixture
def workdir(tmp_path):
  return shutil.copytree(OLD_RUN, tmp_path / 'run')


@pytest.fixture(scope='module')
def expected():
  with np.load(OLD_RUN / 'expected.npz', allow_pickle=False) as file:
    return dict(file)


def succeed(command, *args):
  done = run(command, *args)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_it_evaluates_to_its_scores(workdir):
  printed = succeed('evaluate', f'--workdir={workdir}', '--split=heldout')
  rows = [line.split() for line in printed.splitlines()]
  scores = {row[0]: float(row[1]) for row in rows if row[0] in SCORES}
  # A threshold may fall on the other side of one of 4,096 pixels.
  assert scores == pytest.approx(SCORES, abs=1e-3)


def test_it_predicts_what_it_predicted(workdir, tmp_path, expected):
  np.save(tmp_path / 'image.npy', image())
  output = tmp_path / 'probabilities.npy'
  files = (f'--input={tmp_path}/image.npy', f'--output={output}')
  succeed('predict', f'--workdir={workdir}', *files)
  probabilities = np.load(output)
  assert probabilities.dtype == np.float32
  np.testing.assert_allclose(
    probabilities, expected['probabilities'], rtol=0, atol=1e-6
  )


def test_it_goes_on_to_the_same_parameters(workdir, expected):
  _, before, _ = segjax.load_run(workdir)
  more = '--config.num_train_steps=6'
  succeed('main', *DEMO, more, f'--workdir={workdir}')
  _, after, _ = segjax.load_run(workdir, '6')
  flat, _ = jax.tree_util.tree_flatten_with_path(after)
  params = {f'params/{"/".join(k.key for k in p)}': v for p, v in flat}
  assert params.keys() == expected.keys() - {'probabilities'}
  for name, value in params.items():
    np.testing.assert_allclose(
      value, expected[name], rtol=0, atol=1e-5, err_msg=name
    )
  # The two steps have moved them by much more than that.
  moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before, after)
  assert max(jax.tree.leaves(moved)) > 5e-4
