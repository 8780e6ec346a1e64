# SPDX-License-Identifier: Apache-2.0
"""The experiment cards that come with segjax, found by their file names."""

import difflib
import runpy
import traceback
from pathlib import Path

from ml_collections import ConfigDict

from segjax.errors import InputError

_PACKAGE = Path(__file__).parents[1]
# A wheel has the cards in the package, a checkout has them beside it.
_FOLDERS = (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')


def find_card(config: str) -> str:
  """Returns the path of a config file, or of the shipped card of that name.

  Args:
    config: FILE.py or FILE.py:ARGUMENT. If there is no such file, NAME.py and
      configs/NAME.py mean the shipped card NAME.

  Raises:
    InputError: there is neither such a file nor such a card; lists the cards,
      the nearest name first.
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


def load_card(config: str) -> ConfigDict:
  """Returns the config of a card, locked.

  Args:
    config: see `find_card`.

  Raises:
    InputError: there is no such card, it raises an error (the message has the
      line), or it does not return a ConfigDict with text as names.
  """
  file, colon, argument = find_card(config).partition(':')
  try:
    get_config = runpy.run_path(file).get('get_config')
    if not callable(get_config):
      raise InputError(f'{file} defines no function get_config')
    loaded = get_config(*[argument] * bool(colon))
    if not isinstance(loaded, ConfigDict):
      raise InputError(
        f'get_config of {file} returns {type(loaded).__name__}; it must return '
        'ml_collections.ConfigDict'
      )
    _check_keys(loaded)
    return loaded.lock()
  except InputError:
    raise
  except Exception as error:
    lines = [
      f', line {frame.lineno}'
      for frame in traceback.extract_tb(error.__traceback__)
      if Path(frame.filename).absolute() == Path(file).absolute()
    ]
    raise InputError(
      f'{file}{"".join(lines[-1:])}: {type(error).__name__}: {error}'
    ) from error


def _check_keys(config: ConfigDict, section: str = '') -> None:
  # Iteration would sort the keys, and fail.
  for name, value in config._fields.items():
    if not isinstance(name, str):
      raise InputError(
        f'config{section}[{name!r}] is no setting; names are text'
      )
    if isinstance(value, ConfigDict):
      _check_keys(value, f'{section}.{name}')
