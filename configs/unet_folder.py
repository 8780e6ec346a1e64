# SPDX-License-Identifier: Apache-2.0
r"""U-Net on your own images: two folders, one of images, one of label images.

Data      DIR/images and DIR/labels, matched by name: PNG, TIFF, .npy, JPEG (not
          for labels), of any sizes, gray or of several channels; pages of a
          stack are images of their own. Labels are class indices, 255 ignored;
          or other values, listed in config.data.label_values, (0, 255) for
          black and white masks; or colours, listed in config.data.colours; or
          numbers of objects, with config.data.label_kind='instances'.
Command   python -m segjax.plan --images=DIR/images --labels=DIR/labels \
            --network=unet --output=mine.py
          reads your images and writes a card for them. By hand:
          cp configs/unet_folder.py configs/mine.py
          copies this card. Name your classes in the copy, CLASS_NAMES, and say
          how many channels your images have, IN_CHANNELS, then:
          python -m segjax.main --config=configs/mine.py --config.data.dir=DIR

Arguments
  (none)  The paper's network, width 64, with Adam. This needs a GPU.
  cpu     A network a quarter as wide, for two cores.

The recipe is that of configs/unet_isbi.py, with batch normalisation, and with
each image by its mean and standard deviation. One fifth of the images, drawn at
random, is held out.
"""

import ml_collections

from segjax import recipes

ARGUMENTS = ('', 'cpu')

CLASS_NAMES = ('background', 'object')
IN_CHANNELS = 1


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `recipes.FOLDER_DATA` explains the fields of data."""
  recipes.check_argument(argument, ARGUMENTS)
  config = recipes.unet_folder_config(CLASS_NAMES, IN_CHANNELS)
  config.data.w0 = 10.0  # Border weights between objects.
  if argument == 'cpu':
    recipes.make_narrow(config)
  return config
