# SPDX-License-Identifier: Apache-2.0
"""FCN-8s on SIFT Flow: 33 semantic and 3 geometric classes from one trunk.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015, and the code the authors released.
Data      2486 images to train on and 200 held out, 256 x 256 px.
Steps     100,000: the loop of the released solve.py, 50 times 2,000. It ends
          before the solver's max_iter, 300,000, which Caffe's `step` ignores
          anyway. The code does not say which step was published.
Command   python -m segjax.main --config=configs/fcn8s_siftflow.py \
            --config.data.dir=SIFTFLOW --config.init.path=START
START     the run of fcn16s_siftflow

Two heads, `sem` and `geo`; their losses are added. Scores leave out classes
that no label of the test images has, as the paper does.

The rate is the released solver's, 1e-12, not a hundredth of 16s's as elsewhere.

Published  The CVPR paper has FCN-16s alone: fcn16s_siftflow. Not trained here.
"""

import ml_collections

from segjax import recipes


def get_config() -> ml_collections.ConfigDict:
  """Returns the config."""
  config = recipes.fcn_config(
    'fcn8s',
    recipes.SIFT_FLOW_DATA,
    num_classes=36,
    learning_rate=1e-12,
    num_train_steps=100_000,
  )
  config.model.heads = (('sem', 33), ('geo', 3))
  config.preprocessing = recipes.caffe_preprocessing(
    (114.578, 115.294, 108.353)
  )
  config.evaluation.best_metric = 'sem_mean_iu'
  config.evaluation.present_only = True
  return recipes.start_from_coarser(config, 'pool3')
