# SPDX-License-Identifier: Apache-2.0
"""Outputs that take long, are done block by block, and go on after a crash.

What is done lies beside the output, in `OUTPUT.partial`: a canvas, and a
journal that names the blocks that are on the disk. The output gets its name
when nothing is missing.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from segjax.errors import InputError

# Between entries in the journal, each of which waits for the disk.
RECORD_EVERY_SECONDS = 1.0

Block = tuple[int, int]


class Partial(NamedTuple):
  """An output in the making.

  Attributes:
    folder: that holds all of it.
    finished: the blocks that were on the disk when it was opened, by page and
      number within the page, and the pixels of each.
    record: (block, pixels, sync) -> None; enters the block in the journal, once
      a second, after `sync` has put it on the disk.
  """

  folder: Path
  finished: Mapping[Block, int]
  record: Callable[[Block, int, Callable[[], None]], None]


@contextlib.contextmanager
def open_partial(
  path: str | os.PathLike, identity: Mapping[str, str], overwrite: bool = False
) -> Iterator[Partial]:
  """Yields what is there of an output; at the end it becomes the output.

  The with-block puts the output into the folder under the output's name. What
  is finished stays for the next time if it is killed, or raises anything but
  an InputError.

  Args:
    path: the output, a file or a folder.
    identity: all that decides it, by names for messages; str or numbers.
    overwrite: whether to drop what was begun with another identity.

  Raises:
    InputError: the output was begun with another identity, or cannot be
      written; then why.
  """
  path = Path(path)
  folder = path.with_name(f'{path.name}.partial')
  journal = folder / 'journal'
  finished, pending = {}, {}
  began = time.monotonic()

  def enter(sync):
    nonlocal began
    sync()
    with open(journal, 'a', encoding='ascii') as file:
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

  try:
    if folder.is_dir() and not _is_same(path, journal, identity, overwrite):
      shutil.rmtree(folder)
    if not folder.is_dir():
      _begin(folder, identity)
    finished.update(_read_journal(journal))
    try:
      yield Partial(folder, dict(finished), record)
      _put(folder / path.name, path)
      finished.clear()
    except InputError:
      finished.clear()  # Wrong input is wrong the next time, too.
      raise
    finally:
      if not finished:
        shutil.rmtree(folder)
  except OSError as e:
    kept = f'; the same command goes on from {folder}' if finished else ''
    reason = e.strerror or e
    raise InputError(f'{path}: cannot be written; {reason}{kept}') from e


def _begin(folder, identity):
  # Under another name until the journal says whose it is.
  unfinished = folder.with_name(f'.{folder.name}.new')
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir()
  (unfinished / 'journal').write_text(f'{json.dumps(identity)}\n', 'ascii')
  os.replace(unfinished, folder)


def _is_same(path, journal, identity, overwrite):
  """Whether the journal is of this identity; raises InputError if not."""
  try:
    with open(journal, encoding='ascii') as file:
      begun = json.loads(file.readline())
    changed = [name for name in identity if begun.get(name) != identity[name]]
  except (OSError, ValueError, AttributeError):
    changed = ['a journal that cannot be read']
  if changed and not overwrite:
    raise InputError(
      f'{path}: {journal.parent} was begun with other {", ".join(changed)}; '
      'give --overwrite to begin anew'
    )
  return not changed


def _read_journal(journal):
  """Returns the blocks; a line that a crash has cut off is removed."""
  text = journal.read_text('ascii')
  whole = text[: text.rindex('\n') + 1]
  if whole != text:
    os.truncate(journal, len(whole))
  lines = [map(int, line.split()) for line in whole.splitlines()[1:]]
  return {(page, number): pixels for page, number, pixels in lines}


def _put(output, path):
  """Gives the output its name."""
  if output.is_file():
    with open(output, 'rb') as file:
      os.fsync(file.fileno())
  if path.is_dir() or (path.exists() and output.is_dir()):
    # A folder is not replaced in one step.
    os.replace(path, output.with_name('replaced'))
  os.replace(output, path)
