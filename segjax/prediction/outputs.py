# SPDX-License-Identifier: Apache-2.0
"""The files of an output: the values in them, their names, what they spare."""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from segjax import locks
from segjax.atomic import check_folder
from segjax.errors import InputError

KINDS = ('probabilities', 'labels', 'logits', 'overlay')
DTYPES = ('float32', 'float16', 'uint8')
ENDINGS = ('.tif', '.tiff', '.png', '.npy', '.zarr')

# Files of a Zarr array v2 or v3: metadata, and chunks or their folders.
_OF_ZARR = re.compile(r'zarr\.json|\.zarray|\.zattrs|c|\d+([./]\d+)*')


def encode(
  predicted: np.ndarray, kind: str, dtype: str, head_sizes: Sequence[int]
) -> np.ndarray:
  """Returns the values that are stored of a prediction f32[..., K].

  Args:
    predicted: probabilities, or logits if `kind` is 'logits'.
    kind: 'labels' gives the likeliest class, u8[...], or with T > 1 heads the
      likeliest of each, u8[..., T]; 'probabilities' gives the probability of
      class 1, [...], if K is 2, and otherwise all, [..., K]; 'logits' gives all
      logits, [..., K].
    dtype: 'float32', 'float16' or 'uint8', for probabilities and logits; labels
      are uint8 always. 'uint8' scales probabilities to 0..255.
    head_sizes: numbers of classes of the heads.

  Raises:
    InputError: a value does not fit into the dtype: a logit into float16, or
      the index of a class beyond 255.
  """
  if kind == 'labels':
    if max(head_sizes) > 256:
      raise InputError(
        f'{max(head_sizes)} classes do not fit into labels of uint8; expected '
        'at most 256, or the kind probabilities'
      )
    heads = np.split(predicted, np.cumsum(head_sizes)[:-1], axis=-1)
    labels = np.stack([np.argmax(head, axis=-1) for head in heads], axis=-1)
    labels = labels.astype(np.uint8)
    return labels[..., 0] if len(head_sizes) == 1 else labels
  if kind == 'probabilities' and predicted.shape[-1] == 2:
    predicted = predicted[..., 1]
  if dtype == 'uint8':
    predicted = np.round(255 * predicted)
  with np.errstate(over='ignore'):
    stored = predicted.astype(dtype)
  if (
    dtype == 'float16'
    and (lost := np.isinf(stored) & np.isfinite(predicted)).any()
  ):
    raise InputError(
      f'{kind}: {predicted[lost][0]} does not fit into {dtype}; use float32'
    )
  return stored


def plan_outputs(
  inputs: list[Path],
  is_folder: bool,
  output: Path,
  kind: str,
  num_heads: int = 1,
) -> tuple[list[tuple[list[Path], Path]], str]:
  """Returns [(input files, output file), ...] and the outputs' ending.

  An output with an ending is one file for all inputs. An output without one is
  a folder with a file for each input, named after it: .png for labels and
  overlays, otherwise .tif.

  Raises:
    InputError: the ending doesn't fit the kind, or an output's folder is
      missing.
  """
  ending = output.suffix.lower()
  if ending == '' and is_folder:
    is_picture = kind == 'overlay' or (kind == 'labels' and num_heads == 1)
    ending = '.png' if is_picture else '.tif'
    names = [f'{path.stem}{ending}' for path in inputs]
    for name in names:
      if names.count(name) > 1:
        raise InputError(
          f'{name} in {output} would hold two inputs; rename one of them'
        )
    jobs = [
      ([path], output / name) for path, name in zip(inputs, names, strict=True)
    ]
  else:
    jobs = [(inputs, output)]
  if ending not in ENDINGS:
    raise InputError(
      f'output {output} has none of the endings {", ".join(ENDINGS)}'
    )
  if ending != '.png' and kind == 'overlay':
    raise InputError(f'output {output}: an overlay is a picture; use .png')
  if ending == '.png' and kind == 'labels' and num_heads > 1:
    raise InputError(
      f'output {output}: a .png cannot hold the labels of {num_heads} heads; '
      'use .tif'
    )
  if ending == '.png' and kind == 'logits':
    raise InputError(f'output {output}: a .png cannot hold logits; use .tif')
  check_folder(output)
  return jobs, ending


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
  """Raises InputError if an output is an input, lies in one, or holds one.

  They are compared as `os.path.samefile` does, by what the file system finds
  there: links, also hard ones, and capitals that a disk doesn't tell apart do
  not hide an input. A path where nothing is yet is compared by its folder. Two
  outputs that are one file are refused, too.

  Args:
    outputs: files and folders that are to be replaced or made.
    inputs: files, and folders of which everything is an input.
  """

  @functools.cache
  def find(path):
    try:
      status = os.stat(path)
    except OSError:
      return None
    return status.st_dev, status.st_ino

  def find_folders_above(path):
    """Of the path, and of what it links to."""
    itself = os.path.join(os.path.realpath(path.parent), path.name)
    for place in (itself, os.path.realpath(path)):
      yield from filter(None, map(find, Path(place).parents))

  known, held, written = {}, {}, {}
  for path in inputs:
    if find(path) is not None:
      known[find(path)] = path
      for place in find_folders_above(path):
        held.setdefault(place, path)
  for output in outputs:
    found = find(output)
    above = {place: known.get(place) for place in find_folders_above(output)}
    for what, clash in (
      ('is the input', known.get(found)),
      ('holds the input', held.get(found)),
      *(('lies in the input', path) for path in above.values()),
      ('is the same file as the output', written.get(found)),
    ):
      if clash is not None:
        raise InputError(f'output {output} {what} {clash}; give another output')
    if found is not None:
      written[found] = output


def check_other_folder(output: Path, source: Path) -> None:
  """Raises InputError if outputs are to be put into the folder of the inputs.

  There the next command would take them for inputs.
  """
  if output.exists() and os.path.samefile(output, source):
    raise InputError(
      f'output {output} is the folder of the input {source}, where what is '
      'written would be input the next time; give another output'
    )


def check_replaceable(output: Path) -> None:
  """Raises InputError if an output is a folder, but nothing that was an output.

  That is a Zarr array, with its metadata and no files but its own, or an
  OME-Zarr that segjax wrote, with its metadata and such arrays alone.
  """
  if not output.is_dir() or output.is_symlink():
    return
  was_output = False
  if output.suffix.lower() == '.zarr':
    with contextlib.suppress(
      OSError, ValueError, AttributeError, RecursionError
    ):
      was_output = _is_array(output) or _is_our_ome_zarr(output)
  if not was_output:
    raise InputError(
      f'output {output} is a folder and no Zarr array or OME-Zarr that segjax '
      'wrote, so it is not replaced; give another output'
    )


def _is_array(folder):
  names = os.listdir(folder)
  if 'zarr.json' in names:
    text = (folder / 'zarr.json').read_text('utf-8')
    is_array = json.loads(text).get('node_type') == 'array'
  else:
    is_array = '.zarray' in names
  return is_array and all(_OF_ZARR.fullmatch(name) for name in names)


def _is_our_ome_zarr(folder):
  from segjax.images.ome_zarr import CREATOR  # Late, for help needs no Zarr.

  group = json.loads((folder / 'zarr.json').read_text('utf-8'))
  ome = group['attributes'].get('ome', {}) if 'attributes' in group else {}
  names = [name for name in os.listdir(folder) if name != 'zarr.json']
  return CREATOR.items() <= ome.items() and all(
    name.isdecimal() and _is_array(folder / name) for name in names
  )


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
  """Makes a folder of outputs, and keeps other runs out until the block ends.

  It is removed if it was made and stays empty.

  Raises:
    InputError: another run is writing to the folder, or it cannot be made.
  """
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locks.hold(folder))
    except OSError as e:
      raise InputError(
        f'output {folder} cannot be made a folder: {e.strerror}'
      ) from e
    yield
