# SPDX-License-Identifier: Apache-2.0
"""Sets of the tensorflow-datasets catalogue, read without TensorFlow.

Any set with an image and a segmentation mask that lies prepared on disk in
array_record files, such as `python -m segjax.data.prepare` or

    tfds.builder(NAME, data_dir=DIR, file_format='array_record')
        .download_and_prepare()

writes; the second needs the network, and TensorFlow where the set's own code
does. The one file, with `prepare`, that knows tensorflow-datasets.
"""

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from segjax.data.examples import (
  IGNORE_LABEL,
  Dataset,
  check_label,
  digest_of_files,
)
from segjax.errors import InputError

_NAMES = ('name', 'file_name', 'image/filename', 'image_id', 'id')


def load(
  dir: str,
  set: str,
  train_split: str,
  heldout_split: str,
  image_key: str,
  label_key: str,
  class_names: Sequence[str],
  ignore_value: int,
  label_shift: int,
) -> Dataset:
  """Returns two splits of a prepared set.

  Args:
    dir: the data_dir it was prepared in.
    set: its name, as 'NAME', 'NAME/CONFIG' or 'NAME:VERSION'.
    train_split: such as 'train' or 'train[:80%]'.
    heldout_split: such as 'test'; '' holds out none.
    image_key: feature of the image, uint8 [H, W, C].
    label_key: feature of the label, integers [H, W] or [H, W, 1].
    class_names: K names, of the labels after the shift; () takes those that
      `prepare` stored.
    ignore_value: stored label, before the shift, that is ignored; -1 for none
      but 255.
    label_shift: added to the other labels; -1 for labels from 1.

  Raises:
    InputError: tensorflow-datasets is missing; the set or split isn't there, or
      is in another file format; it has no such features or no class names.
      When an example is read: a label in colours or outside the classes.
  """
  tfds = import_tfds()
  try:
    builder = tfds.core.read_only_builder.builder_from_files(set, data_dir=dir)
  except ValueError as e:  # DatasetNotFoundError among others.
    raise InputError(
      f'data.set={set!r} is not prepared in data.dir={dir!r}; see python -m '
      'segjax.data.prepare --help, or prepare it there with '
      "tensorflow-datasets and file_format='array_record'"
    ) from e
  file_format = builder.info.file_format.value
  if file_format != 'array_record':
    raise InputError(
      f'{set} in {dir} is stored as {file_format}, which needs TensorFlow; '
      "prepare it with file_format='array_record'"
    )
  features = sorted(builder.info.features)
  for field, key in (('image_key', image_key), ('label_key', label_key)):
    if key not in features:
      raise InputError(
        f'data.{field}={key!r} is no feature of {set}, which has {features}'
      )
  names = tuple(class_names)
  if not names:
    names = tuple((builder.info.metadata or {}).get('class_names', ()))
  if not names:
    raise InputError(
      f'{set} stores no names of its classes; list them in data.class_names'
    )

  def examples(split):
    if not split:
      return ()
    try:
      source = builder.as_data_source(split=split)
    except ValueError as e:
      raise InputError(f'{set}: {" ".join(str(e).split())}') from e
    if not len(source):
      raise InputError(f'{set}: split {split!r} has no example')
    return _Examples(
      source,
      split,
      image_key,
      label_key,
      next((key for key in _NAMES if key in features), None),
      len(names),
      ignore_value,
      label_shift,
    )

  train, heldout = examples(train_split), examples(heldout_split)
  settings = (train_split, heldout_split, image_key, label_key)
  sizes = (len(train), len(heldout), ignore_value, label_shift)
  digest = digest_of_files((), builder.info.full_name, *settings, *sizes)
  return Dataset(names, train, heldout, digest)


def import_tfds() -> ModuleType:
  """Returns tensorflow_datasets; InputError if it isn't installed."""
  try:
    import tensorflow_datasets
  except ImportError as e:
    raise InputError(
      'data.name=tfds needs a package: pip install segjax[tfds]'
    ) from e
  return tensorflow_datasets


@dataclasses.dataclass(frozen=True)
class _Examples(Sequence):
  """Examples of a split, decoded when they are asked for."""

  source: Sequence[dict[str, Any]]
  split: str
  image_key: str
  label_key: str
  name_key: str | None
  num_classes: int
  ignore_value: int
  label_shift: int

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if index >= len(self):  # Ends an iteration; the source says ValueError.
      raise IndexError(index)
    stored = self.source[index]
    name = f'{self.split}-{index}'
    if self.name_key is not None:
      name = stored[self.name_key]
      name = name.decode() if isinstance(name, bytes) else str(name)
    image, label = stored[self.image_key], stored[self.label_key]
    if label.ndim == 3 and label.shape[-1] == 1:
      label = label[..., 0]
    if label.ndim != 2 or image.shape[:2] != label.shape:
      raise InputError(
        f'{name}: label of shape {list(label.shape)} for an image of '
        f'{list(image.shape)}; expected one index for each pixel, no colours'
      )
    ignored = label == IGNORE_LABEL
    if self.ignore_value >= 0:
      ignored = label == self.ignore_value
    shifted = label.astype(np.int64) + self.label_shift
    # A shift may not make 255 of a class.
    shifted[~ignored & (shifted == IGNORE_LABEL)] = -1
    shifted[ignored] = IGNORE_LABEL
    checked = check_label(shifted, self.num_classes, name)
    return {'image': image, 'label': checked, 'name': name}
