# SPDX-License-Identifier: Apache-2.0
r"""U-Net on two sets of the Cell Tracking Challenge: instances of cells.

Paper     Ronneberger, Fischer, Brox: U-Net. MICCAI 2015, table 2.
Data      DIR/PhC-C2DH-U373 or DIR/DIC-C2DH-HeLa as the challenge gives them:
          frames in 01 and 02; the cells of some frames, marked by hand, in
          01_GT/SEG and 02_GT/SEG. Sequence 01 is trained on, 02 is held out.
Command   python -m segjax.main --config=configs/unet_cells.py:ARGUMENT \
            --config.data.dir=DIR --workdir=RUN

Arguments
  (none)  PhC-C2DH-U373: U373 cells, phase contrast.
  hela    DIC-C2DH-HeLa: HeLa cells, differential interference contrast.

Network, loss and augmentation are the paper's. Optimizer, learning rate and
number of steps are ours, as in configs/unet_isbi.py:fast. This card has not
been run here, since we had neither the data nor a GPU.

Expected  The paper: SEG .9203 (U373) and .7756 (HeLa) in the challenge of 2015,
          trained on 35 and 20 partially annotated images. A run prints `seg`,
          the same score on sequence 02, where each connected component is a
          cell. It is a score on other frames, so it cannot be compared with the
          paper's.

These commands write the results for sequence 01 of the challenge's test set:

    python -m segjax.predict --workdir=RUN --input=TEST/01 --output=MAPS
    python -m segjax.instances --input=MAPS --output=TEST/01_RES
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('', 'hela')


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`; see `recipes.unet_config`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.unet_config(
    dict(
      name='cell_tracking',
      dir='',  # '' looks in SEGJAX_DATA_DIR, ../shared/data, data.
      dataset='DIC-C2DH-HeLa' if argument == 'hela' else 'PhC-C2DH-U373',
      truth='GT',  # Marked by hand; or 'ST', of all frames, by computer.
      train_sequences=('01',),
      heldout_sequences=('02',),
      w0=10.0,  # Height of the border weights.
      sigma_px=5.0,  # Width of the border weights.
      balance=True,  # Whether both classes weigh the same in total.
    ),
    # Ours, not measured: the middle of the range, and a quarter of the range.
    mean=0.5,
    std=0.25,
    best_metric='mean_iu',  # A score of pixels, not of cells.
  )
  return recipes.make_fast(config)
