# SPDX-License-Identifier: Apache-2.0
"""Models from the fields of configs, and the fields that are refused."""

import json

import jax.numpy as jnp
import ml_collections
import pytest
from ml_collections import config_dict

from segjax.errors import InputError
from segjax.models import CLASSIFIERS, FCNS, MODELS, UNETS, create_model
from segjax.models.fcn import FCN, FCN8sAtOnce, FCN32s, FCNGoogLeNet
from segjax.models.googlenet import googlenet
from segjax.models.unet import UNet, UNet2015
from segjax.models.vgg import vgg16

pytestmark = pytest.mark.smoke

CONFIG = dict(
  name='unet',
  num_classes=2,
  in_channels=1,
  depth=2,
  base_width=4,
  convs_per_block=2,
  padding='VALID',
  dropout_rate=0.5,
  dropout_blocks=(-2, -1),
  dtype='float32',
)
FCN_CONFIG = dict(
  name='fcn8s_atonce',
  num_classes=36,
  in_channels=4,
  padding='same',
  learned=('upscore2',),
  width=0.5,
  fc_features=config_dict.placeholder(int),
  dropout_rate=config_dict.placeholder(float),
  dtype='bfloat16',
  heads=(('sem', 33), ('geo', 3)),
  first_conv='conv1_1_bgrd',
  streams=(),
)
FCN_MODEL = FCN8sAtOnce(
  num_classes=36,
  in_channels=4,
  padding='same',
  learned=('upscore2',),
  width=0.5,
  dtype=jnp.dtype('bfloat16'),
  heads=(('sem', 33), ('geo', 3)),
  first_conv='conv1_1_bgrd',
)


def fcn_config(**changes):
  config = ml_collections.ConfigDict(FCN_CONFIG)
  config.update(changes)
  return config


def test_an_fcn_is_its_config():
  assert create_model(fcn_config()) == FCN_MODEL
  stored = json.loads(json.dumps(fcn_config().to_dict()))
  model = create_model(ml_collections.ConfigDict(stored))
  assert model == FCN_MODEL
  assert hash(model) == hash(FCN_MODEL)  # Which a list would not have.
  changed = create_model(fcn_config(fc_features=64, dropout_rate=0.1))
  assert (changed.fc_features, changed.dropout_rate) == (64, 0.1)
  assert (FCN_MODEL.stride, FCN_MODEL.pool3_scale) == (8, 1e-4)
  assert FCN_MODEL.head_sizes == (33, 3)


def test_a_unet_is_its_config():
  model = create_model(CONFIG)
  assert model == UNet(depth=2, base_width=4)
  assert (model.head_sizes, model.geometry.depth) == ((2,), 2)


def test_names():
  assert set(MODELS) == {*UNETS, *FCNS, *CLASSIFIERS}
  assert create_model({'name': 'unet_2015'}) == UNet2015()
  assert create_model({'name': 'fcn32s'}) == FCN32s()
  model = create_model({'name': 'fcn_googlenet', 'num_classes': 3})
  assert model == FCNGoogLeNet(num_classes=3)
  assert isinstance(model, FCN) and model.backbone is googlenet
  assert MODELS['vgg16_conv']().backbone is vgg16


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'name': 'vnet'}, r"model.name='vnet' is not one of .*'fcn_googlenet'"),
    ({'dtype': 'float64'}, "model.dtype='float64' is not one of"),
    ({'padding': 'REFLECT'}, "padding='REFLECT'"),
    ({'dropout_rate': 1.0}, 'model.dropout_rate=1.0 must be'),
    ({'base_width': 0}, 'model.base_width=0 must be >= 1'),
    ({'num_classes': 0}, 'model.num_classes=0 must be >= 1'),
    ({'depth': -1}, 'depth=-1'),
    ({'dropout_blocks': (7,)}, r'model.dropout_blocks=\(7,\)'),
    ({'stride': 8}, 'model.stride=8 is no field of unet, which has .*depth'),
  ],
)
def test_no_unet(wrong, message):
  with pytest.raises(InputError, match=message):
    create_model(CONFIG | wrong)


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'name': 'vgg16'}, "model.name='vgg16' is not one of"),
    ({'depth': 4}, 'model.depth=4 is no field of fcn8s_atonce, which has'),
    ({'stride': 8}, 'model.stride=8 is no field'),
    ({'dtype': 'float16'}, "model.dtype='float16'"),
    ({'padding': 'VALID'}, "padding='VALID' is not one of .'pad100', 'same'"),
    ({'learned': ('upscore',)}, "learned=.'upscore',.; the deconv"),
    ({'learned': 'upscore2'}, "model.learned='upscore2' must be a tuple"),
    ({'width': 0.0}, 'model.width=0.0 must be > 0'),
    ({'in_channels': 0}, 'model.in_channels=0 must be >= 1'),
    ({'fc_features': 0}, 'model.fc_features=0 must be >= 1'),
    ({'dropout_rate': -0.5}, 'model.dropout_rate=-0.5 must be >= 0 and < 1'),
    ({'heads': (('sem', 33), ('geo', 0))}, 'model.heads=.* must be pairs'),
    ({'heads': ('sem', 36)}, "model.heads=.'sem', 36. must be a tuple"),
    ({'heads': (('sem', 33),)}, 'num_classes=36 must be 33'),
    ({'streams': ('a', 'b')}, 'stride=8 must be 32'),
    ({'name': 'fcn_alexnet'}, 'learned=.*; the deconvolutions are'),
  ],
)
def test_no_fcn(wrong, message):
  with pytest.raises(InputError, match=message):
    create_model(fcn_config().to_dict() | wrong)
