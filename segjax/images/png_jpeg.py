# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG, BMP, GIF and WebP files, which Pillow decodes as a whole.

This file also writes PNG. Only it, and `legends` and `runs.curves`, which draw,
know Pillow. It calls Pillow's plug-in classes directly because `Image.open`
reports a large image by a warning, and catching warnings is not safe among
threads. If pixels are missing in a PNG or JPEG, Pillow returns zeros or gray
without an error; this file checks that they are complete.
"""

import contextlib
import functools
import io
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tensorstore
from PIL import (
  BmpImagePlugin,
  GifImagePlugin,
  Image,
  ImageFile,
  JpegImagePlugin,
  PngImagePlugin,
  WebPImagePlugin,
)

from segjax.errors import InputError
from segjax.images.windows import (
  StoredPage,
  check_page_count,
  check_size,
  check_small,
  stored_dtype,
)

# The first bytes of a file, which tell its format, and Pillow's plug-in for it.
_PLUGINS = (
  (b'\x89PNG', PngImagePlugin.PngImageFile),
  (b'BM', BmpImagePlugin.BmpImageFile),
  (b'GIF8', GifImagePlugin.GifImageFile),
  (b'RIFF', WebPImagePlugin.WebPImageFile),
  (b'', JpegImagePlugin.JpegImageFile),
)
_LOSSY = {
  'JPEG': 'JPEG',
  # Pillow does not say whether a WebP is lossless.
  'WEBP': 'WebP, if it is not lossless,',
}
_ORIENTATION = 0x0112  # The tag of EXIF and TIFF.
_MOST_SCANS = 32  # Limit of a JPEG; every scan goes over the whole picture.
_SCAN = b'\xff\xda'
_JPEG_END = b'\xff\xd9'
# Markers whose segment begins with the size of the picture (T.81, table B.1).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WITHOUT_CONTENT = {0x00, 0x01, *range(0xD0, 0xD9)}
_PNG_END = b'\xaeB`\x82'  # The checksum of the last chunk, which is empty.
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # Colour type -> samples a pixel.
# The passes of an interlaced PNG: first row and column, and steps.
_PNG_PASSES = (
  *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
  *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)
_BAND_BYTES = 2**20  # Bytes that are inflated at once.
# Limits of the pictures of a page, beyond which they are made smaller.
_PREVIEW_WIDTH = 1600
_PREVIEW_PIXELS = 1_200_000


@contextlib.contextmanager
def open_pages(path: Path) -> Iterator[list[StoredPage]]:
  """Yields the only page of a file, or the frames of an animated GIF.

  Opening decodes all frames of an animated GIF, and reads only the header of
  other files. Then the first window decodes the picture, which stays in memory
  as long as the page.
  """
  yield pages_of(lambda: open(path, 'rb'), path)


def pages_of(
  begin: Callable[[], BinaryIO], source: Path | str
) -> list[StoredPage]:
  """Returns the pages of the file that `begin` opens; see `open_pages`.

  Raises:
    InputError: the picture is an animated PNG or WebP, is too large, or has a
      mode or codec that is not read. Reading raises it for a file that is cut
      or whose pixels end early. On damaged bytes, Pillow raises errors of any
      type.
  """
  with begin() as file:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    picture = _open(file)
    if isinstance(picture, GifImagePlugin.GifImageFile) and picture.is_animated:
      return _frames(picture, source, size)
    page = _page(picture, file, source, size)
  lock = threading.Lock()

  @functools.cache
  def pixels():
    with begin() as file:
      return _decode(file, page, source)

  def read(rows, columns):
    with lock:  # One thread decodes the picture, and the others wait for it.
      decoded = pixels()
    return decoded[rows, columns]

  return [StoredPage(read=read, **page)]


def _decode(file, page, source):
  """Returns all samples [H,W,C] of the `page` that `_page` describes."""
  picture = _open(file)
  if picture.format == 'PNG':
    # Decoding itself ignores wrong checksums and a missing end.
    picture.verify()
    if file.read(len(_PNG_END)) != _PNG_END:
      raise InputError(f'{source}: truncated; expected a whole image')
    _check_png(file, source)
    file.seek(0)
    picture = _open(file)
  if picture.format == 'JPEG':
    file.seek(0)
    check_jpeg(file.read(), source)
  samples = np.asarray(picture).reshape(page['shape'])
  if page['palette'] is None and 1 < page['bits'] < 8:
    # Pillow has scaled the samples to 0..255.
    samples = samples // (255 // (2 ** page['bits'] - 1))
  return samples.astype(page['dtype'], copy=False)


def _check_png(file, source):
  """Raises InputError unless the pixels of a PNG inflate to whole rows."""
  file.seek(16)
  width, height, bits, kind, *_, is_interlaced = struct.unpack(
    '>IIBBBBB', file.read(13)
  )
  bits *= _PNG_SAMPLES[kind]
  expected = 0
  for row, column, down, across in (
    _PNG_PASSES if is_interlaced else ((0, 0, 1, 1),)
  ):
    rows = -(-(height - row) // down)
    columns = -(-(width - column) // across)
    if rows > 0 and columns > 0:  # A row begins with its filter.
      expected += rows * (1 + -(-columns * bits // 8))
  left = expected
  inflated = zlib.decompressobj()
  for name, size in _png_chunks(file):
    data = file.read(size) if name == b'IDAT' else b''
    while data and left and not inflated.eof:
      band = inflated.decompress(data, min(left, _BAND_BYTES))
      left -= len(band)
      data = inflated.unconsumed_tail
  if left:
    raise InputError(
      f'{source}: truncated or corrupt; its pixels end after '
      f'{expected - left} of {expected} bytes'
    )


def check_jpeg(
  data: bytes,
  source: Path | str,
  shape: Sequence[int] = (),
  tables: bytes | None = None,
) -> None:
  """Raises InputError for a JPEG that is slow to decode, too large or cut.

  Decoders put gray where pixels are missing, and only warn. Bytes that decoders
  skip in front of a marker are no damage; what follows such bytes is not
  checked.

  Args:
    data: the bytes of the JPEG.
    source: names the file in messages.
    shape: largest number of rows and columns; () for no limit.
    tables: a JPEG with the tables that `data` lacks.
  """
  if (count := data.count(_SCAN)) > _MOST_SCANS:
    raise InputError(
      f'{source}: a JPEG of {count} scans; expected at most {_MOST_SCANS}'
    )
  at = 2
  # A segment is 0xFF, a marker, its size and its content. As in decoders, bytes
  # between segments and markers without content are skipped.
  while shape and len(head := data[at : at + 9]) == 9 and head[:2] != _SCAN:
    if head[0] != 0xFF or head[1] == 0xFF:
      at += 1
      continue
    if head[1] in _FRAMES:
      size = struct.unpack('>HH', head[5:])
      # Writers may fill up the last block.
      if any(
        n > -(-most // 16) * 16 for n, most in zip(size, shape, strict=True)
      ):
        raise InputError(
          f'{source}: truncated or corrupt; a JPEG of {size[0]} x {size[1]} px '
          f'in a strip or tile of {shape[0]} x {shape[1]}'
        )
    at += 2
    if head[1] not in _WITHOUT_CONTENT:
      at += int.from_bytes(head[2:4])
  if tables:
    data = tables[:-2] + data[2:]
  # tensorstore uses the same decoder as Pillow, and raises its first warning as
  # an error. The marker of the end may be missing, so it is added.
  memory = {'driver': 'memory', 'path': 'jpeg'}
  context = tensorstore.Context()
  store = tensorstore.KvStore.open(memory, context=context).result()
  store.write('', data + _JPEG_END).result()
  spec = {'driver': 'jpeg', 'kvstore': memory}
  try:
    picture = tensorstore.open(spec, context=context).result()
    picture[0, 0].read().result()
  except ValueError as e:
    damage = re.search(r'Corrupt JPEG data: (?!\d+ extraneous)([^[]+)', str(e))
    if damage:
      reason = damage[1].strip()
      raise InputError(f'{source}: truncated or corrupt; {reason}') from e


def encode(
  file: BinaryIO, page: np.ndarray, palette: np.ndarray | None = None
) -> None:
  """Writes a page u8[H, W], or u8[H, W, C] with C 1 or 3, as a PNG.

  A palette u8[K, 3] has the colours of class indices below K.
  """
  picture = Image.fromarray(page[..., 0] if page.shape[2:] == (1,) else page)
  if palette is not None:
    picture.putpalette(palette.tobytes())
  picture.save(file, 'PNG')


def encode_preview(picture: np.ndarray) -> bytes:
  """Returns a JPEG of a picture u8[H, W, 3], made smaller if it is large."""
  height, width = picture.shape[:2]
  scale = max(
    1.0, width / _PREVIEW_WIDTH, (height * width / _PREVIEW_PIXELS) ** 0.5
  )
  image = Image.fromarray(picture)
  if scale > 1:
    size = max(round(width / scale), 1), max(round(height / scale), 1)
    image = image.resize(size, Image.Resampling.LANCZOS)
  file = io.BytesIO()
  # Colours keep the full resolution, since panels hold class maps and text.
  image.save(file, 'JPEG', quality=88, subsampling=0)
  return file.getvalue()


def _open(file: BinaryIO) -> ImageFile.ImageFile:
  """Returns the picture, not decoded; its first bytes tell the format."""
  start = file.read(4)
  file.seek(0)
  plugin = next(plugin for begin, plugin in _PLUGINS if start.startswith(begin))
  return plugin(file)


def _page(picture, file, source, file_bytes):
  """Returns the fields of a `StoredPage` except `read`."""
  if getattr(picture, 'is_animated', False):
    raise InputError(f'{source}: animated; expected one image')
  # The raw mode, such as L;4 or RGB;16B. A WebP has no tile before decoding.
  raw = str(picture.tile[0].args) if picture.tile else ''
  bits = 16 if '16' in raw and picture.format == 'PNG' else 8
  known = ['I;16'] if bits == 16 else ['1', 'L', 'LA', 'P', 'RGB', 'RGBA']
  if picture.mode not in known:
    raise InputError(
      f'{source}: {bits}-bit {picture.mode}; expected gray, palette or '
      '8-bit RGB'
    )
  if picture.tile and picture.tile[0].codec_name == 'bmp_rle':
    raise InputError(
      f'{source}: codec RLE is not supported; save it uncompressed, or as PNG'
    )
  dtype = np.dtype(f'u{bits // 8}')
  if picture.mode == '1':
    bits, dtype = 1, np.dtype(bool)
  elif picture.format == 'PNG' and raw in ('L;2', 'L;4'):
    bits = int(raw[-1])
  bands = picture.getbands()
  shape = picture.height, picture.width, len(bands)
  if len(bands) > 1:
    # Pillow holds a pixel of several bands in 4 bytes, WebP's decoder in more.
    held = (*shape[:2], 6 if picture.format == 'WEBP' else 4)
    check_small(source, held, dtype, file_bytes)
  return {
    'shape': shape,
    'dtype': stored_dtype(source, shape, dtype, shape, file_bytes),
    'bits': bits,
    'palette': _palette(picture) if picture.mode == 'P' else None,
    'has_alpha': 'A' in bands,
    'orientation': _orientation(picture, file),
    'lossy': _LOSSY.get(picture.format, ''),
  }


def _palette(picture):
  """Returns u8[K, 3]."""
  mode, data = picture.palette.getdata()
  mode = mode.partition(';')[0]
  table = np.frombuffer(data, np.uint8)
  table = table[: len(table) // len(mode) * len(mode)].reshape(-1, len(mode))
  return table[:, [mode.index(channel) for channel in 'RGB']]


def _orientation(picture, file):
  """Returns the orientation in EXIF or XMP; 1 if there is none."""
  if picture.format == 'PNG':
    exif = Image.Exif()
    exif.load(_png_exif(file))
  elif picture.format in ('JPEG', 'WEBP'):
    exif = picture.getexif()
  else:
    return 1
  orientation = exif.get(_ORIENTATION, 1)
  return orientation if orientation in range(1, 9) else 1


def _png_exif(file):
  """Returns the bytes of a PNG's EXIF, which may be behind its pixels."""
  before = file.tell()
  found = [file.read(n) for kind, n in _png_chunks(file) if kind == b'eXIf']
  file.seek(before)
  return found[0] if found else b''


def _png_chunks(file):
  """Yields kind and size of each chunk of a PNG; the file is at its content."""
  at = 8
  file.seek(at)
  while len(head := file.read(8)) == 8:
    size, kind = struct.unpack('>I4s', head)
    yield kind, size
    at += 12 + size
    file.seek(at)


def _frames(picture, source, file_bytes):
  """Returns the frames of an animated GIF; they are gray if all colours are."""
  shape = picture.n_frames, picture.height, picture.width, 3
  check_page_count(source, picture.n_frames, file_bytes)
  check_size(source, shape, np.dtype(np.uint8), file_bytes)
  frames = np.empty(shape, np.uint8)
  for i, frame in enumerate(frames):
    picture.seek(i)
    frame[:] = np.asarray(picture.convert('RGB'))
  if (frames == frames[..., :1]).all():
    frames = frames[..., :1]

  def read(i, rows, columns):
    return frames[i, rows, columns]

  return [
    StoredPage(
      frames.shape[1:],
      frames.dtype,
      functools.partial(read, i),
      bits=8,
      lossy='GIF animation',
    )
    for i in range(len(frames))
  ]
