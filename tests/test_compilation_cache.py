# SPDX-License-Identifier: Apache-2.0
"""Compiled programs are kept where, and only where, that is safe."""

import os
import subprocess
import sys

import pytest
from commands import DEMO, REPOSITORY, run

# On this machine CPU programs can be kept, so one stands for an accelerator.
SCRIPT = """
import sys
import jax, jax.numpy as jnp
from segjax import parallel
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
found = []
jax.monitoring.register_event_listener(
  lambda event, **_: found.append(event.endswith('/cache_hits')))
with jax.default_device(jax.devices()[0]):
  jax.default_backend = lambda: sys.argv[1]
  parallel.use_compilation_cache()
print(jax.config.jax_compilation_cache_dir, end=' ')
jax.jit(lambda x: jnp.sin(x) * 3 + 1)(jnp.arange(8.0)).block_until_ready()
print(any(found))
"""


def script(home, platform='gpu', **env):
  process = subprocess.run(
    [sys.executable, '-W', 'error', '-c', SCRIPT, platform],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
    env=os.environ | {'HOME': str(home), 'XDG_CACHE_HOME': ''} | env,
  )
  assert process.returncode == 0, process.stderr
  folder, is_found = process.stdout.split()
  return folder, is_found == 'True', process.stderr


def test_a_second_process_finds_what_was_compiled(tmp_path):
  folder = tmp_path / '.cache' / 'segjax' / 'compiled'
  assert script(tmp_path)[:2] == (str(folder), False)
  assert any(folder.iterdir())
  assert script(tmp_path)[:2] == (str(folder), True)


def test_the_folder_is_the_users(tmp_path):
  folder, _, _ = script(tmp_path / 'a', XDG_CACHE_HOME=str(tmp_path / 'b'))
  assert folder == str(tmp_path / 'b' / 'segjax' / 'compiled')
  folder, _, _ = script(
    tmp_path / 'a', JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'c')
  )
  assert folder == str(tmp_path / 'c')
  assert not (tmp_path / 'a').exists()


def test_a_folder_that_cannot_be_written_to_is_a_warning(tmp_path):
  (tmp_path / '.cache').write_text('')
  folder, _, said = script(tmp_path)
  assert folder == 'None'
  [line] = said.splitlines()
  assert f'cannot write to {tmp_path}/.cache/segjax/compiled: Not a' in line


def test_cpu_programs_are_not_kept(tmp_path):
  assert script(tmp_path, 'cpu')[0] == 'None'
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('value', [True, False])
def test_the_config_says_whether(value, tmp_path):
  """Of a run whose device is said to be no CPU."""
  (tmp_path / 'sitecustomize.py').write_text(
    'from segjax import parallel\n'
    'parallel.use_compilation_cache = lambda: print("KEPT")\n'
  )
  process = run(
    'main',
    *DEMO,
    f'--config.compilation_cache={value}',
    '--config.data.fold=7',  # Ends it early.
    f'--workdir={tmp_path}/run',
    env={'PYTHONPATH': f'{tmp_path}:{REPOSITORY}'},
  )
  assert process.returncode == 2
  assert ('KEPT' in process.stdout) == value
