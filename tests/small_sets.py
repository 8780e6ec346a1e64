# SPDX-License-Identifier: Apache-2.0
"""A small tree of every data set that a card of FCN reads, sizes unequal."""

import numpy as np
from trees import write_lines, write_mat, write_picture

from segjax.data.examples import Dataset
from segjax.prepare import prepare

SIZES = ((20, 24), (24, 17), (18, 18))
NAMES = ('a', 'b', 'c')  # The last is held out.
_SCENES = 'spatial_envelope_256x256_static_8outdoorcategories'


def _image(i):
  rng = np.random.default_rng(i)
  return rng.integers(1, 256, (*SIZES[i], 3), dtype=np.uint8)


def _label(i, num_classes):
  """Returns u8 with as many pixels of each class, row by row."""
  pixels = np.arange(np.prod(SIZES[i]))
  label = pixels * num_classes // pixels.size
  return label.reshape(SIZES[i]).astype(np.uint8)


def write_voc(folder):
  lists = folder / 'VOC2011/ImageSets/Segmentation'
  write_lines(lists / 'train.txt', 'a', 'b')
  write_lines(lists / 'val.txt', 'c')
  for i, name in enumerate(NAMES):
    write_picture(folder / f'VOC2011/JPEGImages/{name}.jpg', _image(i))
    label = _label(i, 21)
    label[0] = 255
    palette = np.arange(768, dtype=np.uint8).reshape(256, 3)
    write_picture(
      folder / f'VOC2011/SegmentationClass/{name}.png', label, palette
    )
  return {'dir': str(folder)}


def write_pascal_context(folder):
  names = {i: f'thing{i}' for i in range(1, 460)}
  for i, name in enumerate(('table', 'bedclothes', 'cloth'), start=57):
    names[i] = name
  classes = {i: names[i] for i in range(1, 57)}
  classes |= {57: 'diningtable', 58: 'bedcloth', 59: 'clothes'}
  for file, listed in (('labels', names), ('59_labels', classes)):
    lines = [f'{i}: {name}' for i, name in listed.items()]
    write_lines(folder / f'context/{file}.txt', *lines)
  lists = folder / 'VOC2010/ImageSets/Main'
  write_lines(lists / 'train.txt', 'a', 'b')
  write_lines(lists / 'val.txt', 'c')
  for i, name in enumerate(NAMES):
    write_picture(folder / f'VOC2010/JPEGImages/{name}.jpg', _image(i))
    stored = _label(i, 60).astype(np.uint16)
    write_mat(folder / f'context/trainval/{name}.mat', LabelMap=stored)
  return {'dir': str(folder), 'context_dir': str(folder / 'context')}


def write_nyudv2(folder):
  write_lines(folder / 'train.txt', 'a')
  write_lines(folder / 'val.txt', 'b')
  write_lines(folder / 'test.txt', 'c')
  for i, name in enumerate(NAMES):
    for kind in ('images', 'hha'):
      write_picture(folder / f'data/{kind}/img_{name}.png', _image(i))
    depth = _image(i)[..., 0].astype(np.uint16) * 30
    file = folder / f'data/depth/img_{name}.png'
    write_picture(file, depth, dtype=np.uint16)
    file = folder / f'segmentation/img_{name}.mat'
    write_mat(file, segmentation=_label(i, 41))
  return {'dir': str(folder)}


def write_sift_flow(folder):
  write_lines(folder / 'trainval.txt', 'a', 'b')
  write_lines(folder / 'test.txt', 'c')
  for i, name in enumerate(NAMES):
    write_picture(folder / f'Images/{_SCENES}/{name}.jpg', _image(i))
    file = folder / f'SemanticLabels/{_SCENES}/{name}.mat'
    write_mat(file, S=_label(i, 34))
    file = folder / f'GeoLabels/{_SCENES}/{name}.mat'
    write_mat(file, S=_label(i, 4).astype(np.int16) - (_label(i, 4) == 0))
  return {'dir': str(folder)}


def write_camvid(folder):
  write_lines(folder / 'train.txt', *_pairs('train', 'a', 'b'))
  write_lines(folder / 'val.txt', *_pairs('val', 'c'))
  for i, name in enumerate(NAMES):
    split = 'val' if name == 'c' else 'train'
    image = np.resize(_image(0), (24, 32, 3))
    write_picture(folder / f'{split}/{name}.png', image)
    label = np.resize(_label(i, 12), (24, 32))
    write_picture(folder / f'{split}annot/{name}.png', label)
  return {'dir': str(folder)}


def write_folder(folder):
  for i, name in enumerate(NAMES):
    write_picture(folder / f'images/{name}.png', _image(i))
    write_picture(folder / f'labels/{name}.png', _label(i, 2))
  return {'dir': str(folder), 'heldout_fraction': 0.34}


def write_tfds(folder):
  """A set of `prepare`, in place of Oxford-IIIT Pet."""
  examples = [
    {'image': _image(i), 'label': _label(i, 3).astype(np.int32), 'name': name}
    for i, name in enumerate(NAMES)
  ]
  classes = ('pet', 'background', 'border')
  dataset = Dataset(classes, examples[:2], examples[2:], 'digest')
  prepare(dataset, folder, 'pets')
  return {
    'dir': str(folder),
    'set': 'pets',
    'heldout_split': 'heldout',
    'label_key': 'label',
    'label_shift': 0,
  }


WRITERS = {
  'voc': write_voc,
  'pascal_context': write_pascal_context,
  'nyudv2': write_nyudv2,
  'sift_flow': write_sift_flow,
  'camvid': write_camvid,
  'folder': write_folder,
  'tfds': write_tfds,
}


def _pairs(split, *names):
  return [f'{split}/{n}.png {split}annot/{n}.png' for n in names]
