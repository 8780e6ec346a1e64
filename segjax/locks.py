# SPDX-License-Identifier: Apache-2.0
"""Locks of folders, which end with the process that holds them.

A lock consists of two system locks (`flock`): one on the folder, one on the
file `.segjax.lock` in it. The first stays if somebody removes the file. The
second also holds between the hosts of a network file system, and the text of
the file names the process. A file that a killed process left locks nothing.
"""

import contextlib
import datetime
import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

from segjax.errors import InputError

try:
  import fcntl
except ImportError as error:
  raise InputError(
    'segjax runs on Linux, macOS and WSL2: this system has no flock, which '
    'keeps two commands from writing to one folder'
  ) from error

NAME = '.segjax.lock'

# Errors of file systems without locks; the last two only for folders.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_LOCKS_OF_FOLDERS = (*_NO_LOCKS, errno.EBADF, errno.EINVAL)
_MOST_BYTES = 400
_FIRST_WORD = b'process '

# Time for a run that ends or is refused to free its lock, and for one that has
# just taken it to write its name.
_TRIES = 5
_SECONDS_BETWEEN_TRIES = 0.1


class Lock:
  """A lock that `take` returned; a context manager that frees it at the end."""

  def __init__(self, folder: Path, descriptors: contextlib.ExitStack, file):
    self._folder, self._descriptors, self._file = folder, descriptors, file

  def __enter__(self) -> 'Lock':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.remove_file()
    self._descriptors.close()

  def moved_to(self, folder: Path) -> None:
    """Notes that the folder was renamed."""
    self._folder = folder

  def remove_file(self) -> None:
    """Removes the file `.segjax.lock`; the lock on the folder stays."""
    path = self._folder / NAME
    with contextlib.suppress(OSError):
      if _is_at(self._file, path):
        path.unlink()


def take(
  folder: str | os.PathLike, check: Callable[[], object] = lambda: None
) -> Lock | None:
  """Returns the lock of a folder; None if another process holds it.

  Also None if the folder is removed or replaced at this moment. A child process
  that executes another program does not inherit the lock. On a file system
  without locks, it warns once and locks nothing.

  Args:
    folder: the folder to lock.
    check: called before anything in the folder changes; its errors are passed
      on.

  Raises:
    InputError: there is a `.segjax.lock` that segjax did not make.
  """
  folder = Path(folder)
  with contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.suppress(FileNotFoundError))
    itself = _open(stack, folder, os.O_RDONLY | os.O_DIRECTORY)
    # A link to a folder stands for the folder.
    if not _flock(itself, _NO_LOCKS_OF_FOLDERS) or not _is_at(
      itself, folder.resolve()
    ):
      return None
    check()
    file = _open_file(stack, folder / NAME)
    # The last holder may have removed it, and another process made it anew.
    if _flock(file, _NO_LOCKS, folder) and _is_at(file, folder / NAME):
      since = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
      text = f'process {os.getpid()} on {socket.gethostname()} since {since}\n'
      os.ftruncate(file, 0)
      os.pwrite(file, text.encode(), 0)
      return Lock(folder, stack.pop_all(), file)
  return None


@contextlib.contextmanager
def hold(folder: str | os.PathLike, what: str = 'output') -> Iterator[None]:
  """Makes a folder, and locks it until the block ends.

  If the folder was made here and is empty at the end, it is removed. If the
  block changed nothing in it, it keeps its time of modification.

  Args:
    folder: the folder to lock.
    what: name of the flag that gives the folder, for messages.

  Raises:
    InputError: another run holds the lock, here or on another host; says which.
    OSError: the folder cannot be made or written to.
  """
  folder = Path(folder)
  made = [f for f in (folder, *folder.parents) if not os.path.exists(f)]
  for attempt in range(_TRIES):
    if attempt:
      time.sleep(_SECONDS_BETWEEN_TRIES)
    try:
      folder.mkdir(parents=True, exist_ok=True)
      before = folder.stat()
      lock = take(folder)
    except FileNotFoundError:  # A run that made it and was refused removed it.
      continue
    if lock:
      break
  else:
    raise InputError(
      f'{what} {folder} has a run already: {holder(folder)}; wait until it '
      f'ends, or give another --{what}'
    )
  with lock:
    locked = folder.stat()
    try:
      yield
    finally:
      with contextlib.suppress(OSError):
        changed = folder.stat().st_mtime_ns != locked.st_mtime_ns
        lock.remove_file()
        if not changed:
          os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
        for parent in made:
          parent.rmdir()


def holder(folder: str | os.PathLike) -> str:
  """Returns the holder of a folder's lock: 'process 7 on host since ...'."""
  return _read(Path(folder) / NAME).decode(errors='replace').strip() or (
    'another process'
  )


def is_file_of_lock(path: Path) -> bool:
  """Whether `take` made a file, whether or not its process still runs."""
  try:
    is_file = stat.S_ISREG(os.lstat(path).st_mode)
  except OSError:
    return False
  # A kill may leave the file empty.
  return is_file and _read(path)[: len(_FIRST_WORD)] in (b'', _FIRST_WORD)


def _read(path):
  try:
    with open(path, 'rb') as file:
      return file.read(_MOST_BYTES)
  except OSError:  # Removed meanwhile; or on SMB, where a lock stops readers.
    return b''


def _open(stack, path, flags):
  descriptor = os.open(path, flags, 0o666)
  stack.callback(os.close, descriptor)
  return descriptor


def _open_file(stack, path):
  if os.path.lexists(path) and not is_file_of_lock(path):
    raise InputError(
      f'{path} is no lock of segjax, so nothing is written to it; rename it'
    )
  return _open(stack, path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)


def _is_at(descriptor, path):
  """Whether a path still names the file that was opened."""
  return os.path.samestat(os.fstat(descriptor), os.lstat(path))


def _flock(descriptor, no_locks, warned_of=None) -> bool:
  """Whether a file is locked now, or its file system has no locks."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError):  # PermissionError: from SMB.
    return False
  except OSError as error:
    if error.errno not in no_locks:
      raise
    if warned_of is not None:
      logging.log_first_n(
        logging.WARNING,
        'no lock on %s: %s; nothing keeps a second run from writing there, too',
        1,
        warned_of,
        error.strerror,
      )
  return True
