# SPDX-License-Identifier: Apache-2.0
"""Writes a data set as array_record files that tensorflow-datasets reads.

`python -m segjax.data.prepare --config=configs/fcn8s_folder.py
--config.data.dir=DIR --output=PREPARED --name=my_set`

writes PREPARED/my_set/1.0.0 with the splits `train` and `heldout`; then
`config.data = dict(name='tfds', dir=PREPARED, set='my_set', ...)` reads it back
(configs/fcn8s_tfds.py), many files in one. Images and labels are PNG: nothing
is lost. Border weights are not stored.
"""

import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags
from PIL import Image

from segjax.data import create_dataset
from segjax.data.examples import Dataset
from segjax.data.tfds import import_tfds
from segjax.errors import InputError, run_command

_VERSION = '1.0.0'


def prepare(
  dataset: Dataset, output: str | Path, name: str, overwrite: bool = False
) -> Path:
  """Writes a data set, and returns its folder.

  The folder appears whole or not at all.

  Args:
    dataset: u8 images [H, W, C] with C = 1, 3 or 4 throughout, labels
      i32[H, W].
    output: folder in which sets are; made if missing.
    name: of the set: lower-case letters, digits and underscores.
    overwrite: whether to replace a set of this name.

  Raises:
    InputError: the name is another, the set is there, an example is of another
      kind or cannot be read, or the folder cannot be written.
  """
  tfds = import_tfds()
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise InputError(
      f'name={name!r}; expected lower-case letters, digits and underscores'
    )
  output = Path(output)
  final = output / name
  if final.exists() and not overwrite:
    raise InputError(f'{final} exists; give --overwrite to replace it')
  splits = {'train': dataset.train, 'heldout': dataset.heldout}
  splits = {
    split: examples for split, examples in splits.items() if len(examples)
  }
  channels = splits['train'][0]['image'].shape[-1]
  features = tfds.features.FeaturesDict(
    {
      'image': _png_feature(tfds, channels),
      'label': _png_feature(tfds, 1),
      'name': tfds.features.Text(),
    }
  )

  # Not in tfds's list of all sets, where a name may be but once.
  with tfds.core.registered.skip_registration():

    class PreparedSet(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version(_VERSION)

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self,
          features=features,
          metadata=tfds.core.MetadataDict(
            {'class_names': list(dataset.class_names)}
          ),
        )

      def _split_generators(self, dl_manager):
        del dl_manager
        return {
          split: _encoded(examples, channels)
          for split, examples in splits.items()
        }

      def _generate_examples(self):
        raise NotImplementedError('each split is a generator')

  PreparedSet.name = name
  tfds.disable_progress_bar()
  try:
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix='.prepare-') as folder:
      builder = PreparedSet(data_dir=folder, file_format='array_record')
      builder.download_and_prepare()
      if final.exists():
        shutil.rmtree(final)
      (Path(folder) / name).rename(final)
  except OSError as e:
    raise InputError(f'{final} cannot be written: {e.strerror or e}') from e
  return final / _VERSION


def _png_feature(tfds, channels):
  shape = (None, None, channels)
  return tfds.features.Image(shape=shape, encoding_format='png')


def _encoded(examples, channels) -> Iterator[tuple[str, dict]]:
  for index, example in enumerate(examples):
    image, label, name = (example[key] for key in ('image', 'label', 'name'))
    if image.dtype != np.uint8 or image.shape[-1] not in (1, 3, 4):
      raise InputError(
        f'{name}: image of {image.dtype} with {image.shape[-1]} channels '
        'cannot be stored; expected uint8 with 1, 3 or 4'
      )
    if image.shape[-1] != channels or label.ndim != 2:
      raise InputError(
        f'{name}: image with {image.shape[-1]} channels and label of shape '
        f'{list(label.shape)}; expected {channels}, and one label a pixel'
      )
    yield (
      f'{index:08}',
      {
        'image': _png(image[..., 0] if channels == 1 else image),
        'label': _png(label.astype(np.uint8)),
        'name': name,
      },
    )


def _png(array: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(array).save(file, format='PNG')
  return file.getvalue()


def main(_):
  args = flags.FLAGS
  dataset = create_dataset(args.config.data)
  folder = prepare(dataset, args.output, args.name, args.overwrite)
  print(
    f'{folder}: {len(dataset.train)} examples to train on, '
    f'{len(dataset.heldout)} held out',
    flush=True,
  )


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, 'Its data are written.')
  flags.DEFINE_string('output', None, 'Folder of prepared sets.', required=True)
  flags.DEFINE_string('name', None, 'Of the prepared set.', required=True)
  flags.DEFINE_bool('overwrite', False, 'Replace the set if it exists.')
  flags.mark_flag_as_required('config')
  run_command(main)
