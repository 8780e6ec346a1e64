# SPDX-License-Identifier: Apache-2.0
"""Small files of data sets, laid out as their organisers do."""

import numpy as np
import scipy.io
from PIL import Image


def write_picture(path, array, palette=None, dtype=np.uint8):
  """Writes u8 [H, W] or [H, W, 3]; [H, W] with a palette as its indices."""
  path.parent.mkdir(parents=True, exist_ok=True)
  picture = Image.fromarray(np.asarray(array, dtype))
  if palette is not None:
    picture.putpalette(np.asarray(palette, np.uint8).tobytes())
  picture.save(path)


def write_mat(path, **variables):
  path.parent.mkdir(parents=True, exist_ok=True)
  scipy.io.savemat(path, variables, do_compression=True)


def write_lines(path, *lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(f'{line}\n' for line in lines))


def image_of(value, size=(4, 6)):
  """Returns u8[H, W, 3], gray of one value, which JPEG keeps as it is."""
  return np.full((*size, 3), value, np.uint8)


def cut(path, keep=0.5):
  """Leaves the first half of a file."""
  whole = path.read_bytes()
  path.write_bytes(whole[: int(keep * len(whole))])
