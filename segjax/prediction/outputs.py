# SPDX-License-Identifier: Apache-2.0
"""Output files: their values, their names, and what they may replace."""

import contextlib
import functools
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from segjax import locks
from segjax.atomic import check_folder
from segjax.errors import InputError

KINDS = ('probabilities', 'labels', 'logits', 'overlay')
DTYPES = ('float32', 'float16', 'uint8')
ENDINGS = ('.tif', '.tiff', '.png', '.npy', '.zarr')

# Names in a Zarr array v2 or v3: metadata, and chunks or their folders.
_OF_ZARR = re.compile(r'zarr\.json|\.zarray|\.zattrs|c|\d+([./]\d+)*')


def encode(
  predicted: np.ndarray, kind: str, dtype: str, head_sizes: Sequence[int]
) -> np.ndarray:
  """Returns the values of a prediction that an output file stores.

  Args:
    predicted: f32[..., K], probabilities, or logits if `kind` is 'logits'.
    kind: 'labels' gives the likeliest class, u8[...], or with T > 1 heads the
      likeliest class of each head, u8[..., T]. 'probabilities' gives the
      probability of class 1, [...], if K is 2, and otherwise all
      probabilities, [..., K]. 'logits' gives all logits, [..., K].
    dtype: 'float32', 'float16' or 'uint8', for probabilities and logits; labels
      are always uint8. 'uint8' scales probabilities to 0..255.
    head_sizes: number of classes of each head.

  Raises:
    InputError: a value does not fit into the dtype: a logit into float16, or
      the index of a class above 255.
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
  stacks: Collection[Path] = (),
) -> list[tuple[list[Path], Path]]:
  """Returns [(input files, output file), ...].

  An output with an ending is one file for all inputs. An output without an
  ending is a folder with a file for each input, which has the input's name and
  the ending .png for labels and overlays, otherwise .tif.

  Args:
    inputs: image files.
    is_folder: whether the inputs were given as a folder.
    output: file or folder to write.
    kind: one of `KINDS`.
    num_heads: number of heads of the network.
    stacks: inputs of several pages, whose output in a folder is a .tif.

  Raises:
    InputError: the ending doesn't fit the kind, two inputs would have the same
      output, or the folder of an output is missing.
  """
  ending = output.suffix.lower()
  if ending == '' and is_folder:
    is_picture = kind == 'overlay' or (kind == 'labels' and num_heads == 1)
    ending = '.png' if is_picture else '.tif'
    names = [
      f'{path.stem}{".tif" if path in stacks else ending}' for path in inputs
    ]
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
  return jobs


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
  """Raises InputError if an output is an input, lies in one, or holds one.

  Paths are compared by the file that the system finds, as `os.path.samefile`
  does. So neither a symbolic or hard link, nor a spelling with other capitals,
  hides an input. A path that doesn't exist yet is compared by its folder. Two
  outputs that are one file are refused, too.

  Args:
    outputs: files and folders that will be replaced or made.
    inputs: files and folders; everything in a folder is an input.
  """

  @functools.cache
  def find(path):
    try:
      status = os.stat(path)
    except OSError:
      return None
    return status.st_dev, status.st_ino

  def find_folders_above(path):
    """Yields the folders above a path, and above the target of a link."""
    itself = os.path.join(os.path.realpath(path.parent), path.name)
    for resolved in (itself, os.path.realpath(path)):
      yield from filter(None, map(find, Path(resolved).parents))

  known, held, written = {}, {}, {}
  for path in inputs:
    if find(path) is not None:
      known[find(path)] = path
      for folder in find_folders_above(path):
        held.setdefault(folder, path)
  for output in outputs:
    found = find(output)
    above = dict.fromkeys(find_folders_above(output))
    for what, clash in (
      ('is the input', known.get(found)),
      ('holds the input', held.get(found)),
      *(('lies in the input', known.get(folder)) for folder in above),
      ('is the same file as the output', written.get(found)),
    ):
      if clash is not None:
        raise InputError(f'output {output} {what} {clash}; give another output')
    if found is not None:
      written[found] = output


def check_other_folder(output: Path, source: Path) -> None:
  """Raises InputError if the folder of the outputs is that of the inputs.

  The next command would take the outputs there for inputs.
  """
  if output.exists() and os.path.samefile(output, source):
    raise InputError(
      f'output {output} is the folder of the input {source}, where outputs '
      'would be inputs the next time; give another output'
    )


def check_replaceable(output: Path) -> None:
  """Raises InputError if an output is a folder that must not be replaced.

  A Zarr array may be replaced if it holds only its metadata and chunks. An
  OME-Zarr may be replaced if segjax wrote it, and it holds only its metadata
  and such arrays.
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
  from segjax.images.ome_zarr import CREATOR  # --help needs no Zarr.

  group = json.loads((folder / 'zarr.json').read_text('utf-8'))
  ome = group['attributes'].get('ome', {}) if 'attributes' in group else {}
  names = [name for name in os.listdir(folder) if name != 'zarr.json']
  return CREATOR.items() <= ome.items() and all(
    name.isdecimal() and _is_array(folder / name) for name in names
  )


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
  """Makes a folder of outputs if it is missing, and locks it for the block.

  A folder that was made here, and stays empty, is removed at the end.

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
