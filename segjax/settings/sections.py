# SPDX-License-Identifier: Apache-2.0
"""The sections of a config as dataclasses, read and checked once at the edge.

A card is plain Python, where a misspelt setting is an assignment like any
other. It is refused here, before any data are read: a section of a card has
exactly the fields of its dataclass, and each value has the type of its field.
The fields of `data` are the arguments of its loader and are checked in
`data.sets`. The fields of `model` are those of the network and are checked in
`models`.

A check in a dataclass begins its message with the name of the field. The
functions here put the name of the section in front of it.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from segjax.crf import OFF, Refinement
from segjax.data.augment import Augmentation
from segjax.data.preprocessing import (
  check_preprocessing,
  image_statistics,
  standardise,
  subtract_statistics,
  to_unit_range,
)
from segjax.errors import InputError, check_least
from segjax.settings.fields import check_name, check_type
from segjax.tiling.settings import TileSettings

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """How devices share a batch.

  Attributes:
    space: number of devices in a group, which share each image by rows. The
      groups share the batch.
  """

  space: int

  def __post_init__(self):
    check_least(self, space=1)


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

    check_least(self, bucket_px=0)
    if self.order not in ORDERS:
      raise InputError(f'order={self.order!r} is not one of {ORDERS}')


@dataclasses.dataclass(frozen=True)
class PreprocessingSettings:
  """How stored pixels become the values that a network takes.

  Attributes:
    mean: number that is subtracted from pixels in the unit range, or one for
      each channel.
    std: number by which they are then divided, or one for each channel.
    channels: indices of the channels that the network takes, in its order; ()
      for all.
    limits: (low, high), see `preprocessing.to_unit_range`; () for none.
    dtype: dtype of the pixels that `limits` were measured on; '' for any.
    measured: names among 'limits', 'mean' and 'std' that a run measures on its
      training images, see `preprocessing.measure_pixels`. The config.json of
      the run has the values.
    per_image: whether the mean and the standard deviation of each image are
      taken off first, channel by channel (z-score). The other fields then
      describe the result, float32: `limits`, which it needs, are in standard
      deviations. Of a window, `by_image` needs the whole image.
  """

  mean: float | tuple[float, ...]
  std: float | tuple[float, ...]
  channels: tuple[int, ...]
  limits: tuple[float | tuple[float, ...], ...] = ()
  dtype: str = ''
  measured: tuple[str, ...] = ()
  per_image: bool = False

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
    if self.per_image and (self.measured or self.dtype):
      raise InputError(
        f'per_image=True with measured={self.measured} and dtype={self.dtype!r}'
        ": each image is measured by itself; expected () and ''"
      )
    if self.per_image and not self.limits:
      raise InputError(
        'per_image=True with limits=(): deviations from the mean are not in '
        '[0, 1], which mean, std and the augmentation expect; set '
        'limits=(-2.0, 2.0), mean=0.5 and std=0.25, with which the network '
        'takes the deviations themselves'
      )
    pair = self.limits or (0.0, 1.0)
    if len(pair) != 2 or not np.all(np.less(pair[0], pair[1])):
      raise InputError(
        f'limits={self.limits}; expected (low, high), low < high, or ()'
      )

  @property
  def has_own_range(self) -> bool:
    """Whether float pixels may lie outside [0, 1]."""
    return bool(self.per_image or self.limits or 'limits' in self.measured)

  def by_image(self, image: Any) -> Any:
    """Returns a whole image as stored; with `per_image`, f32 z-scores of it."""
    if not self.per_image:
      return image
    image = np.asarray(image)
    return subtract_statistics(image, *image_statistics(image))

  def to_unit_range(self, image: Array) -> jax.Array:
    """Returns what `by_image` returns, as f32, most of it in [0, 1]."""
    return to_unit_range(image, self.limits)

  def standardise(self, image: Array) -> jax.Array:
    """Returns the network's input from an image in the unit range."""
    return standardise(image, self.mean, self.std, self.channels)

  def prepare(self, image: Array) -> jax.Array:
    """Returns the network's input from what `by_image` returns, or a part."""
    return self.standardise(self.to_unit_range(image))

  def check_channels(self, in_channels: int) -> None:
    """Raises InputError if the settings don't fit images of C channels."""
    check_preprocessing(in_channels, self.mean, self.std, self.channels)
    for end in self.limits:
      if np.size(end) not in (1, in_channels):
        raise InputError(
          f'preprocessing.limits={self.limits}; expected 1 or {in_channels} '
          'numbers, one a channel, for low and for high'
        )

  def check_dtype(self, dtype: np.dtype, where: Any) -> None:
    """Raises InputError if an image has another dtype than `dtype`."""
    if self.dtype and self.dtype != dtype:
      raise InputError(
        f'{where}: pixels of {dtype}; the network was trained on {self.dtype}, '
        'whose range is in its preprocessing; convert them'
      )


@dataclasses.dataclass(frozen=True)
class InitSettings:
  """The parameters that training starts from; see `networks.starting_params`.

  Attributes:
    path: a file of parameters, a workdir, or 'random'.
    initial: layers of the model that keep their initial value.
    ignore: layers of the source that the model may lack.
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
    num_pictures: number of pictures that are kept.
  """

  every_steps: int
  average: bool
  best_metric: str
  present_only: bool
  num_pictures: int

  def __post_init__(self):
    check_least(self, every_steps=1, num_pictures=1)


@dataclasses.dataclass(frozen=True)
class KeepSettings:
  """Numbers of checkpoints that are kept.

  Attributes:
    keep_last: number of the newest checkpoints that are kept.
    keep_best: number of the best that are kept, too.
  """

  keep_last: int
  keep_best: int

  def __post_init__(self):
    check_least(self, keep_last=1, keep_best=0)


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
  """When checkpoints are saved, and how many are kept.

  Attributes:
    every_steps: steps from one checkpoint to the next.
    keep: numbers of checkpoints that are kept.
  """

  every_steps: int
  keep: KeepSettings

  def __post_init__(self):
    check_least(self, every_steps=1)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """The arguments of `optimizers.create_optimizer`, which explains them."""

  name: str
  momentum: float
  weight_decay: float
  clip_norm: float
  bias_rate: float
  bias_decay: bool
  bias_layers: Sequence[str]


@dataclasses.dataclass(frozen=True)
class ScheduleSettings:
  """The arguments of `optimizers.create_schedule`, which explains them."""

  name: str
  learning_rate: float
  warmup_steps: int


@dataclasses.dataclass(frozen=True)
class Settings:
  """All settings of a config; `recipes` explains those outside sections."""

  seed: int
  parallel: str
  num_train_steps: int
  batch_size: int
  accumulate_steps: int
  tile_size_px: int
  loss_reduction: str
  log_every_steps: int
  profile_steps: tuple[int, int]
  compilation_cache: bool
  mesh: MeshSettings
  batching: BatchingSettings
  preprocessing: PreprocessingSettings
  init: InitSettings
  augmentation: Augmentation
  optimizer: OptimizerSettings
  schedule: ScheduleSettings
  evaluation: EvaluationSettings
  checkpoints: CheckpointSettings
  prediction: TileSettings
  model: Mapping[str, Any]
  data: Mapping[str, Any]
  loss: str = 'cross_entropy'
  refinement: Refinement = OFF
  frozen_norm_share: float = 0.0

  def __post_init__(self):
    check_least(
      self, seed=0, tile_size_px=0, log_every_steps=1, accumulate_steps=1
    )
    if not 0 <= self.frozen_norm_share < 1:
      raise InputError(
        f'frozen_norm_share={self.frozen_norm_share} must be at least 0 and '
        'below 1'
      )

  @property
  def freeze_norms_at(self) -> int | None:
    """Number of steps after which norms are frozen; None for never."""
    frozen = int(self.frozen_norm_share * self.num_train_steps)
    return self.num_train_steps - frozen if frozen else None


# The fields of `TileSettings` that a card sets, by kind of network.
_PREDICTION_OF_UNET = ('max_tile_size_px', 'tile_memory_mib', 'tiles_per_batch')
_PREDICTION_OF_FCN = ('bucket_px', 'tile_memory_mib')


def read_settings(config: ConfigDict) -> Settings:
  """Returns the settings of an experiment.

  Args:
    config: config of an experiment, as a card returns it.

  Raises:
    InputError: a setting is unknown, missing, of another type or out of its
      range. `models.create_model` checks the settings of `model`.
  """
  from segjax.data.sets import check_data  # Late: artifacts need neither.
  from segjax.models import FCNS, UNETS

  sections = config.to_dict()
  _check_names('', sections, _types(Settings), _needed(Settings))
  check_type('model', sections['model'], Mapping[str, Any])
  name = sections['model'].get('name')
  if name in (*UNETS, *FCNS):  # Another name is refused by `models`.
    known = _PREDICTION_OF_UNET if name in (*UNETS,) else _PREDICTION_OF_FCN
    _check_names('prediction.', sections['prediction'], known)
  settings = _build('', Settings, sections)
  check_data(settings.data)
  tiles = dataclasses.replace(settings.prediction, space=settings.mesh.space)
  return dataclasses.replace(settings, prediction=tiles)


def read_prediction(
  config: ConfigDict, **changes: Any
) -> tuple[PreprocessingSettings, TileSettings]:
  """Returns the settings of a config for preprocessing and for prediction.

  Args:
    config: config of a card, a run or an artifact. Missing fields of
      `prediction` have their defaults: an older run may lack some.
    **changes: fields of `TileSettings` that replace those of the config.

  Raises:
    InputError: a setting is unknown, of another type or out of its range.
  """
  sections = config.to_dict()
  mesh = _build('mesh.', MeshSettings, sections['mesh'])
  changes = {'space': mesh.space} | changes
  return (
    _build('preprocessing.', PreprocessingSettings, sections['preprocessing']),
    _build('prediction.', TileSettings, sections['prediction'], **changes),
  )


def read_refinement(
  config: ConfigDict, wanted: bool | None = None
) -> Refinement:
  """Returns how a config refines predictions; 0 iterations refine nothing.

  Args:
    config: config of a card, a run or an artifact. It may lack the section
      `refinement` or fields of it.
    wanted: whether to refine; with True, 0 iterations become the default
      number. None leaves it to the config.

  Raises:
    InputError: a setting is unknown, of another type or out of its range.
  """
  section = config.to_dict().get('refinement', {'iterations': 0})
  settings = _build('refinement.', Refinement, section)
  if wanted is None:
    return settings
  iterations = settings.iterations or Refinement.iterations
  return dataclasses.replace(settings, iterations=iterations if wanted else 0)


def _types(kind: Any) -> dict[str, Any]:
  """Returns the fields of a dataclass with their annotations."""
  return {field.name: field.type for field in dataclasses.fields(kind)}


def _needed(kind: Any) -> list[str]:
  """Returns the fields of a dataclass that a config cannot leave out."""
  return [
    field.name
    for field in dataclasses.fields(kind)
    if field.default is dataclasses.MISSING or kind is Augmentation
  ]


def _build(section: str, kind: Any, given: Any, **changes: Any) -> Any:
  """Returns a section, and the sections in it, as a dataclass.

  Fields with defaults may be missing, since older configs lack them.
  """
  fields = _types(kind)
  _check_names(section, given, fields, _needed(kind))
  values = {}
  for name, value in given.items():
    if dataclasses.is_dataclass(fields[name]):
      values[name] = _build(f'{section}{name}.', fields[name], value)
    else:
      check_type(f'{section}{name}', value, fields[name])
      values[name] = value
  try:
    return kind(**values | changes)
  except InputError as error:
    raise InputError(f'{section}{error}') from error


def _check_names(
  section: str,
  given: Any,
  known: Iterable[str],
  needed: Iterable[str] | None = None,
) -> None:
  """Raises InputError for a name that is unknown, or needed and missing."""
  known = tuple(known)
  if not isinstance(given, Mapping):
    raise InputError(
      f'config.{section[:-1]}={given!r} must be a section, dict(...) of '
      f'{", ".join(known)}'
    )
  for name in given:
    check_name(section, name, known, _all_names('', Settings))
  needed = known if needed is None else needed
  missing = [f'config.{section}{name}' for name in needed if name not in given]
  if missing:
    raise InputError(
      f'the config lacks {", ".join(missing)}; add it as the cards in configs/ '
      'have it'
    )


def _all_names(section: str, kind: Any) -> Iterator[str]:
  """Yields the dotted names of the fields of a dataclass and its sections."""
  for name, field in _types(kind).items():
    yield f'{section}{name}'
    if dataclasses.is_dataclass(field) and field is not TileSettings:
      yield from _all_names(f'{section}{name}.', field)
