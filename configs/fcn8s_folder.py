# SPDX-License-Identifier: Apache-2.0
r"""FCN-8s on your own images: two folders, one of images, one of label images.

Data      DIR/images and DIR/labels, matched by name: PNG, JPEG or TIFF, of any
          sizes. Labels are class indices (gray or palette PNG), 255 ignored; or
          other values, listed in config.data.label_values; or colours, listed
          in config.data.colours.
Command   cp configs/fcn8s_folder.py configs/mine.py
          copies this card. Name your classes in the copy, CLASS_NAMES, then:
          python -m segjax.main --config=configs/mine.py \
            --config.data.dir=DIR --config.init.path=vgg16.npz
Weights   python -m segjax.convert --input=VGG_ILSVRC_16_layers.caffemodel \
            --model=vgg16 --output=vgg16.npz
          makes vgg16.npz from Caffe's VGG16. For other weights, set
          config.preprocessing to what they were trained with.

The recipe is ours: all skips at once, whole images, Adam. One fifth of the
images, drawn at random, is held out.
"""

import ml_collections

from segjax import recipes

CLASS_NAMES = ('background', 'object')


def get_config() -> ml_collections.ConfigDict:
  """Returns the config."""
  config = recipes.fcn_config(
    'fcn8s',
    dict(
      name='folder',
      dir='',
      images='images',
      labels='labels',
      class_names=CLASS_NAMES,
      colours=(),  # (red, green, blue) of each class, or () for indices.
      # Value of each class, or () for 0, 1, ...: (0, 255) for black and white
      # masks. These are classes even if ignore_value is one of them.
      label_values=(),
      ignore_value=(255,),  # An index, or a colour, or () for none.
      train_list='',  # Files with a name on each line; '' draws at random.
      heldout_list='',
      heldout_fraction=0.2,
      seed=0,
    ),
    num_classes=len(CLASS_NAMES),
    learning_rate=1e-4,
    num_train_steps=4000,
  )
  return recipes.make_modern(config)
