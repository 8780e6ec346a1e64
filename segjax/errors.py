# SPDX-License-Identifier: Apache-2.0
"""The exceptions that end a command with one line instead of a traceback.

A message says what is wrong, which value was given and what would be right.
Anything else that escapes is a bug and keeps its traceback.
"""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags


class InputError(ValueError):
  """Input that the caller can correct: a file, a size, a config value."""


class TrainingDiverged(FloatingPointError):
  """The loss or the gradient is no longer finite."""


def run_command(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a command line.

  Bad flags and `InputError` end it with status 2, `TrainingDiverged` with 1.
  """

  def parse(argv):
    try:
      return flags.FLAGS(argv)
    # A config override that is unknown or of another type is one of these.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
      _fail(e, status=2)
    except OSError as e:
      _fail(f'{e.filename}: {e.strerror}', status=2)

  def run(argv):
    try:
      if len(argv) > 1:
        raise InputError(f'unexpected argument {argv[1]!r}; use --flag=value')
      main(argv)
    except InputError as e:
      _fail(e, status=2)
    except TrainingDiverged as e:
      _fail(e, status=1)

  app.run(run, flags_parser=parse)


def _fail(error: Exception | str, status: int) -> None:
  message = ' '.join(str(error).split())
  print(f'error: {message}', file=sys.stderr)
  sys.exit(status)
