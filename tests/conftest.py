# SPDX-License-Identifier: Apache-2.0
"""Setting of the whole suite: eight virtual CPU devices, strict jax, data."""

import gc
import os
from pathlib import Path

import pytest
from quick_flags import KEEPS_PROGRAMS, QUICK_FLAGS

# Read when jax starts its CPU client, so set before anything imports jax.
_DEVICES_FLAG = '--xla_force_host_platform_device_count'
_flags = os.environ.get('XLA_FLAGS', '')
if _DEVICES_FLAG not in _flags:
  _flags = f'{_flags} {_DEVICES_FLAG}=8 {QUICK_FLAGS}'.strip()
  os.environ['XLA_FLAGS'] = _flags

# Of what tests start: the user's compiled programs are none of the suite's.
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
# Lines of Python, which nobody reads here, in what is compiled.
os.environ['JAX_TRACEBACK_IN_LOCATIONS_LIMIT'] = '0'

import jax  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
# What is compiled is tiny.
jax.config.update('jax_disable_most_optimizations', True)
jax.config.update('jax_enable_compilation_cache', KEEPS_PROGRAMS)
# What takes less is compiled about as quickly as it is found.
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.03)


# The files that take longest, first, or one worker waits for the other's last.
_LONG = (
  *('processes', 'notebooks', 'train', 'recipes', 'bad_input', 'dry_run'),
  *('predict_streamed', 'steps', 'compilation_cache', 'buckets', 'fitting'),
  *('preemption', 'lost_files', 'folder_journal', 'mesh', 'norm', 'terminal'),
  *('keras', 'export', 'layers', 'unet', 'benchmarks'),
)


def pytest_collection_modifyitems(items):
  """Sorts the tests by file, so that workers take the long files first."""
  # Tracing has it collect often, and all of this stays.
  gc.freeze()
  gc.set_threshold(20_000)
  places = {f'test_{name}.py': place for place, name in enumerate(_LONG)}
  items.sort(key=lambda item: places.get(item.path.name, len(_LONG)))


@pytest.fixture(scope='session', autouse=True)
def _compiled_programs(tmp_path_factory):
  """Keeps compiled programs: tests compile the same tiny networks many times.

  jax writes them in place, so another process may read half of one, and a kill
  may leave half of it. Each worker therefore has a folder of its own, for this
  process and the commands that it waits for, one at a time: see `commands`.
  """
  folder = tmp_path_factory.mktemp('compiled')
  jax.config.update('jax_compilation_cache_dir', str(folder))


@pytest.fixture(scope='session')
def data_dir() -> Path:
  """Returns the folder of real data sets; skips the test where none is."""
  beside_checkout = Path(__file__).resolve().parents[2] / 'shared' / 'data'
  folder = Path(os.environ.get('SEGJAX_DATA_DIR') or beside_checkout)
  if not folder.is_dir():
    pytest.skip(
      f'no real data: no folder {folder} (set SEGJAX_DATA_DIR, or put it in '
      '../shared/data beside the checkout)'
    )
  return folder
