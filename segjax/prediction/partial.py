# SPDX-License-Identifier: Apache-2.0
"""Unfinished outputs: written block by block, continued after a crash.

An unfinished output lies beside the output, in the folder `OUTPUT.partial`: a
canvas, a journal of each process that names the blocks that are on the disk,
and a lock, which ends with the process that holds it. The output gets its name
when no block is missing.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax

from segjax import locks
from segjax.devices import processes
from segjax.errors import InputError

# Between entries in the journal, each of which waits for the disk.
RECORD_EVERY_SECONDS = 1.0

Block = tuple[int, int]


class Partial(NamedTuple):
  """An unfinished output.

  Attributes:
    folder: the folder that holds all of it.
    finished: the blocks that were on the disk when it was opened, by page and
      number within the page, and the pixels of each.
    record: (block, pixels, sync) -> None; enters the block in the journal of
      this process, once a second, after `sync` has put it on the disk.
  """

  folder: Path
  finished: Mapping[Block, int]
  record: Callable[[Block, int, Callable[[], None]], None]


def unfinished_folder(path: Path) -> Path:
  """Returns where an output lies until it is finished."""
  return path.with_name(f'{path.name}.partial')


@contextlib.contextmanager
def open_partial(
  path: str | os.PathLike,
  identity: Mapping[str, str],
  overwrite: bool = False,
  finish: Callable[[Path], None] = lambda folder: None,
) -> Iterator[Partial]:
  """Yields an unfinished output; at the end it becomes the output.

  The with-block puts the output into the folder under the output's name. If it
  is killed, or raises anything but an InputError, the finished blocks stay for
  the next time. All processes of a run enter together, on one file system, and
  if one raises, all do.

  Args:
    path: the output, a file or a folder.
    identity: everything that decides the output, by names for messages; values
      are str or numbers.
    overwrite: whether to drop an output that was begun with another identity.
    finish: called with the folder in the first process, when all are through.

  Raises:
    InputError: the output was begun with another identity, another run is
      writing it, or it cannot be written; then why.
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
      _put(folder / path.name, path)

  def check(error):
    if error is not None:
      raise error

  with contextlib.ExitStack() as stack:

    def begin():
      if processes.is_first():
        lock = _lock(path, folder, identity, overwrite)
        stack.enter_context(lock)
        _mend(folder)

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
        is_wrong, error = True, e  # Wrong input is wrong the next time, too.
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
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftover(path: Path, identity: Mapping[str, str]) -> None:
  """Removes the folder of a run that was killed when its output had its name.

  Another run's is left, and so is one that is in use.
  """
  folder = unfinished_folder(path)
  with contextlib.suppress(OSError):
    lock = locks.take(folder / 'lock') if folder.is_dir() else None
    if lock is not None:
      with lock:
        journal = folder / 'journal'
        if not journal.exists() or _is_same(path, journal, identity, True):
          shutil.rmtree(folder)


def _cannot_write(path, error, kept=None):
  goes_on = f'; the same command goes on from {kept}' if kept else ''
  reason = error.strerror or error
  return InputError(f'{path}: cannot be written; {reason}{goes_on}')


def _lock(path, folder, identity, overwrite) -> BinaryIO:
  """Returns the file that locks the folder, which is made if need be."""
  if folder.is_dir():
    lock = locks.take(folder / 'lock')
    if lock is None:
      raise _busy(path, folder)
    with contextlib.ExitStack() as stack:
      stack.enter_context(lock)
      if _is_same(path, folder / 'journal', identity, overwrite):
        stack.pop_all()
        return lock
      shutil.rmtree(folder)
  # Under another name until the journal says whose it is.
  unfinished = folder.with_name(f'.{folder.name}.{uuid.uuid4().hex}.new')
  try:
    unfinished.mkdir()
    (unfinished / 'journal').write_text(f'{json.dumps(identity)}\n', 'ascii')
    lock = locks.take(unfinished / 'lock')
    os.rename(unfinished, folder)
  except OSError as e:
    shutil.rmtree(unfinished, ignore_errors=True)
    if e.errno in (errno.ENOTEMPTY, errno.EEXIST):
      raise _busy(path, folder) from e
    raise
  if lock is None:  # Somebody else has found it, or removed it.
    raise _busy(path, folder)
  return lock


def _busy(path, folder):
  return InputError(
    f'{path}: another run is writing it, in {folder}; '
    f'{locks.holder(folder / "lock")}'
  )


def _is_same(path, journal, identity, overwrite):
  """Whether the journal is of this identity; raises InputError if it is not."""
  try:
    with open(journal, encoding='ascii') as file:
      begun = json.loads(file.readline())
    changed = [name for name in identity if begun.get(name) != identity[name]]
  except FileNotFoundError:
    return False  # The rest of a removal that was killed.
  except (OSError, ValueError, AttributeError):
    changed = ['a journal that cannot be read']
  if changed and not overwrite:
    raise InputError(
      f'{path}: {journal.parent} was begun with other {", ".join(changed)}; '
      'give --overwrite to begin anew'
    )
  return not changed


def _own_journal():
  index = jax.process_index()
  return f'journal.{index}' if index else 'journal'


def _journals(folder):
  """Returns the files of `_own_journal` of all processes."""
  return [
    file
    for file in folder.glob('journal*')
    if re.fullmatch(r'journal(\.\d+)?', file.name)
  ]


def _mend(folder):
  """Removes from journals what a crash has cut off, or left without a canvas.

  The latter after it gave the output its name.
  """
  others = {'lock', 'replaced', *(file.name for file in _journals(folder))}
  has_canvas = any(
    file.name not in others and not file.name.startswith('.')
    for file in folder.iterdir()
  )
  for journal in _journals(folder):
    text = journal.read_text('ascii')
    whole = text[: text.rfind('\n') + 1]
    if not has_canvas:
      # The first line of the first journal says whose they are.
      own = text.find('\n') + 1 if journal.name == 'journal' else 0
      whole = text[:own]
    if whole != text:
      os.truncate(journal, len(whole))


def _read_journals(folder):
  """Returns the blocks of all processes, which may be writing, or removing."""
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


def _put(output, path):
  """Gives the output its name."""
  if output.is_file():
    with open(output, 'rb') as file:
      os.fsync(file.fileno())
  if path.is_dir() or (path.exists() and output.is_dir()):
    # A folder is not replaced in one step.
    os.replace(path, output.with_name('replaced'))
  os.replace(output, path)
