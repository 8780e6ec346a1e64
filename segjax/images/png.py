# SPDX-License-Identifier: Apache-2.0
"""PNG files written by rows, with an exact palette: no library does both.

PNG is W3C Recommendation "Portable Network Graphics (PNG) Specification
(Second Edition)", 2003; section numbers are its.
"""

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np

# Values that are compressed at once, and are in memory.
_STRIP_VALUES = 2**20


def write_png(
  file: BinaryIO, page: Any, palette: np.ndarray | None = None
) -> None:
  """Writes a picture of any size; memory holds a strip of its rows.

  Args:
    file: to write to.
    page: u8[H, W, C], C 1 or 3, neither H nor W 0; an array, or what is read as
      `page[rows, columns]`, two slices within its `shape`.
    palette: uint8[K,3], K <= 256, colours that show the values of one channel,
      which are below K.
  """
  height, width, channels = page.shape
  colour_type = {1: 0, 3: 2}[channels] if palette is None else 3
  # 8 bits, deflated, the filters of 9.2, not interlaced.
  header = struct.pack('>IIBBBBB', width, height, 8, colour_type, 0, 0, 0)
  file.write(b'\x89PNG\r\n\x1a\n')
  _write_chunk(file, b'IHDR', header)
  if palette is not None:
    _write_chunk(file, b'PLTE', palette.tobytes())
  deflate = zlib.compressobj(strategy=zlib.Z_FILTERED)
  above = np.zeros((1, width * channels), np.uint8)
  step = max(1, _STRIP_VALUES // above.size)
  for top in range(0, height, step):
    rows = page[slice(top, min(top + step, height)), slice(0, width)]
    rows = np.concatenate([above, rows.reshape(-1, above.size)])
    above = rows[-1:]
    # Of every byte, what it has more than the one above (9.2, Up). Label maps
    # and probabilities get about as small as where each row has its own rule.
    rows = np.pad(np.diff(rows, axis=0), [(0, 0), (1, 0)], constant_values=2)
    if data := deflate.compress(rows):
      _write_chunk(file, b'IDAT', data)
  _write_chunk(file, b'IDAT', deflate.flush())
  _write_chunk(file, b'IEND', b'')


def _write_chunk(file, kind, data):
  file.write(struct.pack('>I', len(data)) + kind + data)
  file.write(struct.pack('>I', zlib.crc32(kind + data)))
