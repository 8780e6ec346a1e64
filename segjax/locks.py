# SPDX-License-Identifier: Apache-2.0
"""Locks of folders, which end with the process that holds them, however.

A lock is the system's (`flock`), of the folder itself and of the file
`.segjax.lock` in it. The first stays although somebody removes the file. The
second also holds between the hosts of a network file system, and its text names
the process. A file that a killed process left locks nothing.
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

# What file systems without locks say; the last two of folders.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_LOCKS_OF_FOLDERS = (*_NO_LOCKS, errno.EBADF, errno.EINVAL)
_MOST_BYTES = 400
_FIRST_WORD = b'process '

# In this time a run that ends or is refused frees its lock, and one that has
# just taken it writes its name.
_TRIES = 5
_SECONDS_BETWEEN_TRIES = 0.1


class Lock:
  """A lock that `take` returned; a context manager that ends by freeing it."""

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
    """Removes the file; the lock stays."""
    path = self._folder / NAME
    with contextlib.suppress(OSError):
      if _is_at(self._file, path):
        path.unlink()


def take(
  folder: str | os.PathLike, check: Callable[[], object] = lambda: None
) -> Lock | None:
  """Returns the lock of a folder; None if another process holds it.

  Also None if the folder is gone or replaced at this moment. A child that
  executes another program does not inherit the lock. Where the file system has
  no locks, it warns once and locks nothing.

  Args:
    folder: the folder to lock.
    check: called before anything in the folder changes; what it raises ends
      this.

  Raises:
    InputError: the name of the file is that of something else.
  """
  folder = Path(folder)
  with contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.suppress(FileNotFoundError))
    itself = _open(stack, folder, os.O_RDONLY | os.O_DIRECTORY)
    # A link to a folder is as good as the folder.
    if not _flock(itself, _NO_LOCKS_OF_FOLDERS) or not _is_at(
      itself, folder.resolve()
    ):
      return None
    check()
    file = _open_file(stack, folder / NAME)
    # Who had it may have removed it, and another may have made it anew.
    if _flock(file, _NO_LOCKS, folder) and _is_at(file, folder / NAME):
      since = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
      text = f'process {os.getpid()} on {socket.gethostname()} since {since}\n'
      os.ftruncate(file, 0)
      os.pwrite(file, text.encode(), 0)
      return Lock(folder, stack.pop_all(), file)
  return None


@contextlib.contextmanager
def hold(folder: str | os.PathLike, what: str = 'output') -> Iterator[None]:
  """Makes a folder, and keeps other runs out of it until the block ends.

  A folder that was made and is empty at the end is removed; one in which the
  block changed nothing is as it was.

  Args:
    folder: the folder to lock.
    what: what the folder is, and the flag that names it.

  Raises:
    InputError: another run holds the lock, here or on another host, and which.
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
    except FileNotFoundError:  # Removed by a run that made it and is refused.
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
        for place in made:
          place.rmdir()


def holder(folder: str | os.PathLike) -> str:
  """Returns who holds the lock of a folder, 'process 7 on host since ...'."""
  return _read(Path(folder) / NAME).decode(errors='replace').strip() or (
    'another process'
  )


def is_file_of_lock(path: Path) -> bool:
  """Whether a file is one that `take` made, of a live process or a dead one."""
  try:
    is_file = stat.S_ISREG(os.lstat(path).st_mode)
  except OSError:
    return False
  # A process that is killed may leave it empty.
  return is_file and _read(path)[: len(_FIRST_WORD)] in (b'', _FIRST_WORD)


def _read(path):
  try:
    with open(path, 'rb') as file:
      return file.read(_MOST_BYTES)
  except OSError:  # Removed meanwhile; or SMB, where a lock keeps readers out.
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
  """Whether a path still names what was opened."""
  return os.path.samestat(os.fstat(descriptor), os.lstat(path))


def _flock(descriptor, no_locks, warned_of=None) -> bool:
  """Whether it could be locked, or nothing can be."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError):  # The latter from SMB.
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
