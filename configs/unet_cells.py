# SPDX-License-Identifier: Apache-2.0
"""U-Net on two sets of the Cell Tracking Challenge: cells, one by one.

Paper     Ronneberger, Fischer, Brox: U-Net. MICCAI 2015, table 2.
Data      DIR/PhC-C2DH-U373 or DIR/DIC-C2DH-HeLa as the challenge gives them:
          frames in 01 and 02, the cells of some frames, by hand, in 01_GT/SEG
          and 02_GT/SEG. Training on 01, 02 held out.
Command   python -m segjax.main --config=configs/unet_cells.py:ARGUMENT \\
            --config.data.dir=DIR --workdir=RUN

Arguments
  (none)  PhC-C2DH-U373: U373 cells, phase contrast.
  hela    DIC-C2DH-HeLa: HeLa cells, differential interference contrast.

The paper's network, loss and augmentation; optimizer, rate and length are ours,
those of configs/unet_isbi.py:fast. Not run here, for want of the data and a
GPU.

Expected  The paper: SEG .9203 (U373) and .7756 (HeLa) in the challenge of 2015,
          trained on 35 and 20 partially annotated images. `seg` of a run is
          that score on 02, cells being connected components: of other frames,
          so not to be compared.

Results for the challenge, of sequence 01 of its test set:

    python -m segjax.predict --workdir=RUN --input=TEST/01 --output=MAPS
    python -m segjax.instances --input=MAPS --output=TEST/01_RES
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('', 'hela')


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = ml_collections.ConfigDict()
  config.seed = 0  # Of initial values, order, augmentation and dropout.
  config.parallel = 'jit'  # Or 'pmap'.
  # Devices that share each tile, by rows, where it is too large for one.
  config.mesh = dict(space=1)
  config.num_train_steps = 10_000
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
    name='cell_tracking',
    dir='',  # '' looks in SEGJAX_DATA_DIR, ../shared/data, data.
    dataset='DIC-C2DH-HeLa' if argument == 'hela' else 'PhC-C2DH-U373',
    truth='GT',  # By hand; or 'ST', of all frames and made by computer.
    train_sequences=('01',),
    heldout_sequences=('02',),
    w0=10.0,  # Of the border weights,
    sigma_px=5.0,
    balance=True,  # and both classes weigh the same in total.
  )
  config.batching = dict(
    order='shuffled',  # Or 'with_replacement'.
    bucket_px=0,  # Images have one size.
  )
  # Ours, not measured: the middle of the range, and a quarter of it.
  config.preprocessing = dict(mean=0.5, std=0.25, channels=())
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
    name='adamw',  # Or 'sgd'.
    momentum=0.9,
    weight_decay=0.0,
    clip_norm=0.0,  # Of the whole gradient; 0 doesn't clip.
    bias_rate=1.0,  # Times the learning rate.
    bias_decay=False,
    bias_layers=('',),  # All.
  )
  config.schedule = dict(name='cosine', learning_rate=5e-4, warmup_steps=20)

  config.prediction = dict(
    max_tile_size_px=1024,  # Input side, in pixels, at most; or instead
    tile_memory_mib=0,  # what tiles may take of a device, where that is not 0.
    tiles_per_batch=1,  # Tiles computed at once.
  )
  config.evaluation = dict(
    every_steps=1000,
    average=True,  # At the end, over the eight turns and flips.
    best_metric='mean_iu',  # Ranks checkpoints: of the pixels.
    present_only=False,  # Of mean_iu: whether absent classes are left out.
    num_pictures=6,
  )
  config.checkpoints = dict(
    every_steps=500, keep=dict(keep_last=2, keep_best=1)
  )
  return config
