# SPDX-License-Identifier: Apache-2.0
"""FCN-AlexNet on PASCAL VOC: CaffeNet turned fully convolutional, stride 32.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015, and the code the authors released.
Data      SBD's 8498 training images; scored on the 736 of seg11valid.
Command   python -m segjax.main --config=configs/fcn_alexnet_voc.py:ARGUMENT \
            --config.data.dir=VOCdevkit --config.data.sbd_dir=SBD/dataset \
            --config.init.path=caffenet.npz
          where python -m segjax.convert --model=caffenet made caffenet.npz of
          bvlc_reference_caffenet.caffemodel, not of bvlc_alexnet.

Arguments
  (none)  The released recipe: gradients of 20 images, each of the mean of its
          pixel losses, averaged; momentum .9. Only the bias of the scores
          learns at twice the rate, without decay.
  light   The paper's: 20 images, the mean over all their pixels, a rate of
          1e-3, all biases at twice the rate.

Published  Mean IU 48.0. Not trained here.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('', 'light')


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.fcn_config(
    'fcn_alexnet', recipes.VOC_DATA, recipes.VOC_CLASSES, learning_rate=1e-4
  )
  config.batch_size = 20
  config.loss_reduction = 'mean_of_images'
  config.optimizer.momentum = 0.9
  config.optimizer.bias_layers = ('score',)
  if argument == 'light':
    recipes.make_light(
      config, learning_rate=1e-3, num_examples=recipes.NUM_SBD_EXAMPLES
    )
    config.optimizer.bias_layers = ('',)
  return config
