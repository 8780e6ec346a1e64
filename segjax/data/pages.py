# SPDX-License-Identifier: Apache-2.0
"""Files that hold one image, or one label: their only page, checked."""

from pathlib import Path

import numpy as np

from segjax.data import images
from segjax.errors import InputError


def read_page(path: Path) -> np.ndarray:
  """Returns [H, W, C] as stored.

  Raises:
    InputError: as `images.read_stack`; or the file has several pages.
  """
  stack = images.read_stack(path)
  if len(stack) != 1:
    raise InputError(f'{path}: {len(stack)} pages; expected 1')
  return stack[0]


def read_rgb(path: Path) -> np.ndarray:
  """Returns u8[H, W, 3] in RGB order.

  Raises:
    InputError: as `images.read_stack`; or the file holds anything else.
  """
  image = read_page(path)
  if image.dtype != np.uint8 or image.shape[-1] != 3:
    raise InputError(
      f'{path}: {image.dtype} of {image.shape[-1]} channels; expected RGB of '
      'uint8'
    )
  return image


def read_indices(path: Path) -> np.ndarray:
  """Returns uint8 or uint16 [H, W], indices as a palette or gray PNG has them.

  Raises:
    InputError: as `images.read_stack`; or the file has colours, not indices.
  """
  label = read_page(path)
  if label.shape[-1] != 1 or label.dtype == np.float32:
    raise InputError(
      f'{path}: {label.dtype} of {label.shape[-1]} channel(s); expected class '
      'indices, in the palette or gray label image as distributed, not one '
      'saved again in colours'
    )
  return label[..., 0]
