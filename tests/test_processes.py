# SPDX-License-Identifier: Apache-2.0
"""Runs in two processes, on loopback: the same numbers as in one."""

import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from commands import TINY_SETTINGS, free_port, launch, run, run_processes
from trees import write_picture

from segjax.devices import processes
from segjax.errors import InputError
from segjax.runs.checkpoints import load_params
from segjax.runs.workdir import check_claimed
from segjax.scoring.stack import predict_stack

NUM_STEPS = 5
# 15 slices hold out 3, which two processes cannot share evenly.
UNET = {
  **TINY_SETTINGS,
  'model.norm': 'batch',  # Of all processes.
  'data.num_slices': 15,
  'data.size_px': 64,
  'data.gap': 0,
  'batch_size': 8,
  'num_train_steps': NUM_STEPS,
  'evaluation.every_steps': NUM_STEPS,
  'evaluation.average': False,
}
# The network with fewest layers, since each process compiles it.
FCN = {
  'model.name': 'fcn_alexnet',
  'model.width': 1 / 64,
  'model.fc_features': 5,
  'model.dropout_rate': 0.5,
  'init.path': 'random',
  'batch_size': 8,
  'num_train_steps': NUM_STEPS,
  'log_every_steps': 1,
  'schedule.warmup_steps': 0,
  'schedule.learning_rate': 1e-2,
  'batching.bucket_px': 8,
  'prediction.bucket_px': 8,
  'evaluation.every_steps': NUM_STEPS,
  'checkpoints.every_steps': 2,
  'data.heldout_fraction': 0.3,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Ten images of ten sizes; three are held out."""
  folder = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for i in range(10):
    label = rng.integers(0, 2, (17 + 2 * i, 40 - 2 * i), dtype=np.uint8)
    image = rng.integers(0, 128, (*label.shape, 3), dtype=np.uint8)
    write_picture(folder / f'images/{i}.png', image + 100 * label[..., None])
    write_picture(folder / f'labels/{i}.png', label)
  return folder


def command(case, folder, workdir):
  settings = dict(FCN if case == 'fcn' else UNET)
  card = 'fcn8s_folder.py' if case == 'fcn' else 'unet_isbi.py:demo'
  if case == 'fcn':
    settings['data.dir'] = folder
  if case == 'unet_pmap':
    settings['parallel'] = 'pmap'
  flags = [f'--config.{name}={value}' for name, value in settings.items()]
  return (f'--config=configs/{card}', *flags, f'--workdir={workdir}')


def finished(case, folder, tmp_path_factory):
  """Workdirs and printed texts, the first of 2 processes with 4 devices."""
  kinds = {'2': case, '1': case}
  if case == 'unet':
    kinds['pmap'] = 'unet_pmap'
  workdirs, printed = {}, {}
  for kind, variant in kinds.items():
    workdirs[kind] = tmp_path_factory.mktemp(f'{case}-{kind}')
    arguments = command(variant, folder, workdirs[kind])
    if kind == '1':
      ended = [run('main', *arguments, env={'JAX_NUM_CPU_DEVICES': '1'})]
    else:
      ended = run_processes(2, 'main', *arguments)
    for process in ended:
      assert process.returncode == 0, process.stderr
    printed[kind] = ''.join(process.stdout for process in ended)
  return workdirs, printed


@pytest.fixture(scope='module')
def unet(folder, tmp_path_factory):
  return finished('unet', folder, tmp_path_factory)


@pytest.fixture(scope='module')
def fcn(folder, tmp_path_factory):
  return finished('fcn', folder, tmp_path_factory)


@pytest.fixture(params=['unet', 'fcn'])
def runs(request):
  return request.getfixturevalue(request.param)


def rows(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_parameters_do_not_depend_on_the_processes(runs):
  workdirs, _ = runs
  params = {
    n: load_params(workdir / 'checkpoints', NUM_STEPS)
    for n, workdir in workdirs.items()
  }
  for other in params.values():
    for a, b in zip(*map(jax.tree.leaves, (params['2'], other)), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)


def test_metrics_do_not_depend_on_the_processes(runs):
  workdirs, _ = runs
  logged = {n: rows(workdir) for n, workdir in workdirs.items()}
  assert [row['step'] for row in logged['2']] == [1, 2, 3, 4, 5, 5]
  assert len({row['train/loss'] for row in logged['2'][:-1]}) == NUM_STEPS
  for other in logged.values():
    for row, expected in zip(logged['2'], other, strict=True):
      assert row == pytest.approx(expected, abs=1e-5)
  # Ratios of counts: one pixel more or less would show.
  for name in ('pixel_accuracy', 'mean_iu', 'frequency_weighted_iu'):
    values = {logged[n][-1][f'heldout/{name}'] for n in logged}
    assert len(values) == 1
    assert 0.1 < values.pop() < 1


def test_one_process_prints_and_writes(runs):
  workdirs, printed = runs
  tables = {
    n: [line for line in text.splitlines() if line.startswith('mean_iu ')]
    for n, text in printed.items()
  }
  assert len(tables['1']) == 1
  assert tables['2'] == tables['1']
  labels = {
    n: [line for line in text.splitlines() if line.startswith('labels: ')]
    for n, text in printed.items()
  }
  assert len(labels['1']) == 1  # What two processes counted in halves.
  assert labels['2'] == labels['1']
  scores = {
    (workdir / 'scores.txt').read_text() for workdir in workdirs.values()
  }
  assert len(scores) == 1
  assert len([*(workdirs['2'] / 'tensorboard').iterdir()]) == 1
  pictures = {
    n: {file.name for file in (workdir / 'pictures').iterdir()}
    for n, workdir in workdirs.items()
  }
  assert pictures['2'] and pictures['2'] <= pictures['1']


@pytest.mark.parametrize('devices', ['8', '1'])
def test_a_checkpoint_of_two_processes_goes_on(unet, tmp_path, devices):
  """From step 4, with the parameters of the unbroken run at step 5."""
  workdir = unet[0]['2']
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(NUM_STEPS))
  process = run(
    'main',
    *command('unet', None, tmp_path / 'run'),
    env={'JAX_NUM_CPU_DEVICES': devices},
  )
  assert process.returncode == 0, process.stderr
  assert 'from step 4 to 5' in process.stdout
  resumed, unbroken = (
    load_params(folder / 'checkpoints', NUM_STEPS)
    for folder in (tmp_path / 'run', workdir)
  )
  for a, b in zip(*map(jax.tree.leaves, (resumed, unbroken)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


# Joins, gathers what jax would cut to 32 bits, and fails on one process only.
PROBE = """
import numpy as np
from segjax.devices import processes
from segjax.errors import InputError
processes.join()
import jax
index = jax.process_index()
print(f'<{jax.process_count()} {index}>', flush=True)
gathered = processes.gather(np.array([2**40 + index, -1]))
assert gathered.tolist() == [[2**40, -1], [2**40 + 1, -1]], gathered
assert gathered.dtype == np.int64
assert [*processes.share(3)] == [[0, 2], [1, 3]][index]
assert processes.together(lambda: index) == index
def fail():
  if index:
    raise InputError('no file of process 1')
try:
  processes.together(fail)
except InputError as error:
  print(f'<{error}>', flush=True)
empty = processes.gather_rows(np.zeros((0, 3), np.int64))
assert empty.shape == (0, 3)
processes.say('<once>')
"""
CLUSTERS = {
  'plain': {},
  'slurm': {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': '$JAX_PROCESS_ID',
    'SLURM_LOCALID': '$JAX_PROCESS_ID',
  },
  'openmpi': {
    'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://127.0.0.1:34911',
    'OMPI_COMM_WORLD_SIZE': '2',
    'OMPI_COMM_WORLD_RANK': '$JAX_PROCESS_ID',
    'OMPI_COMM_WORLD_LOCAL_RANK': '$JAX_PROCESS_ID',
  },
}


@pytest.mark.parametrize('cluster', CLUSTERS)
def test_processes_find_and_tell_each_other(cluster):
  probe = [sys.executable, '-c', PROBE]
  if CLUSTERS[cluster]:
    sets = ' '.join(f'{k}="{v}"' for k, v in CLUSTERS[cluster].items())
    # The launcher's own variables, which would come first, are taken away.
    own = '-u JAX_NUM_PROCESSES -u JAX_PROCESS_ID -u JAX_COORDINATOR_ADDRESS'
    probe = ['bash', '-c', f'env {own} {sets} "$0" "$@"', *probe]
  process = launch(2, *probe, JAX_COORDINATOR_PORT=free_port())
  assert process.returncode == 0, process.stderr
  # Gloo writes its own lines in pieces, between and around ours.
  said = sorted(re.findall('<([^>]*)>', process.stdout))
  assert said == ['2 0', '2 1', *2 * ['no file of process 1'], 'once']


@pytest.mark.parametrize(
  ('address', 'bound'),
  [
    ('127.0.0.1:1234', '127.0.0.1:1234'),
    ('localhost:1234', 'localhost:1234'),
    ('[::1]:1234', '[::1]:1234'),
    ('10.0.0.1:1234', None),
    ('127.example.org:1234', None),
  ],
)
def test_process_0_listens_where_its_address_says(address, bound, monkeypatch):
  given = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda **options: given.append(options)
  )
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', address)
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  processes.join()
  assert [o['coordinator_bind_address'] for o in given] == [bound]
  monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', '0.0.0.0:1234')
  processes.join()
  assert given[1]['coordinator_bind_address'] is None


@pytest.mark.parametrize(
  ('env', 'message'),
  [
    ({'JAX_NUM_PROCESSES': 'two'}, "JAX_NUM_PROCESSES='two'"),
    ({'JAX_NUM_PROCESSES': '2'}, 'JAX_COORDINATOR_ADDRESS'),
    ({'JAX_PROCESS_ID': '0'}, 'JAX_COORDINATOR_ADDRESS'),
  ],
)
def test_half_a_cluster_is_refused(env, message, tmp_path):
  flags = command('unet', None, tmp_path / 'run')
  process = run('main', *flags, env=env)
  assert process.returncode == 2
  assert process.stderr.startswith('error: ') and message in process.stderr
  assert process.stderr.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_a_batch_that_processes_cannot_split_is_refused(tmp_path):
  flags = command('unet', None, tmp_path / 'run')
  flags += ('--config.batch_size=4',)
  process = launch(2, sys.executable, '-m', 'segjax.main', *flags)
  assert process.returncode == 2
  assert 'batch_size=4 is not divisible by the 8 devices' in process.stderr
  assert not (tmp_path / 'run').exists()


def test_the_launcher_ends_with_a_process_that_fails():
  script = 'if ((JAX_PROCESS_ID)); then exit 3; else exec sleep 300; fi'
  assert launch(2, 'bash', '-c', script).returncode == 3
  assert launch(2, 'true').returncode == 0
  assert launch(2).returncode == 2


def test_a_folder_that_is_not_shared_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr('segjax.runs.workdir._NFS_CACHE_SECONDS', 0)
  with pytest.raises(InputError, match='file system that all'):
    check_claimed(tmp_path)
  (tmp_path / 'config.json').write_text('{}')
  check_claimed(tmp_path)


@pytest.mark.parametrize('count', [1, 2, 3, 4, 8])
def test_every_image_counts_once(count, monkeypatch):
  """Whatever the number of processes, here one after another."""
  examples = [np.full((2, 3, 1), i, np.float32) for i in range(3)]
  monkeypatch.setattr(jax, 'process_count', lambda: count)
  done, own = [], []
  for index in range(count):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    done += [i for i in processes.share(3) if i < 3]
    monkeypatch.setattr(
      processes,
      'gather',
      lambda x: own.append(x) or np.zeros((count, *x.shape)),
    )
    predict_stack(lambda image: image * 2, examples)
  assert sorted(done) == [0, 1, 2]
  monkeypatch.setattr(processes, 'gather', lambda x: np.stack(own))
  stack = predict_stack(lambda image: image * 2, examples)
  np.testing.assert_array_equal(stack, np.stack(examples) * 2)
