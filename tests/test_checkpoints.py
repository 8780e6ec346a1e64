# SPDX-License-Identifier: Apache-2.0
import functools
import gc
import logging
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging as absl_logging

from segjax.errors import InputError
from segjax.runs import checkpoints


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: tuple
  key: jax.Array


def make_state(step, width=8):
  rng = np.random.default_rng(step)
  params = {
    'down0': {'conv0': {'kernel': rng.normal(size=(64, width))}},
    'head': {'bias': rng.normal(size=4)},
  }
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  params['head']['scale'] = jnp.asarray(rng.normal(size=3), jnp.bfloat16)
  opt_state = optax.adam(0.1).init(params)
  key = jax.random.key_data(jax.random.key(step))
  return State(jnp.int32(step), params, opt_state, key)


def assert_same(given, expected):
  assert jax.tree.structure(given) == jax.tree.structure(expected)
  for a, b in zip(*map(jax.tree.leaves, (given, expected)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save(c, step, state, scores):
  c.save(step, state)
  c.enter_scores(step, scores)


def steps_in(directory):
  return sorted(int(n) for n in os.listdir(directory) if n.isdecimal())


@pytest.fixture
def records():
  """What passes absl's logger, from INFO on."""
  handler = logging.Handler()
  handler.records = []
  handler.emit = handler.records.append
  logger = absl_logging.get_absl_logger()
  level = logger.level
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  yield handler.records
  logger.removeHandler(handler)
  logger.setLevel(level)


@pytest.fixture
def collected():
  """Collects the garbage of a test before the next one is blamed for it."""
  yield
  gc.collect()


@pytest.mark.smoke
def test_restores_bit_for_bit_and_quietly(tmp_path, records):
  with checkpoints.Checkpoints(tmp_path / 'a' / 'b') as c:
    assert checkpoints.newest_step(tmp_path / 'a' / 'b') is None
    save(c, 7, make_state(7), {'v_rand': 0.5})
    assert_same(c.restore(make_state(0)), make_state(7))
    abstract = jax.eval_shape(functools.partial(make_state, 0))
    assert_same(c.restore(abstract), make_state(7))
  with pytest.raises(InputError, match="has a score; ask for 'latest'"):
    checkpoints.load_params(tmp_path / 'a' / 'b')
  assert_same(
    checkpoints.load_params(tmp_path / 'a' / 'b', 'latest'),
    make_state(7).params,
  )
  assert [r.getMessage() for r in records if 'orbax' in r.pathname] == []


def test_keeps_the_last_and_the_best(tmp_path):
  scores = [0.5, 0.9, None, 0.1, float('nan'), None, 0.4, float('inf')]
  options = dict(keep_last=2, best_metric='v_rand')
  with checkpoints.Checkpoints(tmp_path, **options) as c:
    for step, score in enumerate(scores, start=1):
      c.save(step, make_state(step))
      if score is not None:
        c.enter_scores(step, {'v_rand': score, 'other': 9.0 - step})
    c.wait()
    assert steps_in(tmp_path) == [2, 7, 8]
  with checkpoints.Checkpoints(tmp_path, **options) as c:
    assert checkpoints.newest_step(tmp_path) == 8
    assert_same(checkpoints.load_params(tmp_path), make_state(2).params)
    save(c, 9, make_state(9), {'v_rand': 0.9})
    c.save(10, make_state(10))
    c.save(11, make_state(11))
    c.wait()
    assert steps_in(tmp_path) == [9, 10, 11]  # A tie goes to the newer.
  assert_same(checkpoints.load_params(tmp_path), make_state(9).params)
  assert_same(checkpoints.load_params(tmp_path, 10), make_state(10).params)


def test_restores_to_the_wanted_placement_and_from_the_host(tmp_path):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
  state = make_state(3)
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(3, jax.device_get(state))
    placed = c.restore(jax.device_put(make_state(0), everywhere))
    assert_same(placed, state)
    assert placed.params['head']['bias'].sharding == everywhere
    assert_same(c.restore(jax.device_get(make_state(0))), state)


def test_keeps_several_best(tmp_path):
  options = dict(keep_last=1, keep_best=2, best_metric='v')
  with checkpoints.Checkpoints(tmp_path, **options) as c:
    for step, score in enumerate([0.2, 0.8, 0.1, 0.7, 0.3, 0.0], start=1):
      save(c, step, {'params': jnp.float32(step)}, {'v': score})
  assert steps_in(tmp_path) == [2, 4, 6]


def test_saved_is_what_was_given_although_donated(tmp_path):
  advance = jax.jit(lambda x: x + 1, donate_argnums=0)
  params = jnp.zeros((500, 500))
  with checkpoints.Checkpoints(tmp_path) as c:
    host = np.zeros(1000, np.float32)
    c.save(1, {'params': params, 'host': host})
    host[:] = 5
    for _ in range(10):
      params = advance(params)
    restored = c.restore({'params': params, 'host': host})
  np.testing.assert_array_equal(restored['params'], np.zeros((500, 500)))
  np.testing.assert_array_equal(restored['host'], np.zeros(1000))


def test_killed_while_saving(tmp_path):
  # Twelve devices: more than the process that reads.
  script = """
    import os, signal, sys
    import jax, jax.numpy as jnp, numpy as np
    from segjax.runs import checkpoints
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
    spec = jax.sharding.PartitionSpec
    big = np.random.default_rng(0).normal(size=(3000, 1200))
    def make(step):
      rows = np.float32(np.arange(24) + step)
      return {
        'params': {
          'rows': jax.device_put(rows, jax.NamedSharding(mesh, spec('data'))),
          'all': jax.device_put(rows, jax.NamedSharding(mesh, spec())),
        },
        'big': jnp.asarray(big + step, jnp.float32),
      }
    assert len(jax.devices()) == 12
    with checkpoints.Checkpoints(sys.argv[1], best_metric='v') as c:
      c.save(1, make(1))
      c.enter_scores(1, {'v': 0.5})
      c.wait()
      c.save(2, make(2))
      os.kill(os.getpid(), signal.SIGKILL)
  """
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=12',
  }
  ended = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(script), str(tmp_path)],
    env=environment,
    cwd=pathlib.Path(__file__).parent.parent,
  )
  assert ended.returncode == -signal.SIGKILL
  assert '2' not in os.listdir(tmp_path)  # Killed before it was complete.

  rows = np.arange(24, dtype=np.float32)
  params = checkpoints.load_params(tmp_path, 'best')
  np.testing.assert_array_equal(params['rows'], rows + 1)
  np.testing.assert_array_equal(params['all'], rows + 1)
  assert params['rows'].devices() == {jax.devices()[0]}

  state = {
    'params': {'rows': jnp.zeros(24), 'all': jnp.zeros(24)},
    'big': jnp.zeros((3000, 1200)),
  }
  with checkpoints.Checkpoints(tmp_path, best_metric='v') as c:
    assert checkpoints.newest_step(tmp_path) == 1
    restored = c.restore(state)
    np.testing.assert_array_equal(restored['params']['rows'], rows + 1)
    save(c, 2, state, {'v': 0.1})
  assert steps_in(tmp_path) == [1, 2]


DATA = 'the largest file'


# Orbax leaves the other reads of a failed restore unawaited.
@pytest.mark.usefixtures('collected')
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
  'name',
  [DATA, 'default/manifest.ocdbt', 'default/_METADATA', 'default/_sharding'],
)
def test_falls_back_from_a_truncated_checkpoint(tmp_path, records, name):
  with checkpoints.Checkpoints(tmp_path, best_metric='v') as c:
    save(c, 1, make_state(1), {'v': 0.1})
    save(c, 2, make_state(2), {'v': 0.2})
  files = [path for path in (tmp_path / '2').rglob('*') if path.is_file()]
  largest = max(
    (path for path in files if path.parent.name == 'd'),
    key=lambda path: path.stat().st_size,
  )
  broken = largest if name == DATA else tmp_path / '2' / name
  os.truncate(broken, broken.stat().st_size // 2)

  with checkpoints.Checkpoints(tmp_path, best_metric='v') as c:
    assert checkpoints.newest_step(tmp_path) == 2
    assert_same(c.restore(make_state(0)), make_state(1))
    warning = records[-1]
    assert warning.levelname == 'WARNING'
    assert f'cannot read checkpoint 2 in {tmp_path}' in warning.getMessage()
    save(c, 2, make_state(5), {'v': 0.2})
    assert_same(c.restore(make_state(0)), make_state(5))
  assert steps_in(tmp_path) == [1, 2]


def test_nothing_readable(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(3, {'params': jnp.zeros(5)})
  os.truncate(tmp_path / '3' / 'default' / 'manifest.ocdbt', 0)
  with checkpoints.Checkpoints(tmp_path) as c:
    with pytest.raises(InputError, match='cannot read checkpoint 3'):
      c.restore({'params': jnp.zeros(5)})
  with pytest.raises(InputError, match='cannot read checkpoint 3'):
    checkpoints.load_params(tmp_path, 'latest')
  assert steps_in(tmp_path) == [3]


def test_damaged_record_is_no_checkpoint(tmp_path):
  with checkpoints.Checkpoints(tmp_path, best_metric='v') as c:
    save(c, 1, make_state(1), {'v': 0.1})
    save(c, 2, make_state(2), {'v': 0.2})
  os.truncate(tmp_path / '2.record.json', 10)
  with checkpoints.Checkpoints(tmp_path, best_metric='v') as c:
    assert_same(c.restore(make_state(0)), make_state(1))
  assert_same(checkpoints.load_params(tmp_path), make_state(1).params)


def test_names_what_differs(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(4, make_state(4))
    with pytest.raises(InputError) as error:
      c.restore(make_state(4, width=9))
    assert (
      'checkpoint 4 does not fit this run: '
      'params.down0.conv0.kernel is float32[64, 8] there, '
      'float32[64, 9] here'
    ) in str(error.value)
    with pytest.raises(InputError, match='key is uint32.2. there, int32.2. he'):
      c.restore(make_state(4).replace(key=jnp.zeros(2, jnp.int32)))
    without = make_state(4)
    del without.params['head']['bias']
    with pytest.raises(InputError, match=r'head.bias is float32\[4\] there, a'):
      c.restore(without)
    assert_same(c.restore(make_state(0)), make_state(4))


@pytest.mark.usefixtures('collected')
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_going_back_rewrites_what_came_later(tmp_path):
  with checkpoints.Checkpoints(tmp_path, keep_last=3, best_metric='v') as c:
    for step in (1, 2, 3):
      save(c, step, make_state(step), {'v': -step})
    c.save(3, make_state(30))
    c.save(2, make_state(20))
    assert_same(c.restore(make_state(0)), make_state(3))
    assert steps_in(tmp_path) == [1, 2, 3]
  assert_same(checkpoints.load_params(tmp_path, 2), make_state(2).params)
  for step in (2, 3):
    os.truncate(tmp_path / f'{step}' / 'default' / 'manifest.ocdbt', 0)
  with checkpoints.Checkpoints(tmp_path, keep_last=3, best_metric='v') as c:
    assert_same(c.restore(make_state(0)), make_state(1))
    save(c, 2, make_state(20), {'v': 1.0})
    assert_same(c.restore(make_state(0)), make_state(20))
  assert steps_in(tmp_path) == [1, 2]
  assert_same(checkpoints.load_params(tmp_path), make_state(20).params)


def test_refuses(tmp_path):
  for directory in (tmp_path / 'none' / 'checkpoints', tmp_path):
    with pytest.raises(InputError, match='no checkpoint in .*segjax.main'):
      checkpoints.load_params(directory)
  file = tmp_path / 'file'
  file.write_text('')
  with pytest.raises(InputError, match='cannot open'):
    checkpoints.Checkpoints(file)
  with checkpoints.Checkpoints(tmp_path / 'c', best_metric='v') as c:
    with pytest.raises(InputError, match='no checkpoint in'):
      c.restore(make_state(0))
    with pytest.raises(KeyError, match="'v'"):
      save(c, 1, make_state(1), {'w': 1.0})
  with pytest.raises(InputError, match="has a score; ask for 'latest'"):
    checkpoints.load_params(tmp_path / 'c')
  with pytest.raises(InputError, match=r'no checkpoint 5.* there are \[1\]'):
    checkpoints.load_params(tmp_path / 'c', 5)
  with pytest.raises(InputError, match=r"no checkpoint 'bset'.*\[1\]"):
    checkpoints.load_params(tmp_path / 'c', 'bset')
