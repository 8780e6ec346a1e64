# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all; checks of their place."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from segjax.errors import InputError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
  """Yields a path beside `path` whose file becomes `path` at the end.

  A reader, or a crash, finds the old file or the new. If the block raises, or
  the disk is full, the old file stays and the new one is removed.
  """
  path = Path(path)
  temporary = _beside(path)
  try:
    yield temporary
    _sync(temporary)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
  """Yields an empty folder beside `path` that becomes `path` at the end.

  Its files lie directly in it. If the block raises, or the disk is full, a
  folder that was at `path` stays and the new one is removed. No system call
  exchanges two folders: a crash while one replaces the other can leave none.
  """
  path = Path(path)
  temporary, old = _beside(path), _beside(path)
  try:
    temporary.mkdir()
    yield temporary
    for file in temporary.iterdir():
      _sync(file)
    if path.exists():
      os.rename(path, old)
    os.rename(temporary, path)
  finally:
    if old.exists() and not path.exists():
      os.rename(old, path)
    for folder in (temporary, old):
      shutil.rmtree(folder, ignore_errors=True)


def check_folder(output: Path) -> None:
  """Raises InputError if the folder that an output goes into is missing."""
  if not output.parent.is_dir():
    raise InputError(f'output {output}: there is no folder {output.parent}')


def check_absent(outputs: Iterable[Path]) -> None:
  """Raises InputError if an output exists."""
  for output in outputs:
    if output.exists():
      raise InputError(f'{output} exists; give --overwrite to replace it')


def _beside(path):
  return path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')


def _sync(file):
  with open(file, 'rb') as opened:
    os.fsync(opened.fileno())
