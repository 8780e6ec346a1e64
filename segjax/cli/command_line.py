# SPDX-License-Identifier: Apache-2.0
"""The runner of commands: from a command line to `main` and an exit status.

A module that is a command starts with

    if __name__ == '__main__':
      from segjax.cli.command_line import run

      run('NAME')

before its imports. So help and wrong flags are shown at once, and the command
runs in the module that others import, not in a copy named `__main__`.
"""

import importlib
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags, logging

import segjax
from segjax.cli import terminal
from segjax.errors import (
  DISK_IS_FULL,
  InputError,
  SaveFailed,
  SharedInputError,
  TrainingDiverged,
  did_you_mean,
)

try:
  from segjax.cli.command_flags import COMMANDS, Command
except InputError as error:  # `locks` raises it on Windows.
  print(f'error: {error}', file=sys.stderr)
  sys.exit(2)

# Time for the other processes of a run to fail by themselves.
_OTHERS_SECONDS = 10
_INTERRUPTED = 'interrupted; a run goes on with the same command'
_HELP = ('--help', '-help', '-h', '--helpshort', '-helpshort', '-?')


def main() -> None:
  """Runs `segjax COMMAND FLAGS`; without a command, lists the commands."""
  terminal.make_streams_robust()
  program = 'segjax' if sys.argv[0].endswith('segjax') else 'python -m segjax'
  name = sys.argv[1] if len(sys.argv) > 1 else _HELP[0]
  if name in _HELP:
    print(_list_commands(program))
  elif name == '--version':
    _print_version()
  elif name in COMMANDS:
    # Config flags read sys.argv, too.
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    run(name, f'{program} {name}')
  else:
    _fail(
      f'there is no command {name!r}{did_you_mean(name, COMMANDS)}; commands '
      f'are {", ".join(COMMANDS)}',
      status=2,
    )


def run(name: str, program: str | None = None) -> NoReturn:
  """Runs one of `COMMANDS` with the flags in `sys.argv`, and ends the process.

  Args:
    name: key in `COMMANDS`.
    program: the words by which the command was called, for its help.
  """
  terminal.make_streams_robust()
  terminal.drop_noise()
  terminal.end_when_interrupted(_INTERRUPTED)
  command = COMMANDS[name]
  program = program or f'python -m segjax.{command.module}'
  command.define_flags()
  if any(argument in _HELP for argument in sys.argv[1:]):
    print(_help(command, program))
    sys.exit()
  if '--version' in sys.argv[1:]:
    _print_version()
    sys.exit()

  def checked_main(argv):
    missing = [f for f in command.required if flags.FLAGS[f].value is None]
    if missing:
      example = command.example.split()
      values = [arg for arg in example if arg[2:].partition('=')[0] in missing]
      raise InputError(
        f'give {" ".join(values)}; for example: {program} {command.example}'
      )
    try:
      command.check_flags()
    except InputError as e:
      raise InputError(f'{e}; for example: {program} {command.example}') from e
    module = importlib.import_module(f'segjax.{command.module}')
    with terminal.interruptible():
      module.main(argv)

  run_command(checked_main)


def run_command(main: Callable[[Sequence[str]], None]) -> NoReturn:
  """Parses the flags in `sys.argv`, runs a function, and ends the process.

  The exit status is 2 after wrong flags and `InputError`, 1 after
  `TrainingDiverged` and a full disk, 130 after Ctrl-C. If one of several
  processes fails alone, it ends within seconds, so that the others notice.
  """
  # Information is for --verbosity=0; warnings and errors are for everybody.
  logging.set_verbosity(logging.WARNING)
  # jax, which is not imported yet, would compute in float64.
  os.environ.pop('JAX_ENABLE_X64', None)

  def parse(argv):
    try:
      return flags.FLAGS(argv)
    except flags.Error as e:
      _fail(e, status=2)
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
      sys.stderr.write(f'error: {_INTERRUPTED}\n')
      for stream in (sys.stdout, sys.stderr):
        stream.flush()
      # At the end of Python, threads of jax that still compute may crash.
      os._exit(130)
    except Exception:
      _end_soon(status=1)
      raise

  app.run(run, flags_parser=parse)


def _list_commands(program: str) -> str:
  width = max(map(len, COMMANDS))
  rows = [
    f'  {name:{width}}  {command.summary}' for name, command in COMMANDS.items()
  ]
  lines = (
    segjax.__doc__ or '',
    '',
    f'{program} COMMAND --FLAG=VALUE ...',
    '',
    *rows,
    '',
    'COMMAND --help shows the flags of a command, --version the version. To '
    'begin,',
    'without any data:',
    '',
    f'  {program} train {COMMANDS["train"].example}',
  )
  return '\n'.join(lines)


def _help(command: Command, program: str) -> str:
  lines = (
    command.summary,
    '',
    f'  {program} {command.example}',
    '',
    *_help_of_flags(command.required),
    '',
    '--flagfile=FILE reads flags from a file, --verbosity=0 prints more, '
    '--version',
    'prints the version, and --helpfull lists what else absl defines.',
  )
  return '\n'.join(lines)


def _help_of_flags(required: Sequence[str]) -> Iterator[str]:
  """Yields the lines on the flags of a command, in order of definition."""
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    # Libraries define flags, too, when they are imported.
    if not module.startswith('segjax.'):
      continue
    for flag in defined:
      text, facts = flag.help, []
      if isinstance(flag.parser, flags.EnumParser):
        values = flag.parser.enum_values
        text = text.removeprefix(f'<{"|".join(values)}>: ')
        facts.append(f'one of {", ".join(values)}')
      if flag.name in required:
        facts.append('required')
      elif flag.default:
        facts.append(f'by default {flag.default_as_str}')
      if facts:
        text = f'{text} ({"; ".join(facts)})'
      name = f'  --{"[no]" if flag.boolean else ""}{flag.name}: '
      yield textwrap.fill(
        text, 80, initial_indent=name, subsequent_indent='      '
      )


def _print_version() -> None:
  print(f'segjax {segjax.__version__}')


def _fail(error: BaseException | str, status: int) -> NoReturn:
  jax = sys.modules.get('jax')
  is_shared = isinstance(error, SharedInputError)
  if not (is_shared and jax and jax.process_index()):
    # In one write, since other processes may write a line at the same time.
    sys.stderr.write(' '.join(['error:', *str(error).split()]) + '\n')
  _end_soon(status)
  sys.exit(status)


def _end_soon(status: int) -> None:
  """Ends one of several processes after `_OTHERS_SECONDS`, if it still runs.

  At exit jax waits minutes for the other processes, which wait for this one.
  """
  jax = sys.modules.get('jax')  # Not yet imported where a flag is wrong.
  if jax and jax.distributed.is_initialized():
    timer = threading.Timer(_OTHERS_SECONDS, os._exit, (status,))
    timer.daemon = True
    timer.start()
