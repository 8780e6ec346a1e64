# SPDX-License-Identifier: Apache-2.0
r"""FCN-8s on CamVid: street scenes, 11 classes, fine-tuned from VGG16.

Data      CamVid as prepared for SegNet, 360 x 480 px: 367 frames to train on;
          the 101 of val.txt are held out.
Command   python -m segjax.main --config=configs/fcn8s_camvid.py:ARGUMENT \
            --config.data.dir=CAMVID --config.init.path=vgg16.npz
Weights   python -m segjax.convert --input=torchvision:vgg16 --output=vgg16.npz
          downloads torchvision's VGG16. Only its convolutions are used; fc6 and
          fc7 start from random values. To start from the fc6 and fc7 of the
          classifier too, set config.init.initial to the score layers alone.

The recipe is ours: all skips at once, padding of each layer instead of 100 px,
crops and flips, Adam. Biases learn at twice the learning rate, as in FCN.

Arguments
  (none)  Frames and labels as they are; fc6 and fc7 have 4096 channels.
          With --config.num_train_steps=900 instead of 9,000, mean IU .707 in
          86 minutes on two cores (docs/results.md).
  cpu     Images and labels at half the resolution; fc6 and fc7 have 512
          channels. Mean IU .614 in 36 minutes on two cores
          (docs/results.md).
  crf     Continues a run of `cpu`, --config.init.path=RUN, with a CRF over its
          scores that is trained with the network (Zheng et al. 2015): mean IU
          .633 from .627, boundary IoU .492 from .470 (docs/results.md).
          `evaluate --refine` has the same CRF with fixed settings.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('', 'cpu', 'crf')


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config of one of `ARGUMENTS`."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.camvid_config()
  if argument in ('cpu', 'crf'):
    config.data.scale = 2
    config.tile_size_px = 176
    config.model.fc_features = 512
    config.num_train_steps = 900
    config.evaluation.every_steps = 150
    config.checkpoints.every_steps = 150
  if argument == 'crf':
    config.model.update(crf_iterations=5, crf_radius_px=3)
    config.model.crf_intensity_width = 0.13  # 8 of 255, standardised.
    config.num_train_steps = 150
    config.schedule.warmup_steps = 15
    config.init.initial = ('crf',)
    config.init.ignore = ()
  return config
