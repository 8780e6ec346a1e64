# SPDX-License-Identifier: Apache-2.0
"""The experiment cards that come with segjax, found by their file names."""

import difflib
from pathlib import Path

from segjax.errors import InputError

_PACKAGE = Path(__file__).parent
# A wheel has them in the package, a checkout beside it.
_FOLDERS = (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')


def find_card(config: str) -> str:
  """Returns the path of a config file, or of the shipped card of that name.

  Args:
    config: FILE.py or FILE.py:ARGUMENT. Where there is no such file, NAME.py
      and configs/NAME.py are the shipped card NAME.

  Raises:
    InputError: there is neither a file nor a card; names the cards, the nearest
      first.
  """
  file, colon, argument = config.partition(':')
  path = Path(file)
  if path.is_file():
    if path.suffix != '.py':
      raise InputError(f'{file} is no config file; its name must end in .py')
    return config
  cards = {
    card.name: card for folder in _FOLDERS for card in folder.glob('*.py')
  }
  if path.name in cards and path in (
    Path(path.name),
    Path('configs', path.name),
  ):
    return f'{cards[path.name]}{colon}{argument}'

  def distance(name):
    return -difflib.SequenceMatcher(None, path.name, name).ratio(), name

  raise InputError(
    f'there is no file {file}; shipped cards are '
    f'{", ".join(sorted(cards, key=distance))}'
  )
