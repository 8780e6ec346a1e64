# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled programs on disk, for later starts and other runs."""

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path

import jax
import jaxlib.version
from absl import logging

_MOST_BYTES = 2**30
_LEAST_FREE_BYTES = 2**22  # Several programs.
# Older ones print two errors for each program of a CPU that they load, since
# they take a preference of the compiler, such as prefer-no-gather, for a
# feature that the machine lacks (jax issue 38445, XLA issue 44565).
_FIRST_ON_CPU = (0, 10, 2)


def use_compilation_cache() -> None:
  """Turns on the cache of compiled programs, unless jax already has one.

  The folder is $XDG_CACHE_HOME/segjax/compiled, or ~/.cache/segjax/compiled; it
  can be removed at any time. jax keeps the programs that took a second or more
  to compile. It finds one again by the program, the version of jaxlib, the
  compiler options and the kind of device (of a CPU, its instructions). If the
  cache has more than 1 GiB, the least recently used programs are removed here.
  A damaged entry, or a folder that cannot be written to, is a warning, and the
  program is compiled anew.

  If JAX_COMPILATION_CACHE_DIR is set, jax uses that folder, and nothing is done
  here. If JAX_COMPILATION_CACHE_MAX_SIZE is set, jax limits the size.
  JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.

  Nothing is kept where that is not safe: on CPUs before jaxlib 0.10.2, and with
  several processes on GPUs. These tune a program together (XLA pull request
  13108); one that finds it in the cache might leave the others waiting.
  """
  options = jax.config.values
  given = options['jax_compilation_cache_dir']
  if given or not options['jax_enable_compilation_cache'] or not _is_safe():
    return
  folder = Path('segjax', 'compiled')
  try:
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    folder = Path(home, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if options['jax_compilation_cache_max_size'] == -1:
      _shrink(folder, _MOST_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(bytes(_LEAST_FREE_BYTES))
  except (OSError, RuntimeError) as error:  # RuntimeError: home is unknown.
    logging.warning(
      'compiled programs are not kept: cannot write to %s: %s',
      folder,
      getattr(error, 'strerror', None) or error,
    )
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))


def _is_safe() -> bool:
  backend = jax.default_backend()
  if backend == 'gpu':
    return jax.process_count() == 1
  version = re.findall('[0-9]+', jaxlib.version.__version__)[:3]
  return backend != 'cpu' or tuple(map(int, version)) >= _FIRST_ON_CPU


def _shrink(folder: Path, most_bytes: int) -> None:
  """Removes the least recently used files until `most_bytes` are left.

  JAX_COMPILATION_CACHE_MAX_SIZE is no substitute: it needs another package, and
  in jax 0.10 a process killed between the two files of an entry ends all
  writing (jax issue 39880).
  """
  files = []
  for path in folder.rglob('*'):
    with contextlib.suppress(FileNotFoundError):  # Another process removed it.
      found = path.stat()
      if stat.S_ISREG(found.st_mode):
        # Time of the last reading, if the file system records it.
        used = max(found.st_atime, found.st_mtime)
        files.append((used, found.st_size, path))
  excess = sum(size for _, size, _ in files) - most_bytes
  for _, size, path in sorted(files):
    if excess <= 0:
      return
    path.unlink(missing_ok=True)
    excess -= size
