# SPDX-License-Identifier: Apache-2.0
"""PASCAL VOC, objects in 21 classes, and the larger set SBD to train on.

Everingham et al.: The PASCAL visual object classes challenge, 2011 or 2012. The
labels are palette images, in which 255 marks the outlines, which are ignored.
Hariharan et al.: Semantic contours from inverse detectors. ICCV 2011 (SBD). The
labels are .mat files.

FCN trains on SBD's 8498 training images and is scored on seg11valid: the 736
validation images of VOC 2011 that SBD does not train on (published code,
data/pascal).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from segjax.data import matlab
from segjax.data.examples import Dataset, check_label, dataset_of_files
from segjax.data.layout import find_folder, named_items, read_names
from segjax.errors import InputError
from segjax.images import single_images

# In stored order.
CLASS_NAMES = (
  *('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus'),
  *('car', 'cat', 'chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike'),
  *('person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'),
)


def load(
  dir: str, year: int, sbd_dir: str, train_list: str, heldout_list: str
) -> Dataset:
  """Returns images of VOC or SBD to train on, and images of VOC held out.

  Args:
    dir: folder VOCdevkit, which holds VOC2011 or VOC2012. '' looks in the usual
      places (see `layout.find_folder`).
    year: 2011 or 2012.
    sbd_dir: folder `dataset` of SBD, which holds img and cls, to train on SBD;
      '' trains on VOC.
    train_list: file with the name of an image, such as 2007_000032, on each
      line; '' takes train.txt of SBD, or that of VOC if `sbd_dir` is ''.
    heldout_list: file with the names of the images of VOC that are held out; ''
      takes those of VOC's val.txt that are not trained on. With VOC 2011 and
      SBD these are seg11valid.

  Raises:
    InputError: another year; or folders or files are missing or damaged, an
      image is both trained on and held out, or labels are no classes.
  """
  if year not in (2011, 2012):
    raise InputError(f'data.year={year}; expected 2011 or 2012')
  images, labels = f'VOC{year}/JPEGImages', f'VOC{year}/SegmentationClass'
  lists = f'VOC{year}/ImageSets/Segmentation'
  voc = find_folder(
    f'PASCAL VOC {year}',
    dir,
    [lists, images, labels],
    'voc/VOCdevkit',
    f'VOCdevkit, which holds VOC{year}, as distributed',
  )
  own = voc / images / '{}.jpg', voc / labels / '{}.png'
  files, train_source = own, voc / lists / 'train.txt'
  if sbd_dir:
    sbd = find_folder(
      'SBD',
      sbd_dir,
      ['img', 'cls'],
      'benchmark_RELEASE/dataset',
      "img and cls of its folder dataset; or sbd_dir='', which trains on VOC",
      field='sbd_dir',
    )
    files = sbd / 'img/{}.jpg', sbd / 'cls/{}.mat'
    train_source = sbd / 'train.txt'
  if train_list:
    train_source = Path(train_list)
  train_names = read_names(train_source)
  train = named_items(train_names, files, train_source)
  if heldout_list:
    source = Path(heldout_list)
    names = read_names(source)
  else:
    source = voc / lists / 'val.txt'
    names = seg11valid(read_names(source), train_names)
    source = f'{source}, less the images trained on,'
  held = named_items(names, own, source)
  return dataset_of_files(CLASS_NAMES, train, held, _read)


def seg11valid(voc_val: Sequence[str], sbd_train: Iterable[str]) -> list[str]:
  """Returns the names in `voc_val` that are not in `sbd_train`, in order.

  For val.txt of VOC 2011 and train.txt of SBD, these are the 736 images that
  FCN is scored on.
  """
  trained = set(sbd_train)
  return [name for name in voc_val if name not in trained]


def read_label(path: Path) -> np.ndarray:
  """Returns the label i32[H, W] of a palette PNG or a .mat file: 0..20 or 255.

  Raises:
    InputError: the file is damaged, in colours, or holds other labels.
  """
  if path.suffix == '.mat':
    label = matlab.read_label(path, 'GTcls.Segmentation')
  else:
    label = single_images.read_indices(path)
  return check_label(label, len(CLASS_NAMES), path)


def _read(image_file, label_file):
  return single_images.read_rgb(image_file), read_label(label_file)
