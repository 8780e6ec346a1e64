# SPDX-License-Identifier: Apache-2.0
"""The sections of a config as dataclasses, read and checked once at the edge.

A card is plain Python, so that a misspelt setting is an assignment like any
other. It is refused here, before any data are read: a section of a card has
the fields of its dataclass, no more and no fewer. The fields of `data` are
those of the loader, see `data.sets`, and those of `model` of the network, see
`models`; both are checked there.

A check in a dataclass begins its message with the name of the field, in front
of which the name of the section is put here.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from segjax.data.augment import Augmentation
from segjax.data.preprocessing import (
  check_preprocessing,
  standardise,
  to_unit_range,
)
from segjax.errors import InputError, did_you_mean
from segjax.optimizers import create_optimizer, create_schedule
from segjax.tiling.settings import TileSettings

Array = jax.Array | np.ndarray


def _check_least(settings: Any, **least: int) -> None:
  """Raises InputError for a field below its least value."""
  for name, smallest in least.items():
    value = getattr(settings, name)
    if value < smallest:
      raise InputError(f'{name}={value} must be at least {smallest}')


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """How devices share a batch.

  Attributes:
    space: devices that share each image, by rows. As many such groups as there
      are devices for share the batch.
  """

  space: int

  def __post_init__(self):
    _check_least(self, space=1)


@dataclasses.dataclass(frozen=True)
class BatchingSettings:
  """The order of examples, and how unequal images make a batch.

  Attributes:
    order: one of `data.pipeline.ORDERS`.
    bucket_px: see `data.pipeline.create_batches`.
  """

  order: str
  bucket_px: int

  def __post_init__(self):
    from segjax.data.pipeline import ORDERS  # Late: grain takes long to import.

    _check_least(self, bucket_px=0)
    if self.order not in ORDERS:
      raise InputError(f'order={self.order!r} is not one of {ORDERS}')


@dataclasses.dataclass(frozen=True)
class PreprocessingSettings:
  """From stored pixels to the values that a network takes.

  Attributes:
    mean: one number, or one for each channel.
    std: one number, or one for each channel.
    channels: which channels of the image, in which order; () for all.
    limits: (low, high), as for `preprocessing.to_unit_range`; () for none.
    dtype: type of the pixels that `limits` are of; '' for any.
    measured: names of those of `limits`, `mean` and `std` that a run takes from
      its training images, see `preprocessing.measure_pixels`; its config.json
      has what it found.
  """

  mean: float | tuple[float, ...]
  std: float | tuple[float, ...]
  channels: tuple[int, ...]
  limits: tuple[Any, ...] = ()
  dtype: str = ''
  measured: tuple[str, ...] = ()

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if np.ndim(value):  # JSON has lists, and settings are hashed.
        value = tuple(tuple(v) if np.ndim(v) else v for v in value)
        object.__setattr__(self, field.name, value)
    if unknown := {*self.measured} - {'limits', 'mean', 'std'}:
      raise InputError(
        f"measured={self.measured} has {min(unknown)!r}; expected 'limits', "
        "'mean', 'std' or some of them"
      )
    if len(self.limits) not in (0, 2) or not np.all(
      np.less(*self.limits) if self.limits else True
    ):
      raise InputError(
        f'limits={self.limits}; expected (low, high), low < high, or ()'
      )

  def to_unit_range(self, image: Array) -> jax.Array:
    """Returns f32 values, most of them in [0, 1], of an image as stored."""
    return to_unit_range(image, self.limits)

  def standardise(self, image: Array) -> jax.Array:
    """Returns what the network takes of an image in the unit range."""
    return standardise(image, self.mean, self.std, self.channels)

  def prepare(self, image: Array) -> jax.Array:
    """Returns what the network takes of an image as stored."""
    return self.standardise(self.to_unit_range(image))

  def check_channels(self, in_channels: int) -> None:
    """Raises InputError for what cannot be done to C channels."""
    check_preprocessing(in_channels, self.mean, self.std, self.channels)
    for end in self.limits:
      if np.size(end) not in (1, in_channels):
        raise InputError(
          f'preprocessing.limits={self.limits}; expected 1 or {in_channels} '
          'numbers, one a channel, for low and for high'
        )

  def check_dtype(self, dtype: np.dtype, where: Any) -> None:
    """Raises InputError for an image of another type than `limits` are of."""
    if self.dtype and self.dtype != dtype:
      raise InputError(
        f'{where}: pixels of {dtype}; the network was trained on {self.dtype}, '
        'whose range is in its preprocessing; convert them'
      )


@dataclasses.dataclass(frozen=True)
class InitSettings:
  """What training starts from; see `networks.starting_params`.

  Attributes:
    path: a file of parameters, a workdir, or 'random'.
    initial: layers of the model that keep their initial value.
    ignore: layers that the source may have and the model hasn't.
  """

  path: str
  initial: Sequence[str]
  ignore: Sequence[str]


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
  """When and how a run is scored.

  Attributes:
    every_steps: steps from one evaluation to the next.
    average: whether the last evaluation averages over turns and flips.
    best_metric: name of the score that ranks checkpoints.
    present_only: whether classes without labels are left out of means.
    num_pictures: pictures that are kept.
  """

  every_steps: int
  average: bool
  best_metric: str
  present_only: bool
  num_pictures: int

  def __post_init__(self):
    _check_least(self, every_steps=1, num_pictures=1)


@dataclasses.dataclass(frozen=True)
class KeepSettings:
  """How many checkpoints stay.

  Attributes:
    keep_last: the newest.
    keep_best: those with the best scores, besides.
  """

  keep_last: int
  keep_best: int

  def __post_init__(self):
    _check_least(self, keep_last=1, keep_best=0)


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
  """When checkpoints are made, and which stay.

  Attributes:
    every_steps: steps from one checkpoint to the next.
    keep: how many stay.
  """

  every_steps: int
  keep: KeepSettings

  def __post_init__(self):
    _check_least(self, every_steps=1)


@dataclasses.dataclass(frozen=True)
class Settings:
  """The sections of a config that are settings of segjax's own functions."""

  mesh: MeshSettings
  batching: BatchingSettings
  preprocessing: PreprocessingSettings
  init: InitSettings
  augmentation: Augmentation
  evaluation: EvaluationSettings
  checkpoints: CheckpointSettings
  prediction: TileSettings


_DATACLASSES = {
  'mesh': MeshSettings,
  'batching': BatchingSettings,
  'preprocessing': PreprocessingSettings,
  'init': InitSettings,
  'augmentation': Augmentation,
  'evaluation': EvaluationSettings,
  'checkpoints': CheckpointSettings,
  'checkpoints.keep': KeepSettings,
}
# The fields of `TileSettings` that a card has, by kind of network.
_PREDICTION_OF_UNET = ('max_tile_size_px', 'tile_memory_mib', 'tiles_per_batch')
_PREDICTION_OF_FCN = ('bucket_px', 'tile_memory_mib')


def _arguments(function: Callable, *others: str) -> tuple[str, ...]:
  """Returns the names of a function's arguments without `others`."""
  names = inspect.signature(function).parameters
  return tuple(name for name in names if name not in others)


_NAMES = {
  **{name: _arguments(kind) for name, kind in _DATACLASSES.items()},
  'optimizer': _arguments(create_optimizer, 'schedule'),
  'schedule': _arguments(create_schedule, 'num_steps'),
}
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
  *(name for name in _NAMES if '.' not in name),
  'model',
  'data',
  'prediction',
)


def read_settings(config: ConfigDict) -> Settings:
  """Returns the settings of an experiment.

  Args:
    config: of an experiment, as a card returns it.

  Raises:
    InputError: a setting is unknown, missing or out of its range.
  """
  from segjax.models import FCNS, UNETS  # Late: artifacts need none.

  sections = config.to_dict()
  _check_names('', sections, _TOP)
  for name, known in _NAMES.items():
    found = sections
    for part in name.split('.'):
      found = found[part]
    _check_names(f'{name}.', found, known)
  model = sections['model']
  name = model['name'] if 'name' in model else None
  if name in UNETS or name in FCNS:  # Another name is refused by `models`.
    known = _PREDICTION_OF_UNET if name in UNETS else _PREDICTION_OF_FCN
    _check_names('prediction.', sections['prediction'], known)
  _check_numbers(sections)

  def section(name):
    return _build(name, _DATACLASSES[name], sections[name])

  checkpoints = sections['checkpoints']
  keep = _build('checkpoints.keep', KeepSettings, checkpoints['keep'])
  return Settings(
    mesh=section('mesh'),
    batching=section('batching'),
    preprocessing=section('preprocessing'),
    init=section('init'),
    augmentation=section('augmentation'),
    evaluation=section('evaluation'),
    checkpoints=_build(
      'checkpoints', CheckpointSettings, checkpoints | {'keep': keep}
    ),
    prediction=read_prediction(config)[1],
  )


def read_prediction(
  config: ConfigDict, **changes: Any
) -> tuple[PreprocessingSettings, TileSettings]:
  """Returns how a config prepares images, and how it predicts them.

  Args:
    config: of a card, a run or an artifact. In `prediction`, fields that it
      leaves out, as an older run may, have their defaults.
    **changes: fields of `TileSettings` instead of the config's.

  Raises:
    InputError: a setting is unknown or out of its range.
  """
  sections = config.to_dict()
  mesh = _build('mesh', MeshSettings, sections['mesh'])
  prediction = sections['prediction']
  for name in prediction:
    _check_known('prediction.', name, _arguments(TileSettings))
  tiles = prediction | {'space': mesh.space} | changes
  return (
    _build('preprocessing', PreprocessingSettings, sections['preprocessing']),
    _build('prediction', TileSettings, tiles),
  )


def _build(name, kind, section):
  """Returns a dataclass of a section, whose name is put into messages."""
  try:
    return kind(**section)
  except InputError as error:
    raise InputError(f'{name}.{error}') from error


def _check_names(section: str, given: Any, known: Iterable[str]) -> None:
  known = tuple(known)
  if not isinstance(given, Mapping):
    raise InputError(
      f'config.{section[:-1]}={given!r} must be a section, dict(...) of '
      f'{", ".join(known)}'
    )
  for name in given:
    _check_known(section, name, known)
  missing = [f'config.{section}{name}' for name in known if name not in given]
  if missing:
    raise InputError(
      f'the config lacks {", ".join(missing)}; add it as a card in configs/ '
      'has it'
    )


def _check_known(section: str, name: str, known: Sequence[str]) -> None:
  if name not in known:
    raise InputError(
      f'config.{section}{name} is no setting; there are '
      f'{", ".join(known)}{did_you_mean(name, known)}'
    )


def _check_numbers(sections: Mapping[str, Any]) -> None:
  """Raises InputError for a number that nothing could be made of."""
  for name, value in traverse_util.flatten_dict(sections, sep='.').items():
    for number in value if isinstance(value, (list, tuple)) else (value,):
      if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f'{name}={value} must be finite')
      # Steps and sizes are counted in 32 bits.
      if isinstance(number, int) and not abs(number) < 2**31:
        raise InputError(f'{name}={value} must be below 2**31')
