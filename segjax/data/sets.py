# SPDX-License-Identifier: Apache-2.0
"""Data sets by their names in configs."""

import inspect
from collections.abc import Mapping, Sequence

import numpy as np

from segjax.data import (
  camvid,
  cell_tracking,
  folder,
  isbi2012,
  nyudv2,
  pascal_context,
  sift_flow,
  synthetic,
  tfds,
  voc,
)
from segjax.data.examples import IGNORE_LABEL, Dataset
from segjax.errors import InputError, did_you_mean
from segjax.settings.fields import check_type


def _load_arrays(
  class_names: Sequence[str],
  label_kind: str = 'classes',
  label_values: Sequence[int] = (),
  ignore_value: Sequence[int] = (IGNORE_LABEL,),
  w0: float = 0.0,
  sigma_px: float = 5.0,
  balance: bool = False,
  heldout_fraction: float = 0.2,
) -> Dataset:
  raise InputError(
    "data.name='arrays': segjax.fit trained this network on arrays, which are "
    'not on disk; give segjax.evaluate --images=DIR and --labels=DIR'
  )


LOADERS = {
  'isbi2012': isbi2012.load,
  'synthetic': synthetic.load,
  'cell_tracking': cell_tracking.load,
  'folder': folder.load,
  'voc': voc.load,
  'pascal_context': pascal_context.load,
  'nyudv2': nyudv2.load,
  'sift_flow': sift_flow.load,
  'camvid': camvid.load,
  'tfds': tfds.load,
  'arrays': _load_arrays,
}

# Names and colours of classes that do not depend on what is on disk.
_LOOKS = {
  'isbi2012': (isbi2012.CLASS_NAMES, None),
  'synthetic': (isbi2012.CLASS_NAMES, None),
  'cell_tracking': (cell_tracking.CLASS_NAMES, None),
  'voc': (voc.CLASS_NAMES, None),
  'nyudv2': (nyudv2.CLASS_NAMES, None),
  'sift_flow': (sift_flow.SEMANTIC_NAMES + sift_flow.GEOMETRIC_NAMES, None),
  'camvid': (camvid.CLASS_NAMES, camvid.PALETTE),
}


def create_dataset(config: Mapping) -> Dataset:
  """Returns the data set that `config.name` and its other fields describe.

  Args:
    config: `name`, a key of `LOADERS`, and the arguments of that function.
      Arguments with a default may be missing, since older configs lack them.
  """
  check_data(config)
  fields = {field: config[field] for field in config if field != 'name'}
  return LOADERS[config['name']](**fields)


def check_data(config: Mapping) -> None:
  """Raises InputError for a config that `create_dataset` cannot use.

  Its name is unknown, a field is missing or unknown to the loader, or a value
  has another type. No data are read.
  """
  name = config['name'] if 'name' in config else None
  fields = {field: config[field] for field in config if field != 'name'}
  if name not in (*LOADERS,):  # Of any type, so perhaps without a hash.
    raise InputError(f'data.name={name!r} is not one of {tuple(LOADERS)}')
  expected = inspect.signature(LOADERS[name]).parameters
  needed = {k for k, v in expected.items() if v.default is v.empty}
  if not needed <= set(fields) <= set(expected):
    known = ('name', *expected)
    unknown = [field for field in fields if field not in known]
    raise InputError(
      f'data.name={name!r} takes the fields {", ".join(expected)}; the config '
      f'has {", ".join(map(str, fields))}'
      f'{did_you_mean(unknown[0], known) if unknown else ""}'
    )
  for field, value in fields.items():
    check_type(f'data.{field}', value, expected[field].annotation)


def look_of(
  config: Mapping, num_classes: int
) -> tuple[tuple[str, ...], np.ndarray | None]:
  """Returns names and colours of the classes of a data set, without reading it.

  Args:
    config: see `create_dataset`.
    num_classes: K, over all heads.

  Returns:
    K names, and u8[K, 3], or None for the colours of VOC. Names that are only
    on disk are 'class 0', 'class 1', ...
  """
  if config['name'] in _LOOKS:
    return _LOOKS[config['name']]
  # The fields of other sets may name and colour their classes.
  names = tuple(config['class_names']) if 'class_names' in config else ()
  colours = config['colours'] if 'colours' in config else ()
  palette = np.array(colours, np.uint8) if colours else None
  return names or tuple(f'class {i}' for i in range(num_classes)), palette
