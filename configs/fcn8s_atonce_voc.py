# SPDX-License-Identifier: Apache-2.0
r"""FCN-8s on PASCAL VOC, all skips trained at once from VGG16.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015; the network is from the code the authors
          released later.
Data      The 8498 training images of SBD are trained on; the 736 images of
          seg11valid are scored.
Command   python -m segjax.main --config=configs/fcn8s_atonce_voc.py \
            --config.data.dir=VOCdevkit --config.data.sbd_dir=SBD/dataset \
            --config.init.path=vgg16.npz
Weights   python -m segjax.convert --input=VGG_ILSVRC_16_layers.caffemodel \
            --model=vgg16 --output=vgg16.npz
          makes vgg16.npz from Caffe's VGG16.

The features of pool4 and pool3 are multiplied by .01 and .0001 before they are
scored. This replaces the three stages of fcn32s_voc, fcn16s_voc and fcn8s_voc.

Published  Mean IU 65.4 (released network). It has not been trained here.
"""

import ml_collections

from segjax import recipes


def get_config() -> ml_collections.ConfigDict:
  """Returns the config."""
  config = recipes.fcn_config(
    'fcn8s_atonce',
    recipes.VOC_DATA,
    recipes.VOC_CLASSES,
    learning_rate=1e-10,
    num_train_steps=300_000,
  )
  config.init.initial = ('score_fr', 'score_pool4', 'score_pool3')
  return config
