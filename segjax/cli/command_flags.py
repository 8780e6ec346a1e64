# SPDX-License-Identifier: Apache-2.0
"""The commands of segjax and their flags.

A command is a module with a function `main`. Its flags are defined here, where
nothing imports jax, so that help and wrong flags are shown at once.
`command_line.run` imports the module afterwards.
"""

from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from segjax.cli import network_flags
from segjax.errors import InputError
from segjax.prediction.outputs import DTYPES, KINDS
from segjax.weights import published

FORMATS = ('artifact', 'onnx', 'hub', 'bioimageio')
SPLITS = ('heldout', 'train', 'all')


class Command(NamedTuple):
  """A command and its flags.

  Attributes:
    module: name of the module in segjax whose `main` runs the command.
    summary: description in one sentence.
    example: flags of a typical call.
    required: names of the flags that must be given; `example` has them.
    define_flags: () -> None; defines the flags.
    check_flags: () -> None; raises InputError for values that do not go
      together.
  """

  module: str
  summary: str
  example: str
  required: tuple[str, ...]
  define_flags: Callable[[], None]
  check_flags: Callable[[], None] = lambda: None


def _define_train() -> None:
  network_flags.define_config('Config of the experiment.')
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder for checkpoints, metrics and pictures. A run that was interrupted '
    'in it is resumed. By default it is a folder in runs/ named after the '
    'config and its argument.',
  )
  flags.DEFINE_bool(
    'dry_run',
    False,
    'Print the parameters, FLOPs and memory of a training step, and the '
    'largest tile or batch that fits, instead of training. This reads no data '
    'and writes nothing.',
  )


def _define_tta() -> None:
  flags.DEFINE_bool(
    'tta',
    None,
    'Test-time augmentation: average predictions over the eight turns and '
    'flips of an image. By default evaluation.average of the config decides.',
  )


def _define_refine() -> None:
  flags.DEFINE_bool(
    'refine',
    None,
    'Refine predictions by a CRF (conditional random field), so that '
    'neighbours that look alike tend to get one class. The section refinement '
    'of the config has the settings, and by default decides whether to refine.',
  )


def _define_evaluate() -> None:
  network_flags.define_flags()
  flags.DEFINE_enum(
    'split',
    'heldout',
    SPLITS,
    'Examples to score: those held out, those trained on, or all.',
  )
  flags.DEFINE_string(
    'data_dir',
    None,
    'Folder of the data, if it has moved since the run. By default it is '
    'data.dir of the config.',
  )
  flags.DEFINE_string(
    'images',
    None,
    'Folder of other images to score, or a pattern of their paths, instead of '
    'the data of the run. Without --labels it is a folder of images and '
    'labels, as for segjax.plan.',
  )
  flags.DEFINE_string(
    'labels',
    None,
    'Folder of the labels of --images, or a pattern of their paths. If the run '
    'was trained on a folder, their values mean what they meant there; '
    'otherwise they are class indices, and 255 for ignored pixels.',
  )
  _define_match('By default it is data.match of the config, or one that fits.')
  _define_tta()
  _define_refine()
  flags.DEFINE_bool(
    'detail',
    False,
    'Also print scores of detail: boundary IoU, and the mean IU of the pixels '
    'within 1 to 32 px of a border between classes (trimap).',
  )


def _check_evaluate() -> None:
  network_flags.check_flags()
  args = flags.FLAGS
  given = [
    name for name in ('split', 'data_dir') if not args[name].using_default_value
  ]
  if args.images is not None and given:
    raise InputError(
      f'--images={args.images} is scored instead of the data of the run; leave '
      f'out --{given[0]}'
    )
  if args.images is None and (args.labels is not None or args.match):
    raise InputError('give --images=DIR, whose labels are to be scored')


def _define_predict() -> None:
  network_flags.define_flags()
  flags.DEFINE_string(
    'artifact',
    None,
    'Artifact, a folder that segjax.export wrote. It replaces --workdir, or '
    '--config and --params.',
  )
  flags.DEFINE_string(
    'input', None, 'Image file, stack, Zarr or folder of images to predict.'
  )
  flags.DEFINE_string(
    'output',
    None,
    'File to write: .tif, .png, .npy or .zarr. For a folder of images it is a '
    'folder.',
  )
  flags.DEFINE_enum(
    'kind',
    'probabilities',
    KINDS,
    'Values to write. Labels are class indices; an overlay is the image with '
    'the classes painted over it.',
  )
  flags.DEFINE_enum(
    'dtype',
    'float32',
    DTYPES,
    'Type of the probabilities or logits that are written; uint8 scales '
    'probabilities to 0..255.',
  )
  flags.DEFINE_enum(
    'compute_dtype',
    None,
    ('float32', 'bfloat16'),
    'Type of the computation. By default it is the one that the network was '
    'trained in.',
  )
  _define_tta()
  _define_refine()
  flags.DEFINE_integer(
    'tile_size_px',
    None,
    'Side of the input tiles, in pixels. By default it is the one that '
    'computes the fewest pixels over all images.',
  )
  _define_overwrite('Replace the output if it exists.')


def _check_predict() -> None:
  if flags.FLAGS.artifact is None:
    network_flags.check_flags()


def _define_export() -> None:
  network_flags.define_flags()
  flags.DEFINE_enum(
    'format',
    'artifact',
    FORMATS,
    'Format to write. An artifact is a folder that segjax.predict and jax run; '
    'onnx is a file for ONNX runtimes. hub is a folder with parameters, config '
    'and a model card. bioimageio is a package for the BioImage Model Zoo, '
    'which needs --authors and --license.',
  )
  flags.DEFINE_string('output', None, 'File or folder to write.')
  flags.DEFINE_integer(
    'size_px',
    None,
    'Side of the input tiles, in pixels. By default it is that of training; an '
    'FCN, which takes any size, needs it.',
  )
  flags.DEFINE_list(
    'authors',
    [],
    'Names of the authors, separated by commas, for hub and bioimageio.',
  )
  flags.DEFINE_string(
    'license',
    '',
    'SPDX identifier of the licence for hub and bioimageio, such as CC-BY-4.0.',
  )
  _define_overwrite('Replace an export that exists.')


def _check_export() -> None:
  network_flags.check_flags()
  args = flags.FLAGS
  for name, formats in (
    ('size_px', ('artifact', 'onnx', 'bioimageio')),
    ('authors', ('hub', 'bioimageio')),
    ('license', ('hub', 'bioimageio')),
  ):
    if args[name].present and args.format not in formats:
      raise InputError(
        f'--{name} is for --format={" or ".join(formats)}, not {args.format}'
      )


def _define_convert() -> None:
  flags.DEFINE_string(
    'input',
    None,
    'File of weights: .caffemodel, .pth, .pt, .h5, .keras, .npz or '
    f'.safetensors; or {" or ".join(published.SOURCES)}, which is downloaded '
    'and kept in the cache.',
  )
  flags.DEFINE_enum(
    'model',
    None,
    (
      *('fcn32s', 'fcn16s', 'fcn8s', 'fcn8s_atonce'),
      *('fcn_alexnet', 'fcn_googlenet'),
      *('vgg16', 'vgg16_conv', 'caffenet', 'caffenet_conv'),
      *('googlenet', 'googlenet_conv'),
    ),
    'Network that the weights are for. Classifiers that end in _conv are fully '
    'convolutional. A file needs this flag; for weights that are downloaded, '
    'their network is the default.',
  )
  flags.DEFINE_string('output', None, 'File to write: .npz or .safetensors.')
  flags.DEFINE_integer(
    'num_classes',
    None,
    'Number of classes of the network. By default it is the number in the '
    'file.',
  )
  flags.DEFINE_list(
    'learned',
    [],
    'Deconvolutions that the network learns, separated by commas. The others '
    'interpolate.',
  )
  flags.DEFINE_list(
    'heads',
    [],
    'Heads of the network with their numbers of classes, such as '
    'sem:33,geo:3. By default there is one head.',
  )
  flags.DEFINE_list(
    'streams',
    [],
    'Streams of the network, such as color,hha. By default there is one.',
  )
  flags.DEFINE_string(
    'first_conv',
    '',
    'Name of the first convolution, such as conv1_1_bgrd. By default it is the '
    'name in the backbone.',
  )
  flags.DEFINE_integer(
    'in_channels',
    None,
    'Number of channels of the image. By default there are 3.',
  )
  flags.DEFINE_list(
    'initial',
    [],
    'Layers of the network that the file lacks and that keep their initial '
    'values, separated by commas.',
  )
  flags.DEFINE_list(
    'ignore', [], 'Layers of the file to leave out, separated by commas.'
  )
  flags.DEFINE_enum(
    'pixels',
    None,
    ('0..255', 'standardised'),
    'Scale of the pixels that the weights were trained on. By default it is '
    'the usual scale of the framework that wrote the file.',
  )
  _define_overwrite('Replace the output if it exists.')


def _check_convert() -> None:
  if flags.FLAGS.model is None and not published.is_name(flags.FLAGS.input):
    raise InputError('give --model=NETWORK, which the weights are for')


def _define_instances() -> None:
  flags.DEFINE_string(
    'input',
    None,
    'File, Zarr or folder of maps of two classes that segjax.predict wrote.',
  )
  flags.DEFINE_string(
    'output', None, 'File to write: .tif. For a folder of maps it is a folder.'
  )
  flags.DEFINE_float(
    'threshold', 0.5, 'Probability above which a pixel belongs to a cell.'
  )
  flags.DEFINE_float(
    'seed_threshold',
    None,
    'Probability above which a pixel belongs to a seed; a watershed from the '
    'seeds cuts cells that touch. By default nothing is cut: cells are '
    'connected components.',
  )
  flags.DEFINE_integer(
    'min_area_px', 0, 'Smallest area of a cell, in pixels.', lower_bound=0
  )
  flags.DEFINE_bool(
    'fill_holes', False, 'Whether holes become part of the cell around them.'
  )
  flags.DEFINE_bool(
    'rois', False, 'Whether to write outlines for ImageJ and Fiji, .rois.zip.'
  )
  flags.DEFINE_bool(
    'geojson', False, 'Whether to write outlines for QuPath, .geojson.'
  )
  flags.DEFINE_float(
    'pixel_size_um',
    None,
    'Side of a pixel in micrometres, for lengths and areas in the table of '
    'cells. By default it is the size that the maps state, if any.',
  )
  _define_overwrite('Replace files that exist.')


def _define_prepare() -> None:
  network_flags.define_config('Config whose data set is written.')
  flags.DEFINE_string('output', None, 'Folder to write the prepared set in.')
  flags.DEFINE_string('name', None, 'Name of the prepared set.')
  _define_overwrite('Replace the set if it exists.')


def _define_plan() -> None:
  flags.DEFINE_string(
    'images',
    None,
    'Folder of the images, or a pattern of their paths. Without --labels it is '
    'a folder of images and labels with usual names: folders images and labels '
    '(or masks), file names that end in _mask, a folder for each image with '
    'images/ and masks/, or imagesTr and labelsTr.',
  )
  flags.DEFINE_string(
    'labels', None, 'Folder of the labels, or a pattern of their paths.'
  )
  flags.DEFINE_string('output', None, 'Card to write: .py.')
  flags.DEFINE_enum('network', 'unet', ('unet', 'fcn8s'), 'Network to train.')
  flags.DEFINE_string(
    'init',
    '',
    'Weights that fcn8s starts from: a file of segjax.convert, '
    f'{", ".join(published.SOURCES)}, or random.',
  )
  flags.DEFINE_enum(
    'pixels',
    None,
    ('0..255', 'standardised'),
    'Scale of the pixels of --init, if the file does not say it.',
  )
  flags.DEFINE_float(
    'minutes', 30.0, 'Minutes that the run may take here, approximately.'
  )
  _define_match('By default it is the file name without its ending.')
  flags.DEFINE_string(
    'group',
    '',
    'Regular expression found in the paths of images. Images with the same '
    'first group, such as a patient, are held out together.',
  )
  flags.DEFINE_enum(
    'label_kind',
    None,
    ('classes', 'instances'),
    'Meaning of the values of labels: classes, or numbers of objects. By '
    'default it is inferred from the labels.',
  )
  flags.DEFINE_string(
    'train_list',
    '',
    'File that names an image to train on in each line. A relative path begins '
    'in the folder that holds images and labels.',
  )
  flags.DEFINE_string(
    'heldout_list', '', 'The same for the images that are held out.'
  )
  _define_overwrite('Replace the card if it exists.')


def _define_match(default: str) -> None:
  flags.DEFINE_string(
    'match',
    '',
    'Regular expression that pairs an image with its label: it is found in '
    rf'both paths, with the same first group, such as (\d+)_.*. {default}',
  )


def _define_overwrite(help_text: str) -> None:
  flags.DEFINE_bool('overwrite', False, help_text)


COMMANDS = {
  'plan': Command(
    'plan',
    'Reads your images and labels and writes a card that trains on them.',
    '--images=IMAGES --labels=LABELS --output=mine.py',
    ('images', 'output'),
    _define_plan,
  ),
  'train': Command(
    'main',
    'Trains and evaluates a network, or resumes a run.',
    '--config=unet_isbi.py:demo --workdir=RUN',
    ('config',),
    _define_train,
  ),
  'evaluate': Command(
    'evaluate',
    'Prints the scores of a network on whole images.',
    '--workdir=RUN --split=heldout',
    (),
    _define_evaluate,
    _check_evaluate,
  ),
  'predict': Command(
    'predict',
    'Predicts image files with a network.',
    '--workdir=RUN --input=IMAGES --output=PREDICTIONS',
    ('input', 'output'),
    _define_predict,
    _check_predict,
  ),
  'instances': Command(
    'instances',
    'Finds single cells in predicted maps.',
    '--input=MAPS --output=CELLS',
    ('input', 'output'),
    _define_instances,
  ),
  'export': Command(
    'export',
    'Writes a network as an artifact that needs no model code, or for others.',
    '--workdir=RUN --output=net.segjax',
    ('output',),
    _define_export,
    _check_export,
  ),
  'convert': Command(
    'convert',
    'Converts weights of Caffe, torchvision and Keras.',
    '--input=fcn8s.caffemodel --model=fcn8s --output=fcn8s.npz',
    ('input', 'output'),
    _define_convert,
    _check_convert,
  ),
  'prepare': Command(
    'prepare',
    'Writes a data set for tensorflow-datasets.',
    '--config=fcn8s_folder.py --config.data.dir=DATA --output=SETS '
    '--name=my_set',
    ('config', 'output', 'name'),
    _define_prepare,
  ),
}
