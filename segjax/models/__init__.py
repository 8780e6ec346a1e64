# SPDX-License-Identifier: Apache-2.0
"""The networks by the names that configs use."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from segjax.errors import InputError
from segjax.models.unet import UNet, UNet2015

MODELS = {'unet': UNet, 'unet_2015': UNet2015}
DTYPES = ('float32', 'bfloat16')


def create_model(config: Mapping) -> nn.Module:
  """Returns the model that `config.name` and its other fields describe."""
  fields = dict(config)
  name, dtype = fields.pop('name'), fields.pop('dtype')
  if name not in MODELS:
    raise InputError(f'model.name={name!r} is not one of {tuple(MODELS)}')
  if dtype not in DTYPES:
    raise InputError(f'model.dtype={dtype!r} is not one of {DTYPES}')
  fields['dropout_blocks'] = tuple(fields['dropout_blocks'])
  model = MODELS[name](dtype=jnp.dtype(dtype), **fields)
  _ = model.geometry  # Raises if depth, convs_per_block or padding is wrong.
  if not 0 <= model.dropout_rate < 1:
    raise InputError(
      f'model.dropout_rate={model.dropout_rate} must be >= 0 and < 1'
    )
  if min(model.base_width, model.num_classes, model.in_channels) < 1:
    raise InputError(
      f'model.base_width={model.base_width}, num_classes={model.num_classes} '
      f'and in_channels={model.in_channels} must all be >= 1'
    )
  blocks = range(-model.depth - 1, model.depth + 1)
  if not set(model.dropout_blocks) <= set(blocks):
    raise InputError(
      f'model.dropout_blocks={model.dropout_blocks} are not all in {blocks[0]} '
      f'to {blocks[-1]}'
    )
  return model
