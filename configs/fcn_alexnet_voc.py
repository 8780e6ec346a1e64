# SPDX-License-Identifier: Apache-2.0
r"""FCN-AlexNet on PASCAL VOC: CaffeNet turned fully convolutional, stride 32.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015, and the code the authors released.
Data      The 8498 training images of SBD are trained on; the 736 images of
          seg11valid are scored.
Command   python -m segjax.main --config=configs/fcn_alexnet_voc.py:ARGUMENT \
            --config.data.dir=VOCdevkit --config.data.sbd_dir=SBD/dataset \
            --config.init.path=caffenet.npz
Weights   python -m segjax.convert \
            --input=bvlc_reference_caffenet.caffemodel \
            --model=caffenet --output=caffenet.npz
          makes caffenet.npz from CaffeNet. Do not take bvlc_alexnet, which
          normalises before it pools.

Arguments
  (none)  The released recipe: 20 images a step, momentum .9. The loss of an
          image is the mean of its pixel losses, and the 20 gradients are
          averaged. Only the bias of the scores learns at twice the rate and
          does not decay.
  light   The paper's recipe: 20 images a step, the mean over all their pixels,
          a learning rate of 1e-3, all biases at twice that rate.

Published  Mean IU 48.0. It has not been trained here.
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
