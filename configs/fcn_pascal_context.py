# SPDX-License-Identifier: Apache-2.0
r"""FCN on PASCAL-Context: 59 classes, and the background as one more.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015, appendix B of arXiv 1411.4038v2, and the
          code the authors released.
Data      Train and val of VOC 2010 with the annotations of PASCAL-Context.
Steps     400,000: the loop of the released solve.py, 50 times 8,000. It goes
          past the solver's max_iter, 300,000, which Caffe's `step` ignores.
          The code does not say which step was published.
Command   python -m segjax.main \
            --config=configs/fcn_pascal_context.py:ARGUMENT \
            --config.data.dir=VOCdevkit --config.data.context_dir=CONTEXT \
            --config.init.path=START
Weights   python -m segjax.convert --input=VGG_ILSVRC_16_layers.caffemodel \
            --model=vgg16 --output=vgg16.npz
          makes vgg16.npz from Caffe's VGG16.

Arguments
  32s     FCN-32s, which is also what no argument gives: the other two start
          from it. START is vgg16.npz.
  16s     FCN-16s. START is the workdir of `32s`.
  8s      FCN-8s. START is the workdir of `16s`.

Published  For the 59 classes, trained as the paper says: pixel accuracy, mean
           accuracy, mean IU, frequency weighted IU
             32s  63.8 / 42.7 / 31.8 / 48.3
             16s  65.7 / 46.2 / 34.8 / 50.7
             8s   65.9 / 46.5 / 35.1 / 51.0
           None of the three has been trained here. A run's mean_iu is over all
           60 classes, as FCN's code scores; mean_iu_but_background is over the
           59.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('32s', '16s', '8s')

_LEARNING_RATES = {'32s': 1e-10, '16s': 1e-12, '8s': 1e-14}


def get_config(argument: str = '32s') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.fcn_config(
    f'fcn{argument}',
    recipes.PASCAL_CONTEXT_DATA,
    num_classes=60,
    learning_rate=_LEARNING_RATES[argument],
    num_train_steps=400_000,
  )
  config.preprocessing = recipes.caffe_preprocessing(
    (104.007, 116.669, 122.679)
  )
  if argument == '32s':
    return config
  return recipes.start_from_coarser(
    config, 'pool4' if argument == '16s' else 'pool3'
  )
