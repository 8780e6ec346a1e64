# SPDX-License-Identifier: Apache-2.0
r"""FCN-8s on a set of the tensorflow-datasets catalogue: Oxford-IIIT Pet.

Data      The set as tensorflow-datasets prepares it, in array_record files; see
          segjax/data/tfds.py. Its labels are 1 pet, 2 background, 3 border. To
          train on another set with an image and a segmentation mask, change
          config.data.
Command   python -m segjax.main --config=configs/fcn8s_tfds.py \
            --config.data.dir=DATA_DIR --config.init.path=vgg16.npz
Weights   python -m segjax.convert --input=VGG_ILSVRC_16_layers.caffemodel \
            --model=vgg16 --output=vgg16.npz
          makes vgg16.npz from Caffe's VGG16. For other weights, set
          config.preprocessing to what they were trained with.

The recipe is ours, that of fcn8s_folder. It has not been trained here.
"""

import ml_collections

from segjax import recipes

CLASS_NAMES = ('pet', 'background', 'border')


def get_config() -> ml_collections.ConfigDict:
  """Returns the config."""
  config = recipes.fcn_config(
    'fcn8s',
    dict(
      name='tfds',
      dir='',  # The data_dir of tensorflow-datasets.
      set='oxford_iiit_pet',  # NAME, NAME/CONFIG or NAME:VERSION.
      train_split='train',
      heldout_split='test[:10%]',
      image_key='image',
      label_key='segmentation_mask',
      class_names=CLASS_NAMES,  # () takes those that segjax.prepare stored.
      ignore_value=-1,  # A stored value; -1 ignores 255 alone.
      label_shift=-1,  # Added to what is stored: 1, 2, 3 become 0, 1, 2.
    ),
    num_classes=len(CLASS_NAMES),
    learning_rate=1e-4,
    num_train_steps=4000,
  )
  return recipes.make_modern(config)
