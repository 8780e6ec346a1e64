# SPDX-License-Identifier: Apache-2.0
"""Tests of reading a folder of images and a folder of label images."""

import shutil

import numpy as np
import pytest
import tifffile
from inputs import random_stack
from PIL import Image
from trees import cut, write_lines, write_picture

from segjax.data import create_dataset, folder
from segjax.data.examples import Item, digest_of_files
from segjax.data.layout import check_files
from segjax.errors import InputError
from segjax.images.files import read_stack, write_stack
from segjax.prediction import canvas_writer
from segjax.runs.integrity import is_digest_of
from segjax.settings.sections import PreprocessingSettings

NAMES = ('a1', 'a2', 'a10', 'a11', 'b')  # In natural order.
COLOURS = ((9, 8, 7), (0, 200, 3), (0, 3, 200))
PALETTE = np.full((256, 3), 77)
IMAGES = {name: random_stack((4, 6, 3), seed=i) for i, name in enumerate(NAMES)}
LABELS = {
  name: np.random.default_rng(i).integers(0, 3, (4, 6))
  for i, name in enumerate(NAMES)
}


@pytest.fixture
def root(tmp_path):
  """Returns a folder with images and labels in gray, palette and .npy."""
  for i, name in enumerate(reversed(NAMES)):
    write_picture(tmp_path / 'images' / f'{name}.png', IMAGES[name])
    label = tmp_path / 'labels' / name
    if i == 0:
      write_picture(label.with_suffix('.png'), LABELS[name])
    elif i == 1:
      write_stack(label.with_suffix('.npy'), np.uint16(LABELS[name])[None])
    else:
      write_picture(label.with_suffix('.png'), LABELS[name], PALETTE)
  return tmp_path


def load(root, **options):
  options = {
    'images': 'images',
    'labels': 'labels',
    'class_names': ('x', 'y', 'z'),
    'colours': (),
    'ignore_value': (),
    'train_list': '',
    'heldout_list': '',
    'heldout_fraction': 0.0,
    'seed': 0,
    **options,
  }
  return folder.load(dir=str(root), **options)


def load_lists(root, train, heldout, **options):
  write_lines(root / 'train.txt', *train)
  write_lines(root / 'heldout.txt', *heldout)
  return load(
    root, train_list='train.txt', heldout_list='heldout.txt', **options
  )


def names(examples):
  return [example['name'] for example in examples]


def test_images_and_labels_are_as_stored_and_in_natural_order(root):
  dataset = load(root)
  assert names(dataset.train) == list(NAMES)
  assert list(dataset.heldout) == [] and dataset.palette is None
  assert dataset.class_names == ('x', 'y', 'z')
  for example in dataset.train:
    np.testing.assert_array_equal(example['image'], IMAGES[example['name']])
    np.testing.assert_array_equal(example['label'], LABELS[example['name']])
    assert example['label'].dtype == np.int32


def test_colours_are_classes(root):
  for name in NAMES:
    (root / 'labels' / f'{name}.npy').unlink(missing_ok=True)
    label = np.uint8(COLOURS)[LABELS[name]]
    label[0, 0] = (1, 1, 1)
    write_picture(root / 'labels' / f'{name}.png', label)
  dataset = load(root, colours=list(map(list, COLOURS)), ignore_value=[1] * 3)
  for example in dataset.train:
    expected = LABELS[example['name']].copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(example['label'], expected)
  np.testing.assert_array_equal(dataset.palette, COLOURS)
  message = (
    r'a1.png: label \[1, 1, 1\] in row 0, column 0 .*expected one of colours'
  )
  with pytest.raises(InputError, match=message):
    load(root, colours=COLOURS).train[0]


def test_values_are_classes(root):
  for name in NAMES:
    (root / 'labels' / f'{name}.npy').unlink(missing_ok=True)
    label = np.uint8([0, 128, 255])[LABELS[name]]
    write_picture(root / 'labels' / f'{name}.png', label)
  dataset = load(root, label_values=[0, 128, 255], ignore_value=[255])
  for example in dataset.train:
    np.testing.assert_array_equal(example['label'], LABELS[example['name']])
  message = (
    r'a1.png: label 128 in row .* expected 0..2, or \(255,\) for ignored, or '
    'their own values in data.label_values; .* are 0, 128, 255$'
  )
  with pytest.raises(InputError, match=message):
    load(root, ignore_value=(255,)).train[0]


def test_draw_depends_on_names_and_seed_alone(root, tmp_path_factory):
  other = tmp_path_factory.mktemp('other')
  for name in NAMES:  # In another order of writing, and all of them alike.
    write_picture(other / 'images' / f'{name}.png', IMAGES['b'])
    write_picture(other / 'labels' / f'{name}.png', LABELS['b'])
  drawn = set()
  for seed in range(8):
    dataset = load(root, heldout_fraction=0.4, seed=seed)
    held = names(dataset.heldout)
    assert len(held) == 2 and len(dataset.train) == 3
    assert sorted(names(dataset.train) + held) == sorted(NAMES)
    again = load(other, heldout_fraction=0.4, seed=seed)
    assert names(again.heldout) == held
    drawn.add(tuple(held))
  assert len(drawn) > 1


@pytest.mark.parametrize('fraction', [0.05, 0.95])
def test_draw_that_leaves_nothing_is_refused(root, fraction):
  with pytest.raises(
    InputError, match=f'heldout_fraction={fraction} of 5 file'
  ):
    load(root, heldout_fraction=fraction)


@pytest.mark.parametrize('fraction', [-0.1, 1.0, float('nan')])
def test_fraction_out_of_range_is_refused(root, fraction):
  with pytest.raises(
    InputError, match=f'heldout_fraction={fraction}; expected'
  ):
    load(root, heldout_fraction=fraction)


def test_lists_take_stems_files_and_paths(root):
  dataset = load_lists(root, ['b', 'images/a1.png'], ['a10.png'])
  assert names(dataset.train) == ['b', 'a1']
  assert names(dataset.heldout) == ['a10']


def test_unlisted_files_need_no_partner(root):
  (root / 'labels' / 'a2.png').unlink()
  (root / 'images' / 'a11.png').unlink()
  assert names(load_lists(root, ['b'], ['a1']).train) == ['b']
  message = '2 of the names in images and labels are not in both: a11, a2'
  with pytest.raises(InputError, match=message):
    load(root)
  with pytest.raises(InputError, match='lists a2, which is no image with a la'):
    load_lists(root, ['a2'], ['b'])


@pytest.mark.parametrize(
  'train, heldout, message',
  [
    (['a1'], [], 'heldout.txt lists nothing'),
    (['a1'], ['a3'], 'heldout.txt lists a3, which is no image'),
    (['a1'], ['labels/a2.png'], 'lists labels/a2.png, which is no image'),
    (['a1'], ['../images/a2.png'], r'\.\./images/a2.png.* leads out'),
    (['a1'], ['a1.png'], 'a1 is both trained on and held out'),
    (['a1', 'images/a1.png'], ['a2'], 'train.txt lists a1 twice'),
  ],
)
def test_other_lists_are_refused(root, train, heldout, message):
  with pytest.raises(InputError, match=message):
    load_lists(root, train, heldout)


def test_links_in_the_folder_are_followed(root, tmp_path):
  other = tmp_path / 'elsewhere.png'
  (root / 'images' / 'b.png').rename(other)
  (root / 'images' / 'b.png').symlink_to(other)
  [example] = load_lists(root, ['b'], ['a1']).train
  np.testing.assert_array_equal(example['image'], read_stack(other)[0])


def test_lists_of_other_editors_are_read(root):
  for name in ('e\u0301', 'a  b'):
    for kind in ('images', 'labels'):
      shutil.copy(root / kind / 'b.png', root / kind / f'{name}.png')
  (root / 'train.txt').write_text('\ufeffb\r\n\xe9\r\n', encoding='utf-8')
  (root / 'heldout.txt').write_text('a  b.png \n')
  dataset = load(root, train_list='train.txt', heldout_list='heldout.txt')
  assert names(dataset.train) == ['b', '\xe9']
  assert names(dataset.heldout) == ['a  b']


def test_long_names_in_lists_are_shortened(root):
  with pytest.raises(InputError, match='lists zzz.*5000 char') as caught:
    load_lists(root, ['z' * 5000], ['a1'])
  assert len(str(caught.value)) < 500
  with pytest.raises(InputError, match='leads out') as caught:
    load_lists(root, ['../' * 1000], ['a1'])
  assert len(str(caught.value)) < 500
  item = Item('z' * 5000, (root / ('z' * 5000),))
  with pytest.raises(InputError, match='no such file'):
    check_files([item], 'list.txt')


def test_one_list_is_refused(root):
  with pytest.raises(InputError, match="heldout_list=''; expected two files"):
    load(root, train_list='train.txt')


@pytest.mark.parametrize('missing', ['images', 'labels'])
def test_missing_folders_are_refused(root, missing):
  with pytest.raises(InputError, match='no folder .*none; expected images and'):
    load(root, **{missing: 'none'})


PAGES = random_stack((3, 4, 6))
PAGE_LABELS = np.stack([np.uint8(LABELS['a1']) == k for k in range(3)])


@pytest.fixture
def stacks(root):
  """Returns a folder with stacks s of three and t of two pages."""
  for kind, pages in (('images', PAGES), ('labels', PAGE_LABELS)):
    (root / 'stacks' / kind).mkdir(parents=True)
    write_stack(root / 'stacks' / kind / 's.tif', np.uint8(pages))
    write_stack(root / 'stacks' / kind / 't.tif', np.uint8(pages[:2]))
  return root / 'stacks'


def test_pages_are_examples(stacks):
  dataset = load_lists(stacks, ['s-2', 't'], ['s-0'])
  assert names(dataset.train) == ['s-2', 't-0', 't-1']
  assert names(dataset.heldout) == ['s-0']
  for example, page in zip(dataset.train, (2, 0, 1), strict=True):
    np.testing.assert_array_equal(example['image'], PAGES[page, ..., None])
    np.testing.assert_array_equal(example['label'], PAGE_LABELS[page])


def test_draw_keeps_the_pages_of_a_stack_together(stacks):
  dataset = load(stacks, heldout_fraction=0.5)
  train, held = names(dataset.train), names(dataset.heldout)
  assert sorted([train, held]) == [['s-0', 's-1', 's-2'], ['t-0', 't-1']]


def test_page_with_the_name_of_a_file_is_refused(stacks):
  for kind in ('images', 'labels'):
    (stacks / kind / 't.tif').rename(stacks / kind / 's-1.tif')
  with pytest.raises(InputError, match='s-1 names two images'):
    load_lists(stacks, ['s-1'], ['s-0'])


@pytest.mark.parametrize(
  'file, shape, message',
  [
    ('labels/t.tif', (3, 4, 6), r't.tif is read as 2 pages .* 3 pages'),
    (
      'labels/t.tif',
      (2, 4, 5),
      r't.tif: label of 4 x 5 px for an image of 4 x 6',
    ),
    (
      'images/t.tif',
      (2, 4, 6, 3),
      r't.tif: uint8 of 3 chan.* expected uint8 of 1',
    ),
  ],
)
def test_stacks_unlike_each_other_are_refused(stacks, file, shape, message):
  write_stack(stacks / file, np.zeros(shape, np.uint8))
  with pytest.raises(InputError, match=message):
    list(load(stacks).train)


def test_wrong_label_of_a_stack_names_the_page(stacks):
  labels = np.uint8(PAGE_LABELS)
  labels[2, 3, 1] = 3
  write_stack(stacks / 'labels' / 's.tif', labels)
  with pytest.raises(InputError, match='s.tif, page 2: label 3 in row 3, colu'):
    load(stacks).train[2]


@pytest.mark.parametrize('kind', ['images', 'labels'])
def test_damaged_files_are_refused(root, stacks, kind):
  cut(root / kind / 'a10.png')
  with pytest.raises(InputError, match=f'{kind}/a10.png'):
    load(root).train[2]
  cut(stacks / kind / 't.tif')
  with pytest.raises(InputError, match=f'{kind}/t.tif'):
    load(stacks)


@pytest.mark.parametrize(
  'file, stack, message',
  [
    ('images/b', random_stack((1, 4, 6)), 'uint8 of 1 channel.* as .*a1.png'),
    ('images/b', random_stack((1, 4, 6, 3), 'uint16'), 'uint16 of 3 channel'),
    (
      'labels/b',
      np.zeros((1, 4, 5), np.uint8),
      'label of 4 x 5 px for an image of 4 x 6',
    ),
    ('labels/b', np.full((1, 4, 6), 0.5, np.float32), 'label 0.5 in'),
    ('labels/b', np.full((1, 4, 6), 300, np.uint16), 'label 300 in row 0'),
  ],
)
def test_files_of_another_kind_are_refused(root, file, stack, message):
  for found in root.glob(f'{file}.*'):
    found.unlink()
  write_stack(root / f'{file}.tif', stack)
  with pytest.raises(InputError, match=f'b.tif: .*{message}'):
    load(root).train[4]


def test_pages_among_single_images_are_examples_too(root):
  for kind, shape in (('images', (2, 4, 6, 3)), ('labels', (2, 4, 6))):
    for found in root.glob(f'{kind}/b.*'):
      found.unlink()
    write_stack(root / kind / 'b.tif', np.zeros(shape, np.uint8))
  assert names(load(root).train) == ['a1', 'a2', 'a10', 'a11', 'b-0', 'b-1']


def test_two_files_of_one_name_are_refused(root):
  write_picture(root / 'images' / 'a1.jpg', IMAGES['a1'])
  with pytest.raises(InputError, match='a1.jpg and a1.png have one name'):
    load(root)


def test_jpeg_labels_are_refused(root):
  (root / 'labels' / 'a1.png').unlink()
  write_picture(root / 'labels' / 'a1.jpg', LABELS['a1'])
  with pytest.raises(
    InputError, match='a1.jpg: JPEG changes values.*threshold'
  ):
    load(root).train[0]


def test_colours_and_indices_are_told_apart(root):
  with pytest.raises(InputError, match=r'a1.png: 1 channel.*or colours=\(\)'):
    load(root, colours=COLOURS).train[0]
  write_picture(root / 'labels' / 'a1.png', np.uint8(COLOURS)[LABELS['a1']])
  with pytest.raises(
    InputError, match='a1.png: 3 channels.*one colour a class'
  ):
    load(root).train[0]


def test_digest_is_of_files_split_and_coding(root):
  usual = load(root).digest
  assert load(root).digest == usual
  assert load(root, ignore_value=(255,)).digest != usual
  assert load(root, label_values=(0, 1, 3)).digest != usual
  assert load(root, heldout_fraction=0.4).digest != usual
  first, second = ['a1', 'a2'], ['a10', 'b']
  before = load_lists(root, first, second).digest
  assert load_lists(root, first[:1], first[1:] + second).digest != before


def test_digest_sees_contents_of_one_size(root):
  before = load(root).digest
  file = root / 'labels' / 'a1.png'
  stored = bytearray(file.read_bytes())
  stored[-1] ^= 1
  file.write_bytes(stored)
  after = load(root).digest
  # The first half is what runs of older versions have.
  assert after.partition('+')[0] == before.partition('+')[0]
  assert is_digest_of(before, before) and not is_digest_of(before, after)
  assert is_digest_of(before.partition('+')[0], after)
  assert not is_digest_of('other', after)


def test_a_config_from_before_label_values_is_read_as_it_was(root):
  items = [
    Item(name, tuple(sorted(root.glob(f'*/{name}.*')))) for name in NAMES
  ]
  settings = (len(NAMES), (), (255,))
  digest = digest_of_files(items, *settings)  # Of runs before the field.
  assert load(root, ignore_value=(255,)).digest == digest
  assert load(root, ignore_value=(255,), label_values=()).digest == digest
  config = {
    'name': 'folder',
    'dir': str(root),
    'images': 'images',
    'labels': 'labels',
    'class_names': ('x', 'y', 'z'),
    'colours': (),
    'ignore_value': (255,),
    'train_list': '',
    'heldout_list': '',
    'heldout_fraction': 0.0,
    'seed': 0,
  }
  assert create_dataset(config).digest == digest
  assert create_dataset(config | {'label_values': ()}).digest == digest
  del config['seed']
  with pytest.raises(InputError, match='takes the fields dir, images, .*label'):
    create_dataset(config)


def test_an_image_is_no_label(root):
  """A palette, an orientation and a codec, as far as the data set."""
  gray = [Image.fromarray(IMAGES[name][..., 0]) for name in NAMES]
  for name, picture in zip(NAMES, gray, strict=True):
    picture.save(root / 'images' / f'{name}.png')
  expected = IMAGES['a10'][..., :1]
  table = np.random.default_rng(0).permutation(256).astype(np.uint8)
  indices = Image.fromarray(np.argsort(table)[expected[..., 0]].astype('u1'))
  indices = indices.convert('P')
  indices.putpalette(np.repeat(table, 3).tobytes())
  exif = Image.Exif()
  exif[0x0112] = 3
  indices.rotate(180).save(root / 'images' / 'a10.png', exif=exif)
  [example] = [e for e in load(root).train if e['name'] == 'a10']
  np.testing.assert_array_equal(example['image'], expected)
  np.testing.assert_array_equal(example['label'], LABELS['a10'])
  with open(root / 'labels' / 'a10.png', 'wb') as file:
    gray[0].save(file, 'JPEG')
  with pytest.raises(InputError, match='a10.png: JPEG changes values'):
    list(load(root).train)


CHANNELS = np.random.default_rng(0).integers(0, 255, (9, 12, 7), np.uint8)


def save_pages(file, pages):
  with tifffile.TiffWriter(file) as tif:
    for page in pages:
      tif.write(page, contiguous=False)


@pytest.mark.parametrize('command', ['load', 'predict'])
@pytest.mark.parametrize(
  ('ending', 'save'),
  [
    ('.npy', lambda file: np.save(file, CHANNELS)),
    ('.npy', lambda file: np.save(file, np.moveaxis(CHANNELS, -1, 0))),
    ('.tif', lambda file: tifffile.imwrite(file, CHANNELS)),
    ('.tif', lambda file: save_pages(file, np.moveaxis(CHANNELS, -1, 0))),
    (
      '.tif',
      lambda file: tifffile.imwrite(
        file, np.moveaxis(CHANNELS, -1, 0), photometric='minisblack'
      ),
    ),
  ],
)
def test_channels_read_as_pages_are_refused_with_a_command_that_cures(
  tmp_path, ending, save, command
):
  for name in ('images', 'labels'):
    (tmp_path / name).mkdir()
  file = tmp_path / 'images' / f'a{ending}'
  save(file)
  label = np.random.default_rng(1).integers(0, 3, CHANNELS.shape[:2])
  write_picture(tmp_path / 'labels' / 'a.png', label)

  def read():
    if command == 'load':
      [example] = load(tmp_path).train
      return example['image']
    settings = PreprocessingSettings(0.0, 1.0, ())
    [image] = [
      page.read_all()
      for page in canvas_writer.checked_pages([file], 7, settings)
    ]
    return image

  with pytest.raises(InputError) as refused:
    read()
  said = str(refused.value)
  assert str(file) in said and 'is read as ' in said and '\n' not in said
  names = {'np': np, 'tifffile': tifffile, 'FILE': file, 'NEW': file}
  exec(said.partition('save it so in Python: ')[2], names)
  np.testing.assert_array_equal(read(), CHANNELS)


def test_a_label_with_a_page_for_each_class_is_refused_with_what_to_do(
  tmp_path,
):
  for name in ('images', 'labels'):
    (tmp_path / name).mkdir()
  write_picture(tmp_path / 'images' / 'a.png', np.zeros((4, 6), np.uint8))
  np.save(tmp_path / 'labels' / 'a.npy', np.zeros((2, 4, 6), np.uint8))
  with pytest.raises(InputError, match=r'a\.npy as 2 pages .* class indices'):
    load(tmp_path)
