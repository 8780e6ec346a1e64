# SPDX-License-Identifier: Apache-2.0
"""FCN-GoogLeNet on PASCAL VOC, stride 32.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015. Its code was never released: the last
          pooling and the auxiliary classifiers are gone, as the paper says;
          the padding of 100 px and the crop follow the other networks.
Data      SBD's 8498 training images; scored on the 736 of seg11valid.
Command   python -m segjax.main --config=configs/fcn_googlenet_voc.py \
            --config.data.dir=VOCdevkit --config.data.sbd_dir=SBD/dataset \
            --config.init.path=googlenet.npz
          where python -m segjax.convert --model=googlenet made googlenet.npz of
          bvlc_googlenet.caffemodel. The authors trained a network of their own.

The paper's recipe, "light", is the only one: 20 images a step, momentum .9,
the mean of the losses, a rate of 5e-5 (printed as 5 to the -5).

Published  Mean IU 42.5 on VOC 2011's validation images, trained on VOC alone.
           Not trained here.
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
