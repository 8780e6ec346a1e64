# SPDX-License-Identifier: Apache-2.0
"""Runs that end, are killed, diverge and are started again."""

import concurrent.futures
import json
import shlex
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import (
  DEMO,
  launch,
  read_card,
  run,
  snapshot,
  start,
  tiny_config,
)
from test_report import check_alone
from test_writers import read_events

from segjax import steps, train
from segjax.data import Dataset
from segjax.images.files import write_stack
from segjax.models import create_model
from segjax.optimizers import create_optimizer, create_schedule
from segjax.runs.checkpoints import Checkpoints, load_params
from segjax.runs.integrity import read_record
from segjax.runs.workdir import read_config
from segjax.scoring.results import Evaluation

# Saving takes most of a step's time, so that 12 checkpoints are time to kill.
NUM_STEPS = 24
COMMAND = (
  *DEMO,
  f'--config.num_train_steps={NUM_STEPS}',
  '--config.evaluation.every_steps=12',
  '--config.log_every_steps=3',  # Not in step with the checkpoints.
)


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  """Workdir and printed text of a run that nobody disturbed."""
  workdir = tmp_path_factory.mktemp('unbroken') / 'a run'
  process = run('main', *COMMAND, f'--workdir={workdir}')
  assert process.returncode == 0, process.stderr
  return workdir, process.stdout


def test_killed_run_ends_as_an_unbroken_one(unbroken, tmp_path):
  command = (*COMMAND, f'--workdir={tmp_path}')
  process = start('main', *command)
  while process.poll() is None and max(saved_steps(tmp_path), default=0) < 4:
    time.sleep(0.005)
  process.kill()
  assert process.wait() == -signal.SIGKILL
  assert 4 <= max(saved_steps(tmp_path)) < NUM_STEPS
  assert (tmp_path / '.segjax.lock').exists()  # Which is no obstacle.
  assert not (tmp_path / 'pictures').exists()

  assert 4 <= finish_as_unbroken(command, unbroken[0]) < NUM_STEPS
  assert rows(tmp_path) == rows(unbroken[0])


def test_a_step_is_saved_before_it_is_evaluated(tmp_path, monkeypatch):
  config = tiny_config()
  config.batch_size = 8
  config.evaluation.every_steps = 2
  config.checkpoints.keep.keep_last = 1
  evaluated = []

  def scores_that_fall(model, params, *unused, **how):
    evaluated.append(how)
    if len(evaluated) == fails_at:
      raise RuntimeError('out of memory')
    score = 1 - float(np.abs(params['head']['bias']).sum())
    return Evaluation({config.evaluation.best_metric: score}, [])

  monkeypatch.setattr('segjax.train.evaluate', scores_that_fall)
  fails_at = 0
  train.train_and_evaluate(config, tmp_path / 'unbroken')
  evaluated.clear()
  fails_at = 1
  with pytest.raises(RuntimeError, match='out of memory'):
    train.train_and_evaluate(config, tmp_path / 'broken')
  assert saved_steps(tmp_path / 'broken') == [2]
  assert [row['step'] for row in rows(tmp_path / 'broken')] == [1, 2]
  train.train_and_evaluate(config, tmp_path / 'broken')
  assert len(evaluated) == 1 + 3  # Step 2 again, step 4, and the whole of it.
  assert rows(tmp_path / 'broken') == rows(tmp_path / 'unbroken')
  for step in saved_steps(tmp_path / 'unbroken'):
    folders = [
      tmp_path / name / 'checkpoints' for name in ('broken', 'unbroken')
    ]
    records = [read_record(folder, step) for folder in folders]
    assert records[0] == records[1]
    assert records[0]['score'] is not None
  # What has its scores is not evaluated again, but for the table.
  fails_at, evaluated[:] = 0, []
  train.train_and_evaluate(config, tmp_path / 'broken')
  assert len(evaluated) == 1


def test_images_of_many_sizes_compile_one_step(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)

  def examples(*sizes):
    return [
      {
        'image': rng.integers(0, 255, (*size, 1), dtype=np.uint8),
        'label': rng.integers(0, 2, size).astype(np.int32),
        'weight': np.ones(size, np.float32),
        'name': f'{size}',
      }
      for size in sizes
    ]

  dataset = Dataset(
    ('membrane', 'cell'),
    examples(*((20 + 31 * i, 300 - 29 * i) for i in range(10)), (9, 9)),
    examples((40, 40)),
    'digest',
  )
  compiled = []
  parallelize = train.parallel.parallelize

  def spy(*args):
    run = parallelize(*args)
    compiled.append(run.step)
    return run

  monkeypatch.setattr(train, 'create_dataset', lambda _: dataset)
  monkeypatch.setattr(train.parallel, 'parallelize', spy)
  config = tiny_config()
  config.batch_size = 8  # A multiple of the devices here.
  config.evaluation.best_metric = 'mean_iu'
  for config.num_train_steps in (2, 4):  # Begun, and gone on with.
    scores = train.train_and_evaluate(config, tmp_path)
    assert compiled.pop()._cache_size() == 1
    assert 0 <= scores['mean_iu'] <= 1
  assert [row['step'] for row in rows(tmp_path)][-1] == 4


def test_preempted_run_saves_the_step_and_goes_on(unbroken, tmp_path):
  command = (
    *COMMAND,
    '--config.checkpoints.every_steps=1000',
    f'--workdir={tmp_path}',
  )
  process = start('main', *command, piped=True)
  printed = process.stdout.readline()
  while printed and 'from step 0' not in printed:
    printed = process.stdout.readline()
  process.send_signal(signal.SIGTERM)
  out, errors = process.communicate()
  assert process.returncode == 0, errors
  [step] = saved_steps(tmp_path)
  assert (
    out.splitlines()[-1] == f'SIGTERM: saved step {step}; run again to go on'
  )
  assert not (tmp_path / 'pictures').exists()
  assert finish_as_unbroken(command, unbroken[0]) == step
  steps_of = [[row['step'] for row in rows(w)] for w in (tmp_path, unbroken[0])]
  assert steps_of[0] == steps_of[1]


def test_a_second_start_is_refused_and_leaves_the_first_alone(
  unbroken, tmp_path
):
  command = (*COMMAND, f'--workdir={tmp_path / "run"}')
  first = start('main', *command, piped=True)
  assert any('from step 0' in line for line in first.stdout)
  first.send_signal(signal.SIGSTOP)  # It keeps its lock and doesn't end.
  before = snapshot(tmp_path)
  other = (*command, '--config.seed=1', '--config.batch_size=8')
  for process in (
    run('main', *command),
    launch(2, sys.executable, '-m', 'segjax.main', *other),
  ):
    assert process.returncode == 2
    errors = [
      line for line in process.stderr.splitlines() if not line.startswith('+ ')
    ]
    assert len(errors) == 1, process.stderr
    assert errors[0].startswith(
      f'error: workdir {tmp_path / "run"} has a run already: process '
      f'{first.pid} on {socket.gethostname()} since '
    )
  assert snapshot(tmp_path) == before
  first.send_signal(signal.SIGCONT)
  _, errors = first.communicate()
  assert first.returncode == 0, errors
  assert rows(tmp_path / 'run') == rows(unbroken[0])
  # It is through, so that this trains nothing.
  assert finish_as_unbroken(command, unbroken[0]) == NUM_STEPS
  assert not (tmp_path / 'run' / '.segjax.lock').exists()


def test_of_two_starts_at_the_same_moment_one_goes_on(tmp_path):
  """Each has a seed of its own; the second is of two processes."""
  command = (*DEMO, '--config.batch_size=8', f'--workdir={tmp_path / "run"}')
  main = (sys.executable, '-m', 'segjax.main')
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    pending = [
      pool.submit(launch, seed + 1, *main, *command, f'--config.seed={seed}')
      for seed in range(2)
    ]
    ended = [future.result() for future in pending]
  assert sorted(process.returncode for process in ended) == [0, 2], ended
  won = [process.returncode for process in ended].index(0)
  assert ' has a run already: process ' in ended[1 - won].stderr
  assert read_config(tmp_path / 'run').seed == won
  steps = [row['step'] for row in rows(tmp_path / 'run')]
  assert steps == [1, 2, 3, 4, 4]
  assert saved_steps(tmp_path / 'run') == [2, 4]


def test_metrics_have_each_step_once(unbroken):
  logged = rows(unbroken[0])
  losses = [row['step'] for row in logged if 'train/loss' in row]
  scores = [row['step'] for row in logged if 'heldout/v_rand' in row]
  assert losses == list(range(3, NUM_STEPS + 1, 3))
  assert scores == [12, 24]


def test_training_and_heldout_scores_never_share_a_name(unbroken):
  workdir = unbroken[0]
  tags = {tag for _, tag, _ in read_events(workdir) if '/' in tag}
  names = {name for row in rows(workdir) for name in row} - {'step'}
  assert tags == names
  assert {name.partition('/')[0] for name in names} == {'train', 'heldout'}
  assert {'train/pixel_accuracy', 'heldout/pixel_accuracy'} <= names


def test_a_run_from_before_scores_had_prefixes_goes_on(tmp_path):
  config = tiny_config()
  config.batch_size = 8
  config.num_train_steps = 2
  train.train_and_evaluate(config, tmp_path)
  old = [
    {name.rpartition('/')[-1]: value for name, value in row.items()}
    for row in rows(tmp_path)
  ]
  text = ''.join(json.dumps(row) + '\n' for row in old)
  (tmp_path / 'metrics.jsonl').write_text(text)
  config.num_train_steps = 3
  train.train_and_evaluate(config, tmp_path)
  logged = rows(tmp_path)
  assert logged[: len(old)] == old
  assert [row['step'] for row in logged[len(old) :]] == [3, 3]


def test_restart_of_a_finished_run_trains_nothing(unbroken):
  workdir, printed = unbroken
  before, logged = snapshot(workdir / 'checkpoints'), rows(workdir)
  process = run('main', *COMMAND, f'--workdir={workdir}')
  assert process.returncode == 0, process.stderr
  assert f'from step {NUM_STEPS} to {NUM_STEPS}' in process.stdout
  assert table(process.stdout) == table(printed)
  assert process.stderr == ''
  # Labels are counted once, at the start of the run.
  assert 'labels: 3 to train on, 1 held out' in printed
  assert 'labels: ' not in process.stdout
  assert snapshot(workdir / 'checkpoints') == before
  assert rows(workdir) == logged


def test_evaluate_prints_the_table_of_the_run(unbroken):
  workdir, printed = unbroken
  before = snapshot(workdir)
  process = run('evaluate', f'--workdir={workdir}')
  assert process.returncode == 0, process.stderr
  title, *scores = process.stdout.splitlines()
  assert title == (
    '1 image (heldout), test-time augmentation: mean of 8 turns and flips'
  )
  assert f'{title}, step {NUM_STEPS}' in printed
  assert scores == table(printed)
  assert process.stderr == ''
  assert snapshot(workdir) == before


def test_scores_say_that_they_are_refined(unbroken, tmp_path):
  shutil.copytree(unbroken[0], tmp_path / 'run')
  to_run = f'--workdir={tmp_path / "run"}'
  process = run('main', *COMMAND, to_run, '--config.refinement.iterations=2')
  assert process.returncode == 0, process.stderr
  title = (
    '1 image (heldout), test-time augmentation: mean of 8 turns and flips, '
    'refined by a CRF: 2 iterations in a window of 7 px'
  )
  assert f'{title}, step {NUM_STEPS}\n' in process.stdout
  written = (tmp_path / 'run' / 'scores.txt').read_text()
  assert written.startswith(f'{title}, step {NUM_STEPS}\n')
  assert table(process.stdout) != table(unbroken[1])
  assert run('evaluate', to_run).stdout.splitlines() == [
    title,
    *table(process.stdout),
  ]


def test_the_last_line_predicts(unbroken, tmp_path):
  _, printed = unbroken
  said, command = printed.splitlines()[-1].split(': ', 1)
  assert said == 'to predict'
  assert shlex.split(command)[:3] == ['python', '-m', 'segjax.predict']
  (tmp_path / 'images').mkdir()
  write_stack(tmp_path / 'images' / 'a.png', np.zeros((1, 20, 30), np.uint8))
  places = {'IMAGES': 'images', 'PREDICTIONS': 'out'}
  for word, name in places.items():
    command = command.replace(word, shlex.quote(str(tmp_path / name)))
  process = run('predict', *shlex.split(command)[3:])
  assert process.returncode == 0, process.stderr
  assert [file.stem for file in (tmp_path / 'out').iterdir()] == ['a']


@pytest.mark.parametrize(
  'ours, other', [("model.name='unet'", 'unet_2015'), ('data.seed=0', '1')]
)
def test_workdir_of_another_experiment_is_left_alone(unbroken, ours, other):
  workdir, _ = unbroken
  before = snapshot(workdir)
  name = ours.split('=')[0]
  process = run(
    'main', *COMMAND, f'--workdir={workdir}', f'--config.{name}={other}'
  )
  assert process.returncode == 2
  made_with, this_run = process.stderr.split('; this run has ')
  assert ours in made_with and f'{name}=' in this_run
  assert snapshot(workdir) == before


def test_divergence_names_the_step_and_keeps_a_checkpoint(tmp_path):
  process = run(
    'main',
    *DEMO,
    '--config.schedule.learning_rate=1e30',
    '--config.checkpoints.every_steps=1',
    f'--workdir={tmp_path}',
  )
  assert process.returncode == 1
  first, *progress, message = process.stderr.splitlines()
  assert first.startswith('compiling ')
  assert message.startswith('error: loss is ')
  assert 'at step 2;' in message
  assert all(line.startswith('step ') for line in progress)
  assert progress and all('  data wait ' in line for line in progress)
  assert saved_steps(tmp_path) == [1]
  params = load_params(tmp_path / 'checkpoints', 'latest')
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_fewer_steps_than_trained_are_refused(unbroken, tmp_path):
  shutil.copytree(unbroken[0], tmp_path / 'run')
  before = snapshot(tmp_path)
  process = run(
    'main',
    *COMMAND,
    '--config.num_train_steps=6',
    f'--workdir={tmp_path / "run"}',
  )
  assert process.returncode == 2
  assert 'at step 24 already' in process.stderr
  assert snapshot(tmp_path) == before


@pytest.mark.parametrize('argument', read_card()['ARGUMENTS'])
def test_the_cards_tile_fits_the_network(argument):
  config = read_card()['get_config'](argument)
  geometry = create_model(config.model).geometry
  assert geometry.output_size(config.tile_size_px) > 100


def test_other_data_behind_the_same_config_are_refused(unbroken, tmp_path):
  shutil.copytree(unbroken[0], tmp_path / 'run')
  file = tmp_path / 'run' / 'config.json'
  settings = json.loads(file.read_text())
  del settings['seal']
  settings['data_sha256'] = 64 * '0'
  file.write_text(json.dumps(settings))
  for process, message in (
    (run('main', *COMMAND, f'--workdir={file.parent}'), 'are not those that'),
    (run('evaluate', f'--workdir={file.parent}'), 'the data are not those'),
  ):
    assert process.returncode == 2
    assert message in process.stderr


# The demo runs above.
@pytest.mark.parametrize(
  'argument', sorted({*read_card()['ARGUMENTS']} - {'demo'})
)
def test_every_argument_trains(argument, tmp_path):
  config = tiny_config(argument)
  config.batch_size = 8
  config.num_train_steps = 2
  config.data.fold = -1
  assert train.train_and_evaluate(config, tmp_path) == {}
  logged = rows(tmp_path)
  assert [row['step'] for row in logged] == [1, 2]
  assert all(np.isfinite(row['train/loss']) for row in logged)
  assert saved_steps(tmp_path) == [2]


@pytest.mark.parametrize('parallel', ['jit', 'pmap'])
@pytest.mark.smoke
def test_eight_devices_train_and_evaluate(parallel, tmp_path, capsys):
  config = tiny_config()
  config.batch_size = 8
  config.schedule.warmup_steps = 100
  config.parallel = parallel
  scores = train.train_and_evaluate(config, tmp_path)
  assert {'v_rand', 'pixel_error', 'mean_iu'} <= scores.keys()
  assert all(np.isfinite(value) for value in scores.values())
  assert saved_steps(tmp_path) == [2, 4]
  names = {f.name for f in (tmp_path / 'pictures').iterdir()}
  assert names == {'slice-00.png', 'learning_curve.png'}
  said = capsys.readouterr()
  assert said.err.startswith('compiling (about a minute the first time)\n')
  assert said.out.count('warning: warm-up: ') == 1
  assert f'report: {tmp_path / "report.html"}\n' in said.out
  page = check_alone((tmp_path / 'report.html').read_text())
  for text in (f'{scores["v_rand"]:.4f}', 'warm-up', 'membrane'):
    assert text in page.texts


def finish_as_unbroken(command, unbroken):
  """Ends a broken run, compares it, and returns the step it went on from."""
  again = run('main', *command)
  assert again.returncode == 0, again.stderr
  workdir = Path(command[-1].removeprefix('--workdir='))
  expected, state = final_state(unbroken), final_state(workdir)
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  for a, b in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  return int(again.stdout.split('from step ')[1].split()[0])


def saved_steps(workdir):
  return sorted(
    int(folder.name)
    for folder in (workdir / 'checkpoints').glob('*')
    if folder.name.isdecimal()
  )


def rows(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def table(printed):
  """The lines of the scores: the last but for the pictures and what is next."""
  lines = printed.splitlines()
  first = next(i for i, line in enumerate(lines) if line.startswith('v_rand '))
  others = ('pictures: ', 'report: ', 'to predict: ')
  return [line for line in lines[first:] if not line.startswith(others)]


def final_state(workdir):
  config = read_config(workdir)
  model = create_model(config.model)
  schedule = create_schedule(
    **config.schedule, num_steps=config.num_train_steps
  )
  optimizer = create_optimizer(schedule=schedule, **config.optimizer)
  abstract = jax.eval_shape(lambda: steps.init_state(model, optimizer, 0))
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    state = checkpoints.restore(abstract)
  assert state.step == NUM_STEPS
  return state
