# SPDX-License-Identifier: Apache-2.0
"""U-Net on the ISBI 2012 EM segmentation challenge.

Paper     Ronneberger, Fischer, Brox: U-Net. MICCAI 2015.
Data      30 slices of 512 x 512 px of the Drosophila nerve cord, serial-section
          TEM, 4 x 4 x 50 nm. Folds are blocks of six slices; fold 0 holds out
          slices 0-5 and trains on 6-29. The held-out slices at the ends of a
          block have a neighbour that is trained on; --config.data.gap=1 leaves
          that neighbour out of training. The files are looked for in
          SEGJAX_DATA_DIR, ../shared/data and data; --config.data.dir=DIR names
          another folder.
Command   python -m segjax.main --config=configs/unet_isbi.py:ARGUMENT

Arguments
  (none)  The paper's network, and its strategy as far as the paper states it:
          width 64, one large tile a step, SGD with momentum 0.99, border
          weights, dropout. The paper does not state the learning rate, the
          schedule and the number of steps; those here are ours, and have not
          been run to the end. This needs a GPU.
  fast    The same with Adam, which beat SGD in short runs of a narrow network
          (docs/results.md), and a cosine schedule. At full width 2,000 steps
          have been run, in 134 minutes on two cores.
  cpu     `fast` with a network a quarter as wide, with batch normalisation,
          frozen for the last fifth of the steps, and with each slice by its own
          mean and standard deviation, all of which the paper lacks: about half
          an hour on one core.
  demo    A still smaller network on synthetic micrographs, which needs no data:
          64 seconds on two cores.

Where the paper is silent, these are ours: flips, the model of gray values, the
border term on background pixels only. The final predictions are the mean over
eight turns and flips (test-time augmentation); the paper averages seven
rotations.

Expected  See the README. The challenge's board lists V_rand .9728 and V_info
          .9866 for the authors' U-Net on the hidden test labels.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('', 'fast', 'cpu', 'demo')


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`; see `recipes.unet_config`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.unet_config(
    dict(
      name='isbi2012',
      # Folder of the TIFF stacks; '' looks in SEGJAX_DATA_DIR, ../shared/data,
      # data.
      dir='',
      fold=0,  # 0..4 holds out that block of slices; -1 trains on everything.
      gap=0,  # Slices next to the held-out block that are not trained on.
      w0=10.0,  # Height of the border weights.
      sigma_px=5.0,  # Width of the border weights.
      balance=True,  # Whether both classes weigh the same in total.
    ),
    # Mean and standard deviation of the public stack, as shares of 255.
    mean=0.495,
    std=0.173,
    best_metric='v_rand',  # A score of ISBI 2012.
  )
  if argument in ('fast', 'cpu', 'demo'):
    recipes.make_fast(config)
  if argument in ('cpu', 'demo'):
    recipes.make_narrow(config)
  if argument == 'cpu':
    recipes.make_normalised(config)
    config.frozen_norm_share = 0.2
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
