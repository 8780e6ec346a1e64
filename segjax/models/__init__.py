# SPDX-License-Identifier: Apache-2.0
"""The networks by the names that configs and commands use."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp

from segjax.errors import InputError, did_you_mean
from segjax.models.alexnet import CaffeNet
from segjax.models.backbone import Classifier
from segjax.models.fcn import (
  FCN,
  FCN8s,
  FCN8sAtOnce,
  FCN16s,
  FCN32s,
  FCNAlexNet,
  FCNGoogLeNet,
)
from segjax.models.googlenet import GoogLeNet
from segjax.models.layers import PRECISIONS
from segjax.models.unet import NORMS, UNet, UNet2015
from segjax.models.unet_vgg16 import UNetVGG16
from segjax.models.vgg import VGG16
from segjax.settings.fields import as_tuples, check_type

UNETS = {'unet': UNet, 'unet_2015': UNet2015, 'unet_vgg16': UNetVGG16}
FCNS = {
  'fcn32s': FCN32s,
  'fcn16s': FCN16s,
  'fcn8s': FCN8s,
  'fcn8s_atonce': FCN8sAtOnce,
  'fcn_alexnet': FCNAlexNet,
  'fcn_googlenet': FCNGoogLeNet,
}
# Image classifiers, whose weights the networks above can start from.
CLASSIFIERS = {
  'vgg16': VGG16,
  'vgg16_conv': functools.partial(VGG16, convolutional=True),
  'caffenet': CaffeNet,
  'caffenet_conv': functools.partial(CaffeNet, convolutional=True),
  'googlenet': GoogLeNet,
  'googlenet_conv': functools.partial(GoogLeNet, convolutional=True),
}
SEGMENTERS = {**UNETS, **FCNS}
MODELS = {**SEGMENTERS, **CLASSIFIERS}
DTYPES = ('float32', 'bfloat16')

Segmenter = UNet | UNetVGG16 | FCN
_Module = TypeVar('_Module', bound=nn.Module)

# Attributes that no config sets: linen's, and those that the name sets.
_NOT_FIELDS = (
  'parent',
  'name',
  'backbone',
  'convolutional',
  'stride',
  'pool4_scale',
  'pool3_scale',
)


def create_model(config: Mapping[str, Any]) -> Segmenter:
  """Returns the model that `config.name` and its other fields describe.

  Args:
    config: `name`, a key of `UNETS` or `FCNS`; `dtype`, one of `DTYPES`; and
      fields of the module, which its docstring explains. A tuple may be given
      as a list. A field that is left out has its default.

  Raises:
    InputError: the name is unknown, the module has no such field, or a value is
      invalid.
  """
  name = config['name'] if 'name' in config else None
  fields = {field: config[field] for field in config if field != 'name'}
  if name not in (*SEGMENTERS,):  # A tuple: the name may not be hashable.
    raise InputError(f'model.name={name!r} is not one of {tuple(SEGMENTERS)}')
  return _make(SEGMENTERS[name], name, fields)


def make_model(name: str, **fields: Any) -> Segmenter | Classifier:
  """Returns the network `name` of `MODELS` with these fields of a config.

  With `heads`, `num_classes` may be left out: it is the sum of their classes.

  Raises:
    InputError: the module has no such field, or a value is invalid.
  """
  return _make(MODELS[name], name, fields)


def _make(make: Callable[..., _Module], name: str, fields: dict) -> _Module:
  """Returns `make(**fields)` after a check of every field."""
  known = _fields(make)
  for field, value in fields.items():
    if field not in known:
      raise InputError(
        f'model.{field}={value!r} is no field of {name}, which has '
        f'{(*known,)}{did_you_mean(field, ("name", *known))}'
      )
    check_type(f'model.{field}', value, known[field])
  fields = as_tuples(fields)  # Linen compares and hashes them.
  if 'dtype' in fields:
    if fields['dtype'] not in DTYPES:
      raise InputError(
        f'model.dtype={fields["dtype"]!r} is not one of {DTYPES}'
      )
    fields['dtype'] = jnp.dtype(fields['dtype'])
  if fields.get('heads'):
    _check_heads(fields['heads'])
    fields.setdefault('num_classes', sum(size for _, size in fields['heads']))
  model = make(**fields)
  for field in ('num_classes', 'in_channels', 'base_width', 'fc_features'):
    value = getattr(model, field, None)
    if value is not None and value < 1:
      raise InputError(f'model.{field}={value} must be >= 1')
  rate = model.dropout_rate
  if rate is not None and not 0 <= rate < 1:
    raise InputError(f'model.dropout_rate={rate} must be >= 0 and < 1')
  width = getattr(model, 'width', 1)
  if width <= 0:
    raise InputError(f'model.width={width} must be > 0')
  if not isinstance(model, Classifier):
    _ = model.geometry  # Raises if a field that it depends on is wrong.
  if isinstance(model, UNet):
    _check_dropout_blocks(model)
  if model.precision not in PRECISIONS:
    raise InputError(
      f'model.precision={model.precision!r} is not one of {PRECISIONS}'
    )
  norm = getattr(model, 'norm', 'none')
  if norm not in NORMS:
    raise InputError(f'model.norm={norm!r} is not one of {NORMS}')
  return model


def _check_heads(heads: tuple[tuple[str, int], ...]) -> None:
  if not all(size >= 1 for _, size in heads):
    raise InputError(
      f'model.heads={heads} must be pairs of a name and a number of classes '
      ">= 1, such as (('sem', 33), ('geo', 3))"
    )


def _check_dropout_blocks(model: UNet) -> None:
  blocks = range(-model.depth - 1, model.depth + 1)
  if not all(block in blocks for block in model.dropout_blocks):
    raise InputError(
      f'model.dropout_blocks={model.dropout_blocks} are not all in {blocks[0]} '
      f'to {blocks[-1]}'
    )


def _fields(make: Any) -> dict[str, Any]:
  """Returns the fields that a config of the model can have, and their types."""
  while isinstance(make, functools.partial):
    make = make.func
  types = {field.name: field.type for field in dataclasses.fields(make)}
  types['dtype'] = str  # One of `DTYPES`.
  return {name: types[name] for name in types if name not in _NOT_FIELDS}
