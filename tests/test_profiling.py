# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import pytest
from commands import tiny_config

from segjax import train
from segjax.devices import processes
from segjax.devices.profiling import tracing


@pytest.fixture
def calls(monkeypatch):
  """The steps at which a trace begins and ends; of 1 to 6, in `seen`."""
  seen, told = [], []
  monkeypatch.setattr(
    jax.profiler,
    'start_trace',
    lambda folder: told.append(('start', len(seen))),
  )
  monkeypatch.setattr(
    jax.profiler, 'stop_trace', lambda: told.append(('stop', len(seen)))
  )
  return seen, told


@pytest.mark.parametrize(
  ('first', 'last', 'expected'),
  [
    (0, 0, []),
    (3, 4, [('start', 2), ('stop', 4)]),
    (1, 1, [('start', 0), ('stop', 1)]),
    (5, 9, [('start', 4), ('stop', 6)]),
    (7, 9, []),
  ],
)
def test_first_to_last_are_traced(calls, first, last, expected):
  seen, told = calls
  with tracing(first, last, 'x') as trace:
    for step in range(1, 7):
      trace(step, None)
      seen.append(step)
  assert told == expected


def test_a_run_that_goes_on_traces_what_is_left(calls):
  seen, told = calls
  with tracing(2, 5, 'x') as trace:
    for step in range(4, 7):
      trace(step, None)
      seen.append(step)
  assert told == [('start', 0), ('stop', 2)]


def test_a_loop_that_fails_ends_the_trace(calls):
  with pytest.raises(KeyError), tracing(2, 5, 'x') as trace:
    trace(2, None)
    raise KeyError
  assert calls[1] == [('start', 0), ('stop', 0)]


def test_one_process_traces(calls, monkeypatch):
  monkeypatch.setattr(processes, 'is_first', lambda: False)
  with tracing(1, 2, 'x') as trace:
    trace(1, None)
  assert calls[1] == []


def test_the_trace_has_what_ran_in_its_steps(tmp_path):
  with tracing(1, 2, tmp_path) as trace:
    for step in range(4):
      trace(step, None)
      with jax.profiler.TraceAnnotation(f'annotation-{step}'):
        jnp.ones(3) + step
  [file] = tmp_path.glob('plugins/profile/*/*.xplane.pb')
  seen = [f'annotation-{i}'.encode() in file.read_bytes() for i in range(4)]
  assert seen == [False, True, True, False]


def test_a_run_leaves_a_trace(tmp_path):
  config = tiny_config()
  config.batch_size = 8
  config.data.fold = -1
  config.profile_steps = (2, 3)
  train.train_and_evaluate(config, tmp_path)
  [file] = (tmp_path / 'profile').glob('plugins/profile/*/*.xplane.pb')
  assert b'train_step' in file.read_bytes()
