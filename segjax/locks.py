# SPDX-License-Identifier: Apache-2.0
"""Lock files, which end with the process that holds them, however it ends.

The lock is the system's (`flock`), not the file: a file that a killed process
left locks nothing. Its text names the process that holds it.
"""

import contextlib
import datetime
import errno
import os
import socket
from pathlib import Path
from typing import BinaryIO

from absl import logging

try:
  import fcntl
except ImportError:  # On Windows.
  fcntl = None

# What file systems without locks say.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MOST_BYTES = 400


def take(path: str | os.PathLike) -> BinaryIO | None:
  """Returns the lock file, made if missing and locked until it is closed.

  None if another process holds it, or removed the file or its folder at this
  moment. A child that executes another program does not inherit it. Where the
  system or the file system has no locks, it warns once and locks nothing.
  """
  with contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.suppress(FileNotFoundError))
    file = stack.enter_context(open(path, 'ab', buffering=0))
    # Who had it may have removed it, and another may have made it anew.
    if _flock(file) and os.path.samestat(
      os.fstat(file.fileno()), os.stat(path)
    ):
      since = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
      text = f'process {os.getpid()} on {socket.gethostname()} since {since}\n'
      file.truncate(0)
      file.write(text.encode())
      stack.pop_all()
      return file
  return None


def holder(path: str | os.PathLike) -> str:
  """Returns the text of a lock file, 'process 7 on host since ...'."""
  try:
    with open(path, 'rb') as file:
      text = file.read(_MOST_BYTES).decode(errors='replace').strip()
  except OSError:  # Removed meanwhile; or SMB, where a lock keeps readers out.
    text = ''
  return text or 'another process'


def _flock(file) -> bool:
  """Whether the file could be locked, or nothing can be."""
  if fcntl is None:
    _warn(file, 'this system has no flock')
    return True
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError):  # The latter from SMB.
    return False
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    _warn(file, error.strerror)
  return True


def _warn(file, reason):
  logging.log_first_n(
    logging.WARNING,
    'no lock on %s: %s; nothing keeps a second run from writing there, too',
    1,
    Path(file.name).parent,
    reason,
  )
