# SPDX-License-Identifier: Apache-2.0
"""The help of the commands, and how `segjax` finds them."""

import os
import re
import subprocess
import sys

import pytest
from commands import REPOSITORY

import segjax
from segjax import convert
from segjax.cli.command_flags import COMMANDS
from segjax.weights import files

NETWORK = {'workdir', 'checkpoint', 'config', 'params'}
OWN = {
  'plan': {'images', 'labels', 'output', 'network', 'minutes', 'match'},
  'train': {'config', 'workdir', '[no]dry_run'},
  'evaluate': NETWORK | {'split', 'data_dir', 'images', 'labels', '[no]tta'},
  'predict': NETWORK | {'input', 'output', 'kind', 'artifact'},
  'instances': {'input', 'output', 'threshold'},
  'export': NETWORK | {'format', 'output', 'size_px', 'license'},
  'convert': {'input', 'model', 'output', 'pixels'},
  'prepare': {'config', 'output', 'name'},
}


def python(*args, cwd=REPOSITORY):
  """Runs Python without pytest's environment; segjax is this checkout's."""
  return subprocess.run(
    [sys.executable, *args],
    capture_output=True,
    text=True,
    cwd=cwd,
    env=os.environ | {'PYTHONPATH': str(REPOSITORY)},
  )


@pytest.mark.parametrize('name', COMMANDS)
def test_help_shows_every_flag_and_imports_no_jax(name):
  module = f'segjax.{COMMANDS[name].module}'
  process = python('-X', 'importtime', '-m', module, '--help')
  assert process.returncode == 0
  assert COMMANDS[name].summary in process.stdout
  imported = re.findall(r'\| +([\w.]+)$', process.stderr, flags=re.MULTILINE)
  assert 'absl.flags' in imported
  assert not {'jax', 'flax', 'pooch', 'scipy', 'tensorstore'} & {*imported}
  shown = re.findall(r'^  --([\w\[\]]+): ', process.stdout, flags=re.MULTILINE)
  assert OWN[name] <= {*shown}

  # What absl shows is sorted into a paragraph for each module.
  full = python('-m', module, '--helpfull').stdout
  paragraphs = re.split(r'^([\w./]+):$', full, flags=re.MULTILINE)[1:]
  defined = [
    flag
    for title, flags in zip(paragraphs[::2], paragraphs[1::2], strict=True)
    if title.startswith('segjax.')
    for flag in re.findall(r'^  --([\w\[\]]+):', flags, flags=re.MULTILINE)
  ]
  assert sorted(shown) == sorted(defined)


def test_the_texts_are_sentences():
  """Starts as one, ends as one, and says no None."""
  for name in COMMANDS:
    shown = python('-m', 'segjax', name, '--help').stdout
    for text in re.split(r'^  --[\w\[\]]+: ', shown, flags=re.MULTILINE)[1:]:
      text = ' '.join(text.partition('\n\n')[0].split())
      text = re.sub(r' \([^()]*\)$', '', text)
      assert re.fullmatch(r'[A-Z].*\.', text), text
      assert 'None' not in text


def test_segjax_lists_its_commands():
  process = python('-m', 'segjax')
  assert process.returncode == 0
  for name, command in COMMANDS.items():
    assert re.search(
      f'^  {name} +{re.escape(command.summary)}$',
      process.stdout,
      flags=re.MULTILINE,
    )
  assert python('-m', 'segjax', '--help').stdout == process.stdout


def test_a_subcommand_is_its_module():
  """The same flags, and those of a config: both read the same sys.argv."""
  arguments = ('--config=unet_isbi.py:demo', '--config.model.depth=x')
  expected = python('-m', 'segjax.main', *arguments)
  assert '--config.model.depth=x' in expected.stderr
  given = python('-m', 'segjax', 'train', *arguments)
  assert (given.returncode, given.stderr) == (2, expected.stderr)


def test_an_unknown_command_names_the_nearest():
  process = python('-m', 'segjax', 'pred')
  assert process.returncode == 2
  assert process.stderr.startswith(
    "error: there is no command 'pred'; did you mean predict?"
  )
  assert process.stderr.count('\n') == 1


@pytest.mark.parametrize('arguments', ['', '.evaluate', '.main'])
def test_version(arguments):
  process = python('-m', f'segjax{arguments}', '--version')
  assert process.returncode == 0
  assert process.stdout == f'segjax {segjax.__version__}\n'


def test_choices_that_are_written_twice_are_equal():
  """They are in the help, which must not import what defines them."""
  shown = python('-m', 'segjax.convert', '--help').stdout
  shown = ' '.join(shown.split())
  for choices in (convert.CONVERTIBLE, files.PIXELS):
    assert f'(one of {", ".join(choices)}' in shown


def test_a_shipped_card_is_found_from_anywhere(tmp_path):
  for config in ('unet_isbi.py', 'configs/unet_isbi.py'):
    process = python(
      '-m', 'segjax.main', f'--config={config}:tiny', cwd=tmp_path
    )
    assert "argument 'tiny' is not one of" in process.stderr
  process = python('-m', 'segjax.main', '--config=unet_cell.py', cwd=tmp_path)
  assert process.returncode == 2
  words = 'no file unet_cell.py; shipped cards are unet_cells.py, '
  assert words in process.stderr
  # One's own comes first, and only the name alone stands for a card.
  (tmp_path / 'unet_isbi.py').write_text('raise ValueError("mine")')
  process = python('-m', 'segjax.main', '--config=unet_isbi.py', cwd=tmp_path)
  assert 'mine' in process.stderr
  process = python('-m', 'segjax.main', '--config=x/unet_isbi.py', cwd=tmp_path)
  assert 'no file x/unet_isbi.py; shipped cards' in process.stderr
