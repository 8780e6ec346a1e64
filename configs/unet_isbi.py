# SPDX-License-Identifier: Apache-2.0
"""U-Net on the ISBI 2012 EM segmentation challenge.

Paper     Ronneberger, Fischer, Brox: U-Net. MICCAI 2015.
Data      30 slices of 512 x 512 px, Drosophila nerve cord, serial-section
          TEM, 4 x 4 x 50 nm. Folds are blocks of six slices; fold 0 holds out
          slices 0-5 and trains on 6-29. Held-out slices at the block's ends
          see a neighbour in training; `--config.data.gap=1` drops it.
Command   python -m segjax.main --config=configs/unet_isbi.py:ARGUMENT

Arguments
  (none)  The paper's network, and its strategy as far as it is stated: width
          64, one large tile a step, SGD with momentum 0.99, border weights,
          dropout. Learning rate, schedule and number of steps are not stated;
          those here are ours, and not yet run to the end. Needs a GPU.
  fast    The same with Adam, which beat SGD in short runs of a narrow network
          (README), and a cosine. Not yet run to the end at full width.
  cpu     `fast` with a network a quarter as wide: 28 minutes on two cores.
  demo    A still smaller one on drawn micrographs, no data: 82 seconds there.

Ours, where the paper is silent: flips, the model of gray values, the border
term on background pixels only, and the mean of eight turns and flips at the end
(the paper: seven rotations).

Expected  See the README. The challenge's board lists V_rand .9728 and V_info
          .9866 for the authors' U-Net on the hidden test labels.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('', 'fast', 'cpu', 'demo')


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = ml_collections.ConfigDict()
  config.seed = 0  # Of initial values, order, augmentation and dropout.
  config.parallel = 'jit'  # Or 'pmap'.
  # Devices that share each tile, by rows, where it is too large for one.
  config.mesh = dict(space=1)
  config.num_train_steps = 40_000
  config.batch_size = 1  # Over all devices.
  config.accumulate_steps = 1  # Parts of a batch, one after another.
  config.tile_size_px = 572  # Input side; 388 come out.
  config.loss_reduction = 'mean'  # Over pixels, weights as they are; or 'sum'.
  config.log_every_steps = 50
  config.profile_steps = (0, 0)  # First and last of a trace; (0, 0) is none.
  config.compilation_cache = True  # Of programs, in ~/.cache/segjax.

  config.model = dict(
    name='unet',  # Or 'unet_2015', the authors' released form.
    num_classes=2,
    in_channels=1,
    depth=4,
    base_width=64,
    convs_per_block=2,
    padding='VALID',  # Or 'SAME', with a tile_size_px of 576.
    dropout_rate=0.5,
    dropout_blocks=(-2, -1),  # The last two of the contracting path.
    dtype='float32',  # Or 'bfloat16'.
    remat=False,  # True computes blocks again for the gradient: less memory.
  )
  config.data = dict(
    name='isbi2012',
    dir='',  # Of the TIFF stacks; '' looks in SEGJAX_DATA_DIR, ../shared/data.
    fold=0,  # 0..4; -1 trains on everything.
    gap=0,  # Slices next to the held-out block that train nothing.
    w0=10.0,  # Of the border weights,
    sigma_px=5.0,
    balance=True,  # and both classes weigh the same in total.
  )
  config.batching = dict(
    order='shuffled',  # Or 'with_replacement'.
    bucket_px=0,  # Images have one size.
  )
  # Of the public stack, as a share of 255.
  config.preprocessing = dict(mean=0.495, std=0.173, channels=())
  config.init = dict(
    path='random',  # Or a run, or a file of parameters, to start from.
    initial=(),  # Layers that it doesn't give.
    ignore=(),  # Layers of it that the network hasn't.
  )
  config.augmentation = dict(
    elastic_sigma_px=10.0,  # At the nodes of
    elastic_grid=3,  # this many by this many over the tile.
    rotation_deg=180.0,  # Uniform in +- this.
    flip=True,
    shift_px=16.0,  # The centre may be off by this where the output just fits.
    black=0.1,  # Levels of black and white, uniform in +- this
    white=0.1,  # share of the range of gray values.
    log_gamma=0.3,  # Of the exponent, uniform in +- this.
  )
  config.optimizer = dict(
    name='sgd',  # Or 'adamw', with momentum as b1.
    momentum=0.99,
    weight_decay=0.0,
    clip_norm=0.0,  # Of the whole gradient; 0 doesn't clip.
    bias_rate=1.0,  # Times the learning rate.
    bias_decay=False,
    bias_layers=('',),  # All.
  )
  config.schedule = dict(name='constant', learning_rate=1e-3, warmup_steps=100)

  config.prediction = dict(
    max_tile_size_px=1024,  # Input side, in pixels, at most; or instead
    tile_memory_mib=0,  # what tiles may take of a device, where that is not 0.
    tiles_per_batch=1,  # Tiles computed at once.
  )
  config.evaluation = dict(
    every_steps=1000,
    average=True,  # At the end, over the eight turns and flips.
    best_metric='v_rand',  # Ranks checkpoints: the scores of ISBI 2012.
    present_only=False,  # Of mean_iu, where that ranks.
    num_pictures=6,
  )
  config.checkpoints = dict(
    every_steps=500, keep=dict(keep_last=2, keep_best=1)
  )

  if argument in ('fast', 'cpu', 'demo'):
    config.optimizer.name = 'adamw'
    config.optimizer.momentum = 0.9
    config.schedule = dict(name='cosine', learning_rate=5e-4, warmup_steps=20)
    config.num_train_steps = 10_000
  if argument in ('cpu', 'demo'):
    config.model.base_width = 16
    config.schedule.learning_rate = 2e-3
    config.num_train_steps = 2200
    config.evaluation.every_steps = 550
    config.checkpoints.every_steps = 250
  if argument == 'demo':
    del config.data.dir
    config.data.update(
      dict(name='synthetic', gap=1, num_slices=20, size_px=256, seed=0)
    )
    config.model.base_width = 8
    config.model.depth = 3
    config.model.dropout_rate = 0.0
    config.tile_size_px = 300
    config.schedule.learning_rate = 3e-3
    config.num_train_steps = 800
    config.evaluation.every_steps = 400
  return config
