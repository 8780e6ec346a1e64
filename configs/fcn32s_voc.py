# SPDX-License-Identifier: Apache-2.0
r"""FCN-32s on PASCAL VOC: VGG16 turned fully convolutional.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015, and the code the authors released.
Data      The 8498 training images of SBD are trained on; the 736 images of
          seg11valid are scored.
Command   python -m segjax.main --config=configs/fcn32s_voc.py:ARGUMENT \
            --config.data.dir=VOCdevkit --config.data.sbd_dir=SBD/dataset \
            --config.init.path=START
START     an .npz of VGG16, which this command makes:
          python -m segjax.convert --input=VGG_ILSVRC_16_layers.caffemodel \
            --model=vgg16 --output=vgg16.npz

Arguments
  (none)  The released recipe: one image a step, momentum .99, the sum of the
          pixel losses, fixed deconvolutions.
  light   The paper's recipe: 20 images a step, momentum .9, the mean of the
          pixel losses. The paper learns all deconvolutions but the last;
          FCN-32s has only the last.

Published  Mean IU 63.6 (released network) and 59.4 (light, paper's table 2).
           Neither has been trained here.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('', 'light')


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.fcn_config(
    'fcn32s', recipes.VOC_DATA, recipes.VOC_CLASSES, learning_rate=1e-10
  )
  if argument == 'light':
    recipes.make_light(
      config, learning_rate=1e-4, num_examples=recipes.NUM_SBD_EXAMPLES
    )
  return config
