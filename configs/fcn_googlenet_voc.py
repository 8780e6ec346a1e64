# SPDX-License-Identifier: Apache-2.0
r"""FCN-GoogLeNet on PASCAL VOC, stride 32.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015. The code of this network was never
          released. It lacks the last pooling and the auxiliary classifiers, as
          the paper says; its padding of 100 px and its crop follow the other
          networks.
Data      The 8498 training images of SBD are trained on; the 736 images of
          seg11valid are scored.
Command   python -m segjax.main --config=configs/fcn_googlenet_voc.py \
            --config.data.dir=VOCdevkit --config.data.sbd_dir=SBD/dataset \
            --config.init.path=googlenet.npz
Weights   python -m segjax.convert --input=bvlc_googlenet.caffemodel \
            --model=googlenet --output=googlenet.npz
          makes googlenet.npz from Caffe's GoogLeNet. The authors started from a
          GoogLeNet that they trained themselves.

The paper's recipe, "light", is the only one: 20 images a step, momentum .9, the
mean of the pixel losses, a learning rate of 5e-5 (the paper prints 5 to the
-5).

Published  Mean IU 42.5 on VOC 2011's validation images, trained on VOC alone.
           It has not been trained here.
"""

import ml_collections

from segjax import recipes


def get_config() -> ml_collections.ConfigDict:
  """Returns the config."""
  config = recipes.fcn_config(
    'fcn_googlenet', recipes.VOC_DATA, recipes.VOC_CLASSES, learning_rate=5e-5
  )
  config.init.ignore = ('loss3_classifier',)
  return recipes.make_light(
    config, learning_rate=5e-5, num_examples=recipes.NUM_SBD_EXAMPLES
  )
