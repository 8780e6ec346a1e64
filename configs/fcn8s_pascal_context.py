# SPDX-License-Identifier: Apache-2.0
"""FCN-8s on PASCAL-Context: 59 classes and a background that is trained, too.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015, appendix B of arXiv 1411.4038v2, and the
          code the authors released.
Data      Train and val of VOC 2010 with the annotations of PASCAL-Context.
Steps     400,000: the loop of the released solve.py, 50 times 8,000. It goes
          past the solver's max_iter, 300,000, which Caffe's `step` ignores.
          The code does not say which step was published.
Command   python -m segjax.main --config=configs/fcn8s_pascal_context.py \
            --config.data.dir=VOCdevkit --config.data.context_dir=CONTEXT \
            --config.init.path=START
START     the run of fcn16s_pascal_context

Published  For the 59 classes, trained as the paper says: pixel accuracy, mean
           accuracy, mean IU, frequency weighted IU 65.9 / 46.5 / 35.1 / 51.0.
           Not trained here. mean_iu is over all 60, as FCN's code scores;
           mean_iu_but_background is over the 59.
"""

import ml_collections

from segjax import recipes


def get_config() -> ml_collections.ConfigDict:
  """Returns the config."""
  config = recipes.fcn_config(
    'fcn8s',
    recipes.PASCAL_CONTEXT_DATA,
    num_classes=60,
    learning_rate=1e-14,
    num_train_steps=400_000,
  )
  config.preprocessing = recipes.caffe_preprocessing(
    (104.007, 116.669, 122.679)
  )
  return recipes.start_from_coarser(config, 'pool3')
