# SPDX-License-Identifier: Apache-2.0
"""Cards that are written for a folder of images and labels."""

import runpy
import shutil

import numpy as np
import pytest
from commands import run
from trees import write_picture

from segjax import dry_run
from segjax.data import create_dataset
from segjax.data.label_counts import check_labels
from segjax.data.survey import find_layout
from segjax.errors import InputError
from segjax.images.files import write_stack
from segjax.models import create_model
from segjax.plan import plan
from segjax.settings.sections import read_settings


@pytest.fixture(autouse=True)
def enough_memory(monkeypatch):
  """Eight devices share this host's memory; enough of it compiles nothing."""
  monkeypatch.setattr(dry_run, '_bytes_per_device', lambda: (10**12, 'a test'))


RNG = np.random.default_rng(0)
IMAGE = RNG.integers(20, 220, (40, 50), np.uint8)


def write_set(root, labels, image=IMAGE, suffix='.png'):
  for i, label in enumerate(labels):
    for kind, array in (('images', np.roll(image, i)), ('labels', label)):
      file = root / kind / f'{i}{suffix}'
      if suffix == '.png':
        write_picture(file, array)
      else:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_stack(file, array[None])


def config_of(root, **options):
  """Returns the config of the card for a folder, and the card."""
  options = {'network': 'unet', **options}
  config, text, *_ = plan(find_layout(root, None), **options)
  card = root / 'card.py'
  card.write_text(text)
  assert max(map(len, text.splitlines())) <= 120
  assert runpy.run_path(str(card))['get_config']().to_dict() == config.to_dict()
  return config, text


def classes(*values):
  label = np.full((40, 50), values[0])
  for i, value in enumerate(values[1:]):
    label[3 + 5 * i : 6 + 5 * i, 4:40] = value
    label[3 + 5 * i : 6 + 5 * i, 44:] = value
  return label


OBJECTS = np.zeros((40, 50), np.uint8)
for number in range(13):
  OBJECTS[3 * number : 3 * number + 2, 5:30] = number + 1
CASES = {
  'masks': (classes(0, 255), dict(label_values=(0, 255), ignore_value=())),
  'bits': (classes(0, 1), dict(label_values=(), ignore_value=())),
  'indices': (classes(0, 1, 2), dict(label_values=(), ignore_value=())),
  'ignored': (classes(0, 1, 2, 255), dict(ignore_value=(255,))),
  'values': (classes(0, 50, 200), dict(label_values=(0, 50, 200))),
  'gray levels': (classes(0, 128, 255), dict(label_values=(0, 128, 255))),
  'a class is missing': (
    classes(0, 2, 3, 255),
    dict(label_values=(0, 2, 3), ignore_value=(255,)),
  ),
  'objects': (OBJECTS, dict(label_kind='instances', w0=10.0)),
}


@pytest.mark.parametrize('name', CASES)
def test_labels_mean_what_they_say(tmp_path, name):
  label, expected = CASES[name]
  write_set(tmp_path, 5 * [label])
  config, _ = config_of(tmp_path)
  found = {key: config.data[key] for key in expected}
  assert found == expected
  read_settings(config)
  dataset = create_dataset(config.data)
  check_labels(dataset, config.data)  # Each class has pixels.
  assert len(dataset.train) == 4 and len(dataset.heldout) == 1
  got = dataset.train[0]['label']
  values = np.unique(label)
  # Objects have border weights, which come with class weights.
  losses = ('cross_entropy', True), ('dice_cross_entropy', False)
  is_overlap = name != 'objects'
  assert (config.loss, config.data.balance) == losses[is_overlap]
  assert config.model.norm == 'batch'
  if name == 'objects':
    np.testing.assert_array_equal(got, label > 0)
    assert config.model.num_classes == 2
    assert config.evaluation.best_metric == 'mean_ap'
  else:
    assert config.evaluation.best_metric == 'mean_iu'
    for k, value in enumerate(values):
      k = 255 if config.data.ignore_value == (255,) and value == 255 else k
      np.testing.assert_array_equal(got == k, label == value)


def test_many_classes_are_taken_if_it_is_said(tmp_path):
  write_set(tmp_path, 5 * [np.arange(2000).reshape(40, 50) // 10 % 150])
  with pytest.raises(InputError, match='labels hold 150 values, from 0 to 149'):
    config_of(tmp_path)
  config, _ = config_of(tmp_path, label_kind='classes')
  assert config.model.num_classes == 150 and not config.data.label_values


def test_colours_are_classes(tmp_path):
  colours = np.uint8([(0, 0, 0), (200, 3, 9), (7, 200, 9)])
  write_set(tmp_path, 5 * [colours[classes(0, 1, 2)]])
  config, text = config_of(tmp_path)
  assert config.data.colours == ((0, 0, 0), (7, 200, 9), (200, 3, 9))
  assert "'class 1',  # (7, 200, 9): 6.30% of the pixels" in text


def test_a_card_says_what_was_found_and_is_the_same_again(tmp_path):
  write_set(tmp_path, 5 * [classes(0, 255)])
  config, text = config_of(tmp_path)
  said = f'5 images, 40 x 50 px, uint8 from {IMAGE.min()} to {IMAGE.max()}'
  assert f"config.data.images = 'images'  # {said}" in text
  assert '(0, 255)  # 255: 6.30% of the pixels' in text
  assert "config.model.norm = 'batch'  # learns in far fewer steps" in text
  assert config_of(tmp_path)[1] == text
  pixels = read_settings(config).preprocessing
  image = create_dataset(config.data).train[0]['image']
  prepared = np.asarray(pixels.prepare(pixels.by_image(image)))
  np.testing.assert_allclose(
    (prepared.mean(), prepared.std()), (0, 1), atol=1e-5
  )


def test_long_runs_freeze_their_norms(tmp_path):
  write_set(tmp_path, 5 * [classes(0, 255)])
  minutes = 1.0
  while config_of(tmp_path, minutes=minutes)[0].num_train_steps < 2000:
    minutes *= 2
  shares = [
    config_of(tmp_path, minutes=m)[0].frozen_norm_share
    for m in (minutes, minutes / 2)
  ]
  assert shares == [0.2, 0]


def report_of(root, **options):
  return plan(find_layout(root, None), 'unet', **options).report


def test_copies_of_held_out_images_are_named(tmp_path):
  write_set(tmp_path, 5 * [classes(0, 1)])
  (tmp_path / 'train').write_text('0\n1\n2\n')
  (tmp_path / 'held').write_text('3\n')
  lists = dict(train_list='train', heldout_list='held')
  report = report_of(tmp_path, **lists)
  assert 'copies' not in report
  assert '3 trained on, 1 held out, 1 in neither list' in report
  # Another file with the same pixels.
  write_stack(tmp_path / 'images/3.tif', np.roll(IMAGE, 1)[None])
  (tmp_path / 'images/3.png').unlink()
  report = report_of(tmp_path, **lists)
  assert '1 of the images held out are also trained on' in report
  assert ': 3 is 1; delete the copies' in report
  assert 'another label' not in report


def test_copies_with_contradicting_labels_are_named(tmp_path):
  write_set(tmp_path, 5 * [classes(0, 1)])
  (tmp_path / 'train').write_text('0\n1\n2\n')
  (tmp_path / 'held').write_text('3\n')
  lists = dict(train_list='train', heldout_list='held')
  shutil.copy(tmp_path / 'images/0.png', tmp_path / 'images/2.png')
  assert 'copies' not in report_of(tmp_path, **lists)  # With the same label.
  write_picture(tmp_path / 'labels/2.png', classes(0, 1)[::-1])
  report = report_of(tmp_path, **lists)
  assert (
    '1 of the images trained on are copies of others with another' in report
  )
  assert ': 2 is 0; delete one of each two' in report


def test_images_without_structure_are_no_copies(tmp_path):
  write_set(tmp_path, 4 * [classes(0, 1)])
  for i in (0, 3):
    write_picture(tmp_path / f'images/{i}.png', np.full_like(IMAGE, 7))
  (tmp_path / 'train').write_text('0\n1\n2\n')
  (tmp_path / 'held').write_text('3\n')
  lists = dict(train_list='train', heldout_list='held')
  assert 'copies' not in report_of(tmp_path, **lists)


def test_curves_have_no_border_weights(tmp_path):
  curves, blocks = np.zeros((2, 40, 50), np.uint8)
  for start in range(8, 40, 4):
    curves[np.arange(start - 8, start), np.arange(8)] = 1  # A diagonal of 8 px.
    blocks[start - 2 : start, 3:6] = 1
  write_set(tmp_path / 'curves', 5 * [curves])
  write_set(tmp_path / 'blocks', 5 * [blocks])
  assert config_of(tmp_path / 'curves')[0].data.w0 == 0
  assert config_of(tmp_path / 'blocks')[0].data.w0 == 10


def test_classes_that_are_not_held_out_count_in_no_mean(tmp_path):
  write_set(tmp_path, 5 * [classes(0, 1, 2)])
  for network, init in (('unet', ''), ('fcn8s', 'random')):
    config, _ = config_of(tmp_path, network=network, init=init)
    assert config.evaluation.present_only


@pytest.mark.parametrize('kind', ['classes', 'instances'])
def test_an_fcn_weighs_rare_classes(tmp_path, kind):
  rare, common = np.zeros((2, 40, 50), np.uint8)
  rare[:4, :10], common[:20] = 1, 1
  options = dict(network='fcn8s', init='random', label_kind=kind)
  for name, label in (('rare', rare), ('common', common)):
    write_set(tmp_path / name, 5 * [label])
    config, text = config_of(tmp_path / name, **options)
    is_rare = name == 'rare'
    assert (config.loss == 'dice_cross_entropy') == is_rare
    assert config.data.balance == is_rare
    assert ('True  # a class has 2.00% of the pixels' in text) == is_rare


def test_rims_are_found_in_any_label(tmp_path):
  labels = [classes(0, 255) for _ in range(20)]
  labels[1][2, 4:40] = 127  # Of the 20, 10 are looked at for components.
  write_set(tmp_path, labels)
  with pytest.raises(InputError, match='127 fill no block of 2 x 2 px'):
    config_of(tmp_path)


def test_objects_in_pieces_are_no_classes(tmp_path):
  cut = OBJECTS.copy()
  cut[:, 10] = 0  # Some numbers are two pieces each now.
  write_set(tmp_path, [OBJECTS, OBJECTS, cut, OBJECTS, OBJECTS])
  with pytest.raises(InputError, match='80% of these are one piece'):
    config_of(tmp_path)
  config, _ = config_of(tmp_path, label_kind='instances')
  assert config.data.label_kind == 'instances'


def test_masks_of_other_values_are_refused(tmp_path):
  write_set(tmp_path, [*4 * [classes(0, 255)], classes(0, 128)])
  with pytest.raises(InputError, match='none holds two of these above 0'):
    config_of(tmp_path)
  config, _ = config_of(tmp_path, label_kind='classes')
  assert config.data.label_values == (0, 128, 255)


def test_masks_in_colour_have_border_weights_too(tmp_path):
  blocks = np.zeros((40, 50, 3), np.uint8)
  for start in range(8, 40, 4):
    blocks[start - 2 : start, 3:6] = 255
  write_set(tmp_path, 5 * [blocks])
  assert config_of(tmp_path)[0].data.w0 == 10


def test_groups_are_not_divided(tmp_path):
  for patient in 'abcde':
    for i in range(3):
      for kind in ('images', 'labels'):
        array = classes(0, 1) if kind == 'labels' else IMAGE
        write_picture(tmp_path / kind / f'{patient}_{i}.png', array)
  config, _ = config_of(tmp_path, group='([a-z]+)_')
  dataset = create_dataset(config.data)
  held = {example['name'][0] for example in dataset.heldout}
  assert len(held) == 1 and len(dataset.heldout) == 3
  assert held.isdisjoint(example['name'][0] for example in dataset.train)


def test_an_fcn_needs_to_know_its_weights(tmp_path):
  write_set(tmp_path, 5 * [classes(0, 1)], np.stack(3 * [IMAGE], -1))
  with pytest.raises(InputError, match='give --init=FILE'):
    config_of(tmp_path, network='fcn8s')
  config, _ = config_of(tmp_path, network='fcn8s', init='random')
  read_settings(config)
  assert config.tile_size_px == 64 and config.preprocessing.limits


def test_tiles_fit_into_memory(tmp_path, monkeypatch):
  write_set(tmp_path, 5 * [classes(0, 1)])
  usual, _ = config_of(tmp_path)
  monkeypatch.setattr(dry_run, '_bytes_per_device', lambda: (0, 'a test'))
  monkeypatch.setattr(
    dry_run,
    '_bytes_with',
    lambda config, field, size: float(size >= usual.tile_size_px),
  )
  config, card = config_of(tmp_path)
  geometry = create_model(config.model).geometry
  assert config.tile_size_px == usual.tile_size_px - geometry.period
  assert f'what memory allows; {usual.tile_size_px} would' in card


@pytest.mark.parametrize(
  'label, message',
  [
    (classes(3), 'all labels hold the value 3 alone'),
    (RNG.integers(0, 255, (40, 50)), 'are neither classes nor numbers of obj'),
  ],
)
def test_labels_of_no_meaning_are_refused(tmp_path, label, message):
  write_set(tmp_path, 5 * [label])
  with pytest.raises(InputError, match=message):
    config_of(tmp_path)


ORGANS = np.zeros((40, 50), np.uint8)
for number in (1, 2, 3):
  ORGANS[10 * number : 10 * number + 6, 5:30] = number


def test_organs_are_not_taken_for_numbered_objects(tmp_path):
  write_set(tmp_path, 5 * [ORGANS])
  with pytest.raises(InputError, match='labels hold 0, 1, 2, 3.*--label_kind='):
    config_of(tmp_path)
  config, _ = config_of(tmp_path, label_kind='classes')
  assert config.model.num_classes == 4
  config, _ = config_of(tmp_path, label_kind='instances')
  assert config.model.num_classes == 2


def test_masks_of_two_kinds_are_refused(tmp_path):
  write_set(tmp_path, 3 * [classes(0, 1)] + 3 * [classes(0, 255)])
  with pytest.raises(
    InputError, match='some labels hold 0 and 1, others 0 and'
  ):
    config_of(tmp_path)


def test_indices_of_two_palettes_are_refused(tmp_path):
  write_set(tmp_path, 5 * [classes(0, 1)])
  black, white = np.zeros((2, 3), np.uint8), np.full((2, 3), 255, np.uint8)
  for i in range(5):
    palette = np.concatenate([black[:1], white[:1]])[:: 1 if i else -1]
    write_picture(tmp_path / 'labels' / f'{i}.png', classes(0, 1), palette)
  with pytest.raises(
    InputError, match='the colour of index 0 is .0, 0, 0., and'
  ):
    config_of(tmp_path)


@pytest.mark.parametrize(('count', 'held'), [(1, ['s-4']), (2, 5 * ['t'])])
def test_one_stack_holds_out_its_last_pages_and_two_one(tmp_path, count, held):
  for name in 'st'[:count]:
    for kind, array in (('images', IMAGE), ('labels', classes(0, 1))):
      file = tmp_path / kind / f'{name}.tif'
      file.parent.mkdir(exist_ok=True)
      write_stack(file, np.uint8(5 * [array]))
  config, _ = config_of(tmp_path)
  dataset = create_dataset(config.data)
  names = [example['name'] for example in dataset.heldout]
  assert names == held or {name[0] for name in names} in ({'s'}, {'t'})
  assert len(dataset.train) == 5 * count - len(names)


def test_one_group_of_all_is_refused(tmp_path):
  write_set(tmp_path, 5 * [classes(0, 1)])
  with pytest.raises(InputError, match='finds one group'):
    config_of(tmp_path, group='(images)')


def test_two_commands_and_no_file_of_ones_own(tmp_path):
  write_set(tmp_path, 5 * [classes(0, 255)])
  card = tmp_path / 'mine.py'
  first = run('plan', f'--images={tmp_path}', f'--output={card}')
  assert first.returncode == 0, first.stderr
  assert 'data.label_values' in first.stdout
  second = run(
    'main',
    f'--config={card}',
    f'--workdir={tmp_path}/run',
    '--config.num_train_steps=2',
    '--config.schedule.warmup_steps=0',
    '--config.model.depth=1',
    '--config.model.base_width=4',
    '--config.model.dropout_blocks=()',
  )
  assert second.returncode == 0, second.stderr
  assert 'iu/object' in second.stdout
  again = run('plan', f'--images={tmp_path}', f'--output={card}')
  assert again.returncode == 2 and '--overwrite' in again.stderr


def test_masks_of_few_objects_are_objects(tmp_path):
  """A folder an image and a mask an object leave no doubt."""
  for name in 'abcde':
    write_picture(tmp_path / name / 'images' / f'{name}.png', IMAGE)
    for k in (1, 2, 3):
      write_picture(tmp_path / name / 'masks' / f'{k}.png', 255 * (ORGANS == k))
  config, _ = config_of(tmp_path)
  assert config.data.label_kind == 'instances'


def test_values_of_thin_classes_are_classes_if_one_says_so(tmp_path):
  thin = np.array(classes(0, 128, 255))
  thin[20, 5:30] = 50
  write_set(tmp_path, 5 * [thin])
  with pytest.raises(InputError, match='of which 50 fill no block of 2 x 2 px'):
    config_of(tmp_path)
  config, _ = config_of(tmp_path, label_kind='classes')
  assert config.data.label_values == (0, 50, 128, 255)
  # Outlines that are ignored may be as thin.
  outlined = classes(0, 2, 3)
  outlined[20, 5:30] = 255
  write_set(tmp_path, 5 * [outlined])
  config, _ = config_of(tmp_path)
  assert config.data.label_values == (0, 2, 3)
