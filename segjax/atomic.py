# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: files and folders that appear whole or not at all.

An unfinished file lies in a hidden folder beside the file that it becomes. A
lock tells this folder from one that a killed process left. Nothing is replaced
unless the caller asks for it.
"""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from segjax import locks
from segjax.errors import InputError

# The folder to which `give_name` moves a folder that it replaces.
REPLACED = '.segjax.replaced'
_TEMPORARY = re.compile(r'\.segjax-[0-9a-f]{8}\.tmp')
_TRIES = 5
# Errors of file systems without hard links.
_NO_LINKS = (
  errno.EPERM,
  errno.EOPNOTSUPP,
  errno.ENOSYS,
  errno.EMLINK,
  errno.EACCES,
)


@contextlib.contextmanager
def replacing(
  path: str | os.PathLike, overwrite: bool = True
) -> Iterator[Path]:
  """Yields a path for a new file or folder, which becomes `path` at the end.

  At any time, also after a crash, `path` is the old file or the new one. If the
  block raises, or the disk is full, the old one stays and the new one is
  removed. For folders see `give_name`.

  Args:
    path: file or folder, in a folder that exists.
    overwrite: whether to replace it if it exists.

  Raises:
    InputError: see `give_name`.
  """
  path = Path(path)
  with temporary_folder(path.parent) as folder:
    temporary = folder / path.name
    yield temporary
    for file in temporary.iterdir() if temporary.is_dir() else [temporary]:
      sync_file(file)
    give_name(temporary, path, overwrite)


def write_text(file: str | os.PathLike, text: str) -> None:
  """Writes or replaces a text file, whole or not at all, in UTF-8."""
  with replacing(file) as temporary:
    # A file name in the text need not be UTF-8.
    temporary.write_text(text, encoding='utf-8', errors='backslashreplace')


@contextlib.contextmanager
def refusing_write_errors(path: str | os.PathLike) -> Iterator[None]:
  """Raises InputError, which names `path`, for an OSError of the block."""
  try:
    yield
  except OSError as e:
    raise InputError(f'{path}: cannot be written; {e.strerror or e}') from e


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
  """Yields a new locked folder in `parent`, which is removed at the end.

  Its name is short and hidden. After a kill it stays until `remove_leftovers`.
  """
  for _ in range(_TRIES):
    folder = parent / f'.segjax-{uuid.uuid4().hex[:8]}.tmp'
    folder.mkdir()
    lock = locks.take(folder)
    if lock is not None:
      break
    # Another process took it for a leftover and removes it.
  else:
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(folder))
  with lock:
    try:
      yield folder
    finally:
      remove_folder(folder)


def remove_leftovers(parent: Path) -> None:
  """Removes the folders of `temporary_folder` whose processes were killed.

  A folder that one of them was about to replace gets its name back.
  """
  names = os.listdir(parent) if parent.is_dir() else ()
  for folder in (parent / n for n in names if _TEMPORARY.fullmatch(n)):
    with contextlib.suppress(OSError):
      is_ours = locks.is_file_of_lock(folder / locks.NAME)
      if folder.is_symlink() or (os.listdir(folder) and not is_ours):
        continue
      lock = locks.take(folder)
      if lock is None:
        continue
      with lock:
        replaced = folder / REPLACED
        for old in [*replaced.iterdir()] if replaced.is_dir() else []:
          if not os.path.lexists(parent / old.name):
            os.rename(old, parent / old.name)
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
  """Removes a folder that is locked.

  The file of its lock goes last, so that the rest is still recognised after a
  kill in between.
  """
  with contextlib.suppress(OSError):
    for file in folder.iterdir():
      if file.name != locks.NAME:
        remove(file)
    (folder / locks.NAME).unlink(missing_ok=True)
    folder.rmdir()


def remove(path: Path) -> None:
  """Removes a file or a folder, if there is one."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def sync_file(file: Path) -> None:
  """Waits until the contents of a file are on the disk."""
  with open(file, 'rb') as opened:
    os.fsync(opened.fileno())


def give_name(finished: Path, path: Path, overwrite: bool) -> None:
  """Gives a finished file or folder its name.

  A folder that is replaced first goes to `REPLACED` beside `finished`, since no
  portable system call exchanges two folders.

  Args:
    finished: file or folder on the same file system, in a folder of its own. A
      file may keep this name as well.
    path: the name that it gets.
    overwrite: whether to replace a file or folder that has this name.

  Raises:
    InputError: `path` exists by now and `overwrite` is False, or another run
      replaces the same folder.
  """
  if not overwrite:
    _give_new_name(finished, path)
  elif not finished.is_dir():
    os.replace(finished, path)  # It never replaces a folder by a file.
  else:
    try:
      _replace_folder(finished, path)
    except OSError as error:
      if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
        raise
      raise InputError(
        f'{path} is being replaced by another run at this moment, which goes '
        'on; run this again to replace it once more'
      ) from error


def check_folder(output: Path) -> None:
  """Raises InputError if the folder that an output goes into is missing."""
  if not output.parent.is_dir():
    raise InputError(f'output {output}: there is no folder {output.parent}')


def check_file(output: Path, overwrite: bool) -> None:
  """Raises InputError if no file will be written to `output`."""
  check_folder(output)
  if output.is_dir():
    raise InputError(f'output {output} is a folder; give the name of a file')
  if not overwrite:
    check_absent([output])


def check_absent(outputs: Iterable[Path]) -> None:
  """Raises InputError if an output exists; a broken link counts as one."""
  for output in outputs:
    if os.path.lexists(output):
      raise InputError(f'{output} exists; give --overwrite to replace it')


def _replace_folder(finished, path):
  if not os.path.lexists(path):
    os.rename(finished, path)
    return
  old = finished.with_name(REPLACED) / path.name
  old.parent.mkdir(exist_ok=True)
  os.rename(path, old)
  try:
    os.rename(finished, path)
  except BaseException:  # Also Ctrl-C.
    if not os.path.lexists(path):
      os.rename(old, path)
    raise


def _give_new_name(finished, path):
  appeared = InputError(
    f'{path} was made by somebody else during this run, and is not replaced; '
    'give another output, or --overwrite to replace it'
  )
  try:
    if not finished.is_dir():
      try:
        os.link(finished, path)  # It replaces nothing, unlike os.rename.
        return
      except OSError as error:
        if error.errno not in _NO_LINKS:
          raise
    # os.rename replaces no folder but an empty one.
    if os.path.lexists(path):
      raise appeared
    os.rename(finished, path)
  except OSError as error:
    if os.path.lexists(path) and os.path.lexists(finished):
      raise appeared from error
    raise
