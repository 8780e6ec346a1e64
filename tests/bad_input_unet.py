# SPDX-License-Identifier: Apache-2.0
"""Cases of `test_bad_input` about a U-Net: its settings, data and images."""

import shlex
import shutil

import numpy as np
import tifffile
from commands import CONFIG, DEMO, TINY_NET
from small_runs import make_run, write_isbi
from trees import write_picture

from segjax.images.files import write_stack

# {run} is a run in the tree, {demo} and {isbi} are tiny experiments: on drawn
# data, and on files.
TRAIN = 'main {demo} --workdir={new}'
READ = 'main {isbi} --workdir={new} --config.data.dir='
SCORE = 'evaluate --workdir={run}'
PREDICT = 'predict --workdir={run} --output={new}.tif --input={tree}/'
PREPARE = 'prepare {isbi} --config.data.dir='
WRITE = 'predict --workdir={run} --input={tree}/images --output='

PLACES = {
  'run': '{tree}/run',
  'demo': shlex.join(DEMO),
  'isbi': shlex.join((f'--config={CONFIG}', *TINY_NET)),
}

# What a config may hold -> what the message says.
SETTINGS = {
  'data.name=mnist': ["data.name='mnist'", "'isbi2012'"],
  'data.name=voc': ["data.name='voc'", 'takes the fields dir, year'],
  'data.fold=5': ['fold 5', '0..4'],
  'data.num_slices=4': ['5 folds of 4 slices'],
  'tile_size_px=35': ['35 px is not admissible', 'nearest: 34 and 36'],
  'tile_size_px=0': ['tile_size_px=0', 'U-Net'],
  'batch_size=0': ['batch_size=0', 'positive multiple of 1'],
  'accumulate_steps=2': ['batch_size=1', 'accumulate_steps=2'],
  'parallel=vmap': ["parallel='vmap'", "'pmap'"],
  'profile_steps=(3,2)': ['profile_steps=(3, 2)', '(0, 0) for none'],
  'loss=dice': ["loss='dice'", "'dice_cross_entropy'"],
  'loss_reduction=max': ["loss_reduction='max'", "'mean'"],
  'num_train_steps=many': ['--config.num_train_steps', "'many'", 'int'],
  'evaluation.every_steps=0': ['evaluation.every_steps=0', 'at least 1'],
  'evaluation.best_metric=dice/cel': ["='dice/cel' is not", 'membrane, cell'],
  'evaluation.best_metric=mean_ap': ["='mean_ap' is not", "'mean_dice'"],
  'learning_rate=1': [
    'config.learning_rate is no setting; there are ',
    'did you mean schedule.learning_rate?',
  ],
  'model.dept=2': ['config.model.dept is no', 'did you mean depth?'],
  'model.nme=unet': ['config.model.nme is no', 'did you mean name?'],
  'prediction.overlap=3': ['overlap is no setting; there are max_tile_size_px'],
  'model.depth.x=3': ['config.model.depth=3 is no section'],
  'model.name=vnet': ["model.name='vnet'", "'unet_2015'"],
  'model.depth=1.5': ['--config.model.depth', '1.5', 'int'],
  'model.depth=-1': ['depth=-1', 'depth must be >= 0'],
  'model.dtype=float16': ["model.dtype='float16'", "'bfloat16'"],
  'model.norm=layer': ["model.norm='layer'", "'batch'"],
  'model.padding=FULL': ["padding='FULL'", "'SAME'"],
  'model.in_channels=3': ['model.in_channels=3', 'use 1'],
  'model.num_classes=1': ['model.num_classes=1', 'use 2'],
  'optimizer.name=lion': ["optimizer.name='lion'", "'adamw'"],
  'schedule.name=step': ["schedule.name='step'", "'cosine'"],
  'schedule.learning_rate=nan': ['schedule.learning_rate=nan', 'finite'],
  'optimizer.weight_decay=-1.0': ['weight_decay=-1.0', '>= 0'],
  'seed=4294967296': ['seed=4294967296', 'below 2**31'],
  'model.depth=1000000': ['depth=1000000', '<= 20'],
  'schedule.warmup_steps=-1': ['warmup_steps=-1', 'at least 0'],
  'data.size_px=1000000': ['5 slices of 1000000 x 1000000 px', '67,108,864'],
  'model.base_width=100000': ['parameters', '2,147,483,648', 'base_width'],
  'preprocessing.mean=None': ['--config.preprocessing.mean=None'],
  'mesh=None': ['--config.mesh=None'],
  'num_train_steps=0': ['num_train_steps=0', 'at least 1'],
}
# What a card of one's own may do -> what the message says.
CARDS = {
  'config.prediction.overlap = 32': [
    'config.prediction.overlap is no setting',
    'max_tile_size_px',
  ],
  'config.augmentation.scale = 0.1': [
    'config.augmentation.scale is no setting',
    'elastic_sigma_px',
  ],
  'config.evaluation.every_step = 2': [
    'config.evaluation.every_step is no setting',
    'did you mean every_steps?',
  ],
  'config.preprocessing.stdev = 0.2': [
    'config.preprocessing.stdev is no setting',
    'did you mean std?',
  ],
  'config.optimiser = dict(name="sgd")': [
    'config.optimiser is no setting',
    'did you mean optimizer?',
  ],
  'config.checkpoints.keep.last = 3': [
    'config.checkpoints.keep.last is no setting',
    'did you mean keep_last?',
  ],
  'config.model.basewidth = 3': [
    'model.basewidth=3 is no field of unet',
    'did you mean base_width?',
  ],
  'config.data.folds = 3': ["data.name='synthetic'", 'did you mean fold?'],
  'config.model = None': ['config.model=None must be a section'],
  'config.data = None': ['config.data=None must be a section'],
  'config.seed = None': ['config.seed=None must be a whole number, such as'],
  'config.augmentation.flip = None': [
    'config.augmentation.flip=None must be True or False'
  ],
  'config.data.fold = None': ['config.data.fold=None must be a whole number'],
  'config.optimizer.learning_rte = 1.0': [
    'config.optimizer.learning_rte is no setting',
    'did you mean schedule.learning_rate?',
  ],
  'config.evaluation.every_steps = dict(a=1)': ["'every_steps'", 'line 6'],
  'config.prediction[3] = 4': ['config.prediction[3] is no setting'],
  'config = config.to_dict()': ['card', 'get_config', 'returns dict'],
  'config = None': ['get_config', 'returns NoneType'],
  'raise ValueError("a\\nb")': ['.py, line 6: ValueError: a b'],
  'raise ValueError': ['.py, line 6: ValueError:'],
  'del config.compilation_cache': ['lacks config.compilation_cache'],
  'config.batching = "shuffled"': ["'batching'", 'ConfigDict'],
  'del config.model.name': ['model.name=None is not one of'],
  'del config.data.name': ['data.name=None is not one of'],
  'del config.evaluation.average': ['lacks config.evaluation.average'],
  'config.refinement = dict(radius_px=0)': ['refinement.radius_px=0 must be'],
  'config.refinement = dict(intensity_width=-1.0)': [
    'refinement.intensity_width=-1.0 must be > 0'
  ],
  'config.refinement = dict(smoothness_weight=-1)': [
    'refinement.smoothness_weight=-1 must be >= 0'
  ],
  'config.refinement = dict(compatibility=((0, 1),))': [
    'refinement.compatibility has shape (1, 2); expected 2 x 2 numbers'
  ],
  'config.refinement = dict(compatibility=((0, 1), (1,)))': [
    'refinement.compatibility has rows of unequal length'
  ],
  'config.refinement = dict(window_px=7)': [
    'config.refinement.window_px is no setting; there are iterations, radius_px'
  ],
}
# What is wrong -> command, words of the message, environment.
CASES = {
  **{
    f'card with {line}': (
      f'main --config={{tree}}/card{i}.py --workdir={{new}}',
      words,
    )
    for i, (line, words) in enumerate(CARDS.items())
  },
  'card that describes no model, in a dry run': (
    f'main --config={{tree}}/card{[*CARDS].index("config.model = None")}.py '
    '--dry_run',
    ['config.model=None must be a section'],
  ),
  'card for prediction with an unknown setting': (
    'predict --config={tree}/card0.py --params={tree}/file.npz '
    '--input={tree}/images --output={new}',
    ['config.prediction.overlap is no setting'],
  ),
  **{
    setting: (f'{TRAIN} --config.{setting}', words)
    for setting, words in SETTINGS.items()
  },
  'batch on 8 devices': (
    TRAIN + ' --config.batch_size=3',
    ['batch_size=3', '8 devices', 'multiple of 8'],
    {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'},
  ),
  'no data': (
    READ + '{new}',
    ['ISBI 2012 not found', '{new}', 'train-volume.tif', '--config.data.dir'],
  ),
  'data folder lacks files': (
    READ + '{tree}/partly',
    ['{tree}/partly (has no train-labels.tif)'],
  ),
  'truncated TIFF': (
    READ + '{tree}/truncated',
    ['{tree}/truncated/train-volume.tif', 'truncated'],
  ),
  'images and labels of unequal number': (
    READ + '{tree}/mismatch',
    ['train-labels.tif', '4 pages 64 x 64', '5 pages 64 x 64', 'equal'],
  ),
  'label outside the classes': (
    READ + '{tree}/labels',
    ['train-labels.tif', 'label 7 in page 2, row 3, column 4', '0 membrane'],
  ),
  'no config': (
    'main --workdir={new}',
    ['give --config=unet_isbi.py:demo', 'for example: python -m segjax.main'],
  ),
  'labels without a membrane': (
    READ + '{tree}/cells',
    ["4 training labels: no pixel is of class 'membrane'", '16,384 px cell'],
  ),
  'no cell held out': (
    READ + '{tree}/no_cell',
    [
      "best_metric='v_rand'",
      'none of the 1 held-out',
      "class 1, 'cell'; they hold only 0 (membrane); hold out others",
    ],
  ),
  'no cell at all': (
    READ + '{tree}/no_cells',
    ['they hold only 0 (membrane), and no training label has a cell; mend'],
  ),
  'no such config file': (
    'main --config={tree}/none.py --workdir={new}',
    ['no file {tree}/none.py', 'shipped cards are', 'unet_isbi.py'],
  ),
  'config that is no Python file': (
    'main --config=README.md --workdir={new}',
    ['README.md is no config file', '.py'],
  ),
  'unknown config argument': (
    f'main --config={CONFIG}:tiny --workdir={{new}}',
    ["argument 'tiny'", "'demo'"],
  ),
  'unknown flag': (TRAIN + ' --work=x', ["flag 'work'", 'workdir']),
  'no flag': (TRAIN + ' demo', ["'demo'", '--flag=value']),
  'seed=-1': (TRAIN + ' --config.seed=-1', ['seed=-1', 'at least 0']),
  'preprocessing.std=0': (
    TRAIN + ' --config.preprocessing.std=0.0',
    ['preprocessing.std=0.0', '> 0'],
  ),
  'tiles_per_batch=0': (
    TRAIN + ' --config.prediction.tiles_per_batch=0',
    ['prediction.tiles_per_batch=0', 'at least 1'],
  ),
  'keep no checkpoint': (
    TRAIN + ' --config.checkpoints.keep.keep_last=0',
    ['checkpoints.keep.keep_last=0', 'at least 1'],
  ),
  'limit of tiles too small': (
    TRAIN + ' --config.prediction.max_tile_size_px=16',
    ['max_tile_size_px=16', 'or more'],
  ),
  'workdir of another experiment': (
    'main {demo} --config.model.base_width=5 --workdir={run}',
    ['{run} was made with model.base_width=4', 'model.base_width=5'],
  ),
  'workdir that cannot be made': (
    'main {demo} --workdir={tree}/file/run',
    ['cannot write', '{tree}/file/run', 'another --workdir'],
  ),
  'workdir that is a URL': (
    'main {demo} --workdir=gs://bucket/run',
    ['gs://bucket/run', 'mount'],
  ),
  'no network': (
    'evaluate',
    ['--workdir=DIR', '--params', 'for example: python -m segjax.evaluate'],
  ),
  'no run': (
    'evaluate --workdir={new}',
    ['{new}/config.json', 'train first', 'segjax.main'],
  ),
  'no checkpoint yet': (
    'evaluate --workdir={tree}/begun',
    ['no checkpoint in {tree}/begun', 'train first'],
  ),
  'unreadable config': (
    'evaluate --workdir={tree}/damaged',
    ['cannot read {tree}/damaged/config.json'],
  ),
  'corrupt checkpoint': (
    'evaluate --workdir={tree}/corrupt',
    ['cannot read checkpoint 2 in {tree}/corrupt'],
  ),
  'unknown split': (
    SCORE + ' --split=test',
    ['--split', 'heldout|train|all'],
  ),
  'images to score without labels': (
    SCORE + ' --images={tree}/images',
    ['{tree}/images: found neither', '--images=FOLDER and --labels=FOLDER'],
  ),
  'images to score that are not there': (
    SCORE + ' --images={new}',
    ['{new}: no such folder'],
  ),
  'labels to score that are not there': (
    SCORE + ' --images={tree}/images --labels={new}',
    ['{new}: no such folder'],
  ),
  'labels to score without images': (
    SCORE + ' --labels={tree}/images',
    ['give --images=DIR', 'for example: python -m segjax.evaluate'],
  ),
  'a split of images to score': (
    SCORE + ' --images={tree}/images --split=all',
    ['--images={tree}/images is scored instead', 'leave out --split'],
  ),
  'a label to score outside the classes': (
    SCORE + ' --images={tree}/score7',
    ['{tree}/score7/labels/b.png: label 7 in row 3', '0..1, or (255,)'],
  ),
  'masks of 0 and 255 to score as class indices': (
    SCORE + ' --images={tree}/score255',
    ['2 labels', 'px are ignored', '0 is membrane, 1 is cell, 255 is ignored'],
  ),
  'an image to score without its label': (
    SCORE + ' --images={tree}/score_half',
    ['{tree}/score_half', 'not in both: b', 'each image needs a label'],
  ),
  'a label to score of another size': (
    SCORE + ' --images={tree}/score_size',
    ['score_size/labels/b.png: label of 9 x 20 px', '20 x 20 px', 'equal'],
  ),
  'labels to score as JPEG': (
    SCORE + ' --images={tree}/score_jpeg',
    ['{tree}/score_jpeg/labels/a.jpg: JPEG changes values'],
  ),
  'colours to score': (
    SCORE + ' --images={tree}/score_rgb',
    ['{tree}/score_rgb/', '.png has 3 channel(s); the network takes 1'],
  ),
  'a match of images to score that is no expression': (
    SCORE + ' --images={tree}/score255 --match=[',
    ["'[' is no regular expression"],
  ),
  'unknown checkpoint': (
    SCORE + ' --checkpoint=last',
    ["'last'", "'latest'", 'number'],
  ),
  'no such checkpoint': (
    PREDICT + 'images/b.png --checkpoint=7',
    ['no checkpoint 7', 'there are [2, 4]'],
  ),
  'predict without a run': (
    'predict --workdir={tree}/empty --input={tree}/images --output={new}',
    ['{tree}/empty/config.json', 'train first'],
  ),
  'a tile without the margins of a refinement': (
    PREDICT + 'images/b.png --refine --tile_size_px=34',
    ['tile size 34 px is too small', 'use '],
  ),
  'no input': (PREDICT + 'x.tif', ['x.tif', 'no such file']),
  'empty folder': (PREDICT + 'empty', ['{tree}/empty', 'no image']),
  'ending of the input': (
    PREDICT + 'file.heic',
    ['file.heic', "'.heic'", '.tif'],
  ),
  'truncated input': (
    PREDICT + 'truncated/train-volume.tif',
    ['train-volume.tif', 'truncated'],
  ),
  'NaN pixel': (
    PREDICT + 'nan.tif',
    ['nan.tif', 'nan in page 1, row 5, column 6', 'finite'],
  ),
  'floats beyond 1': (
    PREDICT + 'range.tif',
    ['range.tif', '0 to 255', 'must be in [0, 1]'],
  ),
  'colours': (
    PREDICT + 'colour.png',
    ['colour.png has 3 channels', 'in_channels=1'],
  ),
  'unequal sizes in one file': (
    PREDICT + 'images',
    ['(20, 30), (24, 18)', '{new}.tif', 'folder'],
  ),
  'tile inadmissible': (
    PREDICT + 'images/b.png --tile_size_px=35',
    ['35 px is not admissible', 'nearest: 34 and 36'],
  ),
  'unknown kind': (
    PREDICT + 'images --kind=masks',
    ['--kind', 'masks', 'probabilities|labels|logits'],
  ),
  'ending of the output': (WRITE + '{new}.jpg', ['{new}.jpg', '.png', '.npy']),
  'logits as a picture': (
    WRITE + '{new}.png --kind=logits',
    ['{new}.png', 'logits', '.tif'],
  ),
  'no folder of the output': (
    WRITE + '{new}/a.tif',
    ['{new}/a.tif', 'no folder {new}'],
  ),
  'output exists': (
    WRITE + '{tree}/file.tif',
    ['{tree}/file.tif exists', '--overwrite'],
  ),
  'labels over the images': (
    WRITE + '{tree}/images --kind=labels --overwrite',
    ['output {tree}/images is the folder of the input', 'give another'],
  ),
  'labels over the images through a link': (
    WRITE + '{tree}/linked --kind=labels --overwrite',
    ['output {tree}/linked is the folder of the input {tree}/images'],
  ),
  'labels over links to the images': (
    WRITE + '{tree}/links --kind=labels --overwrite',
    ['output {tree}/links/b.png is the input {tree}/images/b.png'],
  ),
  'prediction over its image': (
    'predict --workdir={run} --input={tree}/nan.tif --output={tree}/nan.tif '
    '--overwrite',
    ['output {tree}/nan.tif is the input {tree}/nan.tif', 'give another'],
  ),
  'prediction into a Zarr that it reads': (
    'predict --workdir={run} --input={tree}/in.zarr '
    '--output={tree}/in.zarr/a.tif --overwrite',
    ['{tree}/in.zarr/a.tif lies in the input {tree}/in.zarr'],
  ),
  'prediction in place of what holds its images': (
    'predict --workdir={run} --input={tree}/out.zarr/images '
    '--output={tree}/out.zarr --overwrite',
    ['{tree}/out.zarr holds the input {tree}/out.zarr/images/'],
  ),
  'output is a link to nothing': (
    WRITE + '{tree}/dangling.tif',
    ['{tree}/dangling.tif exists', '--overwrite'],
  ),
  'output is a folder': (
    WRITE + '{tree}/folder.tif --overwrite',
    ['{tree}/folder.tif is a folder and no Zarr array', 'give another'],
  ),
  'output is a folder that is no Zarr': (
    WRITE + '{tree}/photos.zarr --overwrite',
    ['{tree}/photos.zarr is a folder and no Zarr array', 'give another'],
  ),
  'output is a Zarr array with a file of another': (
    WRITE + '{tree}/array.zarr --overwrite',
    ['{tree}/array.zarr is a folder and no Zarr array', 'give another'],
  ),
  'unfinished output is the folder of another': (
    'predict --workdir={run} --input={tree}/images/b.png '
    '--output={tree}/mine.tif --overwrite',
    ['{tree}/mine.tif.partial', 'did not make', 'rename it'],
  ),
  'lock is a link': (
    'main {demo} --workdir={tree}/linked_lock',
    ['{tree}/linked_lock/.segjax.lock is no lock of segjax', 'rename it'],
  ),
  'output of another command': (
    WRITE + '{tree}/stopped --kind=labels',
    ['{tree}/stopped/b.png exists', '--overwrite'],
  ),
  'set prepared of no data': (
    PREPARE + '{tree}/partly --output={new} --name=mine',
    ['{tree}/partly (has no train-labels.tif)'],
  ),
  'set prepared of damaged data': (
    PREPARE + '{tree}/truncated --output={new} --name=mine',
    ['{tree}/truncated/train-volume.tif', 'truncated'],
  ),
  'name of a prepared set': (
    PREPARE + '{tree}/good --output={new} --name=My-Set',
    ["name='My-Set'"],
  ),
  'name of the catalogue': (
    PREPARE + '{tree}/good --output={new} --name=mnist',
    ["name='mnist'", 'catalogue', 'another'],
  ),
  'prepared set without a name': (
    PREPARE + '{tree}/good --output={new}',
    ['give --name=my_set', 'for example: python -m segjax.prepare'],
  ),
  'prepared set inside a file': (
    PREPARE + '{tree}/good --output={tree}/file/sets --name=mine',
    ['{tree}/file/sets'],
  ),
  'output folder is a file': (WRITE + '{tree}/file', ['{tree}/file', 'folder']),
}


def write_tree(tree):
  """Makes a folder of wrong things, and of a run that is right."""
  tree.mkdir()
  make_run(tree / 'run')
  shutil.copytree(tree / 'run', tree / 'corrupt')
  shutil.rmtree(tree / 'corrupt' / 'checkpoints' / '4')
  # A truncated array would do, but tensorstore's threads then write to stderr.
  file = tree / 'corrupt' / 'checkpoints' / '2' / 'default' / '_METADATA'
  file.write_bytes(file.read_bytes()[:-50])
  for name in ('empty', 'begun', 'damaged', 'images', 'partly'):
    (tree / name).mkdir()
  shutil.copy(tree / 'run' / 'config.json', tree / 'begun')
  (tree / 'damaged' / 'config.json').write_text('{"model": ')
  for name in ('file', 'file.heic', 'file.tif'):
    (tree / name).write_text('')

  for i, line in enumerate(CARDS):
    (tree / f'card{i}.py').write_text(
      'import runpy\n\n\n'
      'def get_config():\n'
      f'  config = runpy.run_path({CONFIG!r})["get_config"]("demo")\n'
      f'  {line}\n'
      '  return config\n'
    )

  volume = np.zeros((5, 64, 64), np.uint8)
  labels = volume.copy()
  labels[:, 8:] = 255
  wrong = labels.copy()
  wrong[2, 3, 4] = 7
  write_isbi(tree / 'good', volume, labels)
  write_isbi(tree / 'truncated', volume, labels)
  write_isbi(tree / 'mismatch', volume, labels[:4])
  write_isbi(tree / 'labels', volume, wrong)
  write_isbi(tree / 'cells', volume, np.full_like(labels, 255))
  empty = labels.copy()
  empty[0] = 0
  write_isbi(tree / 'no_cell', volume, empty)
  write_isbi(tree / 'no_cells', volume, 0 * labels)
  file = tree / 'truncated' / 'train-volume.tif'
  shutil.copy(file, tree / 'partly')
  file.write_bytes(file.read_bytes()[:-100])

  bad = np.zeros((3, 20, 20), np.float32)
  bad[1, 5, 6] = np.nan
  tifffile.imwrite(tree / 'nan.tif', bad, photometric='minisblack')
  beyond = np.linspace(0, 255, 400, dtype=np.float32).reshape(1, 20, 20)
  write_stack(tree / 'range.tif', beyond)
  write_stack(tree / 'colour.png', np.zeros((1, 20, 20, 3), np.uint8))
  write_stack(tree / 'images' / 'a.png', np.zeros((1, 24, 18), np.uint8))
  write_stack(tree / 'images' / 'b.png', np.zeros((1, 20, 30), np.uint8))
  gray = np.zeros((20, 20), np.uint8)
  cell = gray.copy()
  cell[3:, 4:] = 1
  pairs = {  # The images, the first label and the second one.
    'score7': (gray, cell, 7 * cell),
    'score255': (gray, 255 * cell, 255 * cell),
    'score_half': (gray, cell, None),
    'score_size': (gray, cell, cell[:9]),
    'score_rgb': (np.stack(3 * [gray], axis=-1), cell, cell),
  }
  for name, (image, *labels) in pairs.items():
    for stem, label in zip('ab', labels, strict=True):
      write_picture(tree / name / 'images' / f'{stem}.png', image)
      if label is not None:
        write_picture(tree / name / 'labels' / f'{stem}.png', label)
  write_picture(tree / 'score_jpeg' / 'images' / 'a.png', gray)
  write_picture(tree / 'score_jpeg' / 'labels' / 'a.jpg', cell)
  (tree / 'linked').symlink_to(tree / 'images')
  (tree / 'links').mkdir()
  (tree / 'dangling.tif').symlink_to('nothing')
  for name in ('folder.tif', 'photos.zarr', 'array.zarr', 'mine.tif.partial'):
    (tree / name).mkdir()
    (tree / name / 'photo.tif').write_text('mine')
  array = '{"node_type": "array"}'
  (tree / 'array.zarr' / 'zarr.json').write_text(array)
  (tree / 'linked_lock').mkdir()
  (tree / 'linked_lock' / '.segjax.lock').symlink_to(tree / 'file.tif')
  (tree / 'links' / 'b.png').hardlink_to(tree / 'images' / 'b.png')
  (tree / 'in.zarr').mkdir()
  shutil.copytree(tree / 'images', tree / 'out.zarr' / 'images')
  (tree / 'stopped').mkdir()
  shutil.copy(tree / 'images' / 'b.png', tree / 'stopped')
  (tree / 'stopped' / '.unfinished.0123456789abcdef').write_bytes(b'\xff["b')
