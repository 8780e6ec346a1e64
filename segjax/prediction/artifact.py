# SPDX-License-Identifier: Apache-2.0
"""Artifacts: folders with a trained network that runs without its code.

An artifact has three files:

    program.bin         the network at one input size, for any batch, as
                        StableHLO in the format of `jax.export`
    params.safetensors  its parameters, the first argument of the program;
                        params.npz in artifacts of earlier versions
    artifact.json       how pixels are prepared, how tiles cover an image, the
                        classes, the version of jax, and checksums of the files
                        above

`segjax.export` makes an artifact, `segjax.predict --artifact` runs it.
`segjax.models` is not imported here; docs/sharing.md shows how an artifact runs
without segjax.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import export
from ml_collections import ConfigDict

from segjax.atomic import (
  check_absent,
  check_folder,
  refusing_write_errors,
  replacing,
)
from segjax.contracts import FunctionModel, SegmentationModel
from segjax.errors import InputError
from segjax.geometry import AnySize, Geometry, UNetGeometry
from segjax.prediction.predictor import check_prediction
from segjax.settings.sections import read_prediction, read_refinement
from segjax.weights import files

PROGRAM = 'program.bin'
PARAMS = 'params.safetensors'
ABOUT = 'artifact.json'

_FORMAT = 2  # Raised when older readers would misunderstand.
# Format -> its file of parameters.
_PARAMS_OF = {1: 'params.npz', _FORMAT: PARAMS}


@dataclasses.dataclass(frozen=True)
class AnySizeGeometry(AnySize):
  """The `Geometry` of a network that pads images itself, for tiles only.

  Attributes:
    period: P, in pixels.
    margin: pixels of context on each side.
  """

  period: int
  margin: int


def describe_geometry(geometry: Geometry) -> dict[str, Any]:
  """Returns the fields of a geometry that `artifact.json` holds."""
  kind = AnySizeGeometry if geometry.takes_any_size else UNetGeometry
  fields = (
    (field.name, getattr(geometry, field.name))
    for field in dataclasses.fields(kind)
  )
  # Earlier versions would refuse an empty field.
  return {name: value for name, value in fields if value != ()}


def check_output(path: str | os.PathLike, overwrite: bool) -> None:
  """Raises InputError if `write` would not write to `path`."""
  path = Path(path)
  check_folder(path)
  if not overwrite:
    check_absent([path])
  names = {PROGRAM, ABOUT, *_PARAMS_OF.values()}
  if os.path.lexists(path) and not (
    path.is_dir() and {file.name for file in path.iterdir()} <= names
  ):
    raise InputError(
      f'{path} is something else than an artifact, so it is not replaced; '
      'give another --output'
    )


def write(
  path: str | os.PathLike,
  exported: export.Exported,
  params: Mapping[str, Any],
  about: Mapping[str, Any],
  overwrite: bool = False,
) -> None:
  """Writes an artifact; the folder appears whole or not at all.

  Args:
    path: folder to write, in a folder that exists.
    exported: (params, image f32[n, H, W, C]) -> logits f32[n, h, w, K] for
      symbolic n; the program of an FCN also takes size i32[n, 2].
    params: nested dict of f32 arrays.
    about: contents of `artifact.json`, in JSON's types: `geometry` (see
      `describe_geometry`), `head_sizes`, `preprocessing`, `prediction`,
      `average`, `class_names` and `palette` (RGB of each class, or null); and
      `refinement`, if the config has it.
    overwrite: whether to replace an artifact that exists.

  Raises:
    InputError: see `check_output`; or the artifact cannot be written.
  """
  check_output(path, overwrite)
  with refusing_write_errors(path), replacing(path, overwrite) as folder:
    folder.mkdir()
    (folder / PROGRAM).write_bytes(exported.serialize())
    files.write_params(folder / PARAMS, params)
    (_, image, *_), _ = _arguments(exported)
    described = {
      'format': _FORMAT,
      'input': str(image),
      'output': str(exported.out_avals[0]),
      'platforms': exported.platforms,
      'jax': jax.__version__,
      **about,
      'sha256': {name: _digest(folder / name) for name in (PROGRAM, PARAMS)},
    }
    text = json.dumps(described, indent=2)
    (folder / ABOUT).write_text(text + '\n', encoding='utf-8')
    check_output(path, overwrite)  # The path may be taken meanwhile.


def load(
  path: str | os.PathLike,
) -> tuple[SegmentationModel, dict[str, Any], ConfigDict]:
  """Returns the model, the parameters and the config of an artifact.

  They are used like the network of a run, see `networks.load_run`. The config
  has only the sections that prediction reads.

  Raises:
    InputError: a file is missing, cut short or changed; this version of segjax
      or jax does not read it; or the program is for another platform.
  """
  path = Path(path)
  about = path / ABOUT
  try:
    described = json.loads(about.read_text(encoding='utf-8'))
  except OSError as e:
    raise InputError(
      f'no artifact at {path}: cannot read {about}: {e.strerror}'
    ) from e
  except ValueError as e:
    raise InputError(f'{about} is not whole: {e}') from e
  with _refusing(about):
    number = described['format']
    if number not in _PARAMS_OF:
      raise ValueError(f'format {number}; known are 1 to {_FORMAT}')
    names = (PROGRAM, _PARAMS_OF[number])
    digests = {name: described['sha256'][name] for name in names}
  for name, digest in digests.items():
    if _digest(path / name) != digest:
      raise InputError(
        f'{path / name} is cut short or changed: its SHA-256 is not the one in '
        f'{about}'
      )
  exported = _read_program(path / PROGRAM, described.get('jax', 'unknown'))
  (wanted, image, *_), _ = _arguments(exported)
  with _refusing(about):
    geometry = described['geometry']
    make = AnySizeGeometry if 'margin' in geometry else UNetGeometry
    model = FunctionModel(
      apply=_apply(exported, image.shape[1:]),
      geometry=make(**geometry),
      in_channels=image.shape[-1],
      head_sizes=(sizes := tuple(described['head_sizes'])),
      # Heads have no names here; a single one has none anywhere.
      head_names=tuple(map(str, range(len(sizes)))) if sizes[1:] else ('',),
    )
    config = ConfigDict(
      dict(
        data=dict(
          name='artifact',
          class_names=described['class_names'],
          colours=described['palette'],
        ),
        preprocessing={**described['preprocessing']},
        prediction={**described['prediction']},
        evaluation=dict(average=described['average']),
        mesh=dict(space=1),  # The program is for one device.
      )
    )
    if 'refinement' in described:
      config.refinement = ConfigDict({**described['refinement']})
    preprocessing, settings = read_prediction(config)
    if settings.tile_size is None:
      raise ValueError('prediction lacks the tile_size of the program')
    check_prediction(model, preprocessing, settings, read_refinement(config))
    num_logits = exported.out_avals[0].shape[-1]
    if model.num_classes != num_logits:
      raise ValueError(f'{num_logits} logits, heads of {model.head_sizes}')
    _check_classes(described, num_logits)
  file = path / names[1]
  params = files.read_params(file)
  _check_params(file, params, wanted)
  return model, params, config


def _check_classes(described, num_classes):
  """Raises ValueError unless names, and colours if any, fit the classes."""
  names, palette = described['class_names'], described['palette']
  if len(names) != num_classes or not all(isinstance(n, str) for n in names):
    raise ValueError(f'class_names={names!r}; expected {num_classes} names')
  if palette is not None and not (
    [len(colour) for colour in palette] == [3] * num_classes
    and all(type(x) is int and 0 <= x <= 255 for c in palette for x in c)
  ):
    raise ValueError(
      f'palette={palette!r}; expected {num_classes} colours of three numbers '
      'in 0..255'
    )


def _check_params(file, params, wanted):
  """Raises InputError unless parameters have the shapes of a program."""
  params, wanted = (
    flatten_dict(jax.tree.map(lambda x: [*x.shape], tree), sep='/')
    for tree in (params, wanted)
  )
  for name in {**wanted, **params}:
    shapes = [tree.get(name) for tree in (params, wanted)]
    if shapes[0] != shapes[1]:
      has, takes = (
        f'has no {name}' if shape is None else f'has {name} {shape}'
        for shape in shapes
      )
      raise InputError(f'{file} {has}; the program {takes}')


@contextlib.contextmanager
def _refusing(about):
  """Raises InputError for a missing or wrong value in the JSON file `about`."""
  try:
    yield
  except KeyError as e:
    raise InputError(f'{about} describes no artifact: it lacks {e}') from e
  except (AttributeError, TypeError, ValueError) as e:
    raise InputError(f'{about} describes no artifact: {e}') from e


def _read_program(file, written_by):
  """Returns a program; `written_by` is the version of jax that wrote it."""
  try:
    exported = export.deserialize(bytearray(file.read_bytes()))
    # Everything that is used later is read here, so that errors show here.
    exported.mlir_module()
    (_, image, *_), _ = _arguments(exported)
    shapes = image.shape, exported.out_avals[0].shape
    if [len(shape) for shape in shapes] != [4, 4]:
      raise ValueError(f'shapes of images and logits are {shapes}')
  # The file is undamaged, but parsers of jax raise errors of any type.
  except Exception as e:
    said = (str(e).splitlines() or [''])[0]
    raise InputError(
      f'jax {jax.__version__} cannot read {file}, written by jax {written_by}; '
      f'install that version, or export it again: {type(e).__name__}: {said}'
    ) from e
  backend = jax.default_backend()
  # `jax.export` has two names for what the backend calls a GPU.
  platforms = {'gpu': ('cuda', 'rocm')}.get(backend, (backend,))
  if not set(platforms) & set(exported.platforms):
    raise InputError(
      f'{file} is a program for {", ".join(exported.platforms)}, and this is '
      f'{backend}; export it again'
    )
  return exported


def _apply(exported, input_shape):
  @jax.custom_batching.custom_vmap
  def call(params, *inputs):
    return exported.call(params, *inputs)

  @call.def_vmap
  def _(axis_size, in_batched, params, *inputs):
    # The program has a batch axis, and jax has no rule for a second batch axis.
    inputs = (
      x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))
      for x, is_batched in zip(inputs, in_batched[1:], strict=True)
    )
    merged = (x.reshape(-1, *x.shape[2:]) for x in inputs)
    logits = call(params, *merged)
    return logits.reshape(axis_size, -1, *logits.shape[1:]), True

  (_, *inputs), _ = _arguments(exported)

  def apply(variables, image, size=None):
    if image.shape[1:] != input_shape:
      given, expected = (
        ' x '.join(map(str, shape)) for shape in (image.shape[1:], input_shape)
      )
      raise InputError(
        f'tiles of {given} do not fit an artifact for {expected} (height, '
        'width, channels); export it for another --size_px'
      )
    if len(inputs) == 1:
      return call(variables['params'], image)
    if size is None:
      size = jnp.tile(jnp.int32(input_shape[:2]), (len(image), 1))
    return call(variables['params'], image, size)

  return apply


def _arguments(exported):
  """Returns positional and named arguments of a program, as abstract values."""
  return jax.tree.unflatten(exported.in_tree, exported.in_avals)


def _digest(file):
  try:
    with open(file, 'rb') as opened:
      return hashlib.file_digest(opened, 'sha256').hexdigest()
  except OSError as e:
    raise InputError(f'cannot read {file}: {e.strerror}') from e
