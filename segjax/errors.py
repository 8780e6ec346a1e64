# SPDX-License-Identifier: Apache-2.0
"""The one exception that bad input raises, and what a command does with it.

A message says what is wrong, which value was given and what would be right,
in one line. Anything else that escapes is a bug and keeps its traceback.
"""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags


class InputError(ValueError):
  """Input that the caller can correct: a file, a size, a config value."""


def run_command(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a command line; an `InputError` becomes one line, exit status 2."""

  def parse(argv):
    try:
      return flags.FLAGS(argv)
    # ml_collections reports an unknown or mistyped override as one of these.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
      _fail(e)

  def run(argv):
    try:
      if len(argv) > 1:
        raise InputError(f'unexpected argument {argv[1]!r}; use --flag=value')
      main(argv)
    except InputError as e:
      _fail(e)

  app.run(run, flags_parser=parse)


def _fail(error: Exception) -> None:
  message = ' '.join(str(error).split())
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)
