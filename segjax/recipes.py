# SPDX-License-Identifier: Apache-2.0
"""Training recipes of FCN and U-Net as configs, with every field explained.

Each card in configs/ starts from `fcn_config` or `unet_config` and changes a
few fields. The numbers of FCN are those of the authors (their released solvers
and networks; Long et al., CVPR 2015), the numbers of U-Net those of the paper
(Ronneberger et al., MICCAI 2015), unless a comment says "ours".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from segjax.errors import InputError

# Mean of B, G and R in 0..255, which Caffe's networks subtract.
CAFFE_MEAN = (104.00699, 116.66877, 122.67892)

BGR = (2, 1, 0)

VOC_DATA = dict(
  name='voc',
  # Folder VOCdevkit; '' looks in SEGJAX_DATA_DIR, ../shared/data, data.
  dir='',
  year=2011,
  sbd_dir='',  # SBD's folder `dataset`; the authors train on SBD.
  train_list='',  # '' takes SBD's train.txt, or VOC's if there is no SBD.
  # '' takes VOC's val.txt without the images that are trained on; with SBD that
  # is seg11valid.
  heldout_list='',
)
PASCAL_CONTEXT_DATA = dict(
  name='pascal_context',
  dir='',  # Folder VOCdevkit, which holds VOC2010.
  context_dir='',  # Folder of labels.txt, of `classes_file` and of trainval/.
  classes_file='59_labels.txt',
  train_list='',  # '' takes VOC 2010's train.txt.
  heldout_list='',  # '' takes VOC 2010's val.txt.
)
SIFT_FLOW_DATA = dict(
  name='sift_flow',
  dir='',  # Folder of the data; '' looks as for VOC.
  train_lists=('trainval.txt',),
  heldout_lists=('test.txt',),
)
FOLDER_DATA = dict(
  name='folder',
  dir='',  # The folder that all the others are in.
  images='images',  # A folder, or a pattern such as '*/images/*'.
  labels='labels',
  # Regular expression whose first group is the part that the names of an image
  # and its label have in common; '' takes the file name without its ending.
  match='',
  # Regular expression whose first group names images that are held out
  # together, such as those of a patient.
  group='',
  label_kind='classes',  # Or 'instances', for labels that number objects.
  colours=(),  # (red, green, blue) of each class, or () for indices.
  # Value of each class, such as (0, 255) for black and white masks, or () for
  # 0, 1, ... A value in this table is not ignored.
  label_values=(),
  ignore_value=(255,),  # An index, or a colour, or () for none.
  train_list='',  # Files with a name on each line; '' draws at random.
  heldout_list='',
  heldout_fraction=0.2,
  seed=0,
  w0=0.0,  # Height of the border weights; 0 is none.
  sigma_px=5.0,  # Width of the border weights.
  balance=False,  # Whether all classes weigh the same in total.
)
NUM_SBD_EXAMPLES = 8498
VOC_CLASSES = 21

# The results of the CVPR paper took at least 175 passes over the data, in
# batches of 20 images.
_LIGHT_PASSES = 175
_LIGHT_BATCH = 20


def check_argument(argument: str, arguments: Sequence[str]) -> None:
  """Raises InputError if a card does not have this argument; '' is none."""
  if argument not in arguments:
    known = [name for name in arguments if name]
    raise InputError(
      f'config argument {argument!r} is not one of {known}'
      + (' or none' if '' in arguments else '')
    )


def caffe_preprocessing(
  mean: Sequence[float] = CAFFE_MEAN, channels: Sequence[int] = BGR
) -> dict[str, Any]:
  """Returns a `config.preprocessing` that subtracts a mean from 0..255.

  Args:
    mean: mean of each channel of the result, in 0..255.
    channels: see `preprocessing.standardise`.
  """
  return preprocessing(
    mean=tuple(value / 255 for value in mean),
    std=(1 / 255,) * len(mean),
    channels=tuple(channels),
  )


def preprocessing(
  mean: float | Sequence[float] = 0.0,
  std: float | Sequence[float] = 1.0,
  channels: Sequence[int] = (),
  limits: Sequence = (),
  per_image: bool = False,
) -> dict[str, Any]:
  """Returns a `config.preprocessing`.

  Args:
    mean, std, channels: see `preprocessing.standardise`.
    limits: see `preprocessing.to_unit_range`.
    per_image: see `settings.sections.PreprocessingSettings`.
  """
  return dict(
    mean=mean,  # Of the pixels in the unit range.
    std=std,
    channels=tuple(channels),  # Indices, in the network's order; () for all.
    # The pixel values that become 0 and 1, as shares of the integers' range, or
    # in deviations with `per_image`; () takes the whole range.
    limits=tuple(limits),
    dtype='',  # Type of the images that `limits` fit; '' takes any.
    # Those of 'limits', 'mean' and 'std' that a run measures on its training
    # images.
    measured=(),
    per_image=per_image,  # Whether each image is standardised by itself first.
  )


def _start_config(num_train_steps: int) -> ml_collections.ConfigDict:
  """Returns a config with the fields that are the same for every network."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # Seeds initial values, order, augmentation and dropout.
  config.parallel = 'jit'  # Or 'pmap'.
  # Devices that share each image, by rows, for images that are too large for
  # one device. All such groups of devices share a batch.
  config.mesh = dict(space=1)
  config.num_train_steps = num_train_steps
  config.batch_size = 1  # Examples a step, over all devices.
  # Or 'dice_cross_entropy', which adds the soft Dice loss of each image. Pixel
  # weights apply to the cross-entropy alone.
  config.loss = 'cross_entropy'
  config.accumulate_steps = 1  # Parts of a batch, computed one after another.
  config.profile_steps = (0, 0)  # First and last step to trace; (0, 0): none.
  config.compilation_cache = True  # Keeps programs in ~/.cache/segjax.
  return config


def _sgd(weight_decay: float, bias_rate: float) -> dict[str, Any]:
  return dict(
    name='sgd',  # Or 'adamw', whose b1 is the momentum.
    momentum=0.99,
    weight_decay=weight_decay,
    clip_norm=0.0,  # Bound on the norm of the whole gradient; 0: no clipping.
    bias_rate=bias_rate,  # Factor of the learning rate of biases.
    bias_decay=False,  # Whether the weight decay applies to biases.
    # Both apply to the biases of layers whose names begin with one of these
    # texts; with '' these are all layers.
    bias_layers=('',),
  )


def _constant(learning_rate: float, warmup_steps: int) -> dict[str, Any]:
  return dict(
    name='constant',  # Or 'cosine', which ends at 0.
    learning_rate=learning_rate,
    warmup_steps=warmup_steps,
  )


def _fine_tune_by_adam(config: ml_collections.ConfigDict) -> None:
  """Sets the recipe of our own by which FCN-8s learns from few images.

  All layers are padded by what they take off and trained at once. Adam
  minimises the mean loss, with a cosine schedule that starts at 1e-4; biases
  learn at twice the rate, as in the authors' recipe.
  """
  config.loss_reduction = 'mean'
  config.model.padding = 'same'
  config.init.initial = ('score_fr', 'score_pool4', 'score_pool3')
  config.optimizer.update(dict(name='adamw', momentum=0.9, weight_decay=1e-4))
  config.schedule = dict(name='cosine', learning_rate=1e-4, warmup_steps=100)


def _evaluation(
  every_steps: int, average: bool, best_metric: str, num_pictures: int
) -> dict[str, Any]:
  return dict(
    every_steps=every_steps,
    average=average,  # Whether the final scores average eight turns and flips.
    best_metric=best_metric,  # Ranks the checkpoints.
    present_only=False,  # Whether mean IU leaves out classes without labels.
    num_pictures=num_pictures,
  )


def _checkpoints(every_steps: int) -> dict[str, Any]:
  return dict(every_steps=every_steps, keep=dict(keep_last=2, keep_best=1))


def fcn_config(
  model_name: str,
  data: Mapping[str, Any],
  num_classes: int,
  learning_rate: float,
  num_train_steps: int = 100_000,
) -> ml_collections.ConfigDict:
  """Returns the authors' recipe for FCN, "heavy learning": one image a step.

  SGD with momentum .99 minimises the sum of an image's pixel losses, at a
  constant learning rate. Images are drawn with replacement, keep their own size
  and are not augmented.

  Args:
    model_name: key of `models.FCNS`.
    data: section `config.data`.
    num_classes: K, the number of classes of all heads together.
    learning_rate: learning rate for the sum of the pixel losses.
    num_train_steps: number of steps, which is the number of images seen.
  """
  config = _start_config(num_train_steps)
  config.tile_size_px = 0  # Side of random crops; 0 trains on whole images.
  config.loss_reduction = 'sum'  # Over pixels; see losses.reduce_image.
  config.log_every_steps = 20

  config.model = dict(
    name=model_name,
    num_classes=num_classes,
    in_channels=3,
    padding='pad100',  # The published weights need it. Or 'same'.
    learned=(),  # Names of learned deconvolutions; others stay bilinear.
    width=1.0,  # Multiplies the channels of the trunk.
    fc_features=placeholder(int),  # Channels of fc6 and fc7; None: 4096.
    dropout_rate=placeholder(float),  # None: the rate of the classifier.
    dtype='float32',  # Or 'bfloat16'.
    # Precision of float32 on GPUs and TPUs: 'default' is fast, 'highest' exact.
    precision='highest',
    remat=False,  # True recomputes blocks for the gradient: less memory.
    heads=(),  # (name, number of classes) of each head; () is one head.
    first_conv='',  # Name of the first convolution; '' keeps the trunk's.
    streams=(),  # Suffixes of the trunks whose scores are averaged.
  )
  config.data = dict(data)
  config.batching = dict(
    order='with_replacement',  # Or 'shuffled'.
    # Sides of images are padded to multiples of this number, so that fewer
    # programs are compiled; logits change only by rounding. 0 compiles a
    # program for every size.
    bucket_px=128,
  )
  config.preprocessing = caffe_preprocessing()
  config.init = dict(
    path='',  # A file of parameters, a workdir, or 'random', to start from.
    initial=('score_fr',),  # Layers that `path` lacks; score layers start at 0.
    ignore=('fc8',),  # Layers that `path` may have and the network lacks.
  )
  # Only random crops are augmented; `unet_config` explains the fields.
  config.augmentation = dict(
    elastic_sigma_px=0.0,
    elastic_grid=3,
    rotation_deg=0.0,
    flip=False,
    shift_px=0.0,
    black=0.0,
    white=0.0,
    log_gamma=0.0,
  )
  config.optimizer = _sgd(weight_decay=5e-4, bias_rate=2.0)
  config.schedule = _constant(learning_rate, warmup_steps=0)

  config.prediction = dict(
    bucket_px=128,  # As in `batching`.
    # MiB of a device that the tiles of large images may take; 0 makes tiles of
    # at most 1536 px instead.
    tile_memory_mib=0,
  )
  config.evaluation = _evaluation(
    every_steps=4000, average=False, best_metric='mean_iu', num_pictures=8
  )
  config.checkpoints = _checkpoints(every_steps=1000)
  return config


def start_from_coarser(
  config: ml_collections.ConfigDict, skip: str
) -> ml_collections.ConfigDict:
  """Returns the config of a finer net that starts from a coarser one's run.

  Args:
    config: config of the finer net, changed in place.
    skip: 'pool4' for FCN-16s from 32s, 'pool3' for 8s from 16s. The score
      layers of this skip are new and start at 0.
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
  """Returns the recipe of the CVPR paper: 20 images a step, mean loss.

  Args:
    config: config of `fcn_config`, changed in place.
    learning_rate: learning rate for the mean of the pixel losses.
    num_examples: number of training images, which gives the number of steps.
    learned: names of the learned deconvolutions, all but the last. The net
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
  """Returns a recipe of our own, to fine-tune FCN-8s on few whole images.

  See `_fine_tune_by_adam`.

  Args:
    config: config of `fcn_config`, changed in place.
  """
  _fine_tune_by_adam(config)
  config.batching = dict(order='shuffled', bucket_px=64)
  config.prediction.bucket_px = 64
  config.evaluation.every_steps = 500
  config.checkpoints.every_steps = 500
  return config


def camvid_config() -> ml_collections.ConfigDict:
  """Returns a recipe of our own for CamVid, from VGG16's convolutions.

  Training takes random crops; see `_fine_tune_by_adam`.
  """
  config = fcn_config(
    'fcn8s',
    dict(name='camvid', dir='', heldout='val', scale=1),
    num_classes=11,
    learning_rate=1e-4,
    num_train_steps=9000,
  )
  _fine_tune_by_adam(config)
  config.model.fc_features = 4096
  config.preprocessing = preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
  )
  config.init.initial = ('fc6', 'fc7', *config.init.initial)
  _train_on_crops(config)
  config.evaluation.every_steps = 900
  config.checkpoints.every_steps = 900
  return config


def _train_on_crops(config: ml_collections.ConfigDict) -> None:
  config.batch_size = 4
  config.tile_size_px = 352
  config.batching = dict(order='shuffled', bucket_px=0)
  config.augmentation.update(
    dict(flip=True, shift_px=16.0, black=0.1, white=0.1, log_gamma=0.2)
  )


def make_unet_vgg16(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns the config with U-Net's expanding path on the same trunk.

  The expanding path starts from random parameters, so it has batch
  normalisation, and the learning rate is ten times that of the FCN:
  docs/results.md. All other settings stay, so that the two networks can be
  compared. If training takes whole images, it takes the crops of
  `camvid_config` instead.

  Args:
    config: config of an FCN on VGG16 that starts from the convolutions of a
      classifier, changed in place.
  """
  config.model = dict(
    name='unet_vgg16',
    num_classes=config.model.num_classes,
    in_channels=config.model.in_channels,
    width=1.0,  # Multiplies the channels; only 1 fits published weights.
    padding='SAME',  # As VGG16 has it. Or 'VALID'.
    dropout_rate=0.5,  # Dropout rate after the bottleneck.
    norm='batch',  # Norm of the expanding blocks; or 'none'.
    dtype='float32',  # Or 'bfloat16'.
    # Precision of float32 on GPUs and TPUs: 'default' is fast, 'highest' exact.
    precision=config.model.precision,
  )
  config.schedule.learning_rate *= 10
  config.frozen_norm_share = 0.0  # See `unet_config`.
  config.init.initial = ('up3', 'up2', 'up1', 'up0', 'head')
  config.init.ignore = ('fc6', 'fc7', 'fc8')
  if not config.tile_size_px:
    _train_on_crops(config)
  config.prediction = _unet_prediction()
  return config


def _unet_prediction() -> dict[str, Any]:
  return dict(
    max_tile_size_px=1024,  # Largest side of an input tile.
    # MiB of a device that the tiles may take; 0 takes max_tile_size_px instead.
    tile_memory_mib=0,
    tiles_per_batch=1,  # Tiles that each device computes at once.
  )


def unet_config(
  data: Mapping[str, Any], mean: float, std: float, best_metric: str
) -> ml_collections.ConfigDict:
  """Returns the recipe of U-Net's paper, for gray images of two classes.

  Each step takes one large tile. It has SGD with momentum .99, a weighted loss,
  elastic deformation and dropout. The paper does not state the learning rate,
  the schedule and the number of steps: those here are ours. So are flips, the
  ranges of rotations, shifts and gray values, and the final average over eight
  turns and flips (test-time augmentation; the paper averages seven rotations).

  Args:
    data: section `config.data`.
    mean: mean of the gray values, in [0, 1], which is subtracted.
    std: standard deviation of the gray values, by which they are divided.
    best_metric: name of the held-out score that ranks the checkpoints.
  """
  config = _start_config(num_train_steps=40_000)
  config.tile_size_px = 572  # Side of the input tile; 388 px come out.
  # Over pixels; border weights are used as they are. Or 'sum'.
  config.loss_reduction = 'mean'
  config.log_every_steps = 50

  config.model = dict(
    name='unet',  # Or 'unet_2015', the form that the authors released.
    num_classes=2,
    in_channels=1,
    depth=4,  # Number of poolings.
    base_width=64,  # Channels at the top; each pooling doubles them.
    convs_per_block=2,
    padding='VALID',  # Or 'SAME', with a tile_size_px of 576.
    dropout_rate=0.5,
    dropout_blocks=(-2, -1),  # The last two blocks of the contracting path.
    norm='none',  # Or 'batch': batch normalisation before each ReLU.
    dtype='float32',  # Or 'bfloat16'.
    # Precision of float32 on GPUs and TPUs: 'default' is fast, 'highest' exact.
    precision='default',
    remat=False,  # True recomputes blocks for the gradient: less memory.
  )
  config.data = dict(data)
  config.batching = dict(
    order='shuffled',  # Or 'with_replacement'.
    bucket_px=0,  # 0 pads nothing, for tiles have one size.
  )
  config.preprocessing = preprocessing(mean, std)
  config.init = dict(
    path='random',  # Or a file of parameters, or a workdir, to start from.
    initial=(),  # Layers that `path` lacks; they keep their initial value.
    ignore=(),  # Layers that `path` may have and the network lacks.
  )
  config.augmentation = dict(
    elastic_sigma_px=10.0,  # Standard deviation of the nodes' displacements.
    elastic_grid=3,  # Nodes along each side of the tile: 3 x 3.
    rotation_deg=180.0,  # The angle is uniform in +- this.
    flip=True,
    # Pixels by which the output of a tile may leave the image.
    shift_px=16.0,
    # The levels of black and of white move up or down, by at most this share of
    # the range of gray values.
    black=0.1,
    white=0.1,
    log_gamma=0.3,  # The logarithm of the exponent is uniform in +- this.
  )
  config.optimizer = _sgd(weight_decay=0.0, bias_rate=1.0)
  config.schedule = _constant(learning_rate=1e-3, warmup_steps=100)
  # Share of the steps, the last ones, in which norms are frozen: they keep to
  # the running means, as in prediction. Without a norm nothing is.
  config.frozen_norm_share = 0.0

  config.prediction = _unet_prediction()
  config.evaluation = _evaluation(
    every_steps=1000, average=True, best_metric=best_metric, num_pictures=6
  )
  config.checkpoints = _checkpoints(every_steps=500)
  return config


def make_fast(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a recipe of our own: Adam, cosine schedule, a quarter of the steps.

  Adam beat SGD in short runs of a narrow network on ISBI 2012; see
  docs/results.md.

  Args:
    config: config of `unet_config`, changed in place.
  """
  config.optimizer.name = 'adamw'
  config.optimizer.momentum = 0.9
  config.schedule = dict(name='cosine', learning_rate=5e-4, warmup_steps=20)
  config.num_train_steps = 10_000
  return config


def make_narrow(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a recipe that takes half an hour on two cores.

  The network has a quarter of the width.

  Args:
    config: config of `make_fast`, changed in place.
  """
  config.model.base_width = 16
  config.schedule.learning_rate = 2e-3
  config.num_train_steps = 2200
  config.evaluation.every_steps = 550
  config.checkpoints.every_steps = 275
  return config


def make_normalised(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns a recipe that learns in far fewer steps.

  The network has batch normalisation. The mean of each image is subtracted from
  it, and it is divided by its standard deviation, since brightness and contrast
  of images may differ. docs/results.md has what both gave, and where not.

  Args:
    config: config of `unet_config`, changed in place.
  """
  config.model.norm = 'batch'
  # Most pixels are within two deviations, in [0, 1], where gray values vary.
  config.preprocessing = preprocessing(
    mean=(0.5,), std=(0.25,), limits=(-2.0, 2.0), per_image=True
  )
  return config


def unet_folder_config(
  class_names: Sequence[str], in_channels: int = 1
) -> ml_collections.ConfigDict:
  """Returns `make_fast` of `unet_config` for a folder of images and labels.

  It is that of `make_normalised`, too. All classes weigh the same in total.

  Args:
    class_names: names of classes 0..K-1; class 0 is the background.
    in_channels: channels of the images.
  """
  config = unet_config(
    FOLDER_DATA | dict(class_names=tuple(class_names), balance=True),
    mean=0.0,
    std=1.0,
    best_metric='mean_iu',
  )
  make_normalised(make_fast(config))
  config.model.num_classes = len(class_names)
  config.model.in_channels = in_channels
  config.evaluation.present_only = True
  return config


def fcn_folder_config(class_names: Sequence[str]) -> ml_collections.ConfigDict:
  """Returns `make_modern` of FCN-8s for a folder of images and labels.

  Args:
    class_names: names of classes 0..K-1.
  """
  config = make_modern(
    fcn_config(
      'fcn8s',
      FOLDER_DATA | dict(class_names=tuple(class_names)),
      num_classes=len(class_names),
      learning_rate=1e-4,
      num_train_steps=4000,
    )
  )
  config.evaluation.present_only = True
  return config
