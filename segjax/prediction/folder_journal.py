# SPDX-License-Identifier: Apache-2.0
"""The journal of finished files in an output folder, to resume after a kill.

Each command that writes to the folder has a journal, a hidden file there, and
removes it when all its files are finished. A file is skipped only if the
journal has exactly the line that would be written for it now. So a torn or
damaged line skips nothing.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segjax.atomic import sync_file


class FolderJournal:
  """The files that a command has finished in its output folder."""

  def __init__(self, folder: Path, command: Sequence[Any]):
    """Names a journal; the file is written by `enter`.

    Args:
      folder: folder of the outputs; it need not exist yet.
      command: everything that decides the outputs, except the contents of the
        inputs. Commands with another `repr` have another journal.
    """
    digest = hashlib.sha256(repr(command).encode()).hexdigest()
    self._folder = folder
    # Another command may write other files of the folder at the same time.
    self._path = folder / f'.unfinished.{digest[:16]}'

  def find_finished(
    self, outputs: Sequence[Path], digests: Sequence[str]
  ) -> list[bool]:
    """Returns which outputs this command has finished and nobody has changed.

    The digests are the checksums of the inputs, one for each output.
    """
    try:
      lines = set(self._path.read_text('utf-8', errors='replace').split('\n'))
    except OSError:
      return [False] * len(outputs)
    return [
      output.is_file() and _line(output.name, digest, output) in lines
      for output, digest in zip(outputs, digests, strict=True)
    ]

  def enter(self, output: Path, digest: str, written: Path) -> None:
    """Adds the line of an output that is complete, before it gets its name.

    If the line came after the renaming, a kill in between would leave an output
    that looks like another command's. A line without an output is harmless.

    Args:
      output: file in the folder.
      digest: checksum of its input, computed before the input was read.
      written: the complete file, which is then renamed to `output`.

    Raises:
      OSError: the journal cannot be written.
    """
    sync_file(written)
    with open(self._path, 'a', encoding='utf-8') as file:
      # The line begins with a line break, since the one before may be torn.
      file.write(f'\n{_line(output.name, digest, written)}\n')
      file.flush()
      os.fsync(file.fileno())

  def remove(self) -> None:
    """Removes the journal, when all outputs of the command are finished."""
    self._path.unlink(missing_ok=True)


def describe_skipped(folder: Path, finished: Sequence[bool]) -> str:
  """Returns the message about the finished outputs that a command skips."""
  return (
    f'{folder}: {sum(finished)} of {len(finished)} files are skipped; the same '
    'command finished them before it was stopped'
  )


def _line(name, digest, file):
  status = file.stat()
  return json.dumps([name, digest, status.st_size, status.st_mtime_ns])
