# SPDX-License-Identifier: Apache-2.0
"""Small sets of tensorflow-datasets, ours and with features of others."""

import io

import numpy as np
from PIL import Image

from segjax.data import tfds
from segjax.data.examples import Dataset

CLASSES = ('road', 'tree', 'car')
FIELDS = dict(
  set='streets',
  train_split='train',
  heldout_split='heldout',
  image_key='image',
  label_key='label',
  class_names=(),
  ignore_value=-1,
  label_shift=0,
)


def example(seed, channels=3, size=(5, 7)):
  rng = np.random.default_rng(seed)
  label = rng.choice(np.int32([0, 1, 2, 255]), size)
  image = rng.integers(0, 256, (*size, channels), dtype=np.uint8)
  return {'image': image, 'label': label, 'name': f'scene {seed}'}


def dataset_of(train, heldout=(), digest='digest'):
  return Dataset(CLASSES, train, heldout, digest)


def load(data_dir, **changed):
  return tfds.load(dir=str(data_dir), **(FIELDS | changed))


def assert_same(read, made):
  """Asserts that two lists have the same examples, in any order."""
  read = {e['name']: e for e in read}
  assert read.keys() == {e['name'] for e in made}
  for expected in made:
    got = read[expected['name']]
    np.testing.assert_array_equal(got['image'], expected['image'])
    np.testing.assert_array_equal(got['label'], expected['label'])
    assert got['image'].dtype == np.uint8 and got['label'].dtype == np.int32


def encode(picture: Image.Image, ending: str = 'png') -> bytes:
  file = io.BytesIO()
  picture.save(file, format=ending)
  return file.getvalue()


def write_foreign(catalogue, data_dir, features, row) -> None:
  """Writes set 'foreign' with split 'train' of one row.

  Args:
    catalogue: the module tensorflow_datasets.
    data_dir: where.
    features: name -> tensorflow-datasets feature.
    row: name -> what is stored.
  """
  with catalogue.core.registered.skip_registration():

    class Foreign(catalogue.core.GeneratorBasedBuilder):
      VERSION = catalogue.core.Version('1.0.0')

      def _info(self):
        return catalogue.core.DatasetInfo(
          builder=self, features=catalogue.features.FeaturesDict(features)
        )

      def _split_generators(self, dl_manager):
        del dl_manager
        return {'train': iter([(0, row)])}

      def _generate_examples(self):
        raise NotImplementedError

  catalogue.disable_progress_bar()
  builder = Foreign(data_dir=str(data_dir), file_format='array_record')
  builder.download_and_prepare()
