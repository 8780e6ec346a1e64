# SPDX-License-Identifier: Apache-2.0
"""The README's notebook code runs, and commands of the pages can be typed."""

import doctest
import re
import runpy
import shlex
from operator import attrgetter

import pytest
from commands import REPOSITORY, TINY, run
from test_cards import flags_of

from segjax.cli.command_flags import COMMANDS

README = REPOSITORY / 'README.md'
PAGES = [README, *sorted((REPOSITORY / 'docs').glob('*.md'))]
# A copy that the page tells its reader to make.
COPIES = {'mine.py': 'fcn8s_folder.py', 'mine_unet.py': 'unet_folder.py'}
TYPED = [
  pytest.param(line, id=f'{page.name}:{number}')
  for page in PAGES
  for number, line in enumerate(page.read_text().splitlines(), start=1)
  if re.match(r'    .*\bsegjax[ .]\w+ -', line)
]


def test_readme_examples(tmp_path, monkeypatch):
  demo = '--config=configs/unet_isbi.py:demo'
  trained = run('main', demo, f'--workdir={tmp_path}/runs/demo', *TINY)
  assert trained.returncode == 0, trained.stderr
  monkeypatch.chdir(tmp_path)
  result = doctest.testfile(str(README), module_relative=False)
  assert result.attempted > 5
  assert result.failed == 0


@pytest.mark.parametrize('line', TYPED)
def test_commands_of_the_pages_have_flags_and_cards_that_exist(line):
  name, arguments = re.search(r'\bsegjax[ .](\w+) (-.*)', line).groups()
  command = COMMANDS['train' if name == 'main' else name]
  # Those without a value are --flag or --noflag.
  words = [
    re.sub('^--no(.*)$|^--([^=]*)$', r'--\1\2=true', word)
    for word in shlex.split(arguments)
  ]
  given = dict(flag[2:].split('=', 1) for flag in words)
  fields = {flag for flag in given if flag.startswith('config.')}
  with flags_of(command) as defined:
    assert {*given} - fields <= {*defined}
    for flag in {*given} - fields - {'config'}:
      defined[flag].parser.parse(given[flag])
  assert {*command.required} <= {*given}
  assert 'config' in given or not fields
  if 'config' in given:
    file, _, argument = given['config'].removeprefix('configs/').partition(':')
    card = runpy.run_path(str(REPOSITORY / 'configs' / COPIES.get(file, file)))
    config = card['get_config'](*[argument] * bool(argument))
    for field in fields:
      attrgetter(field.removeprefix('config.'))(config)


def test_the_pages_have_commands():
  assert len(TYPED) >= 15
