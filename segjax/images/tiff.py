# SPDX-License-Identifier: Apache-2.0
"""Whether all of a TIFF is there, which tifffile does not ask."""

import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import tifffile

from segjax.errors import InputError


def tiff_pages(
  path: Path, tif: tifffile.TiffFile
) -> tuple[list[tifffile.TiffPage], tuple[int, int, int]]:
  """Returns the pages of a TIFF, and the shape [H,W,C] of each without alpha.

  Raises:
    InputError: the file is not whole, or the pages are unequal.
  """
  pages = list(tif.pages)
  check_whole(path, tif, pages)
  first = pages[0]
  for i, page in enumerate(pages):
    kind = f'{page.axes} {page.dtype}{list(page.shape)}'
    expected = f'{first.axes} {first.dtype}{list(first.shape)}'
    if kind != expected or page.axes not in ('YX', 'YXS', 'SYX'):
      raise InputError(
        f'{path}: page {i} is {kind}, page 0 {expected}; pages must be equal '
        'and of axes YX, YXS or SYX'
      )
  # 1, 2: associated and unassociated alpha (TIFF 6.0, ExtraSamples).
  alpha = first.extrasamples[-1:] in ((1,), (2,))
  channels = first.samplesperpixel - alpha
  return pages, (first.imagelength, first.imagewidth, channels)


def check_whole(
  path: Path, tif: tifffile.TiffFile, pages: Sequence[tifffile.TiffPage]
) -> None:
  """Raises InputError unless all that the headers name lies in the file.

  tifffile goes on without a page or tag that it cannot reach, and returns
  uninitialised memory for a strip that is not listed.
  """
  where = f'{path}: truncated or corrupt;'
  file = tif.filehandle
  following = [page.offset for page in pages[1:]] + [0]
  for i, page in enumerate(pages):
    num_tags, next_offset = _directory(file, tif.tiff, page.offset)
    if next_offset != following[i] or num_tags != len(page.tags):
      raise InputError(f'{where} page {i} or what follows it is out of reach')
    segments = zip(page.dataoffsets, page.databytecounts, strict=True)
    inside = sum(0 < a < a + n <= file.size for a, n in segments)
    if inside != math.prod(page.chunked):
      raise InputError(
        f'{where} {inside} of {math.prod(page.chunked)} strips or tiles of '
        f'page {i} lie within its {file.size} bytes'
      )
  # ImageJ writes one header for all pages of a file beyond 4 GiB.
  if sum(series.size for series in tif.series) > sum(p.size for p in pages):
    raise InputError(
      f'{path}: has more pages than the {len(pages)} with a header; save it as '
      'a plain multi-page TIFF'
    )


def _directory(file, sizes, offset):
  """Returns the tag count and the next page's offset, as the file states."""
  file.seek(offset)
  (num_tags,) = struct.unpack(sizes.tagnoformat, file.read(sizes.tagnosize))
  file.seek(num_tags * sizes.tagsize, os.SEEK_CUR)
  data = file.read(sizes.offsetsize)
  return num_tags, struct.unpack(sizes.offsetformat, data)[0]
