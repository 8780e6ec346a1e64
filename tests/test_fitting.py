# SPDX-License-Identifier: Apache-2.0
"""Training in one call."""

import numpy as np
import pytest
from trees import write_picture

import segjax
from segjax import dry_run, fitting
from segjax.data import arrays, create_dataset
from segjax.errors import InputError
from segjax.images import files

RNG = np.random.default_rng(0)
LABELS = np.zeros((5, 40, 50), np.uint8)
LABELS[:, 5:20, 10:30] = 1
IMAGES = np.uint8(60 + 100 * LABELS + RNG.integers(0, 9, LABELS.shape))
SHORT = dict(num_train_steps=2, base_width=4)


def test_arrays_and_folders_give_networks_that_predict(tmp_path, capsys):
  net = segjax.fit(IMAGES, LABELS, **SHORT)
  assert '4 to train on, 1 held out' in capsys.readouterr().out
  image = net.prepare(IMAGES[0][..., None])
  predicted = segjax.predict_image(net.model, net.params, image)
  assert predicted.shape == (40, 50, 2)
  assert net.config.frozen_norm_share == 0  # .2 in the 30 minutes of a plan.
  for i in range(5):
    write_picture(tmp_path / 'images' / f'{i}.png', IMAGES[i])
    write_picture(tmp_path / 'masks' / f'{i}.png', 255 * LABELS[i])
  net = segjax.fit(tmp_path, workdir=tmp_path / 'run', **SHORT)
  loaded = segjax.load_run(tmp_path / 'run')
  assert loaded.config.data.label_values == (0, 255)
  np.testing.assert_array_equal(
    net.params['head']['kernel'], loaded.params['head']['kernel']
  )


def test_copies_are_those_of_the_split_of_the_seed(
  tmp_path, monkeypatch, capsys
):
  runs = []
  monkeypatch.setattr(
    fitting, 'train_and_evaluate', lambda *args: runs.append(args)
  )
  monkeypatch.setattr(fitting.networks, 'load_run', lambda workdir: None)
  monkeypatch.setattr(dry_run, '_bytes_per_device', lambda: (10**12, 'a test'))
  images = [IMAGES[0], IMAGES[0], *IMAGES[2:]]
  for i in range(5):
    write_picture(tmp_path / 'images' / f'{i}.png', images[i])
    write_picture(tmp_path / 'masks' / f'{i}.png', LABELS[i])
  segjax.fit(tmp_path, **SHORT)
  data = runs[0][0].data
  seed_of = {}
  for data.seed in range(30):
    [held] = create_dataset(data).heldout
    seed_of[held['name']] = data.seed
  capsys.readouterr()
  for held, is_said in (('0', True), ('4', False)):
    segjax.fit(tmp_path, seed=seed_of[held], **SHORT)
    out = capsys.readouterr().out
    assert ('copies: 1 of the images held out are also' in out) == is_said
    assert runs[-1][0].data.seed == seed_of[held]


def objects():
  """Numbers of twenty squares a label, two of which touch."""
  numbers = np.zeros((5, 40, 50), np.uint16)
  for k in range(20):
    row, column = 10 * (k // 5), 10 * (k % 5)
    numbers[:, row : row + 7, column : column + 7] = k + 1
  numbers[:, :7, 7:10] = 1
  return numbers


@pytest.mark.parametrize(
  'labels, kind, weighs',
  [
    (objects(), 'instances', True),
    (np.uint8(255 * (objects() > 0)), 'classes', True),
    (objects() > 0, 'classes', True),
    (np.where(LABELS[:, ::-1] > 0, 255, 3 * LABELS), 'classes', False),
  ],
  ids=['objects', 'masks', 'bool', 'values'],
)
def test_arrays_train_as_their_files_do(
  tmp_path, monkeypatch, capsys, labels, kind, weighs
):
  runs = []
  monkeypatch.setattr(
    fitting, 'train_and_evaluate', lambda *args: runs.append(args)
  )
  monkeypatch.setattr(fitting.networks, 'load_run', lambda workdir: None)
  monkeypatch.setattr(dry_run, '_bytes_per_device', lambda: (10**12, 'a test'))
  for i in range(5):
    write_picture(tmp_path / 'images' / f'{i}.png', IMAGES[i])
    (tmp_path / 'labels').mkdir(exist_ok=True)
    files.write_stack(
      tmp_path / 'labels' / f'{i}.tif', labels[i][None].astype(np.uint16)
    )
  segjax.fit(IMAGES, labels, **SHORT)
  segjax.fit(tmp_path, **SHORT)
  (config, _, in_memory), (of_folder, *_) = runs
  on_disk = create_dataset(of_folder.data)
  assert in_memory.class_names == on_disk.class_names
  assert in_memory.stored == on_disk.stored
  found = {e['name']: e for e in [*in_memory.train, *in_memory.heldout]}
  for example in [*on_disk.train, *on_disk.heldout]:
    own = found[example['name']]
    assert own.keys() == example.keys()
    assert ('weight' in own) == weighs
    for name in own.keys() - {'name', 'weight'}:
      np.testing.assert_array_equal(own[name], example[name])
    if weighs:  # The splits differ by the names of files, so class weights may.
      np.testing.assert_allclose(own['weight'], example['weight'], rtol=1e-2)
  assert config.data.label_kind == kind
  for settings in (config, of_folder):
    del settings.data
  assert config.to_dict() == of_folder.to_dict()
  assert 'copies' not in capsys.readouterr().out
  write_picture(tmp_path / 'images' / '1.png', IMAGES[0])
  same = [IMAGES[0], IMAGES[0], *IMAGES[2:]]
  other = [labels[0], np.flip(labels[1]), *labels[2:]]
  files.write_stack(
    tmp_path / 'labels' / '1.tif', other[1][None].astype(np.uint16)
  )
  for data in ((same, other), (tmp_path,)):
    segjax.fit(*data, **SHORT, heldout_fraction=0)
    said = 'copies: 1 of the images trained on are copies of others with an'
    assert said in capsys.readouterr().out
  with pytest.raises(InputError, match='expected a name for each'):
    segjax.fit(IMAGES, labels, class_names=('a',), **SHORT)


def test_one_of_two_arrays_is_held_out():
  settings = {name: () for name in fitting._OF_LABELS} | dict(
    class_names=('a', 'b'), label_kind='', w0=0, balance=False
  )
  for fraction, num_heldout in ((0.2, 1), (0.0, 0)):
    settings['heldout_fraction'] = fraction
    made = arrays.make_dataset(IMAGES[:2, ..., None], LABELS[:2], settings, 0)
    assert (
      len(made.heldout) == num_heldout and len(made.train) == 2 - num_heldout
    )
  settings['heldout_fraction'] = np.nan
  with pytest.raises(InputError, match='heldout_fraction=nan of 2 images'):
    arrays.make_dataset(IMAGES[:2, ..., None], LABELS[:2], settings, 0)


@pytest.mark.parametrize('from_folder', [False, True])
def test_weights_that_do_not_say_their_pixels(
  tmp_path, monkeypatch, from_folder
):
  configs = []
  monkeypatch.setattr(
    fitting, 'train_and_evaluate', lambda config, *_: configs.append(config)
  )
  monkeypatch.setattr(fitting.networks, 'load_run', lambda workdir: None)
  # Enough, so that no step is compiled to see what fits.
  monkeypatch.setattr(dry_run, '_bytes_per_device', lambda: (10**12, 'a test'))
  weights = tmp_path / 'vgg.npz'
  np.savez(weights, **{'conv1_1/kernel': np.zeros((3, 3, 3, 64), np.float16)})
  colours = np.stack(3 * [IMAGES], axis=-1)
  data = (colours, LABELS)
  if from_folder:
    for i in range(5):
      write_picture(tmp_path / 'images' / f'{i}.png', colours[i])
      write_picture(tmp_path / 'masks' / f'{i}.png', LABELS[i])
    data = (tmp_path,)
  how = dict(network='fcn8s', init=str(weights), num_train_steps=2)
  with pytest.raises(InputError, match='does not say on which pixels'):
    segjax.fit(*data, **how)
  segjax.fit(*data, **how, pixels='standardised')
  [config] = configs
  # Those of torchvision's models.
  assert config.preprocessing.mean == (0.485, 0.456, 0.406)
  with pytest.raises(InputError, match='pixels=standardised is what weights'):
    segjax.fit(*data, **SHORT, pixels='standardised')


@pytest.mark.parametrize(
  'images, labels, message',
  [
    (IMAGES, LABELS[:3], '5 images and 3 labels'),
    (IMAGES, None, '5 images and 0 labels'),
    (IMAGES, LABELS / 2, r'label 0 is float64\[40, 50\]; expected integers'),
    (IMAGES[:, :9], LABELS, r'image 0 is uint8\[9, 50, 1\] and its label \[40'),
    (IMAGES.astype(int), LABELS, 'image 0 is int64; expected uint8'),
    (IMAGES[:, :0], LABELS[:, :0], r'image 0 is uint8\[0, 50, 1\] and its'),
    ([], [], '0 images and 0 labels'),
    (None, None, '0 images and 0 labels'),
    (0 * IMAGES, LABELS, 'all pixels of the 5 images are 0; expected images'),
    (IMAGES, 'labels', 'labels are a folder; expected one of images'),
    (IMAGES, 0 * LABELS, 'all labels hold the value 0 alone; expected at le'),
    (
      IMAGES,
      np.arange(LABELS.size).reshape(LABELS.shape) % 90,
      'labels hold 90 values, from 0 to 89, which are neither classes nor',
    ),
    (IMAGES / np.nan, LABELS, 'image 0 has pixels that are NaN'),
    (
      [*IMAGES[:4], np.dstack(3 * [IMAGES[4]])],
      LABELS,
      r'image 4 is uint8 of 3 channel\(s\), image 0 uint8 of 1',
    ),
  ],
)
def test_what_does_not_go_together_is_refused(images, labels, message):
  with pytest.raises(InputError, match=message):
    segjax.fit(images, labels, **SHORT)


@pytest.mark.parametrize(
  'name, value, least',
  [('seed', -1, 0), ('seed', 1.5, 0), ('num_train_steps', -1, 1)]
  + [('num_train_steps', '3', 1), ('base_width', 0, 1)],
)
def test_numbers_that_are_no_counts_are_refused(name, value, least):
  message = f'^{name}={value!r}; expected a whole number of at least {least}$'
  with pytest.raises(InputError, match=message):
    segjax.fit(IMAGES, LABELS, **SHORT | {name: value})
