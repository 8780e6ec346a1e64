# SPDX-License-Identifier: Apache-2.0
"""PASCAL VOC segmentation, and the larger SBD to train on: 21 classes.

Everingham et al.: The PASCAL visual object classes challenge, 2011 or 2012;
palette label images, 255 for the outlines, which are ignored. Hariharan et
al.: Semantic contours from inverse detectors. ICCV 2011 (SBD); labels in .mat.

FCN trains on SBD's 8498 training images and is scored on seg11valid, the 736
of VOC 2011's validation images that are not among them (published code,
data/pascal).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from segjax.data import matlab
from segjax.data.examples import (
  Dataset,
  check_label,
  dataset_of_files,
)
from segjax.data.layout import (
  find_folder,
  named_items,
  read_names,
)
from segjax.errors import InputError
from segjax.images import single_images

CLASS_NAMES = (
  'background',
  'aeroplane',
  'bicycle',
  'bird',
  'boat',
  'bottle',
  'bus',
  'car',
  'cat',
  'chair',
  'cow',
  'diningtable',
  'dog',
  'horse',
  'motorbike',
  'person',
  'pottedplant',
  'sheep',
  'sofa',
  'train',
  'tvmonitor',
)


def load(
  dir: str, year: int, sbd_dir: str, train_list: str, heldout_list: str
) -> Dataset:
  """Returns images of VOC or SBD to train on, and images of VOC held out.

  Args:
    dir: VOCdevkit, the folder that holds VOC2011 or VOC2012. '' looks in the
      usual places (see `layout.find_folder`).
    year: 2011 or 2012.
    sbd_dir: SBD's folder `dataset`, which holds img and cls, to train on it;
      '' trains on VOC.
    train_list: file with the name of an image, such as 2007_000032, on each
      line; '' is train.txt of SBD, or of VOC where `sbd_dir` is ''.
    heldout_list: the same for images of VOC held out; '' is those of VOC's
      val.txt that are not trained on: seg11valid, where `year` is 2011 and
      training is SBD's.

  Raises:
    InputError: another year; or folders or files are missing, listed for
      training and held out, damaged, in colours instead of a palette, or hold
      other labels.
  """
  if year not in (2011, 2012):
    raise InputError(f'data.year={year}; expected 2011 or 2012')
  lists = f'VOC{year}/ImageSets/Segmentation'
  kinds = [f'VOC{year}/{kind}' for kind in ('JPEGImages', 'SegmentationClass')]
  voc = find_folder(
    f'PASCAL VOC {year}',
    dir,
    [lists, *kinds],
    'voc/VOCdevkit',
    f'expected VOCdevkit, which holds VOC{year}, as distributed; pass it with '
    '--config.data.dir=DIR',
  )
  own = (voc / kinds[0], '.jpg'), (voc / kinds[1], '.png')
  if sbd_dir:
    sbd = find_folder(
      'SBD',
      sbd_dir,
      ['img', 'cls'],
      'benchmark_RELEASE/dataset',
      'expected img and cls of its folder dataset; pass that with '
      "--config.data.sbd_dir=DIR, or '' to train on VOC",
    )
    source = Path(train_list or sbd / 'train.txt')
    files = (sbd / 'img', '.jpg'), (sbd / 'cls', '.mat')
  else:
    source = Path(train_list or voc / lists / 'train.txt')
    files = own
  train_names = read_names(source)
  train = named_items(train_names, files, source)
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

  Of VOC 2011's val.txt and SBD's train.txt: the 736 images that FCN is scored
  on.
  """
  trained = set(sbd_train)
  return [name for name in voc_val if name not in trained]


def read_label(path: Path) -> np.ndarray:
  """Returns i32[H, W], 0..20 or 255, of a palette PNG or a .mat file of SBD.

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
