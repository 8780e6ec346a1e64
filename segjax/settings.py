# SPDX-License-Identifier: Apache-2.0
"""Names of the settings that a config must have, section by section.

A card is plain Python, so that a misspelt setting is an assignment like any
other. It is refused here, before any data are read. The fields of `data` are
those of the loader, see `data.sets`, and those of `model` of the network, see
`models`; both are checked there.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from segjax.data.augment import Augmentation
from segjax.errors import InputError, did_you_mean
from segjax.models import FCNS, UNETS
from segjax.optimizers import create_optimizer, create_schedule


def _arguments(function: Callable, *others: str) -> tuple[str, ...]:
  """Returns the names of a function's arguments without `others`."""
  names = inspect.signature(function).parameters
  return tuple(name for name in names if name not in others)


_SECTIONS = {
  'mesh': ('data', 'space'),
  'batching': ('order', 'bucket_px'),
  'preprocessing': ('mean', 'std', 'channels'),
  'init': ('path', 'initial', 'ignore'),
  'augmentation': _arguments(Augmentation),
  'optimizer': _arguments(create_optimizer, 'schedule'),
  'schedule': _arguments(create_schedule, 'num_steps'),
  'evaluation': (
    'every_steps',
    'average',
    'best_metric',
    'present_only',
    'num_pictures',
  ),
  'checkpoints': ('every_steps', 'keep'),
}
_PREDICTION_OF_UNET = ('max_tile_size_px', 'tile_memory_mib', 'tiles_per_batch')
_PREDICTION_OF_FCN = ('bucket_px', 'tile_memory_mib')
_TOP = (
  'seed',
  'parallel',
  'num_train_steps',
  'batch_size',
  'accumulate_steps',
  'tile_size_px',
  'loss_reduction',
  'log_every_steps',
  'profile_steps',
  'compilation_cache',
  *_SECTIONS,
  'model',
  'data',
  'prediction',
)


def check_names(config: ConfigDict) -> None:
  """Raises InputError for a setting that is unknown, or missing.

  Args:
    config: of an experiment, as a card returns it.
  """
  settings = config.to_dict()
  _check('', settings, _TOP)
  for name, known in _SECTIONS.items():
    _check(f'{name}.', settings[name], known)
  name = settings['model'].get('name')
  if name in UNETS or name in FCNS:  # Another name is refused by `models`.
    known = _PREDICTION_OF_UNET if name in UNETS else _PREDICTION_OF_FCN
    _check('prediction.', settings['prediction'], known)
  keep = settings['checkpoints']['keep']
  _check('checkpoints.keep.', keep, ('keep_last', 'keep_best'))


def _check(section: str, given: Any, known: Iterable[str]) -> None:
  known = tuple(known)
  if not isinstance(given, Mapping):
    raise InputError(
      f'config.{section[:-1]}={given!r} must be a section, dict(...) of '
      f'{", ".join(known)}'
    )
  for name in given:
    if name not in known:
      raise InputError(
        f'config.{section}{name} is no setting; there are '
        f'{", ".join(known)}{did_you_mean(name, known)}'
      )
  missing = [f'config.{section}{name}' for name in known if name not in given]
  if missing:
    raise InputError(
      f'the config lacks {", ".join(missing)}; add it as a card in configs/ '
      'has it'
    )
