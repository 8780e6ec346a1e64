# SPDX-License-Identifier: Apache-2.0
"""The exceptions that end a command with one line instead of a traceback.

A message says what is wrong, which value was given and what would be right.
Anything else that escapes is a bug and keeps its traceback.
"""

import difflib
import errno
import os
from collections.abc import Iterable

# Errors of a file that cannot grow: number -> text of the system.
DISK_IS_FULL = {
  number: os.strerror(number)
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
}


class InputError(ValueError):
  """Input that the caller can correct: a file, a size, a config value."""


class SharedInputError(InputError):
  """An `InputError` that all processes of a run raise; the first prints it."""


class TrainingDiverged(FloatingPointError):
  """The loss or the gradient is no longer finite."""


class SaveFailed(OSError):
  """A checkpoint cannot be written because the disk is full."""


def shortened(text: str, most: int = 80) -> str:
  """Returns the text, or its beginning and its length if it is long."""
  if len(text) <= most:
    return text
  return f'{text[:most]}... ({len(text)} characters)'


def check_least(settings: object, **least: int) -> None:
  """Raises InputError if a named attribute of settings is below its least."""
  for name, smallest in least.items():
    value = getattr(settings, name)
    if value < smallest:
      raise InputError(f'{name}={value} must be at least {smallest}')


def counted(number: float, noun: str) -> str:
  """Returns '1 image' or '2 images', for a message."""
  return f'{number:.10g} {noun}{"s" * (number != 1)}'


def did_you_mean(name: object, known: Iterable[str]) -> str:
  """Returns '; did you mean X?' for the nearest of `known`, or ''.

  If a name in `known` has dots, only its last part is compared.
  """
  last = {each.rpartition('.')[2]: each for each in known}
  nearest = difflib.get_close_matches(str(name), last, n=1)
  return f'; did you mean {last[nearest[0]]}?' if nearest else ''
