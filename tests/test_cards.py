# SPDX-License-Identifier: Apache-2.0
"""The commands in the docstrings of all cards, as `help()` shows them."""

import ast
import contextlib
import re
import runpy
import shlex
from operator import attrgetter

import pytest
from absl import flags
from commands import REPOSITORY

from segjax.cli.command_flags import COMMANDS

CARDS = sorted((REPOSITORY / 'configs').glob('*.py'))


def commands_of(docstring):
  """Commands as a shell splits them, their lines joined where they go on."""
  lines = re.findall(
    r'^(?:\w+)? +(python -m (?:.*\\\n)*.*)$', docstring, flags=re.MULTILINE
  )
  # Each starts a line, so that whole lines can be copied.
  assert len(lines) == docstring.count('python -m ')
  return [shlex.split(line.replace('\\\n', '')) for line in lines]


@contextlib.contextmanager
def flags_of(command):
  """Defines the flags of a command while they are looked at."""
  others = {*flags.FLAGS}
  command.define_flags()
  try:
    yield {name: flags.FLAGS[name] for name in {*flags.FLAGS} - others}
  finally:
    for name in {*flags.FLAGS} - others:
      delattr(flags.FLAGS, name)


def configs_of(source, card, copies):
  """Configs that FILE:ARGUMENT names, where ARGUMENT stands for each."""
  file, _, argument = source.partition(':')
  assert REPOSITORY / copies.get(file, file) == card
  names = runpy.run_path(str(card))
  get_config, arguments = names['get_config'], names.get('ARGUMENTS', ())
  if argument == 'ARGUMENT':
    return [get_config(argument) for argument in arguments]
  assert not argument or argument in arguments
  return [get_config(argument) if argument else get_config()]


@pytest.mark.parametrize('card', CARDS, ids=lambda card: card.stem)
def test_commands_of_a_card_can_be_pasted_and_have_flags_that_exist(card):
  docstring = ast.get_docstring(ast.parse(card.read_text()))
  # A backslash that Python reads joins two lines to a long one.
  assert max(map(len, docstring.splitlines())) <= 80
  copies = {
    copy: original
    for original, copy in re.findall(r'\bcp (\S+) (\S+)$', docstring, re.M)
  }
  modules = []
  for command in commands_of(docstring):
    assert command[:2] == ['python', '-m']
    package, module = command[2].split('.')
    assert package == 'segjax'
    modules.append(module)
    assert all(re.fullmatch(r'--[\w.]+=\S+', flag) for flag in command[3:])
    given = dict(flag[2:].split('=', 1) for flag in command[3:])
    fields = {name for name in given if name.startswith('config.')}
    known = next(each for each in COMMANDS.values() if each.module == module)
    assert {*known.required} <= {*given}
    with flags_of(known) as defined:
      for name in {*given} - fields - {'config'}:
        defined[name].parser.parse(given[name])
      assert not fields or 'config' in defined
    if 'config' in given:
      for config in configs_of(given['config'], card, copies):
        for field in fields:
          attrgetter(field.removeprefix('config.'))(config)
  assert 'main' in modules
  # START and the like are explained; weights that are named are made.
  for made in re.findall(r'--config.init.path=(\w+\.npz)', docstring):
    assert f'--output={made}' in docstring
