# SPDX-License-Identifier: Apache-2.0
"""Palettes of label files, compared before a run trains on the indices."""

import re

import numpy as np
import pytest
from small_sets import write_folder, write_voc
from trees import write_picture

from segjax import dry_run
from segjax.data import create_dataset
from segjax.data.label_colours import LabelColours
from segjax.data.label_counts import check_labels, count_labels
from segjax.data.survey import find_layout
from segjax.errors import InputError
from segjax.images.files import read_colours, write_stack
from segjax.plan import plan
from segjax.recipes import unet_folder_config
from segjax.runs.run_warnings import check_start

RED_GREEN = np.uint8([(0, 0, 0), (200, 0, 0), (0, 200, 0)])
GREEN_RED = RED_GREEN[[0, 2, 1]]
LABEL = np.repeat(np.uint8([0, 1, 2]), 8)[:, None] * np.ones(20, np.uint8)
CLASSES = ('sea', 'land', 'ice')


def folder_of(root, palettes, **fields):
  """Returns the settings of a folder of labels of these palettes, or None."""
  fields = (
    write_folder(root)
    | dict(
      name='folder',
      images='images',
      labels='labels',
      class_names=CLASSES,
      colours=(),
      ignore_value=(),
      train_list='',
      heldout_list='',
      seed=0,
    )
    | fields
  )
  for kind in ('images', 'labels'):
    for file in (root / kind).iterdir():
      file.unlink()
  for i, palette in enumerate(palettes):
    write_picture(root / 'images' / f'{i}.png', 20 + 9 * LABEL)
    write_picture(root / 'labels' / f'{i}.png', LABEL, palette)
  return fields


@pytest.mark.parametrize('which', range(3))
def test_swapped_colours_are_refused_wherever_they_are(tmp_path, which):
  palettes = 3 * [RED_GREEN]
  settings = folder_of(tmp_path, palettes, heldout_fraction=0.34)
  dataset = create_dataset(settings)
  check_labels(dataset, settings)
  write_picture(tmp_path / 'labels' / f'{which}.png', LABEL, GREEN_RED)
  with pytest.raises(InputError) as error:
    check_labels(dataset, settings)
  found = re.fullmatch(
    r'(.*\.png): the colour of index 1 is (.*), and (.*) in (.*\.png); '
    'expected one palette, or labels in RGB',
    str(error.value),
  )
  files, colours = found.group(1, 4), found.group(2, 3)
  assert {*colours} == {'(200, 0, 0)', '(0, 200, 0)'}
  assert f'{tmp_path}/labels/{which}.png' in files and len({*files}) == 2


def test_colours_of_indices_that_no_pixel_has_do_not_matter(tmp_path):
  longer = np.concatenate([RED_GREEN, np.uint8([(9, 9, 9)])])
  settings = folder_of(tmp_path, [RED_GREEN, longer, longer + (longer == 9)])
  assert 'palettes' not in check_labels(create_dataset(settings), settings)


@pytest.fixture
def quick_plan(monkeypatch):
  """Compiles no step to see whether it fits into memory."""
  monkeypatch.setattr(
    dry_run,
    'fit_to_memory',
    lambda config: ('tile_size_px', config.tile_size_px, 1e9),
  )


@pytest.mark.usefixtures('quick_plan')
def test_files_without_a_palette_are_said_not_refused(tmp_path):
  settings = folder_of(tmp_path, [None, RED_GREEN, RED_GREEN])
  table = check_labels(create_dataset(settings), settings)
  line = table.splitlines()[-1]
  assert re.fullmatch(
    r'palettes: .*/labels/[12]\.png has a palette and .*/labels/0\.png has '
    'none, so nothing shows .*',
    line,
  )
  config = unet_folder_config(CLASSES)
  images = [{'image': LABEL[..., None]}]
  assert f'palettes: {check_start(config, images, table)["palettes"]}' == line
  report = plan(
    find_layout(tmp_path, None), 'unet', label_kind='classes'
  ).report
  assert re.search(r'palettes +.*0\.png has none', report)
  settings = folder_of(tmp_path / 'plain', 3 * [None])
  assert 'palettes' not in check_labels(create_dataset(settings), settings)


@pytest.mark.usefixtures('quick_plan')
def test_palettes_mean_nothing_where_labels_number_objects(tmp_path):
  settings = folder_of(
    tmp_path,
    [RED_GREEN, GREEN_RED, None],
    label_kind='instances',
    class_names=CLASSES[:2],
  )
  assert 'palettes' not in check_labels(create_dataset(settings), settings)
  layout = find_layout(tmp_path, None)
  plan(layout, 'unet', label_kind='instances')
  with pytest.raises(InputError, match='the colour of index 1 is'):
    plan(layout, 'unet', label_kind='classes')


def test_a_swapped_palette_of_voc_is_refused(tmp_path):
  settings = {
    'name': 'voc',
    'year': 2011,
    'sbd_dir': '',
    'train_list': '',
    'heldout_list': '',
  } | write_voc(tmp_path)
  dataset = create_dataset(settings)
  check_labels(dataset, settings)
  file = tmp_path / 'VOC2011/SegmentationClass/c.png'
  [label] = create_dataset(settings).heldout
  write_picture(file, label['label'], np.zeros((256, 3)))
  with pytest.raises(InputError, match=r'c\.png.*index'):
    check_labels(dataset, settings)


def test_pages_have_the_colours_of_their_indices(tmp_path):
  write_picture(tmp_path / 'a.png', LABEL, RED_GREEN)
  expected = {i: tuple(RED_GREEN[i].tolist()) for i in range(3)}
  assert read_colours(tmp_path / 'a.png', 0) == expected
  write_picture(tmp_path / 'a.png', LABEL // 2, RED_GREEN)
  assert read_colours(tmp_path / 'a.png', 0).keys() == {0, 1}
  write_stack(tmp_path / 'a.tif', np.stack([LABEL, LABEL]))
  assert read_colours(tmp_path / 'a.tif', 1) is None
  write_picture(tmp_path / 'b.png', LABEL + 1, RED_GREEN)
  with pytest.raises(InputError, match='b.png: index 3 in a palette of 3 col'):
    read_colours(tmp_path / 'b.png', 0)


def test_colours_of_other_processes_count(monkeypatch):
  """Each of two processes has files that agree, and they do not agree."""
  sent = []

  def both(rows):
    sent.append(rows)
    return np.concatenate(sent)

  monkeypatch.setattr('segjax.devices.processes.gather_rows', both)
  ours, theirs = LabelColours(), LabelColours()
  for name in ('a.png', 'b\udcff.png'):
    ours.add(name, {0: (0, 0, 0), 1: (1, 2, 3)})
  theirs.add('c.png', {0: (0, 0, 0), 1: (3, 2, 1)})
  theirs.add('d.png', None)
  assert not ours.gathered().doubt()
  with pytest.raises(
    InputError, match=r'c.png: .* index 1 is \(3, 2, 1\), and \(1, 2, 3\) in a'
  ):
    theirs.gathered()


def test_a_split_alone_is_checked(tmp_path):
  settings = folder_of(tmp_path, [RED_GREEN, GREEN_RED, RED_GREEN])
  examples = create_dataset(settings).train
  with pytest.raises(InputError, match='the colour of index 1'):
    count_labels(examples)
