# SPDX-License-Identifier: Apache-2.0
"""Files that must hold one image or one label, checked while they are read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax.errors import InputError
from segjax.images import files


def read_image(
  file: Path, dtypes: Sequence[str], num_channels: int
) -> np.ndarray:
  """Returns the only page [H, W, C] of an image file, as an image.


  Raises:
    InputError: the file holds several pages, another dtype or another number of
      channels; or `files.read_stack` refuses it.
  """
  image = _only_page(file, files.read_stack(file))
  if image.dtype not in dtypes or image.shape[-1] != num_channels:
    raise InputError(
      f'{file}: {image.dtype} of {image.shape[-1]} channels; expected '
      f'{" or ".join(dtypes)} of {num_channels}'
    )
  return image


def read_rgb(file: Path) -> np.ndarray:
  """Returns u8[H, W, 3] in RGB order; see `read_image`."""
  return read_image(file, ('uint8',), 3)


def read_indices(path: Path) -> np.ndarray:
  """Returns the class indices [H, W] of a palette or gray label file.

  Raises:
    InputError: the file holds several pages, colours or negative numbers; or
      `files.read_labels` refuses it.
  """
  label = _only_page(path, files.read_labels(path))
  if label.shape[-1] != 1:
    raise InputError(
      f'{path}: {label.dtype} of {label.shape[-1]} channel(s); expected class '
      'indices, in the palette or gray label image as distributed, not one '
      'saved again in colours'
    )
  if label.min() < 0:
    raise InputError(f'{path}: label {label.min()}; expected 0 or more')
  return label[..., 0]


def _only_page(file, stack):
  if len(stack) != 1:
    raise InputError(
      f'{file}: {len(stack)} pages, a stack or volume; expected one image'
    )
  return stack[0]
