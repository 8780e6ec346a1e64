# SPDX-License-Identifier: Apache-2.0
r"""FCN-32s on NYUDv2: colour, depth as HHA, and both.

Paper     Long, Shelhamer, Darrell: Fully convolutional networks for semantic
          segmentation. CVPR 2015, and the code the authors released.
Data      795 images to train on (train.txt and val.txt) and 654 held out, 40
          classes, in the layout of the authors' code.
Steps     100,000: the loop of the released solve.py, 50 times 2,000. It ends
          before the solver's max_iter, 300,000, which Caffe's `step` ignores
          anyway. As released, the loop fails after its first 2,000 steps: it
          scores a list that it never defines. The authors' `color_hha` starts
          from files named 28k (color) and 60k (HHA), so they did not always
          take the last step. The code does not say which step was published.
Command   python -m segjax.main --config=configs/fcn32s_nyudv2.py:ARGUMENT \
            --config.data.dir=NYUD --config.init.path=START
Weights   python -m segjax.convert --input=VGG_ILSVRC_16_layers.caffemodel \
            --model=vgg16 --output=vgg16.npz
          makes vgg16.npz from Caffe's VGG16.

Arguments
  color      RGB, which is also what no argument gives. START is vgg16.npz.
  hha        HHA in the file's order of channels. START is vgg16.npz.
  color_d    RGB and the logarithm of depth in one network. START is bgrd.npz,
             whose first convolution is conv1_1_bgrd. The fourth channel of its
             kernel begins as the mean of the other three:

    from segjax.weights import files, surgery
    vgg16 = files.read_params('vgg16.npz')
    files.write_params('bgrd.npz', surgery.add_channel(vgg16))

  color_hha  Two networks, whose scores are averaged. START is joined.npz, which
             joins the runs of `color` and `hha`, here the workdirs COLOR and
             HHA:

    from segjax.weights import files, surgery
    from segjax.networks import load_run
    runs = {'color': load_run('COLOR')[1], 'hha': load_run('HHA')[1]}
    files.write_params('joined.npz', surgery.join_streams(runs))

Published  Mean IU 29.2 (color), 24.2 (hha), 30.5 (color_d) and 32.8
           (color_hha), in the CVPR paper. None has been trained here.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('color', 'hha', 'color_d', 'color_hha')

_COLOR_MEAN = (116.190, 97.203, 92.318)  # B, G, R.
_HHA_MEAN = (132.431, 94.076, 118.477)
_LOG_DEPTH_MEAN = 7.844


def get_config(argument: str = 'color') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.fcn_config(
    'fcn32s',
    dict(
      name='nyudv2',
      dir='',  # '' looks in SEGJAX_DATA_DIR, ../shared/data, data.
      modality=argument,
      train_lists=('train.txt', 'val.txt'),
      heldout_lists=('test.txt',),
    ),
    num_classes=40,
    learning_rate=1e-10,
    num_train_steps=100_000,
  )
  # Colours are reversed to BGR; the channels of HHA are not.
  means, channels = {
    'color': (_COLOR_MEAN, recipes.BGR),
    'hha': (_HHA_MEAN, ()),
    'color_d': ((*_COLOR_MEAN, _LOG_DEPTH_MEAN), (*recipes.BGR, 3)),
    'color_hha': ((*_COLOR_MEAN, *_HHA_MEAN), (*recipes.BGR, 3, 4, 5)),
  }[argument]
  config.preprocessing = recipes.caffe_preprocessing(means, channels)
  config.model.in_channels = len(means)
  if argument == 'color_d':
    config.model.first_conv = 'conv1_1_bgrd'
  if argument == 'color_hha':
    config.model.streams = ('color', 'hha')
    config.init.initial = ()
    config.schedule.learning_rate = 1e-12
  return config
