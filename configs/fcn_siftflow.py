# SPDX-License-Identifier: Apache-2.0
r"""FCN on SIFT Flow: 33 semantic and 3 geometric classes from one trunk.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015, and the code the authors released.
Data      2486 images to train on and 200 held out, 256 x 256 px.
Steps     100,000: the loop of the released solve.py, 50 times 2,000. It ends
          before the solver's max_iter, 300,000, which Caffe's `step` ignores
          anyway. The code does not say which step was published.
Command   python -m segjax.main --config=configs/fcn_siftflow.py:ARGUMENT \
            --config.data.dir=SIFTFLOW --config.init.path=START
Weights   python -m segjax.convert --input=VGG_ILSVRC_16_layers.caffemodel \
            --model=vgg16 --output=vgg16.npz
          makes vgg16.npz from Caffe's VGG16.

Arguments
  32s     FCN-32s, which is also what no argument gives: the other two start
          from it. START is vgg16.npz.
  16s     FCN-16s. START is the workdir of `32s`.
  8s      FCN-8s. START is the workdir of `16s`. The learning rate is that of
          the released solver, 1e-12, as for `16s`. On the other data sets, it
          is a hundredth of that for FCN-16s.

The network has two heads, `sem` and `geo`, whose losses are added. Mean IU
leaves out classes that no label of the test images has, as the paper does.

Published  The CVPR paper has FCN-16s alone: pixel accuracy, mean accuracy, mean
           IU, frequency weighted IU 85.2 / 51.7 / 39.5 / 76.1, geometric
           accuracy 94.3. None of the three has been trained here.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('32s', '16s', '8s')


def get_config(argument: str = '32s') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.fcn_config(
    f'fcn{argument}',
    recipes.SIFT_FLOW_DATA,
    num_classes=36,
    learning_rate=1e-10 if argument == '32s' else 1e-12,
    num_train_steps=100_000,
  )
  config.model.heads = (('sem', 33), ('geo', 3))
  config.preprocessing = recipes.caffe_preprocessing(
    (114.578, 115.294, 108.353)
  )
  config.evaluation.best_metric = 'sem_mean_iu'
  config.evaluation.present_only = True
  if argument == '32s':
    config.init.initial = ('score_fr_sem', 'score_fr_geo')
    return config
  return recipes.start_from_coarser(
    config, 'pool4' if argument == '16s' else 'pool3'
  )
