# SPDX-License-Identifier: Apache-2.0
r"""U-Net on VGG16, on your own colour images: two folders, images and labels.

Data      DIR/images and DIR/labels, matched by name: PNG, JPEG (not for labels)
          or TIFF, of any sizes. Labels are class indices (gray or palette PNG),
          255 ignored; or other values, listed in config.data.label_values; or
          colours, listed in config.data.colours.
Command   cp configs/unet_vgg16_folder.py configs/mine.py
          copies this card. Name your classes in the copy, CLASS_NAMES, then:
          python -m segjax.main --config=configs/mine.py \
            --config.data.dir=DIR --config.init.path=vgg16.npz
Weights   python -m segjax.convert --input=keras:vgg16 --output=vgg16.npz
          downloads Keras's VGG16, which is Caffe's. For other weights, set
          config.preprocessing to what they were trained with. If your images
          have not three channels, give convert --in_channels, and set
          config.model.in_channels, config.preprocessing.channels=(), and its
          mean and std, with a number for each channel.

The contracting path starts from the convolutions of an image classifier, which
helps where labels are few. The recipe is ours: crops and flips, Adam. One fifth
of the images, drawn at random, is held out.
"""

import ml_collections

from segjax import recipes

CLASS_NAMES = ('background', 'object')


def get_config() -> ml_collections.ConfigDict:
  """Returns the config; `recipes.FOLDER_DATA` explains the fields of data."""
  return recipes.make_unet_vgg16(recipes.fcn_folder_config(CLASS_NAMES))
