# SPDX-License-Identifier: Apache-2.0
"""The exceptions that end a command with one line instead of a traceback.

A message says what is wrong, which value was given and what would be right.
Anything else that escapes is a bug and keeps its traceback.
"""

import difflib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence

from absl import app, flags, logging

# What the system says where a file cannot grow: number -> text.
DISK_IS_FULL = {
  number: os.strerror(number)
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
}

# For the other processes of a run to fail, too, where all have a reason.
_OTHERS_SECONDS = 10


class InputError(ValueError):
  """Input that the caller can correct: a file, a size, a config value."""


class TrainingDiverged(FloatingPointError):
  """The loss or the gradient is no longer finite."""


class SaveFailed(OSError):
  """A checkpoint cannot be written: a full disk."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns '; did you mean X?' for the nearest of `known`, '' without any."""
  nearest = difflib.get_close_matches(name, known, n=1)
  return f'; did you mean {nearest[0]}?' if nearest else ''


def run_command(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a command line.

  Bad flags and `InputError` end it with status 2; `TrainingDiverged` and a
  full disk with 1. Of several processes one that fails alone ends within
  seconds, so that the others notice.
  """
  # Information is for --verbosity=0; warnings and errors are for everybody.
  logging.set_verbosity(logging.WARNING)

  def parse(argv):
    try:
      return flags.FLAGS(argv)
    except flags.Error as e:
      # The traceback of a config file ends with what it raised.
      last = str(e).splitlines()[-1]
      _fail(last.removeprefix('segjax.errors.InputError: '), status=2)
    except (AttributeError, KeyError) as e:
      if not any(argument.startswith('--config.') for argument in argv):
        raise  # Of the config file itself.
      key = (e.__context__ or e).args[0]
      _fail(f'unknown config key, see the config file: {key}', status=2)
    except (TypeError, ValueError) as e:
      _fail(f'config override: {e}', status=2)

  def run(argv):
    try:
      if len(argv) > 1:
        raise InputError(f'unexpected argument {argv[1]!r}; use --flag=value')
      main(argv)
    except InputError as e:
      _fail(e, status=2)
    except (TrainingDiverged, SaveFailed) as e:
      _fail(e, status=1)
    except OSError as e:
      if e.errno not in DISK_IS_FULL:
        raise
      _fail(f'cannot write {e.filename or "a file"}: {e.strerror}', status=1)
    except KeyboardInterrupt:
      _fail('interrupted; a run goes on with the same command', status=130)
    except Exception:
      _end_soon(status=1)
      raise

  app.run(run, flags_parser=parse)


def _fail(error: BaseException | str, status: int) -> None:
  # In one write, since the other processes of a run may say it too.
  sys.stderr.write(' '.join(['error:', *str(error).split()]) + '\n')
  _end_soon(status)
  sys.exit(status)


def _end_soon(status: int) -> None:
  """Ends this process of several in a while, if it hasn't ended by itself.

  At its end jax waits minutes for the others, which wait for this one's share.
  """
  jax = sys.modules.get('jax')  # Not yet imported where a flag is wrong.
  if jax and jax.distributed.is_initialized():
    timer = threading.Timer(_OTHERS_SECONDS, os._exit, (status,))
    timer.daemon = True
    timer.start()
