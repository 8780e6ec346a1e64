# SPDX-License-Identifier: Apache-2.0
"""U-Net on the ISBI 2012 EM challenge.

Under construction.
"""

import ml_collections

from segjax.errors import InputError


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.parallel = 'jit'  # Or 'pmap'.
  config.num_train_steps = 30_000
  config.batch_size = 1  # Over all devices.
  config.tile_size_px = 572  # Input side; the output follows from the model.
  config.loss_reduction = 'mean'  # Over pixels; or 'sum'.
  config.log_every_steps = 50

  config.model = dict(
    name='unet',
    num_classes=2,
    in_channels=1,
    depth=4,
    base_width=64,
    convs_per_block=2,
    padding='VALID',
    dropout_rate=0.5,
    dropout_blocks=(-2, -1),
    dtype='float32',
  )
  config.data = dict(name='isbi2012', dir='', fold=0, gap=0)
  config.gray = dict(mean=0.495, std=0.173)
  config.weights = dict(w0=10.0, sigma_px=5.0, balance=True)
  config.augmentation = dict(
    elastic_sigma_px=10.0,
    elastic_grid=3,
    rotation_deg=180.0,
    flip=True,
    shift_px=16.0,
    black=0.05,
    white=0.05,
    log_gamma=0.2,
  )
  config.optimizer = dict(
    name='sgd', momentum=0.99, weight_decay=0.0, clip_norm=0.0
  )
  config.schedule = dict(name='constant', learning_rate=1e-3, warmup_steps=100)
  config.tiling = dict(max_tile_size=1024, tiles_per_batch=1)
  config.evaluation = dict(every_steps=1000, average=True)
  config.checkpoints = dict(
    every_steps=500, keep=dict(keep_last=2, keep_best=1)
  )

  if arg not in ('', 'demo'):
    raise InputError(f'unknown argument {arg!r}')
  if arg == 'demo':
    config.data = dict(
      name='synthetic', fold=0, gap=0, num_slices=10, size_px=192, seed=0
    )
    config.model.base_width = 8
    config.model.depth = 3
    config.tile_size_px = 220
    config.num_train_steps = 60
    config.log_every_steps = 10
    config.evaluation.every_steps = 30
  return config
