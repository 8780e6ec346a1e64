# SPDX-License-Identifier: Apache-2.0
"""Networks with parameters: from a run, from a file, or for a new training."""

import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from segjax.contracts import SegmentationModel
from segjax.data import Dataset
from segjax.data.examples import file_of, map_in_threads
from segjax.devices import processes
from segjax.errors import InputError
from segjax.models import create_model
from segjax.prediction import artifact
from segjax.runs import checkpoints
from segjax.runs.workdir import read_config
from segjax.settings.sections import (
  Array,
  PreprocessingSettings,
  read_prediction,
  read_settings,
)
from segjax.steps import init_params
from segjax.weights import files, published
from segjax.weights.matching import Tensor, match

RANDOM = 'random'
PARAMS = 'params.safetensors'  # In a folder for a model hub.

# Settings of a run that commands read.
_READ = (
  'data.name',
  'data_sha256',
  'evaluation.average',
  'evaluation.best_metric',
  'evaluation.num_pictures',
  'model.name',
  'num_train_steps',
  'preprocessing.channels',
  'preprocessing.mean',
  'preprocessing.std',
  'tile_size_px',
)
_READ_OF_UNET = ('prediction.max_tile_size_px', 'prediction.tiles_per_batch')
_READ_OF_FCN = ('prediction.bucket_px',)


class Network(NamedTuple):
  """A model with its parameters and its config.

  Attributes:
    model: U-Net, FCN or exported artifact.
    params: parameters of the model.
    config: config of the run, or of an artifact only the sections that
      prediction reads.
  """

  model: SegmentationModel
  params: Any
  config: ConfigDict

  def prepare(self, image: Array) -> jax.Array:
    """Returns the model's input f32[H, W, C] from an image as stored.

    Args:
      image: [H, W, C], or [H, W] of one channel.
    """
    if image.ndim == 2:
      image = image[..., None]
    preprocessing, _ = read_prediction(self.config)
    return preprocessing.prepare(preprocessing.by_image(image))

  @property
  def data_sha256(self) -> str | None:
    """Checksum of the data that the network was trained on; None if unknown."""
    return self.config.get('data_sha256')


def load_run(workdir: str | os.PathLike, checkpoint: str = 'latest') -> Network:
  """Returns the model, the parameters and the config of a run.

  A setting that is newer than the run gets the value that the run used in
  effect.

  Args:
    workdir: folder of the run, or one that `segjax export --format=hub` wrote.
    checkpoint: 'latest', 'best' (by the score on held-out examples) or the
      number of a step.

  Raises:
    InputError: there is no such run or checkpoint, it cannot be read, its
      config lacks a setting, or its parameters belong to another network.

  >>> import segjax
  >>> model, params, config = segjax.load_run('runs/demo')
  >>> config.data.name
  'synthetic'
  """
  workdir = Path(workdir)
  if (workdir / artifact.ABOUT).is_file():
    raise InputError(
      f'{workdir} is an artifact, not a run; give --artifact={workdir}'
    )
  file = workdir / PARAMS
  if file.is_file() and not (workdir / 'config.json').is_file():
    raise InputError(f'{workdir} has {PARAMS}, but no config.json')
  config = read_config(workdir)
  _check_has(workdir, config, _READ)
  model = create_model(config.model)
  takes_any_size = model.geometry.takes_any_size
  _check_has(workdir, config, _READ_OF_FCN if takes_any_size else _READ_OF_UNET)
  which = int(checkpoint) if checkpoint.isdecimal() else checkpoint
  if isinstance(which, str) and which not in ('latest', 'best'):
    raise InputError(
      f"checkpoint {checkpoint!r} is not 'latest', 'best' or a step's number"
    )
  if not file.is_file():
    params = checkpoints.load_params(_checkpoints_in(workdir), which)
    return Network(model, params, config)
  if which != 'latest':
    raise InputError(
      f'checkpoint {checkpoint!r}: {file} holds only one; leave it out'
    )
  arrays, _ = match(_tensors(files.read_arrays(file)), _shapes(model))
  return Network(model, unflatten_dict(arrays, sep='/'), config)


def load_params(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the parameters alone, as a nested dict of arrays.

  Args:
    path: folder of a run, whose latest checkpoint is read; folder that
      `segjax export --format=hub` wrote; or file, .npz or .safetensors, that
      `write_params` or `segjax convert` wrote.

  Raises:
    InputError: there is none of these, or it cannot be read.

  >>> import segjax
  >>> params = segjax.load_params('runs/demo')
  >>> params['head']['bias'].shape
  (2,)
  """
  path = Path(path)
  if not path.exists():
    raise InputError(f'no file or folder {path}')
  if not path.is_dir():
    return files.read_params(path)
  if (path / PARAMS).is_file():
    return files.read_params(path / PARAMS)
  return checkpoints.load_params(_checkpoints_in(path), 'latest')


def _checkpoints_in(workdir: Path) -> Path:
  folder = workdir / 'checkpoints'
  if not folder.is_dir():
    raise InputError(
      f'{workdir} holds no parameters: no {PARAMS}, and no checkpoint in '
      f'{folder}; train first: python -m segjax.main --config=CONFIG '
      f'--workdir={workdir}'
    )
  return folder


def metadata(config: ConfigDict) -> dict[str, str]:
  """Returns the metadata of a config's network for a file of its weights.

  They are facts that the shapes of parameters do not tell: `model`, the name of
  the model; `pixels`, the scale of the pixels that it takes, one of
  `files.PIXELS` or `files.PER_IMAGE`; and `padding` of an FCN.
  """
  preprocessing, _ = read_prediction(config)
  divided = not np.allclose(preprocessing.std, 1 / 255, rtol=1e-3)
  pixels = files.PER_IMAGE if preprocessing.per_image else files.PIXELS[divided]
  values = {'model': config.model.name, 'pixels': pixels}
  if 'padding' in config.model:
    values['padding'] = config.model.padding
  return values


def load_converted(config: ConfigDict, params: str | os.PathLike) -> Network:
  """Returns the network of a config with the parameters of a file.

  Args:
    config: config of an experiment, such as configs/fcn8s_voc.py returns.
    params: .npz or .safetensors that `segjax.convert` wrote.

  Raises:
    InputError: a setting is wrong, or the file cannot be read, or it is for
      another model or other pixels, see `metadata`.
  """
  read_settings(config)  # Raises for a wrong setting.
  model = create_model(config.model)
  arrays, _ = match(_tensors(files.read_arrays(params)), _shapes(model))
  wanted = metadata(config)
  for name, value in files.read_metadata(params).items():
    if wanted.get(name) != value:
      raise InputError(
        f'{params} is of a network with {name}={value}; the config has '
        f'{wanted.get(name)}'
      )
  return Network(model, unflatten_dict(arrays, sep='/'), config)


def starting_params(
  model: nn.Module,
  pixels: str,
  path: str | os.PathLike,
  initial: Sequence[str],
  ignore: Sequence[str],
) -> tuple[dict[str, np.ndarray], str]:
  """Returns the parameters that training starts from, instead of random ones.

  Every parameter of the model must be in the source, except the layers in
  `initial`; every layer of the source must be in the model, except those in
  `ignore`. FCN-16s starts from FCN-32s with `score_pool4` in `initial`.

  Args:
    model: the network that will be trained.
    pixels: scale of the pixels that the network will get, see `metadata`.
    path: the source: .npz or .safetensors that `segjax.convert` wrote, or the
      workdir of a run, for its newest checkpoint; 'random' for no source.
    initial: layers of the model that keep their initial value.
    ignore: layers of the source that the model may lack.

  Returns:
    Name of each parameter -> f32 array; and a text that names the source, and
    the parameter that each of its tensors became.

  Raises:
    InputError: `path` is empty, or the source cannot be read, doesn't fit (see
      `match`), or was trained on other pixels.
  """
  if path == RANDOM:
    return {}, ''
  if not path:
    raise InputError(
      'init.path, which names the weights to start from, is empty; give '
      '--config.init.path=FILE, an .npz of python -m segjax.convert, or the '
      'workdir of a run, or --config.init.path=random for random weights'
    )
  if published.is_name(os.fspath(path)):
    name = published.find(os.fspath(path)).model
    raise InputError(
      f'init.path={path} is no file; python -m segjax.convert --input={path} '
      f'--output={name}.npz downloads and converts these weights: then give '
      f'--config.init.path={name}.npz'
    )
  path = Path(path).expanduser()
  if path.is_dir():
    step = checkpoints.newest_step(path / 'checkpoints')
    _, trained, config = load_run(path, 'latest' if step is None else str(step))
    tensors = _tensors(flatten_dict(trained, sep='/'))
    source = f'{path}, step {step} of {config.num_train_steps}'
    facts = metadata(config)
  else:
    tensors = _tensors(files.read_arrays(path))
    source, facts = str(path), files.read_metadata(path)
  if facts.get('pixels', pixels) != pixels:
    raise InputError(
      f'{path} was trained on pixels {facts["pixels"]}, but this run gives '
      f'pixels {pixels}; set config.preprocessing to that of the weights'
    )
  layers = {name.rpartition('/')[0] for name in tensors}
  params, report = match(
    tensors,
    _shapes(model),
    initial=initial,
    ignore=[layer for layer in ignore if layer in layers],
  )
  said = ', '.join(f'{name} {value}' for name, value in facts.items())
  said = said or 'of an unnamed network'
  if 'pixels' not in facts:
    said += f'; DOES NOT SAY what pixels it takes, and gets {pixels}'
  return params, f'{source} ({said}):\n{report}'


def check_fits(
  model: SegmentationModel,
  dataset: Dataset,
  preprocessing: PreprocessingSettings,
) -> None:
  """Raises InputError unless the model can be trained and scored on the data.

  The channels and pixels of the images and the classes of the labels must fit
  the model. One example is read, and all of them if they are floats for which
  `preprocessing` has no range; `label_counts.check_labels` reads all labels.
  """
  examples = dataset.train if len(dataset.train) else dataset.heldout
  image, where = examples[0]['image'], file_of(examples, 0)
  preprocessing.check_dtype(image.dtype, where)
  if image.dtype.kind == 'f' and not preprocessing.has_own_range:
    for split in (dataset.train, dataset.heldout):
      processes.together(lambda split=split: _check_unit_range(split))
  needed = {
    'in_channels': image.shape[-1],
    'num_classes': len(dataset.class_names),
  }
  for name, value in needed.items():
    if getattr(model, name) != value:
      raise InputError(
        f'model.{name}={getattr(model, name)} does not fit the data; use '
        f'{value}' + (f', as {where} has' if name == 'in_channels' else '')
      )
  sizes = dataset.head_sizes or (len(dataset.class_names),)
  if model.head_sizes != sizes:
    raise InputError(
      f'the heads of the model have {model.head_sizes} classes; the labels of '
      f'the data have {sizes}; set model.heads'
    )


def _check_unit_range(examples: Sequence[dict]) -> None:
  def ends_of(index):
    image = examples[index]['image']
    return image.min(), image.max()

  own = [i for i in processes.share(len(examples)) if i < len(examples)]
  ends = map_in_threads(ends_of, own)
  for index, (low, high) in zip(own, ends, strict=True):
    if not 0 <= low <= high <= 1:
      raise InputError(
        f'{file_of(examples, index)}: values from {low} to {high}; images of '
        'float32 must be in [0, 1], or name limits in '
        'config.preprocessing.measured'
      )


def _check_has(
  workdir: str | os.PathLike,
  config: ConfigDict,
  names: Sequence[str],
) -> None:
  for name in names:
    try:
      operator.attrgetter(name)(config)
    except AttributeError as error:
      raise InputError(
        f'{Path(workdir) / "config.json"} has no {name}: the run is of another '
        'version of segjax; use that version, or add the setting as current '
        'configs have it'
      ) from error


def _shapes(model: nn.Module) -> Any:
  return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
  return {
    name: Tensor(name, np.asarray(array), 'HWIO')
    for name, array in arrays.items()
  }
