# SPDX-License-Identifier: Apache-2.0
r"""FCN-8s on your own images: two folders, one of images, one of label images.

Data      DIR/images and DIR/labels, matched by name: PNG, JPEG or TIFF, of any
          sizes. Labels are class indices (gray or palette PNG), 255 ignored; or
          other values, listed in config.data.label_values; or colours, listed
          in config.data.colours.
Command   python -m segjax.plan --images=DIR/images --labels=DIR/labels \
            --network=fcn8s --init=keras:vgg16 --output=mine.py
          reads your images and writes a card for them. By hand:
          cp configs/fcn8s_folder.py configs/mine.py
          copies this card. Name your classes in the copy, CLASS_NAMES, then:
          python -m segjax.main --config=configs/mine.py \
            --config.data.dir=DIR --config.init.path=vgg16.npz
Weights   python -m segjax.convert --input=keras:vgg16 --output=vgg16.npz
          downloads Keras's VGG16, which is Caffe's. For other weights, set
          config.preprocessing to what they were trained with.

The recipe is ours: all skips at once, whole images, Adam. One fifth of the
images, drawn at random, is held out.
"""

import ml_collections

from segjax import recipes

CLASS_NAMES = ('background', 'object')


def get_config() -> ml_collections.ConfigDict:
  """Returns the config; `recipes.FOLDER_DATA` explains the fields of data."""
  return recipes.fcn_folder_config(CLASS_NAMES)
