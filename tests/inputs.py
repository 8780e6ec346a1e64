# SPDX-License-Identifier: Apache-2.0
"""Small inputs that more than one test file draws on."""

import struct
import zlib

import numpy as np
import tifffile
from scipy import ndimage

# Two cells of 5 x 2 pixels with a wall one pixel wide between them.
LABEL = np.tile(np.array([1, 1, 0, 1, 1]), (5, 1))


def _edited(edits):
  proposal = LABEL.copy()
  for index, value in edits.items():
    proposal[index] = value
  return proposal


PROPOSALS = {
  'identical': LABEL,
  'wall open': _edited({(2, 2): 1}),
  'left cell cut': _edited({(2, 0): 0, (2, 1): 0}),
  'wall moved': np.tile(np.array([1, 1, 1, 0, 1]), (5, 1)),
  'all membrane': np.zeros_like(LABEL),
  'all cell': np.ones_like(LABEL),
}


def random_cells(rng, size):
  """Draws bool[size,size] cells around random points."""
  points = rng.integers(0, size, (max(3, size * size // 100), 2))
  rows, columns = np.indices((size, size))
  squares = (rows[..., None] - points[:, 0]) ** 2
  squares = np.sort(squares + (columns[..., None] - points[:, 1]) ** 2)
  return np.sqrt(squares[..., 1]) - np.sqrt(squares[..., 0]) > 1.2


def noisy_stack(rng, size):
  """Draws labels and uncertain probabilities, many of them equal."""
  labels = np.stack([random_cells(rng, size), random_cells(rng, size)])
  noise = ndimage.gaussian_filter(rng.standard_normal(labels.shape), (0, 1, 1))
  return labels, np.clip(0.3 + 0.5 * labels + 0.6 * noise, 0, 1).round(2)


def random_stack(shape, dtype='uint8', seed=0):
  rng = np.random.default_rng(seed)
  if dtype == 'float32':
    return rng.normal(size=shape).astype(dtype)
  return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def write_tiff(path, stack, photometric='minisblack', **options):
  tifffile.imwrite(path, stack, photometric=photometric, **options)


def png_of(header, pixels, before=()):
  """Returns a PNG; `before`: [(kind, data), ...], chunks before the pixels."""

  def chunk(kind, data):
    crc = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + crc

  return b''.join(
    [
      b'\x89PNG\r\n\x1a\n',
      chunk(b'IHDR', header),
      *(chunk(*given) for given in before),
      chunk(b'IDAT', zlib.compress(pixels)),
      chunk(b'IEND', b''),
    ]
  )
