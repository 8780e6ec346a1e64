# SPDX-License-Identifier: Apache-2.0
"""Unfinished outputs, written block by block and resumed after a crash.

An unfinished output lies beside the output, in the folder `OUTPUT.partial`. The
folder holds a canvas, and a journal of each process, which lists the blocks
that are on the disk. A lock on the folder ends with the process that holds it.
The output gets its name when no block is missing. A folder `OUTPUT.partial`
without such a journal is somebody else's, and is left alone.
"""

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from segjax import locks
from segjax.atomic import (
  REPLACED,
  give_name,
  remove,
  sync_file,
  temporary_folder,
)
from segjax.devices import processes
from segjax.errors import InputError
from segjax.prediction.outputs import check_replaceable

# Time between two entries in the journal; every entry waits for the disk.
RECORD_EVERY_SECONDS = 1.0

Block = tuple[int, int]


class Partial(NamedTuple):
  """An unfinished output.

  Attributes:
    folder: the folder `OUTPUT.partial`.
    finished: (page, number within the page) -> number of pixels, for each block
      that was on the disk when the output was opened.
    record: (block, pixels, sync) -> None. Once a second it calls `sync`, which
      puts the recorded blocks on the disk, and enters them in the journal of
      this process.
  """

  folder: Path
  finished: Mapping[Block, int]
  record: Callable[[Block, int, Callable[[], None]], None]


def unfinished_folder(path: Path) -> Path:
  """Returns the folder that holds an output until it is finished."""
  return path.with_name(f'{path.name}.partial')


@contextlib.contextmanager
def open_partial(
  path: str | os.PathLike,
  identity: Mapping[str, str],
  overwrite: bool = False,
  finish: Callable[[Path], None] = lambda folder: None,
) -> Iterator[Partial]:
  """Yields an unfinished output; at the end it becomes the output.

  The `with` block writes the output into the folder, under the output's name.
  If the process is killed, or the `with` block raises anything but an
  InputError, the finished blocks stay for the next time. All processes of a run
  enter together, on one file system, and if one raises, all do.

  Args:
    path: the output, a file or a folder.
    identity: name for messages -> text, of everything that decides the output.
    overwrite: whether to replace an output that exists, and to drop an
      unfinished one with another identity.
    finish: (folder) -> None, called in the first process after all processes
      have left the `with` block.

  Raises:
    InputError: the output was begun with another identity, another run is
      writing it, somebody else made it meanwhile, or it cannot be written.
  """
  path = Path(path)
  folder = unfinished_folder(path)
  finished, pending = {}, {}
  began = time.monotonic()

  def enter(sync):
    nonlocal began
    sync()
    with open(folder / _own_journal(), 'a', encoding='ascii') as file:
      file.writelines(
        f'{page} {number} {pixels}\n'
        for (page, number), pixels in pending.items()
      )
      file.flush()
      os.fsync(file.fileno())
    finished.update(pending)
    pending.clear()
    began = time.monotonic()

  def record(block, pixels, sync):
    pending[block] = pixels
    if time.monotonic() - began >= RECORD_EVERY_SECONDS:
      enter(sync)

  def put():
    if processes.is_first():
      finish(folder)
      output = folder / path.name
      if output.is_file():
        sync_file(output)
      if overwrite:
        check_replaceable(path)
      give_name(output, path, overwrite)

  def check(error):
    if error is not None:
      raise error

  with contextlib.ExitStack() as stack:

    def begin():
      if processes.is_first():
        lock = _lock(path, folder, identity, overwrite)
        stack.enter_context(lock)
        _mend(folder, path)

    try:
      processes.together(begin)
    except OSError as e:
      raise _cannot_write(path, e) from e
    is_wrong = is_done = False
    try:
      processes.together(lambda: finished.update(_read_journals(folder)))
      error = None
      try:
        yield Partial(folder, dict(finished), record)
      except InputError as e:
        is_wrong, error = True, e  # The next run would find the same error.
      except OSError as e:
        error = e
      processes.together(lambda: check(error))
      processes.together(put)
      is_done = True
    except OSError as e:
      raise _cannot_write(path, e, folder if finished else None) from e
    finally:
      is_first = processes.is_first()
      if is_wrong or (is_first and (is_done or not _read_journals(folder))):
        _remove(folder, path)


def remove_leftover(path: Path, identity: Mapping[str, str]) -> None:
  """Removes the folder of a run that was killed after its output got its name.

  A folder of another run, or one in use, is left alone.
  """
  folder = unfinished_folder(path)
  with contextlib.suppress(OSError):
    lock = locks.take(folder) if _is_ours(folder) else None
    if lock is not None:
      with lock:
        is_rest = not (folder / 'journal').exists()
        if is_rest or _is_same(path, folder, identity, overwrite=True):
          _remove(folder, path)


def _cannot_write(path, error, kept=None):
  goes_on = f'; the same command goes on from {kept}' if kept else ''
  reason = error.strerror or error
  return InputError(f'{path}: cannot be written; {reason}{goes_on}')


def _lock(path, folder, identity, overwrite) -> locks.Lock:
  """Returns the lock of the folder; makes the folder if it is missing."""
  if os.path.lexists(folder) and (not folder.is_dir() or os.listdir(folder)):
    if not _is_ours(folder):
      raise _foreign(path, folder)
    lock = locks.take(
      folder, check=lambda: _is_same(path, folder, identity, overwrite)
    )
    if lock is None:
      raise _busy(path, folder)
    with contextlib.ExitStack() as stack:
      stack.enter_context(lock)
      if _is_same(path, folder, identity, overwrite):
        stack.pop_all()
        return lock
      _remove(folder, path)
  # The new folder has another name until it holds a journal.
  with temporary_folder(path.parent) as temporary:
    unfinished = temporary / folder.name
    unfinished.mkdir()
    with open(unfinished / 'journal', 'w', encoding='ascii') as file:
      file.write(f'{json.dumps(identity)}\n')
      file.flush()
      os.fsync(file.fileno())
    lock = locks.take(unfinished)
    try:
      os.rename(unfinished, folder)
    except OSError as e:
      if e.errno in (errno.ENOTEMPTY, errno.EEXIST):
        raise (_busy if _is_ours(folder) else _foreign)(path, folder) from e
      raise
  if lock is None:  # Another run has found the folder, or removed it.
    raise _busy(path, folder)
  lock.moved_to(folder)
  return lock


def _busy(path, folder):
  return InputError(
    f'{path}: another run is writing it, in {folder}; {locks.holder(folder)}'
  )


def _foreign(path, folder):
  return InputError(
    f'{path}: the unfinished output needs the folder {folder}, but segjax did '
    'not make what is there; rename it, or give another output'
  )


def _begun(folder):
  """Returns the identity in the journal of a folder.

  It returns {} if a kill interrupted the removal of the folder, and None if
  segjax did not make the folder.
  """
  try:
    with open(folder / 'journal', encoding='ascii') as file:
      begun = json.loads(file.readline())
  except FileNotFoundError:
    names = os.listdir(folder) if folder.is_dir() else ['']
    is_rest = all(name == locks.NAME for name in names)
    return (
      {} if is_rest and locks.is_file_of_lock(folder / locks.NAME) else None
    )
  except (OSError, ValueError):
    return None
  return begun if isinstance(begun, dict) else None


def _is_ours(folder):
  return not folder.is_symlink() and _begun(folder) is not None


def _is_same(path, folder, identity, overwrite):
  """Returns whether a folder has this identity; refuses another identity.

  A folder whose removal was interrupted has none, and one with another identity
  is accepted if `overwrite`.
  """
  if not (folder / 'journal').exists():
    return False
  begun = _begun(folder) or {}
  changed = [name for name in identity if begun.get(name) != identity[name]]
  if changed and not overwrite:
    raise InputError(
      f'{path}: {folder} was begun with other {", ".join(changed)}; '
      'give --overwrite to begin anew'
    )
  return not changed


def _remove(folder, path):
  """Removes an unfinished output that is locked, but no other files.

  The journal and the file of the lock go last, so that the rest is recognised
  after a kill in between.
  """
  picture = path.with_suffix('.npy').name
  for name in (path.name, picture):
    remove(folder / name)
    remove(folder / f'.{name}.new')  # See `open_canvas`.
  remove(folder / REPLACED)
  for journal in sorted(_journals(folder), reverse=True):
    remove(journal)
  remove(folder / locks.NAME)
  with contextlib.suppress(OSError):
    folder.rmdir()


def _own_journal():
  index = jax.process_index()
  return f'journal.{index}' if index else 'journal'


def _journals(folder):
  """Returns the journals of all processes; see `_own_journal`."""
  return [
    file
    for file in folder.glob('journal*')
    if re.fullmatch(r'journal(\.\d+)?', file.name)
  ]


def _mend(folder, path):
  """Removes torn lines from journals, and all blocks if there is no canvas.

  There is no canvas if a crash came after the output got its name.
  """
  output = folder / path.name
  with contextlib.suppress(FileNotFoundError):
    if os.path.samefile(output, path):
      output.unlink()  # Writing to it would change the output.
  others = {locks.NAME, REPLACED, *(file.name for file in _journals(folder))}
  has_canvas = any(
    file.name not in others and not file.name.startswith('.')
    for file in folder.iterdir()
  )
  for journal in _journals(folder):
    text = journal.read_text('ascii')
    whole = text[: text.rfind('\n') + 1]
    if not has_canvas:
      # The first line of the first journal holds the identity.
      own = text.find('\n') + 1 if journal.name == 'journal' else 0
      whole = text[:own]
    if whole != text:
      os.truncate(journal, len(whole))


def _read_journals(folder):
  """Returns the blocks of all journals, which other processes may change."""
  blocks = {}
  for journal in _journals(folder):
    try:
      lines = journal.read_text('ascii').split('\n')[:-1]
    except FileNotFoundError:
      continue
    for line in lines[1:] if journal.name == 'journal' else lines:
      page, number, pixels = map(int, line.split())
      blocks[page, number] = pixels
  return blocks
