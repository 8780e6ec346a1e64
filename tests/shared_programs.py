# SPDX-License-Identifier: Apache-2.0
"""Compiled programs that the commands of a run of the suite share.

One command after the other compiles the same tiny network. They find each
other's programs in a temporary folder. Only forks of the server (see
`fork_server`) add to it, since jax writes an entry in place: another process
may read half of it, and a kill may leave half of it.
"""

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

_VERSION = re.findall('[0-9]+', metadata.version('jaxlib'))[:3]
# As segjax: older ones print errors for each program of a CPU that they load.
_IS_SAFE = tuple(map(int, _VERSION)) >= (0, 10, 2)
_NEVER = '1e9'
# Programs that take less are compiled about as quickly as they are found.
_LEAST_SECONDS = 0.03

# Of a command that shall keep its programs as it does for a person.
OWN = {
  'JAX_COMPILATION_CACHE_DIR': '',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
}


def find() -> None:
  """Has all that this process starts find programs, and keep none.

  Called before jax is imported. The user's programs are none of the suite's.
  """
  if not _IS_SAFE:
    os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
  elif 'PYTEST_XDIST_WORKER' not in os.environ:  # Workers have the folder.
    folder = tempfile.mkdtemp(prefix='segjax-tests-')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'true'
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = _NEVER


def keep() -> None:
  """Has this process keep its programs, too, each whole or not at all."""
  if not _IS_SAFE:
    return
  import jax
  from jax._src import lru_cache

  def put(cache, key, value):
    with contextlib.suppress(OSError):  # Some commands meet a full disk.
      folder = Path(cache._path)
      number, name = tempfile.mkstemp(dir=folder)
      with open(number, 'wb') as file:
        file.write(value)
      os.rename(name, folder / f'{key}-cache')

  lru_cache.LRUCache.put = put
  jax.config.update(
    'jax_persistent_cache_min_compile_time_secs', _LEAST_SECONDS
  )
