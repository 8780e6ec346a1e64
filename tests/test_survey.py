# SPDX-License-Identifier: Apache-2.0
"""Folders of images and labels: their layouts, and what they hold."""

import numpy as np
import pytest
from trees import write_picture

from segjax.data.pairing import find_pairs
from segjax.data.survey import find_layout, say_copies, survey
from segjax.errors import InputError
from segjax.images.files import write_stack

MASK = np.zeros((8, 9), np.uint8)
MASK[2:5, 3:7] = 255
LAYOUTS = {
  'two folders': ('images/a.png', ['labels/a.png'], 'a'),
  'masks': ('images/a.png', ['masks/a.png'], 'a'),
  'Carvana': ('train/a.png', ['train_masks/a_mask.png'], 'a'),
  'annotations': ('images/a.tif', ['annotations/a.png'], 'a'),
  'nnU-Net': ('imagesTr/a_0000.png', ['labelsTr/a.png'], 'a'),
  'suffix of a folder': ('images/a.png', ['labels/a_mask.png'], 'a'),
  'frames beside masks': ('a_0000.png', ['a_0000_mask.png'], 'a_0000'),
  'suffix _mask': ('a.png', ['a_mask.png'], 'a'),
  'suffix _seg': ('a.b.png', ['a.b_seg.png'], 'a.b'),
  'suffix _labels': ('a.png', ['a_labels.png'], 'a'),
  'a folder an image': (
    'a/images/x.png',
    ['a/masks/1.png', 'a/masks/2.png'],
    'a',
  ),
}


def write(root, image, labels, key='a', other='b'):
  for name in (key, other):
    files = [
      path.replace(key, name, 1) if path.startswith(f'{key}/') else path
      for path in (image, *labels)
    ]
    files = [path.replace(f'/{key}', f'/{name}') for path in files]
    if '/' not in image:
      files = [path.replace(key, name, 1) for path in files]
    for number, path in enumerate(files):
      array = MASK if number else np.uint8(MASK // 2 + 3)
      if path.endswith('.tif'):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_stack(root / path, array[None])
      else:
        write_picture(root / path, array)


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_layout_is_found(tmp_path, name):
  image, labels, key = LAYOUTS[name]
  write(tmp_path, image, labels, key, 'c')
  layout = find_layout(tmp_path, None)
  pairs = find_pairs(*layout, need_all=True)
  assert [pair.key for pair in pairs] == [key, 'c']
  assert pairs[0].image == tmp_path / image
  assert pairs[0].labels == tuple(tmp_path / label for label in labels)
  found = survey(layout, need_all=True)
  assert found.num_masks == len(labels)
  assert found.sizes == {(8, 9): 2} and found.kind == (np.uint8, 1)


def test_folders_and_patterns_are_taken_as_given(tmp_path):
  for name in ('21', '22'):
    write_picture(tmp_path / 'in' / 'raw' / f'{name}_training.png', MASK)
    write_picture(tmp_path / 'in' / 'truth' / f'{name}_manual1.png', MASK)
  raw, truth = tmp_path / 'in' / 'raw', tmp_path / 'in' / 'truth'
  with pytest.raises(
    InputError, match=r"--match='.*would pair all by the first"
  ):
    find_layout(raw, truth)
  layout = find_layout(raw, truth, r'(\d+)_')
  assert layout[:3] == (tmp_path / 'in', 'raw', 'truth')
  assert [p.key for p in find_pairs(*layout, need_all=True)] == ['21', '22']
  layout = find_layout(
    tmp_path, f'{tmp_path}/in/truth/*_manual1.png', r'(\d+)_'
  )
  assert layout.labels == 'in/truth/*_manual1.png'


def test_a_pattern_of_folders_stands_for_their_images(tmp_path):
  for name in ('s0', 's1'):
    for kind in ('raw', 'truth'):
      write_picture(tmp_path / name / kind / 'i.png', MASK)
  where = (f'{tmp_path}/*/{kind}' for kind in ('raw', 'truth'))
  layout = find_layout(*where, '([^/]+)/[^/]+/')
  assert [p.key for p in find_pairs(*layout, need_all=True)] == ['s0', 's1']


@pytest.mark.parametrize(
  'match, message',
  [
    ('(', 'is no regular expression'),
    ('a', 'has no group'),
    ('(x+)', r"'\(x\+\)' is not found in "),
  ],
)
def test_a_match_that_finds_nothing_is_refused(tmp_path, match, message):
  write(tmp_path, 'images/a.png', ['labels/a.png'])
  with pytest.raises(InputError, match=message):
    find_pairs(tmp_path, 'images', 'labels', match, need_all=True)


def test_no_layout_is_refused(tmp_path):
  write_picture(tmp_path / 'a.png', MASK)
  with pytest.raises(InputError, match='neither folders images and labels'):
    find_layout(tmp_path, None)
  with pytest.raises(InputError, match='no such folder'):
    find_layout(tmp_path / 'none', None)
  with pytest.raises(InputError, match='for the images and for the labels'):
    find_layout(tmp_path, tmp_path)


def test_counts_are_those_of_the_files(tmp_path):
  rng = np.random.default_rng(0)
  labels = rng.choice(np.uint8([0, 7, 255]), (70, 5, 6))
  images = rng.integers(10, 200, (70, 5, 6, 3), np.uint8)
  for i in range(70):  # More than a block.
    write_picture(tmp_path / 'images' / f'{i}.png', images[i])
    write_picture(tmp_path / 'labels' / f'{i}.png', labels[i])
  found = survey(find_layout(tmp_path, None), need_all=True)
  assert found.values == {v: (labels == v).sum() for v in (0, 7, 255)}
  assert found.range == (images.min(), images.max())
  assert found.kind == (np.uint8, 3) and len(found.pages) == 70


def test_colours_are_counted(tmp_path):
  label = np.zeros((4, 5, 3), np.uint8)
  label[1:3, 2] = (9, 0, 200)
  write_picture(tmp_path / 'images' / 'a.png', MASK[:4, :5])
  write_picture(tmp_path / 'labels' / 'a.png', label)
  found = survey(find_layout(tmp_path, None), need_all=True)
  assert found.values == {(0, 0, 0): 18, (9, 0, 200): 2}
  assert found.label_channels == 3


def test_two_labels_of_one_name_are_refused(tmp_path):
  write(tmp_path, 'images/a.png', ['labels/a.png'])
  write_stack(tmp_path / 'labels' / 'a.tif', MASK[None])
  with pytest.raises(InputError, match='a.png and a.tif have one name'):
    survey(find_layout(tmp_path, None), need_all=True)


@pytest.mark.parametrize('numbered', [True, False])
def test_numbered_objects_are_told_from_classes(tmp_path, numbered):
  label = np.zeros((20, 20), np.uint8)
  for k in range(4):
    label[5 * k : 5 * k + 3, 2:9] = label[5 * k : 5 * k + 3, 12:19] = k + 1
  if numbered:
    label[:, 10:] = 0
  write_picture(tmp_path / 'images' / 'a.png', label)
  write_picture(tmp_path / 'labels' / 'a.png', label)
  found = survey(find_layout(tmp_path, None), need_all=True)
  assert found.single == (1 if numbered else 0)
  assert found.components == (4 if numbered else 8)


def test_copies_are_compared_by_what_labels_show(tmp_path):
  masks = np.zeros((2, 8, 9), np.uint8)
  masks[0, :3, :3] = masks[1, 5:, 5:] = 255
  for folder, order in (('a', masks), ('b', masks[::-1])):
    picture = np.arange(72, dtype=np.uint8).reshape(8, 9)
    write_picture(tmp_path / folder / 'images' / f'{folder}.png', picture)
    for i, mask in enumerate(order):
      write_picture(tmp_path / folder / 'masks' / f'{i}.png', mask)
  found = survey(find_layout(tmp_path, None), need_all=True)
  assert found.digests[0] == found.digests[1]
  both = [*zip('ab', found.digests, strict=True)]
  assert not say_copies(both, [])
  assert say_copies(both[:1], both[1:]).startswith('1 of the images held out')
  other = [both[0], ('b', (found.digests[0][0], 'another'))]
  assert '1 of the images trained on are copies' in say_copies(other, [])


@pytest.mark.parametrize(
  'path, array, message',
  [
    (
      'images/b.png',
      np.zeros((8, 9, 3)),
      'images of uint8 and 1 channel.*; 1 ',
    ),
    (
      'labels/b.png',
      np.zeros((8, 8)),
      'label of 8 x 8 px for an image of 8 x 9',
    ),
    ('labels/b.png', np.zeros((8, 9, 3)), r'labels of 3 channel\(s\), such as'),
    ('images/a_0001.png', np.zeros((8, 9)), '1 of the names in images'),
    ('labels/b.png', None, '1 of the names in images and labels are not in bo'),
    (
      'images/B.png',
      'images/b.png',
      "labels/b.png: the names 'B' and 'b' differ",
    ),
  ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, path, array, message):
  write(tmp_path, 'images/a.png', ['labels/a.png'])
  write(tmp_path, 'images/c.png', ['labels/c.png'], 'c', 'd')
  if array is None:
    (tmp_path / path).unlink()
  elif isinstance(array, str):
    (tmp_path / array).rename(tmp_path / path)
  else:
    write_picture(tmp_path / path, array)
  with pytest.raises(InputError, match=message):
    survey(find_layout(tmp_path, None), need_all=True)
