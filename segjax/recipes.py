# SPDX-License-Identifier: Apache-2.0
"""The training recipe of FCN as a config, with every field explained.

The cards in configs/ start from here and change a few fields. Numbers are the
authors' (their released solvers and networks; Long et al., CVPR 2015) unless a
line says "ours".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from segjax.errors import InputError

# B, G, R in 0..255, which Caffe's networks subtract.
CAFFE_MEAN = (104.00699, 116.66877, 122.67892)

BGR = (2, 1, 0)

VOC_DATA = dict(
  name='voc',
  dir='',  # VOCdevkit; '' looks in SEGJAX_DATA_DIR, ../shared/data, data.
  year=2011,
  sbd_dir='',  # The authors train on SBD, whose folder `dataset` this is.
  train_list='',  # SBD's train.txt, or without SBD that of VOC.
  heldout_list='',  # VOC's val.txt less what is trained on;
  # with SBD, and only then, that is seg11valid.
)
PASCAL_CONTEXT_DATA = dict(
  name='pascal_context',
  dir='',  # VOCdevkit, with VOC2010.
  context_dir='',  # labels.txt, the file below, and trainval/*.mat.
  classes_file='59_labels.txt',
  train_list='',  # VOC 2010's train.txt
  heldout_list='',  # and val.txt.
)
SIFT_FLOW_DATA = dict(
  name='sift_flow',
  dir='',
  train_lists=('trainval.txt',),
  heldout_lists=('test.txt',),
)
NUM_SBD_EXAMPLES = 8498
VOC_CLASSES = 21

# Passes over the data that the results of the CVPR paper took at least.
_LIGHT_PASSES = 175
_LIGHT_BATCH = 20


def check_argument(argument: str, arguments: Sequence[str]) -> None:
  """Raises InputError for a config argument that a card hasn't; '' is none."""
  if argument not in arguments:
    known = [name for name in arguments if name]
    raise InputError(
      f'config argument {argument!r} is not one of {known}'
      + (' or none' if '' in arguments else '')
    )


def caffe_preprocessing(
  mean: Sequence[float] = CAFFE_MEAN, channels: Sequence[int] = BGR
) -> dict[str, Any]:
  """Returns what gives 0..255 minus `mean` of pixels in [0, 1].

  Args:
    mean: of each channel of the result, in 0..255.
    channels: which of the image's channels; see `data.standardise`.
  """
  return dict(
    mean=tuple(value / 255 for value in mean),
    std=(1 / 255,) * len(mean),
    channels=tuple(channels),
  )


def fcn_config(
  model_name: str,
  data: Mapping[str, Any],
  num_classes: int,
  learning_rate: float,
  num_train_steps: int = 100_000,
) -> ml_collections.ConfigDict:
  """Returns the authors' recipe, "heavy learning": one image at a time.

  Momentum .99 on the sum of an image's pixel losses, images drawn with
  replacement at their own size, no augmentation, a constant rate.

  Args:
    model_name: one of `models.MODELS`.
    data: `config.data`.
    num_classes: K, of all heads.
    learning_rate: of the sum of the losses.
    num_train_steps: images seen.
  """
  config = ml_collections.ConfigDict()
  config.seed = 0  # Of initial values, order and dropout.
  config.parallel = 'jit'  # Or 'pmap'.
  # Devices that share each image, by rows, where it is too large for one.
  config.mesh = dict(space=1)
  config.num_train_steps = num_train_steps
  config.batch_size = 1  # Over all devices.
  config.accumulate_steps = 1  # Parts of a batch, one after another.
  config.tile_size_px = 0  # Whole images; or the side of random crops.
  config.loss_reduction = 'sum'  # Over pixels; see losses.reduce_image.
  config.log_every_steps = 20
  config.profile_steps = (0, 0)  # First and last of a trace; (0, 0) is none.
  config.compilation_cache = True  # Of programs, in ~/.cache/segjax.

  config.model = dict(
    name=model_name,
    num_classes=num_classes,
    in_channels=3,
    padding='pad100',  # As the published weights need; or 'same'.
    learned=(),  # Deconvolutions that are learned; others stay bilinear.
    width=1.0,  # Times the channels of the trunk.
    fc_features=placeholder(int),  # Of fc6 and fc7; None is 4096.
    dropout_rate=placeholder(float),  # None is the classifier's.
    dtype='float32',  # Or 'bfloat16'.
    remat=False,  # True computes blocks again for the gradient: less memory.
    heads=(),  # (name, classes) of each head, if there are several.
    first_conv='',  # Name of the first convolution, if not the trunk's.
    streams=(),  # Suffixes of trunks whose scores are averaged.
  )
  config.data = dict(data)
  config.batching = dict(
    order='with_replacement',  # Or 'shuffled'.
    # Images are padded to multiples of this, so that fewer programs are
    # compiled. It changes logits by rounding alone. 0 compiles one a size.
    bucket_px=128,
  )
  config.preprocessing = caffe_preprocessing()
  config.init = dict(
    path='',  # An .npz of segjax.convert, a workdir, or 'random'.
    initial=('score_fr',),  # Layers that it doesn't give; these start at 0.
    ignore=('fc8',),  # Layers that it may have and the network hasn't.
  )
  config.augmentation = dict(  # Of random crops only.
    elastic_sigma_px=0.0,
    elastic_grid=3,
    rotation_deg=0.0,
    flip=False,
    shift_px=0.0,
    black=0.0,
    white=0.0,
    log_gamma=0.0,
  )
  config.optimizer = dict(
    name='sgd',
    momentum=0.99,
    weight_decay=5e-4,
    clip_norm=0.0,  # Of the whole gradient; 0 doesn't clip.
    bias_rate=2.0,  # Times the learning rate,
    bias_decay=False,  # and no decay,
    bias_layers=('',),  # for the biases of all layers.
  )
  config.schedule = dict(
    name='constant', learning_rate=learning_rate, warmup_steps=0
  )

  config.prediction = dict(
    bucket_px=128,  # As in batching.
    # Of large images, by tiles: MiB that these may take of a device; 0 for the
    # largest of 1536 px.
    tile_memory_mib=0,
  )
  config.evaluation = dict(
    every_steps=4000,
    average=False,  # Over turns and flips, at the end.
    best_metric='mean_iu',  # Ranks checkpoints.
    present_only=False,  # Whether classes without labels are left out.
    num_pictures=8,
  )
  config.checkpoints = dict(
    every_steps=1000, keep=dict(keep_last=2, keep_best=1)
  )
  return config


def start_from_coarser(
  config: ml_collections.ConfigDict, skip: str
) -> ml_collections.ConfigDict:
  """Returns the config of a finer net that starts from a coarser one's run.

  Args:
    config: changed in place.
    skip: 'pool4' for FCN-16s from 32s, 'pool3' for 8s from 16s; its score
      layers are new, and zero.
  """
  suffixes = [f'_{name}' for name, _ in config.model.heads] or ['']
  config.init.initial = tuple(f'score_{skip}{suffix}' for suffix in suffixes)
  config.init.ignore = ()
  return config


def make_light(
  config: ml_collections.ConfigDict,
  learning_rate: float,
  num_examples: int,
  learned: Sequence[str] = (),
) -> ml_collections.ConfigDict:
  """Returns the form of the CVPR paper: 20 images a step, mean loss.

  Args:
    config: changed in place.
    learning_rate: of the mean loss.
    num_examples: to train on, for the number of steps.
    learned: the deconvolutions that are learned, all but the last; the net
      that training starts from lacks the finest of them.
  """
  config.batch_size = _LIGHT_BATCH
  config.loss_reduction = 'mean'
  config.num_train_steps = num_examples * _LIGHT_PASSES // _LIGHT_BATCH
  config.optimizer.momentum = 0.9
  config.schedule.learning_rate = learning_rate
  config.batching.order = 'shuffled'  # Ours.
  config.model.learned = tuple(learned)
  config.init.initial += tuple(learned[-1:])
  return config


def make_modern(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns a recipe of our own, to fine-tune FCN-8s on few images.

  All skips at once, whole images in buckets, every layer padded by what it
  takes off, Adam with a cosine of 1e-4 on the mean loss; biases at twice the
  rate, as the authors'. `config` is changed in place.
  """
  config.loss_reduction = 'mean'
  config.model.padding = 'same'
  config.batching = dict(order='shuffled', bucket_px=64)
  config.prediction.bucket_px = 64
  config.init.initial = ('score_fr', 'score_pool4', 'score_pool3')
  config.optimizer.update(dict(name='adamw', momentum=0.9, weight_decay=1e-4))
  config.schedule = dict(name='cosine', learning_rate=1e-4, warmup_steps=100)
  config.evaluation.every_steps = 500
  config.checkpoints.every_steps = 500
  return config
