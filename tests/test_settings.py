# SPDX-License-Identifier: Apache-2.0
"""A wrong value of any setting of any card is refused by its name."""

import operator
import re
import runpy
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import REPOSITORY, tiny_config
from ml_collections import ConfigDict

from segjax.errors import InputError
from segjax.models import create_model
from segjax.settings.cards import load_card
from segjax.settings.fields import check_type
from segjax.settings.sections import read_settings

CARDS = sorted((REPOSITORY / 'configs').glob('*.py'))
# That a card may set to None.
NONE = {
  'model.fc_features',
  'model.dropout_rate',
  'prediction.max_tile_size_px',
}


def leaves_of(config, section=''):
  for name in config:
    if isinstance(config[name], ConfigDict):
      yield from leaves_of(config[name], f'{section}{name}.')
    else:
      yield f'{section}{name}'


def check(config):
  """As a command does before it reads data."""
  create_model(read_settings(config).model)


def put(config, name, value):
  section, _, last = name.rpartition('.')
  holder = operator.attrgetter(section)(config) if section else config
  with config.unlocked(), config.ignore_type():
    holder[last] = value


# Cards from before these fields are read.
LATER = (
  'loss',
  'frozen_norm_share',
  *(
    f'preprocessing.{field}'
    for field in ('limits', 'dtype', 'measured', 'per_image')
  ),
)


@pytest.mark.parametrize('card', CARDS, ids=lambda card: card.stem)
def test_a_wrong_value_of_any_setting_of_a_card_is_refused_by_name(card):
  arguments = runpy.run_path(str(card)).get('ARGUMENTS', ('',))
  for argument in arguments:
    config = load_card(f'{card}:{argument}' if argument else str(card))
    check(config)
    leaves = [*leaves_of(config)]
    assert len(leaves) > 50
    for name in leaves:
      is_unet = config.model.name.startswith('unet')
      for value in (None, object(), {'a': 1}, b'x', [object()]):
        if value is None and name in NONE - {is_unet and 'model.dropout_rate'}:
          continue
        wrong = config.copy_and_resolve_references()
        put(wrong, name, value)
        with pytest.raises(InputError, match=rf'\b{re.escape(name)}='):
          check(wrong)
      wrong = config.copy_and_resolve_references()
      section, _, last = name.rpartition('.')
      with wrong.unlocked():
        del (operator.attrgetter(section)(wrong) if section else wrong)[last]
      if not name.startswith(('model.', 'data.')) and name not in LATER:
        with pytest.raises(InputError, match=f'lacks config.{name}'):
          check(wrong)


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('seed', True, 'config.seed=True must be a whole number'),
    (
      'evaluation.every_steps',
      None,
      'every_steps=None must be a whole number,',
    ),
    ('evaluation.every_steps', 5.0, 'every_steps=5.0 must be a whole number'),
    ('evaluation.average', [1], r'average=\[1\] must be True or False'),
    ('evaluation.best_metric', 3, "best_metric=3 must be text, such as 'name'"),
    ('optimizer.bias_layers', 'conv', "'conv' must be a tuple, such as"),
    (
      'optimizer.bias_layers',
      (1,),
      r"\(1,\) must be a tuple, such as \('name'",
    ),
    ('preprocessing.mean', 'x', r"'x' must be a .*, or a tuple, such as \(0.5"),
    ('schedule.learning_rate', float('inf'), 'must be a finite number'),
    ('profile_steps', (1,), r'profile_steps=\(1,\) must be a tuple, such as'),
    ('seed', 2**31, 'config.seed=2147483648 must be below'),
    ('data.fold', '0', "config.data.fold='0' must be a whole number"),
    ('data.seed', True, 'config.data.seed=True must be a whole number'),
    ('model', None, 'config.model=None must be a section'),
    ('data', 3, 'config.data=3 must be a section'),
    ('checkpoints.keep', 2, 'config.checkpoints.keep=2 must be a section'),
    ('model.name', ['unet'], r"model.name=\('unet',\)|model.name=\['unet'\]"),
    ('optimizer.learning_rte', 1.0, 'did you mean schedule.learning_rate'),
    ('model.nme', 'unet', 'did you mean name'),
    ('data.nme', 'voc', 'did you mean name'),
  ],
)
def test_what_is_wrong_and_what_would_be_right(name, value, message):
  config = tiny_config()
  put(config, name, value)
  with pytest.raises(InputError, match=message):
    check(config)


@pytest.mark.parametrize(
  ('value', 'annotation', 'is_right'),
  [
    (3, float, True),
    (True, float, False),
    (True, int, False),
    (True, bool, True),
    (1, bool, False),
    (float('nan'), float, False),
    (10**400, float, False),
    ([1, 0.5], tuple[float, ...], True),
    ((), tuple[float, ...], True),
    ([1, True], tuple[float, ...], False),
    ('ab', Sequence[str], False),
    (['a'], Sequence[str], True),
    (((1, True),), bool | Sequence[tuple[int, bool]], True),
    (((1, 1),), bool | Sequence[tuple[int, bool]], False),
    ((1, 2, 3), tuple[int, int], False),
    (None, int | None, True),
    (None, int, False),
    ((False, 255), Sequence[int], False),
    (Path(), str, False),
  ],
)
def test_types(value, annotation, is_right):
  if is_right:
    check_type('a.b', value, annotation)
  else:
    with pytest.raises(InputError, match=r'^config\.a\.b='):
      check_type('a.b', value, annotation)


@pytest.mark.parametrize(
  ('lines', 'message'),
  [
    ('return None', 'get_config of .* returns NoneType; it must return'),
    ('return config', r'config\.prediction\[3\] is no setting'),
    ('return {"seed": 1}', 'returns dict; it must return'),
    ('raise ValueError("a\\nb")', r'card.py, line 2: ValueError: a\nb'),
    ('raise ValueError', 'card.py, line 2: ValueError: '),
    ('return missing', "line 2: NameError: name 'missing'"),
    ('open("/none")', 'line 2: FileNotFoundError'),
    ('return (', 'SyntaxError'),
  ],
)
def test_a_card_that_fails_is_named_with_its_line(tmp_path, lines, message):
  (tmp_path / 'card.py').write_text(
    f'def get_config():\n  {lines}\n'
    'from ml_collections import ConfigDict\n'
    'config = ConfigDict({"prediction": {"a": 1, 3: 4}})\n'
  )
  with pytest.raises(InputError, match=message):
    load_card(str(tmp_path / 'card.py'))
