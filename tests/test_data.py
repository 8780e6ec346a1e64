# SPDX-License-Identifier: Apache-2.0
"""What `create_dataset` puts into an example."""

import subprocess
import sys

import numpy as np
import pytest

from segjax.data import create_dataset, look_of, synthetic
from segjax.data.border_weights import border_weights, find_instances
from segjax.data.examples import Chained
from segjax.data.preprocessing import (
  check_preprocessing,
  standardise,
  to_unit_range,
)
from segjax.errors import InputError

CONFIG = dict(
  name='synthetic',
  fold=1,
  gap=0,
  num_slices=10,
  size_px=64,
  seed=0,
  w0=10.0,
  sigma_px=5.0,
  balance=True,
)


def test_folds_split_the_stack():
  dataset = create_dataset(CONFIG)
  assert [e['name'] for e in dataset.heldout] == ['slice-02', 'slice-03']
  assert len(dataset.train) == 8
  everything = create_dataset(CONFIG | {'fold': -1})
  assert len(everything.train) == 10 and not everything.heldout


def test_an_example_has_the_contract_and_its_weights():
  dataset = create_dataset(CONFIG)
  example = dataset.train[3]
  assert example['image'].shape == (64, 64, 1)
  assert example['image'].dtype == np.uint8
  assert example['label'].dtype == np.int32
  assert set(np.unique(example['label'])) == {0, 1}
  # Balanced over the training slices: both classes weigh the same in total.
  labels = np.stack([e['label'] for e in dataset.train])
  share = np.array([np.mean(labels == c) for c in (0, 1)])
  instances = find_instances(example['label'])
  np.testing.assert_allclose(
    example['weight'],
    border_weights(instances, class_weights=0.5 / share),
    rtol=1e-5,
  )


def test_cells_that_meet_at_a_corner_keep_their_weights(monkeypatch):
  label = np.zeros((10, 32, 32), np.int32)
  label[:, 4:16, 4:16] = label[:, 16:28, 16:28] = 1
  monkeypatch.setattr(
    synthetic, 'neuron_stack', lambda *_: (label.astype(np.uint8), label)
  )
  weight = create_dataset(CONFIG).train[0]['weight']
  assert len(np.unique(weight[label[0] == 1])) == 1


def test_the_digest_tells_other_data():
  digests = {
    create_dataset(CONFIG | change).digest
    for change in ({}, {'seed': 1}, {'fold': 2})
  }
  assert len(digests) == 3
  assert create_dataset(CONFIG).digest in digests


def test_weights_can_be_switched_off():
  plain = CONFIG | {'w0': 0.0, 'balance': False}
  for example in create_dataset(plain).train:
    np.testing.assert_array_equal(example['weight'], 1)


def test_an_unknown_data_set_is_refused():
  with pytest.raises(InputError, match='imagenet'):
    create_dataset(CONFIG | {'name': 'imagenet'})


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_gray_values(dtype):
  image = np.array([[[0], [np.iinfo(dtype).max]]], dtype)
  np.testing.assert_array_equal(to_unit_range(image).ravel(), [0, 1])
  same = np.array([0.25], np.float32)
  np.testing.assert_array_equal(to_unit_range(same), same)
  np.testing.assert_allclose(standardise(same, 0.5, 0.25), -1)


@pytest.mark.parametrize('dtype', ['int64', 'int16', 'int8', 'uint64'])
def test_integers_without_a_range_of_pixels_are_refused(dtype):
  with pytest.raises(InputError, match=f'{dtype}; expected uint8, uint16 or'):
    to_unit_range(np.array([0, 7], dtype))


def test_names_and_colours_without_the_data():
  names, palette = look_of({'name': 'camvid'}, 11)
  assert names[3] == 'road' and palette.shape == (11, 3)
  assert look_of({'name': 'voc'}, 21)[1] is None
  colours = ((0, 0, 0), (9, 8, 7))
  config = {'name': 'folder', 'class_names': ('a', 'b'), 'colours': colours}
  names, palette = look_of(config, 2)
  assert names == ('a', 'b')
  np.testing.assert_array_equal(palette, colours)
  numbered, palette = look_of({'name': 'pascal_context'}, 2)
  assert numbered == ('class 0', 'class 1') and palette is None


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'mean': (1, 2)}, r'mean=\(1, 2\) has 2 numbers; expected 1, or 3'),
    ({'std': (1, 1, 0)}, 'must be > 0'),
    ({'channels': (0, 1)}, 'expected 3 indices in 0..2'),
    ({'channels': (0, 1, 3)}, 'expected 3 indices in 0..2'),
  ],
)
def test_preprocessing_that_fits_no_image_is_refused(changed, message):
  good = dict(mean=0.5, std=(1, 1, 2), channels=(2, 1, 0))
  check_preprocessing(3, **good)
  with pytest.raises(InputError, match=message):
    check_preprocessing(3, **good | changed)


def test_a_training_step_needs_no_library_that_reads_files():
  code = (
    'import sys\n'
    "readers = ('PIL', 'grain', 'imagecodecs', 'skimage', 'tifffile')\n"
    'sys.modules.update(dict.fromkeys(readers))\n'  # Their import fails now.
    'import segjax.data, segjax.devices.parallel, segjax.models\n'
    'import segjax.steps, segjax.tiling\n'
    'try:\n'
    '  segjax.data.create_dataset\n'
    'except ImportError:\n'
    "  print('late')\n"
  )
  process = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert process.returncode == 0, process.stderr
  assert process.stdout == 'late\n'


def test_chained_sets_read_what_is_asked_for():
  chained = Chained((['a', 'b'], [], range(5)))
  assert len(chained) == 7
  assert [*chained] == ['a', 'b', 0, 1, 2, 3, 4]
  assert chained[3] == 1
  with pytest.raises(IndexError):
    chained[7]
