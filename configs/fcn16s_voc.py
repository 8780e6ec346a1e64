# SPDX-License-Identifier: Apache-2.0
r"""FCN-16s on PASCAL VOC: FCN-32s and the scores of pool4.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015, and the code the authors released.
Data      The 8498 training images of SBD are trained on; the 736 images of
          seg11valid are scored.
Command   python -m segjax.main --config=configs/fcn16s_voc.py:ARGUMENT \
            --config.data.dir=VOCdevkit --config.data.sbd_dir=SBD/dataset \
            --config.init.path=START
START     the workdir of fcn32s_voc, or an .npz of its weights

Arguments
  (none)  The released recipe: one image a step, momentum .99, the sum of the
          pixel losses, fixed deconvolutions.
  light   The paper's recipe: 20 images a step, momentum .9, the mean of the
          pixel losses; all deconvolutions but the last are learned. START is
          then a run of `light`. The learning rate falls a hundredfold at each
          skip.

Published  Mean IU 65.0 (released network) and 62.4 (light, paper's table 2).
           Neither has been trained here.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('', 'light')


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.fcn_config(
    'fcn16s', recipes.VOC_DATA, recipes.VOC_CLASSES, learning_rate=1e-12
  )
  recipes.start_from_coarser(config, 'pool4')
  if argument == 'light':
    recipes.make_light(
      config,
      learning_rate=1e-6,
      num_examples=recipes.NUM_SBD_EXAMPLES,
      learned=('upscore2',),
    )
  return config
