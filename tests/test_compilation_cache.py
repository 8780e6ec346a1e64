# SPDX-License-Identifier: Apache-2.0
"""Compiled programs are kept where, and only where, that is safe."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import DEMO, REPOSITORY, run

from segjax.devices.compilation_cache import _shrink
from segjax.runs.checkpoints import load_params

# Of a program, prints where it is kept, whether it was found, and its result.
SCRIPT = """
import os, resource, sys
import jax, jax.numpy as jnp
found = []
jax.monitoring.register_event_listener(
  lambda event, **_: found.append(event.endswith('/cache_hits')))
jax.jit(lambda x: x + 1)(0)  # Something is compiled before.
from segjax.devices.compilation_cache import use_compilation_cache
BEFORE
use_compilation_cache()
print(jax.config.jax_compilation_cache_dir)
result = jax.jit(lambda x: jnp.sin(x) * 3 + 1)(jnp.arange(8.0)).sum()
print(any(found), result)
"""
# The suite's commands keep none in the user's folder: see conftest.
KEEP = {
  'XDG_CACHE_HOME': '',
  'JAX_ENABLE_COMPILATION_CACHE': 'true',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
}


def script(home, before='', **env):
  """Returns the folder, whether it was found, the result, what was warned."""
  process = subprocess.run(
    [sys.executable, '-c', SCRIPT.replace('BEFORE', before)],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
    env=os.environ | KEEP | {'HOME': str(home)} | env,
  )
  assert process.returncode == 0, process.stderr
  folder, last = process.stdout.splitlines()
  is_found, result = last.split()
  return folder, is_found == 'True', float(result), process.stderr


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
  """A home in which a process kept its programs; and what that returned."""
  home = tmp_path_factory.mktemp('kept')
  return home, *script(home)


def test_a_second_process_finds_what_was_compiled(kept):
  home, *first = kept
  folder = home / '.cache' / 'segjax' / 'compiled'
  expected = pytest.approx(np.sum(np.sin(np.arange(8)) * 3 + 1))
  assert first == [str(folder), False, expected, '']
  assert any(folder.iterdir())
  assert [*script(home)] == [str(folder), True, expected, '']


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'empty'])
def test_a_damaged_program_is_compiled_again(kept, damage):
  home, folder, _, expected, _ = kept
  whole = {file: file.read_bytes() for file in Path(folder).glob('*-cache')}
  for file, content in whole.items():
    data = bytearray(content)
    if damage == 'flipped':
      data[len(data) // 2] ^= 0xFF
    end = {'cut': len(data) // 2, 'flipped': None, 'empty': 0}[damage]
    file.write_bytes(data[:end])
  _, is_found, result, said = script(home)
  for file, content in whole.items():
    file.write_bytes(content)
  assert (is_found, result) == (False, expected)
  assert 'Error reading persistent compilation cache entry' in said


def test_the_folder_is_the_users(tmp_path):
  folder, *_ = script(tmp_path / 'a', XDG_CACHE_HOME=str(tmp_path / 'b'))
  assert folder == str(tmp_path / 'b' / 'segjax' / 'compiled')
  folder, *_ = script(
    tmp_path / 'a', JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'c')
  )
  assert folder == str(tmp_path / 'c')
  folder, *_ = script(tmp_path / 'a', JAX_ENABLE_COMPILATION_CACHE='false')
  assert folder == 'None'
  assert not (tmp_path / 'a').exists()


@pytest.mark.parametrize(
  ('before', 'message'),
  [
    ('open(os.environ["HOME"] + "/.cache", "w")', 'compiled: Not a directory'),
    (
      'resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))',
      'compiled: File too large',
    ),
    (
      'os.environ.pop("HOME"); import pwd\n'
      'def unknown(uid): raise KeyError(uid)\n'
      'pwd.getpwuid = unknown',
      'segjax/compiled: Could not determine home',
    ),
  ],
  ids=['read-only', 'full', 'no home'],
)
def test_where_nothing_can_be_kept_one_line_says_so(tmp_path, before, message):
  folder, is_found, _, said = script(tmp_path, before)
  assert (folder, is_found) == ('None', False)
  [line] = said.splitlines()
  assert 'compiled programs are not kept' in line and message in line


@pytest.mark.parametrize(
  ('backend', 'processes', 'version', 'keeps'),
  [
    ('cpu', 1, '0.10.1', False),
    ('cpu', 1, '0.10.2', True),
    ('cpu', 2, '0.11.0.dev20260801', True),
    ('cpu', 1, '0.11rc1', True),
    ('gpu', 1, '0.10.1', True),
    ('gpu', 2, '0.10.2', False),
    ('tpu', 2, '0.10.1', True),
  ],
)
def test_nothing_is_kept_where_that_is_not_safe(
  backend, processes, version, keeps, tmp_path
):
  """On devices that this machine is said to have."""
  folder, *_ = script(
    tmp_path,
    f'import jaxlib.version as v; v.__version__ = {version!r}\n'
    f'jax.default_backend = lambda: {backend!r}\n'
    f'jax.process_count = lambda: {processes}',
  )
  assert (folder != 'None') == keeps
  assert any(tmp_path.iterdir()) == keeps


def test_the_least_recently_used_goes_first(tmp_path):
  (tmp_path / 'sub').mkdir()
  used = {'a': (5, 1), 'b': (2, 3), 'sub/c': (1, 1), 'd': (9, 8)}
  for name, (read, written) in used.items():
    (tmp_path / name).write_bytes(bytes(100))
    os.utime(tmp_path / name, (read, written))

  def left():
    return {name for name in used if (tmp_path / name).exists()}

  _shrink(tmp_path, 400)
  assert left() == {*used}
  _shrink(tmp_path, 399)
  assert left() == {'a', 'b', 'd'}
  _shrink(tmp_path, 150)
  assert left() == {'d'}
  _shrink(tmp_path, 0)
  assert left() == set()


def test_runs_find_their_programs_and_give_the_same_bits(tmp_path):
  def entries():
    folder = tmp_path / '.cache' / 'segjax' / 'compiled'
    return {file.name for file in folder.glob('*-cache')}

  def call(module, *flags):
    process = run(module, *flags, env=KEEP | {'HOME': str(tmp_path)})
    assert process.returncode == 0, process.stderr
    lines = process.stderr.splitlines()
    assert [x for x in lines if not x.startswith(('step ', 'compiling '))] == []

  workdirs = [tmp_path / name for name in ('off', 'first', 'second')]
  short = (*DEMO, '--config.num_train_steps=2')
  off = f'--workdir={workdirs[0]}', '--config.compilation_cache=False'
  call('main', *short, *off)
  call('evaluate', off[0])
  assert entries() == set()
  call('main', *short, f'--workdir={workdirs[1]}')
  known = entries()
  assert any(name.startswith('jit_train_step-') for name in known)
  call('main', *short, f'--workdir={workdirs[2]}')
  assert entries() == known  # All that is compiled is kept, so nothing was.
  params = [load_params(folder / 'checkpoints', 2) for folder in workdirs]
  for other in params[1:]:
    for a, b in zip(*map(jax.tree.leaves, (params[0], other)), strict=True):
      np.testing.assert_array_equal(a, b)
  call('evaluate', f'--workdir={workdirs[1]}')
  assert entries() == known  # Those of the run.
