# SPDX-License-Identifier: Apache-2.0
"""FCN-8s on PASCAL VOC, all skips trained at once from VGG16.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015; the network is from the code the authors
          released later.
Data      SBD's 8498 training images; scored on the 736 of seg11valid.
Command   python -m segjax.main --config=configs/fcn8s_atonce_voc.py \
            --config.data.dir=VOCdevkit --config.data.sbd_dir=SBD/dataset \
            --config.init.path=vgg16.npz

The features of pool4 and pool3 are scaled by .01 and .0001 before they are
scored, in place of the stages of fcn32s_voc, fcn16s_voc and fcn8s_voc.

Published  Mean IU 65.4 (released network). Not trained here.
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
