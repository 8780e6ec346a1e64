# SPDX-License-Identifier: Apache-2.0
"""Cases of `test_bad_input` about FCNs: weights, label images and lists."""

import shutil

import fcn_nets
import numpy as np
from caffemodel import write_caffemodel
from small_sets import write_camvid, write_folder, write_voc
from trees import cut, image_of, write_lines, write_picture

from segjax.images.files import read_labels
from segjax.models.fcn import FCN32s
from segjax.weights import files

NARROW = '--config.model.width=0.0625 --config.model.fc_features=24'
VOC = f'--config=configs/fcn32s_voc.py {NARROW} --config.data.dir={{tree}}/'
FOUR = f'{NARROW} --config.model.num_classes=4'
FOLDER = (
  f'--config=configs/fcn8s_folder.py {NARROW} --config.init.path=random '
  '--config.data.heldout_fraction=0.34 --config.data.dir={tree}'
)
START = '--config.init.path={tree}/net.npz'
TRAIN = 'main --workdir={new}'
CONVERT = 'convert --output={new}.npz --model='
EXPORT = (
  f'export --config=configs/fcn32s_voc.py {FOUR} --output={{new}} '
  '--params={tree}/net.npz'
)
PREDICT = f'predict --config=configs/fcn32s_voc.py {FOUR} --output={{new}}'

PLACES = {}
CASES = {
  'nothing to start from': (
    f'{TRAIN} {VOC}voc',
    ['init.path', 'segjax.convert', '=random'],
  ),
  'start that is not there': (
    f'{TRAIN} {VOC}voc --config.init.path={{new}}.npz',
    ['cannot read {new}.npz', 'No such file'],
  ),
  'start with a name of published weights': (
    f'{TRAIN} {VOC}voc --config.init.path=torchvision:vgg16',
    ['torchvision:vgg16 is no file', '--input=torchvision:vgg16', 'vgg16.npz'],
  ),
  'start of another size': (
    f'{TRAIN} {VOC}voc {START} --config.model.fc_features=7',
    ['fc6', 'does not fit', '[7]'],
  ),
  'start with other classes': (
    f'{TRAIN} {VOC}voc {START} --config.init.initial=()',
    ['score_fr', 'does not fit', 'initial'],
  ),
  'start that lacks a layer': (
    f'{TRAIN} {VOC}voc --config.init.path={{tree}}/part.npz',
    ['fc7', 'of the model is not in the file', 'initial=fc7'],
  ),
  'classes of the data': (
    f'{TRAIN} {VOC}voc --config.model.num_classes=20',
    ['model.num_classes=20', 'use 21'],
  ),
  'heads that are not the classes': (
    f'{TRAIN} {VOC}voc \'--config.model.heads=(("a", 3), ("b", 4))\'',
    ['num_classes=21 must be 7', 'heads'],
  ),
  'tiles of padded images': (
    f'{TRAIN} {VOC}voc --config.tile_size_px=64',
    ['bucket_px=128', 'tile_size_px=64'],
  ),
  'heads that the data have not': (
    f'{TRAIN} {VOC}voc \'--config.model.heads=(("a", 20), ("b", 1))\'',
    ['heads of the model have (20, 1) classes', 'the data have (21,)'],
  ),
  'augmented whole images': (
    f'{TRAIN} {VOC}voc --config.augmentation.flip=True',
    ['augmentation.flip', 'tile_size_px=0', 'whole images'],
  ),
  'unknown order': (
    f'{TRAIN} {VOC}voc --config.batching.order=sorted',
    ["batching.order='sorted'", "'with_replacement'"],
  ),
  'unknown metric': (
    f'{TRAIN} {VOC}voc --config.evaluation.best_metric=v_rand',
    ["best_metric='v_rand'", "'mean_iu'"],
  ),
  'score of a stack for unequal images': (
    'main --workdir={new} --config=configs/fcn8s_folder.py '
    '--config.data.dir={tree}/folder --config.data.heldout_fraction=0.67 '
    '--config.evaluation.best_metric=v_rand',
    ["best_metric='v_rand'", '2 sizes'],
  ),
  'nothing to be scored on': (
    f'{TRAIN} {VOC}ignored {START}',
    ['1 held-out labels: all pixels are ignored', '324 px', '.heldout_list'],
  ),
  'masks of 0 and 255': (
    f'{TRAIN} {FOLDER}/masks',
    [
      "no pixel is of class 'object'",
      'px background (value 0)',
      'ignored (value 255)',
      '--config.data.label_values="(0, 255)"',
      'data.ignore_value',
    ],
  ),
  'masks of other values': (
    f'{TRAIN} {FOLDER}/masks "--config.data.label_values=(0, 254)" '
    '"--config.data.ignore_value=()"',
    ['label 255 in row', 'one of label_values=(0, 254)', 'are 0, 255'],
  ),
  'values and colours': (
    f'{TRAIN} {FOLDER}/masks "--config.data.label_values=(0, 255)" '
    '"--config.data.colours=((0, 0, 0), (9, 9, 9))"',
    ['label_values=(0, 255) and colours', 'one of them'],
  ),
  'nothing to train on': (
    f'{TRAIN} {FOLDER}/blank',
    ['2 training labels: all pixels are ignored', 'value 255', 'ignore_value'],
  ),
  'wrong value in the second held-out label': (
    f'{TRAIN} {FOLDER}/second --config.data.train_list=train.txt '
    '--config.data.heldout_list=heldout.txt',
    ['labels/c.png: label 7 in row 3, column 4', '0..1', 'are 0, 1, 7'],
  ),
  'class without a training pixel': (
    f'{TRAIN} {VOC}rare {START}',
    ["no pixel is of class 'tvmonitor'", 'px background', 'data.train_list'],
  ),
  'layer that is not there': (
    f'{TRAIN} {VOC}voc {START} \'--config.optimizer.bias_layers=("skore",)\'',
    ["optimizer.bias_layers has 'skore'", 'score_fr'],
  ),
  'negative decay': (
    f'{TRAIN} {VOC}voc --config.optimizer.weight_decay=-1.0',
    ['optimizer.weight_decay=-1.0', '>= 0'],
  ),
  'weights of other pixels': (
    f'{TRAIN} {VOC}voc --config.init.path={{tree}}/rgb.npz',
    ['rgb.npz was trained on pixels standardised', '0..255'],
  ),
  'weights of another padding': (
    PREDICT + '.npy --params={tree}/rgb.npz --input={tree}/image.png',
    ['rgb.npz is of a network with', 'pixels=standardised'],
  ),
  'channels that are not there': (
    f"{TRAIN} {VOC}voc '--config.preprocessing.channels=(3, 2, 1)'",
    ['preprocessing.channels=(3, 2, 1)', '0..2'],
  ),
  'mean of other channels': (
    f"{TRAIN} {VOC}voc '--config.preprocessing.mean=(0.5, 0.5)'",
    ['preprocessing.mean=(0.5, 0.5)', 'expected 1, or 3'],
  ),
  'no such year of a data set': (
    f'{TRAIN} {VOC}voc --config.data.year=2007',
    ['data.year=2007', '2011 or 2012'],
  ),
  'no data of a set': (
    f'{TRAIN} {VOC}none',
    ['PASCAL VOC 2011 not found', '{tree}/none', '--config.data.dir'],
  ),
  'label outside the classes of a set': (
    f'{TRAIN} {VOC}outside {START}',
    ['SegmentationClass/a.png', 'label 77 in row 3, column 4', '0..20'],
  ),
  'label in colours': (
    f'{TRAIN} {VOC}colours {START}',
    ['SegmentationClass/a.png', '3 channel', 'class indices'],
  ),
  'missing pair': (
    f'{TRAIN} {VOC}missing {START}',
    ['b: no such file', 'SegmentationClass/b.png', 'train.txt'],
  ),
  'empty list': (f'{TRAIN} {VOC}empty', ['train.txt', 'lists nothing']),
  'list that leads elsewhere': (
    f'{TRAIN} {VOC}elsewhere',
    ['train.txt', '../../a', 'leads out'],
  ),
  'all held out': (
    f'{TRAIN} --config=configs/fcn8s_folder.py --config.data.dir={{tree}}/'
    'folder --config.data.heldout_fraction=1.0',
    ['heldout_fraction=1.0'],
  ),
  'crop of half a pixel': (
    f'{TRAIN} --config=configs/fcn8s_camvid.py --config.data.dir={{tree}}/'
    'camvid --config.data.scale=5',
    ['data.scale=5', 'multiple'],
  ),
  'unknown model': (CONVERT + 'resnet --input={tree}/a', ['resnet', 'fcn8s']),
  'no weights': (CONVERT + 'fcn8s --input={new}', ['{new}', 'endings']),
  'truncated caffemodel': (
    CONVERT + 'fcn8s --input={tree}/cut.caffemodel',
    ['{tree}/cut.caffemodel', 'not a whole .caffemodel'],
  ),
  'unknown layer': (
    CONVERT + 'fcn32s --input={tree}/unknown.caffemodel',
    ['conv9_9', 'no place', 'ignore=conv9_9'],
  ),
  'wrong shape': (
    CONVERT + 'fcn32s --input={tree}/narrow.caffemodel',
    ['conv1_1[0] has shape [4, 3, 3, 3]', 'does not fit'],
  ),
  'weights of no known network': (
    'convert --input={tree}/narrow.caffemodel --output={new}.npz',
    ['give --model=NETWORK', '--model=fcn8s'],
  ),
  'weights of a name that is not published': (
    'convert --input=torchvision:resnet50 --output={new}.npz',
    ['torchvision:resnet50', 'not one of torchvision:vgg16, keras:vgg16'],
  ),
  'caffemodel by name': (
    'convert --input=caffe:fcn8s-heavy-pascal --output={new}.npz',
    ['shelhamer/fcn', '--input=fcn8s-heavy-pascal.caffemodel'],
  ),
  'weights of another ending': (
    'convert --model=fcn32s --input={tree}/narrow.caffemodel '
    '--output={new}.pth',
    ['{new}.pth', '.npz'],
  ),
  'weights without their folder': (
    'convert --model=fcn32s --input={tree}/narrow.caffemodel '
    '--output={new}/net.npz',
    ['{new}', 'folder'],
  ),
  'export of whole images': (
    EXPORT,
    ['size_px=None', 'any size; give --size_px=N', 'side of the tiles'],
  ),
  'export of no tile': (
    EXPORT + ' --size_px=0',
    ['size_px=0', 'side of the tiles'],
  ),
  'weights exist': (
    'convert --model=fcn32s --input={tree}/narrow.caffemodel '
    '--output={tree}/net.npz',
    ['{tree}/net.npz exists', '--overwrite'],
  ),
  'weights over themselves': (
    'convert --model=fcn32s --input={tree}/net.npz --output={tree}/net.npz '
    '--overwrite',
    ['output {tree}/net.npz is the input {tree}/net.npz', 'give another'],
  ),
  'weights over themselves through a link': (
    'convert --model=fcn32s --input={tree}/net.npz --output={tree}/link.npz '
    '--overwrite',
    ['output {tree}/link.npz is the input {tree}/net.npz'],
  ),
  'prediction over the weights': (
    f'predict --config=configs/fcn32s_voc.py {FOUR} --params={{tree}}/net.npz '
    '--input={tree}/image.png --output={tree}/link.npy --overwrite',
    ['output {tree}/link.npy is the input {tree}/net.npz'],
  ),
  'weights of another net': (
    f'predict --config=configs/fcn16s_voc.py {FOUR} --output={{new}}.npy '
    '--params={tree}/net.npz --input={tree}/image.png',
    ['score_pool4', 'of the model is not in the file'],
  ),
  'config without weights': (
    PREDICT + '.npy --input={tree}/image.png',
    ['--config=CONFIG', '--params=FILE'],
  ),
  'gray image': (
    PREDICT + '.npy --params={tree}/net.npz --input={tree}/gray.png',
    ['gray.png has 1 channels', 'in_channels=3'],
  ),
  'overlay as a stack': (
    PREDICT
    + '.tif --kind=overlay --params={tree}/net.npz --input={tree}/image.png',
    ['{new}.tif', 'overlay', '.png'],
  ),
  'tiles without a core': (
    PREDICT
    + '.npy --tile_size_px=1 --params={tree}/net.npz --input={tree}/image.png',
    ['tile size 1 px', 'tiles of this network are 480 + 32 j px'],
  ),
  'weights for other data': (
    f'evaluate {VOC}voc --config.model.num_classes=4 --params={{tree}}/net.npz',
    ['model.num_classes=4', 'use 21'],
  ),
}


def write_tree(tree):
  """Makes wrong data sets and weights, and some that are right."""
  write_camvid(tree / 'camvid')
  write_folder(tree / 'folder')
  write_voc(tree / 'voc')
  wrong = 'outside', 'colours', 'missing', 'empty', 'elsewhere', 'ignored'
  wrong += ('rare',)
  for name in wrong:
    shutil.copytree(tree / 'voc', tree / name)
  labels, lists = 'VOC2011/SegmentationClass', 'VOC2011/ImageSets/Segmentation'
  # Both, since the first that is drawn is read.
  for name, size in (('a', (20, 24)), ('b', (24, 17))):
    label = np.zeros(size, np.uint8)
    label[3, 4] = 77
    palette = np.zeros((256, 3), np.uint8)
    write_picture(tree / 'outside' / labels / f'{name}.png', label, palette)
    write_picture(tree / 'colours' / labels / f'{name}.png', image_of(1, size))
  ignored = np.full((18, 18), 255, np.uint8)
  write_picture(tree / 'ignored' / labels / 'c.png', ignored)
  for name in 'ab':
    file = tree / 'rare' / labels / f'{name}.png'
    label = read_labels(file)[0, ..., 0]
    write_picture(file, np.where(label == 20, 255, label))
  for name in ('masks', 'blank', 'second'):
    shutil.copytree(tree / 'folder', tree / name)
  for file in (tree / 'masks/labels').iterdir():
    write_picture(file, 255 * read_labels(file)[0, ..., 0])
  for file in (tree / 'blank/labels').iterdir():
    write_picture(file, np.full(read_labels(file).shape[1:3], 255))
  file = tree / 'second/labels/c.png'
  label = read_labels(file)[0, ..., 0]
  label[3, 4] = 7
  write_picture(file, label)
  write_lines(tree / 'second/train.txt', 'a')
  write_lines(tree / 'second/heldout.txt', 'b', 'c')
  (tree / 'missing' / labels / 'b.png').unlink()
  (tree / 'empty' / lists / 'train.txt').write_text('\n')
  write_lines(tree / 'elsewhere' / lists / 'train.txt', '../../a')

  model = FCN32s(**fcn_nets.NARROW)
  params = fcn_nets.random_params(model)
  files.write_params(tree / 'net.npz', params)
  about = {'pixels': 'standardised'}
  files.write_params(tree / 'rgb.npz', params, metadata=about)
  part = {name: layer for name, layer in params.items() if name != 'fc7'}
  files.write_params(tree / 'part.npz', part)
  layers = fcn_nets.caffe_layers(model, params)
  write_caffemodel(tree / 'narrow.caffemodel', layers)
  write_caffemodel(tree / 'cut.caffemodel', layers)
  cut(tree / 'cut.caffemodel')
  extra = {'conv9_9': [np.zeros((1, 1, 1, 1)), np.zeros(1)]}
  write_caffemodel(tree / 'unknown.caffemodel', layers | extra)
  (tree / 'link.npz').symlink_to('net.npz')
  (tree / 'link.npy').hardlink_to(tree / 'net.npz')
  write_picture(tree / 'image.png', image_of(9))
  write_picture(tree / 'gray.png', image_of(9)[..., 0])
