# SPDX-License-Identifier: Apache-2.0
"""Training in one call."""

import numpy as np
import pytest
from trees import write_picture

import segjax
from segjax import dry_run, fitting
from segjax.errors import InputError

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
  for i in range(5):
    write_picture(tmp_path / 'images' / f'{i}.png', IMAGES[i])
    write_picture(tmp_path / 'masks' / f'{i}.png', 255 * LABELS[i])
  net = segjax.fit(tmp_path, workdir=tmp_path / 'run', **SHORT)
  loaded = segjax.load_run(tmp_path / 'run')
  assert loaded.config.data.label_values == (0, 255)
  np.testing.assert_array_equal(
    net.params['head']['kernel'], loaded.params['head']['kernel']
  )


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
    (IMAGES, 255 * LABELS, 'labels hold 0 and 255'),
    (IMAGES, LABELS / 2, r'label 0 is float64\[40, 50\]; expected integers'),
    (IMAGES[:, :9], LABELS, r'image 0 is uint8\[9, 50, 1\] and its label \[40'),
    (IMAGES.astype(int), LABELS, 'image 0 is int64; expected uint8'),
    ([], [], '0 images and 0 labels'),
    (None, None, '0 images and 0 labels'),
    (IMAGES, 0 * LABELS, 'labels hold 0; expected at least two'),
    (
      IMAGES,
      np.arange(LABELS.size).reshape(LABELS.shape) % 90,
      'labels hold 90 values from 0 to 89, which look like numbers of objects',
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
