# SPDX-License-Identifier: Apache-2.0
"""The workdir, the folder of a run: its config and its lock.

`config.json` in a workdir says which experiment its checkpoints and metrics
belong to, and has a checksum of these settings. A run that is started again
with the same command goes on. A run with another model or data set is refused,
before its files mix with those there. A lock of the folder keeps a second run
out.
"""

import contextlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from segjax import locks
from segjax.atomic import remove_leftovers, write_text
from segjax.devices import processes
from segjax.errors import InputError
from segjax.runs.integrity import digest_of_values, is_digest_of
from segjax.settings.fields import as_tuples

# Time for which an NFS client may believe that a file is missing (acdirmax).
_NFS_CACHE_SECONDS = 60

_SEAL = 'seal'  # The checksum of the other settings in the file.

# Settings that later versions added to all configs, with the values of earlier
# runs. Settings of a model and of `prediction` have such defaults themselves.
_ADDED = {
  'accumulate_steps': 1,
  'compilation_cache': True,
  'evaluation': {'present_only': False},
  'loss': 'cross_entropy',
  'mesh': {'space': 1},
  'preprocessing': {
    'dtype': '',
    'limits': [],
    'measured': [],
    'per_image': False,
  },
  'profile_steps': [0, 0],
}
# Added settings, as in `_ADDED`, that only some data sets or networks have.
# These have such defaults themselves.
_ADDED_TO_SOME = {
  'data.label_values': [],
  'frozen_norm_share': 0.0,
  'model.norm': 'none',
}


def check_writable(workdir: str | os.PathLike) -> None:
  """Raises InputError if `workdir` cannot be made or written to.

  It makes nothing, so it can be called before everything else.
  """
  if '://' in str(workdir):
    raise InputError(
      f'workdir {workdir} is a URL; mount the bucket and give its path'
    )
  folder = pathlib.Path(workdir).absolute()
  while not os.path.exists(folder):
    folder = folder.parent
  if not folder.is_dir():
    reason = f'{folder} is a file'
  elif not os.access(folder, os.W_OK | os.X_OK):
    reason = f'{folder} may not be written to'
  else:
    return
  raise _cannot_write(workdir, reason)


def _cannot_write(workdir, reason):
  return InputError(
    f'cannot write to workdir {workdir}: {reason}; give another --workdir'
  )


@contextlib.contextmanager
def lock_workdir(workdir: str | os.PathLike) -> Iterator[None]:
  """Makes `workdir`, and locks it against other runs until the block ends.

  All processes of a run enter together. Process 0 holds the lock, which ends
  with the process in any case. A folder that was made here, and is empty at the
  end, is removed; the time of a folder that was not changed stays the same.
  Commands that only read, such as `evaluate` and `predict`, need no lock: the
  files that they read appear by renaming.

  Raises:
    InputError: another run, which the message names, holds the lock on this or
      another host; or `workdir` is not writable.
  """
  with contextlib.ExitStack() as stack:

    def enter():
      try:
        if processes.is_first():
          stack.enter_context(locks.hold(workdir, 'workdir'))
      except OSError as error:
        raise _cannot_write(workdir, error.strerror) from error

    processes.together(enter)
    yield


def claim_workdir(
  workdir: str | os.PathLike,
  config: ml_collections.ConfigDict,
  may_change: Sequence[str] = (),
) -> None:
  """Makes `workdir` and writes its `config.json`, or checks the existing one.

  It also removes temporary files of killed runs. One process of a run calls it,
  in `lock_workdir`, and then all processes call `check_claimed`.

  Args:
    workdir: folder of the run, on a mounted file system.
    config: the run's settings, all of them JSON values. Tuples equal lists.
    may_change: dotted prefixes, such as 'num_train_steps' or 'data', of the
      settings that may differ between restarts; the file gets the latest.

  Raises:
    InputError: the workdir was made with other settings, all of which the
      message names; it is not writable; or its `config.json` cannot be read.
  """
  check_writable(workdir)
  workdir = pathlib.Path(workdir)
  file = workdir / 'config.json'
  new = json.loads(json.dumps(config.to_dict()))
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    for folder in (workdir, workdir / 'checkpoints', workdir / 'pictures'):
      remove_leftovers(folder)
    if file.exists():
      _check_same(workdir, _read(file), new, may_change)
    write_text(file, sealed_text(config))
  except OSError as error:
    raise _cannot_write(workdir, error.strerror) from error


def sealed_text(config: ml_collections.ConfigDict) -> str:
  """Returns the text of `config.json`: a config as JSON, with its checksum."""
  settings = json.loads(json.dumps(config.to_dict()))
  sealed = settings | {_SEAL: digest_of_values(settings)}
  return json.dumps(sealed, indent=2, sort_keys=True) + '\n'


def check_claimed(workdir: str | os.PathLike) -> None:
  """Raises InputError if `claim_workdir` claimed another folder of this name.

  This happens if the hosts of a run share no file system. Each host would keep
  a part of the checkpoints.
  """
  file = pathlib.Path(workdir) / 'config.json'
  deadline = time.monotonic() + _NFS_CACHE_SECONDS
  while not file.is_file():
    if time.monotonic() > deadline:
      raise InputError(
        f'workdir {workdir} of process 0 is not the one on '
        f'{socket.gethostname()}; give a --workdir on a file system that all '
        'processes share'
      )
    time.sleep(0.1)


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """Returns the config that `workdir` was made with; lists become tuples.

  Settings that later versions added have the values with which the run worked.

  Raises:
    InputError: there is no `config.json`, or it cannot be read.
  """
  settings = _read(pathlib.Path(workdir) / 'config.json')
  config = ml_collections.ConfigDict(as_tuples(_ADDED))
  config.update(ml_collections.ConfigDict(as_tuples(settings)))
  return config


def _read(file: pathlib.Path) -> dict[str, Any]:
  try:
    settings = json.loads(file.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise InputError(
      f'no {file}; train first: python -m segjax.main --config=CONFIG '
      f'--workdir={file.parent}'
    ) from error
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f'cannot read {file}: {error}') from error
  if not isinstance(settings, dict):
    raise InputError(f'cannot read {file}: it holds no settings')
  # The first versions wrote no checksum.
  seal = settings.pop(_SEAL, None)
  if seal not in (None, digest_of_values(settings)):
    raise InputError(
      f'{file} was changed or damaged since it was written: its checksum does '
      f'not match; restore it, or remove its line "{_SEAL}" if the change is '
      'intended'
    )
  # Earlier versions had `mesh.data`, which followed from the number of devices.
  if 'data' in settings.get('mesh', ()):
    del settings['mesh']['data']
  return settings


def _check_same(
  workdir: pathlib.Path,
  old: Mapping[str, Any],
  new: Mapping[str, Any],
  may_change: Sequence[str],
) -> None:
  old, new = flatten_dict(old, sep='.'), flatten_dict(new, sep='.')
  added = flatten_dict(_ADDED, sep='.') | _ADDED_TO_SOME
  added = {k: v for k, v in added.items() if k in new}
  old = added | old
  names = [
    name
    for name in sorted({**old, **new})
    if (name not in old or name not in new or not _equal(name, old, new))
    and not any(f'{name}.'.startswith(f'{prefix}.') for prefix in may_change)
  ]
  if not names:
    return
  if names == ['data_sha256']:
    how = _how_data_differ(*(str(s.get('data_sha256')) for s in (old, new)))
    raise InputError(
      f'the images and labels are not those that {workdir} was made with: '
      f'{how}. If you mended them, go on in another --workdir, with '
      f'--config.init.path={workdir} and --config.init.initial="()" to start '
      'from the parameters of this run'
    )
  also = ''
  if 'data_sha256' in names:
    names.remove('data_sha256')
    if not any(name.startswith('data.') for name in names):
      also = ', and the images and labels differ, too'
  raise InputError(
    f'workdir {workdir} was made with {_list(names, old)}; this run has '
    f'{_list(names, new)}{also}; use another --workdir, or the settings it was '
    'made with'
  )


def _how_data_differ(old: str, new: str) -> str:
  """Returns what two checksums of `digest_of_files` say, in words."""
  names = [digest.partition('+')[0] for digest in (old, new)]
  if '+' not in old or '+' not in new:
    return 'they have another checksum'
  if names[0] == names[1]:
    return 'a file of the same size has other contents'
  return 'files were added, removed or changed in size, or the split is another'


def _equal(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
  if name == 'data_sha256' and isinstance(old[name], str):
    return is_digest_of(old[name], new[name])
  return old[name] == new[name]


def _list(names: Sequence[str], settings: Mapping[str, Any]) -> str:
  return ', '.join(
    f'{name}={settings[name]!r}' if name in settings else f'no {name}'
    for name in names
  )
