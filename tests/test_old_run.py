# SPDX-License-Identifier: Apache-2.0
"""A run that an older version made evaluates, predicts and goes on.

tests/data/run_e372bb7 is of commit e372bb7 (2026-11-28, CPU, jax 0.10.2): the
demo with `commands.TINY`, four steps, and what that commit computed from it:
its scores, the prediction of an image, and the parameters at step 6.
"""

import json
import shutil
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import DEMO, launch, run
from flax import traverse_util

from segjax.networks import load_run
from segjax.runs.checkpoints import load_params

DATA = Path(__file__).parent / 'data' / 'run_e372bb7'
SCORES = {
  'v_rand': 0.5370,
  'v_info': 0.6305,
  'pixel_error': 0.1903,
  'rand_error': 0.5380,
  'pixel_accuracy': 0.4128,
  'mean_iu': 0.2064,
}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('old') / 'run'
  with tarfile.open(DATA / 'run.tar.gz') as archive:
    archive.extractall(folder, filter='data')
  return folder


@pytest.fixture(scope='module')
def expected():
  with np.load(DATA / 'expected.npz') as arrays:
    return dict(arrays)


def test_it_is_read(workdir):
  model, params, config = load_run(workdir)
  assert model.base_width == 4 and config.num_train_steps == 4
  assert set(params) == {'down0', 'bottleneck', 'up0', 'head'}


def test_it_has_the_scores_that_it_had(workdir):
  process = run('evaluate', f'--workdir={workdir}')
  assert process.returncode == 0, process.stderr
  found = dict(line.split() for line in process.stdout.splitlines()[1:])
  for name, score in SCORES.items():
    assert float(found[name]) == pytest.approx(score, abs=2e-4)


def test_it_predicts_what_it_predicted(workdir, expected, tmp_path):
  np.save(tmp_path / 'in.npy', expected['image'])
  process = run(
    'predict',
    f'--workdir={workdir}',
    f'--input={tmp_path}/in.npy',
    f'--output={tmp_path}/out.npy',
  )
  assert process.returncode == 0, process.stderr
  prediction = np.load(tmp_path / 'out.npy')
  np.testing.assert_allclose(prediction, expected['prediction'], atol=1e-5)


# Training tiles are read linearly, as they were up to commit a122342.
READ_LINEARLY = """
import runpy
from segjax.data import augment
read = augment._read
augment._read = lambda *args, shares, **how: read(
  *args, shares=augment._linear_shares, **how
)
runpy.run_module('segjax.main', run_name='__main__', alter_sys=True)
"""


def test_it_goes_on_as_it_did(workdir, expected, tmp_path):
  shutil.copytree(workdir, tmp_path / 'run')
  flags = (*DEMO, '--config.num_train_steps=6', f'--workdir={tmp_path}/run')
  process = launch(
    1, sys.executable, '-c', READ_LINEARLY, *flags, JAX_NUM_CPU_DEVICES='1'
  )
  assert process.returncode == 0, process.stderr
  assert 'from step 4 to 6' in process.stdout
  params = load_params(tmp_path / 'run' / 'checkpoints', 6)
  before = load_run(workdir)[1]
  moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before, params)
  assert max(jax.tree.leaves(moved)) > 5e-4  # By more than is allowed below.
  params = traverse_util.flatten_dict(params, sep='/')
  assert params.keys() == expected.keys() - {'image', 'prediction'}
  for name, values in params.items():
    np.testing.assert_allclose(values, expected[name], atol=1e-5)
  text = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 4, 5, 6, 6]
