# SPDX-License-Identifier: Apache-2.0
"""Prepared sets of tensorflow-datasets, read without TensorFlow.

A set must have an image and a segmentation mask, and lie on disk in
array_record files. `python -m segjax.prepare` writes such sets, and so does

    tfds.builder(NAME, data_dir=DIR, file_format='array_record')
        .download_and_prepare()

which runs the set's own code. In the catalogue (4.9.10), the code of
oxford_iiit_pet, cityscapes, lost_and_found and scene_parse150 needs TensorFlow:
prepare these once on a machine that has it. Only this file and `prepare` know
tensorflow-datasets.

Pictures are decoded by `files.decode_picture`. The decoder of the package gives
colours of a palette PNG and 255 for one bit if OpenCV is installed, otherwise
indices and 1.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from segjax.data.examples import (
  IGNORE_LABEL,
  Dataset,
  Item,
  check_label,
  digest_of_files,
)
from segjax.data.layout import check_files
from segjax.errors import InputError
from segjax.images.files import decode_picture
from segjax.images.labels import label_of

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
    dir: the data_dir that the set was prepared in; '' takes TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    set: name of the set: 'NAME', 'NAME/CONFIG' or 'NAME:VERSION'.
    train_split: split to train on, such as 'train' or 'train[:80%]'.
    heldout_split: split to hold out, such as 'test'; '' holds out none.
    image_key: feature of the image, a picture of 8 or 16 bits. A gray picture
      in a feature of three channels gets three equal channels.
    label_key: feature of the label, a picture of one channel or a tensor of
      integers, [H, W] or [H, W, 1].
    class_names: K names of classes 0..K-1; () takes those that `prepare`
      stored.
    ignore_value: stored value of ignored pixels; -1 for 255.
    label_shift: number that is added to the other stored values; -1 if class 0
      is stored as 1.

  Raises:
    InputError: tensorflow-datasets is missing; the set or split is missing,
      damaged, or in another file format; it has no such features or no class
      names; or an example is both trained on and held out. When an example is
      read: it is damaged, or its label is in colours or outside the classes.
  """
  tfds = import_tfds()
  builder = _open(tfds, dir, set)
  features = builder.info.features
  for field, key in (('image_key', image_key), ('label_key', label_key)):
    if key not in features:
      raise InputError(
        f'data.{field}={key!r} is no feature of {set}, which has '
        f'{sorted(features)}'
      )
    if not _is_picture(tfds, features[key]) and not (
      field == 'label_key' and _is_label(features[key])
    ):
      raise InputError(
        f'data.{field}={key!r} of {set} is {features[key]}; expected a picture '
        'of 8 or 16 bits, or for a label a tensor of integers, [H, W]'
      )
  metadata = builder.info.metadata or {}
  names = tuple(class_names or metadata.get('class_names', ()))
  if not 1 <= len(names) <= IGNORE_LABEL:
    raise InputError(
      f'{len(names)} names of classes for {set}; list 1 to {IGNORE_LABEL} in '
      'data.class_names'
    )
  # No picture is decoded: a set may have others, which nobody asked for.
  skipped = {
    key: tfds.decode.SkipDecoding()
    for key, feature in features.items()
    if isinstance(feature, tfds.features.Image)
  }

  classes = range(-label_shift, len(names) - label_shift)
  ignored = ignore_value if ignore_value >= 0 else IGNORE_LABEL

  def examples(split, shards):
    if not shards:
      return ()
    return _Examples(
      builder.as_data_source(split=split, decoders=skipped),
      split,
      image_key,
      label_key,
      next((key for key in _NAMES if key in features), None),
      features[image_key].shape[-1],
      classes,
      ignored,
    )

  # Files are padded to blocks of 64 KiB, so that their sizes say little.
  num_bytes = {name: s.num_bytes for name, s in builder.info.splits.items()}
  train_shards = _shards(builder, set, train_split)
  heldout_shards = _shards(builder, set, heldout_split) if heldout_split else ()
  _check_apart(set, train_shards, heldout_shards)
  return Dataset(
    class_names=names,
    stored=(*classes, ignored),
    train=examples(train_split, train_shards),
    heldout=examples(heldout_split, heldout_shards),
    digest=digest_of_files(
      (*train_shards, *heldout_shards),
      builder.info.full_name,
      tuple(sorted(num_bytes.items())),
      metadata.get('digest', ''),
      len(train_shards),
      (image_key, label_key, ignore_value, label_shift),
    ),
  )


def import_tfds() -> ModuleType:
  """Returns tensorflow_datasets; raises InputError if it is not installed."""
  try:
    # tensorflow_datasets needs it and does not say so.
    import importlib_resources  # noqa: F401
    import tensorflow_datasets
  except ImportError as e:
    raise InputError(
      'sets of tensorflow-datasets need packages: pip install '
      'tensorflow-datasets importlib_resources'
    ) from e
  return tensorflow_datasets


def _open(tfds, dir, set):
  data_dir = str(Path(dir).expanduser()) if dir else None
  try:
    builder = tfds.core.read_only_builder.builder_from_files(
      set, data_dir=data_dir
    )
    file_format = builder.info.file_format.value
  except ValueError as e:  # DatasetNotFoundError among others.
    raise InputError(
      f'data.set={set!r} is not prepared in data.dir={dir!r}; prepare one of '
      f'the catalogue by tensorflow_datasets.builder({set!r}, '
      f"data_dir={dir!r}, file_format='array_record').download_and_prepare(), "
      'one of your own by python -m segjax.prepare'
    ) from e
  except Exception as e:  # Its parsers raise anything on damaged JSON.
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())
    raise InputError(
      f'data.set={set!r} in data.dir={dir!r} is damaged, prepare it again; '
      f'{reason}'
    ) from e
  if file_format != 'array_record':
    raise InputError(
      f'{set} in {dir} is stored as {file_format}, which needs TensorFlow; '
      "prepare it with file_format='array_record'"
    )
  return builder


def _is_picture(tfds, feature):
  # float32 is stored as the four bytes of each value.
  return isinstance(feature, tfds.features.Image) and feature.np_dtype in (
    np.uint8,
    np.uint16,
  )


def _is_label(feature):
  shape, dtype = feature.shape, feature.np_dtype
  if not isinstance(shape, tuple) or not np.issubdtype(dtype, np.integer):
    return False
  return len(shape) == 2 or (len(shape) == 3 and shape[-1] == 1)


@dataclasses.dataclass(frozen=True)
class _Shard(Item):
  """An item that is the records start..stop-1 of a file."""

  start: int
  stop: int


def _shards(builder, set, split):
  try:
    stored = builder.info.splits[split].file_instructions
  except (KeyError, ValueError) as e:
    reason = ' '.join(str(e.args[0]).split())
    raise InputError(f'{set}: split {split!r}; {reason}') from e
  shards = []
  for each in stored:
    file, start, stop = Path(each.filename), each.skip, each.skip + each.take
    shards.append(_Shard(f'{file.name}[{start}:{stop}]', (file,), start, stop))
  return check_files(shards, f'split {split!r} of {set}')


def _check_apart(set, train, heldout):
  for a in train:
    for b in heldout:
      start, stop = max(a.start, b.start), min(a.stop, b.stop)
      if a.files == b.files and start < stop:
        raise InputError(
          f'{set}: {stop - start} example(s) of {a.files[0].name} are both '
          'trained on and held out; expected splits that are apart'
        )


@dataclasses.dataclass(frozen=True)
class _Examples(Sequence):
  """Examples of a split, decoded when they are asked for; see `load`."""

  source: Sequence[dict[str, Any]]
  split: str
  image_key: str
  label_key: str
  name_key: str | None
  num_channels: int | None
  classes: range  # The stored values.
  ignored: int

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    index = range(len(self))[index]  # The source raises no IndexError.
    name = f'{self.split}-{index}'
    try:
      stored = self.source[index]
      if stored[self.image_key] is None or stored[self.label_key] is None:
        raise ValueError('the record is empty')  # So is that of a cut file.
    except Exception as e:  # The parsers of a record raise anything.
      reason = ' '.join(f'{type(e).__name__}: {e}'.split())
      raise InputError(f'{name} is damaged, prepare it again; {reason}') from e
    if self.name_key is not None:
      name = stored[self.name_key]
      name = name.decode() if isinstance(name, bytes) else str(name)
    image = decode_picture(stored[self.image_key], f'{name}, {self.image_key}')
    if image.shape[-1] == 1 and self.num_channels == 3:
      image = np.repeat(image, 3, axis=-1)
    label = self._label(stored[self.label_key], name)
    channels = self.num_channels or image.shape[-1]
    if image.shape != (*label.shape, channels):
      raise InputError(
        f'{name}: image of {list(image.shape)} for a label of '
        f'{list(label.shape)}; expected equal sizes and {channels} channels'
      )
    return {'image': image, 'label': label, 'name': name}

  def _label(self, stored, name):
    if isinstance(stored, bytes):
      source = f'{name}, {self.label_key}'
      stored = decode_picture(stored, source, label_of)
    if stored.ndim == 3 and stored.shape[-1] == 1:
      stored = stored[..., 0]
    if stored.ndim != 2:
      raise InputError(
        f'{name}: label of shape {list(stored.shape)}; expected one index for '
        'each pixel, no colours'
      )
    return check_label(
      stored,
      len(self.classes),
      name,
      first=self.classes.start,
      ignored=(self.ignored,),
    )
