# SPDX-License-Identifier: Apache-2.0
r"""U-Net's expanding path on VGG16, on CamVid: compare with fcn8s_camvid.py.

Data      CamVid as prepared for SegNet, 360 x 480 px: 367 frames to train on;
          the 101 of val.txt are held out.
Command   python -m segjax.main --config=configs/unet_vgg16_camvid.py:ARGUMENT \
            --config.data.dir=CAMVID --config.init.path=vgg16.npz
Weights   python -m segjax.convert --input=torchvision:vgg16 --output=vgg16.npz
          downloads torchvision's VGG16. Only its convolutions are used.

Trunk, data, crops, optimizer and steps are those of configs/fcn8s_camvid.py, so
that summed scores (FCN-8s) can be compared with concatenated features (U-Net).
The expanding path has batch normalisation, and the learning rate is ten times
as high: docs/results.md.

Arguments
  (none)  Frames and labels as they are. This needs a GPU and has not been
          trained here.
  cpu     Images and labels at half the resolution.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('', 'cpu')


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.make_unet_vgg16(recipes.camvid_config())
  if argument == 'cpu':
    config.data.scale = 2
    config.tile_size_px = 176
    config.num_train_steps = 900
    config.evaluation.every_steps = 150
    config.checkpoints.every_steps = 150
  return config
