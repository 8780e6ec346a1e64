# SPDX-License-Identifier: Apache-2.0
"""Write a data set as array_record files that tensorflow-datasets reads.

`python -m segjax.prepare --config=configs/fcn8s_folder.py
--config.data.dir=DIR --output=PREPARED --name=my_set`

writes PREPARED/my_set/1.0.0 with the splits `train` and `heldout`, many images
in one file. `config.data = dict(name='tfds', dir=PREPARED, set='my_set', ...)`
reads it (configs/fcn8s_tfds.py). Images and labels are stored as PNG, without
loss. Border weights are not stored, and training examples come in another
order. For sets of the catalogue see `segjax.data.tfds`.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.cli.command_line import run

  run('prepare')

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from segjax.atomic import (
  check_absent,
  give_name,
  remove_leftovers,
  temporary_folder,
)
from segjax.data import create_dataset
from segjax.data.examples import IGNORE_LABEL, Dataset, check_label
from segjax.data.label_counts import count_labels
from segjax.data.tfds import import_tfds
from segjax.errors import InputError
from segjax.images import png_jpeg
from segjax.settings.sections import read_settings

_VERSION = '1.0.0'


def prepare(
  dataset: Dataset, output: str | Path, name: str, overwrite: bool = False
) -> Path:
  """Writes a data set, and returns its folder.

  The folder appears whole or not at all. Leftovers of killed runs are removed.

  Args:
    dataset: u8 images [H, W, C], all with C = 1 or all with C = 3, labels
      i32[H, W], and a different name for each example.
    output: folder of sets; made if missing.
    name: name of the set: lower-case letters, digits and underscores. Names in
      the catalogue are refused, since tensorflow-datasets would read that set.
    overwrite: whether to replace a set of this name, if `prepare` wrote it.

  Returns:
    The folder of the version that was written.

  Raises:
    InputError: the name is not allowed, the set exists, there is no example to
      train on, an example is of another kind or cannot be read, or the folder
      cannot be written.
  """
  tfds = import_tfds()
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise InputError(
      f'name={name!r}; expected lower-case letters, digits and underscores'
    )
  if name in tfds.list_builders(with_community_datasets=False):
    raise InputError(
      f'name={name!r} is a set of the tensorflow-datasets catalogue; choose '
      'another'
    )
  if not len(dataset.train):
    raise InputError('the data set has no example to train on')
  if not 1 <= len(dataset.class_names) <= IGNORE_LABEL:
    raise InputError(
      f'{len(dataset.class_names)} classes cannot be stored; expected 1 to '
      f'{IGNORE_LABEL}'
    )
  output = Path(output).expanduser()
  final = output / name
  _check_replaceable(final, overwrite)
  splits = {'train': dataset.train, 'heldout': dataset.heldout}
  splits = {
    split: examples for split, examples in splits.items() if len(examples)
  }
  channels = dataset.train[0]['image'].shape[-1]
  if channels not in (1, 3):
    raise InputError(
      f'{dataset.train[0]["name"]}: image with {channels} channels cannot be '
      'stored; expected 1 or 3'
    )
  names = set()
  features = tfds.features.FeaturesDict(
    {
      'image': _png_feature(tfds, channels),
      'label': _png_feature(tfds, 1),
      'name': tfds.features.Text(),
    }
  )

  # Not registered: tfds allows each name only once.
  with tfds.core.registered.skip_registration():

    class PreparedSet(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version(_VERSION)

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self,
          features=features,
          metadata=tfds.core.MetadataDict(
            {
              'class_names': list(dataset.class_names),
              'digest': dataset.digest,
            }
          ),
        )

      def _split_generators(self, dl_manager):
        del dl_manager
        return {
          split: _encoded(examples, channels, len(dataset.class_names), names)
          for split, examples in splits.items()
        }

      def _generate_examples(self):
        raise NotImplementedError('each split is a generator')

  PreparedSet.name = name
  tfds.disable_progress_bar()
  try:
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    with temporary_folder(output) as folder:
      builder = PreparedSet(data_dir=folder, file_format='array_record')
      # Its messages speak of a download and of a temporary folder.
      with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
      _check_replaceable(final, overwrite)  # It may have appeared meanwhile.
      give_name(folder / name, final, overwrite)
  except OSError as e:
    raise InputError(f'{final} cannot be written: {e.strerror or e}') from e
  return final / _VERSION


def _check_replaceable(folder, overwrite):
  if not overwrite:
    check_absent([folder])
  if not os.path.lexists(folder):
    return
  if [*folder.glob('*')] != [folder / _VERSION] or not (
    folder / _VERSION / 'dataset_info.json'
  ).is_file():
    raise InputError(
      f'{folder} is no set that segjax.prepare wrote, so it is not replaced; '
      'give another name or output'
    )


def _png_feature(tfds, channels):
  shape = (None, None, channels)
  return tfds.features.Image(shape=shape, encoding_format='png')


def _encoded(
  examples, channels, num_classes, names
) -> Iterator[tuple[str, dict]]:
  """Yields keys and rows; adds the names of examples to the set `names`."""
  for index, example in enumerate(examples):
    image, label, name = (example[key] for key in ('image', 'label', 'name'))
    if image.dtype != np.uint8 or image.shape[-1] != channels:
      raise InputError(
        f'{name}: image of {image.dtype} with {image.shape[-1]} channels '
        f'cannot be stored; expected uint8 with {channels}'
      )
    if label.shape != image.shape[:2] or not label.size:
      raise InputError(
        f'{name}: label of {list(label.shape)} for an image of '
        f'{list(image.shape)} cannot be stored; expected one label a pixel'
      )
    if name in names:
      raise InputError(f'{name} names two examples; expected one of them')
    names.add(name)
    label = check_label(label, num_classes, name)
    yield (
      f'{index:08}',
      {
        'image': _png(image),
        'label': _png(label.astype(np.uint8)),
        'name': name,
      },
    )


def _png(array: np.ndarray) -> bytes:
  file = io.BytesIO()
  png_jpeg.encode(file, array)
  return file.getvalue()


def main(_):
  args = flags.FLAGS
  dataset = create_dataset(read_settings(args.config).data)
  counts = [count_labels(part) for part in (dataset.train, dataset.heldout)]
  if doubt := counts[0].colours.gathered([counts[1].colours]).doubt():
    print(f'labels: {doubt}')
  folder = prepare(dataset, args.output, args.name, args.overwrite)
  print(
    f'{folder}: {len(dataset.train)} to train on, '
    f'{len(dataset.heldout)} held out',
    flush=True,
  )
