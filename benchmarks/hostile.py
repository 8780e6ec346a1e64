# SPDX-License-Identifier: Apache-2.0
"""Makes files below 1 MB that lie about their sizes, and reads each of them.

`python benchmarks/hostile.py` writes files whose headers claim more than there
is, that inflate a thousandfold or that nest without end, for every reader of
segjax. A forked process reads each. It prints a table with a row for each
reader: files, how many were refused, the peak of memory above what the process
held before, and the longest time, of the CPU, since that is less a matter of
what else the machine does. Exit status 1 if a file takes more than 512 MiB or
5 s, or if a reader raises anything but the error of a damaged file.
"""

import collections
import contextlib
import io
import itertools
import json
import lzma
import math
import os
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from absl import app, flags
from PIL import Image

from segjax import convert
from segjax.data import layout, matlab
from segjax.errors import InputError
from segjax.images import files
from segjax.runs import integrity, workdir
from segjax.runs.integrity import DamagedError
from segjax.weights.files import read_metadata, read_params

MOST_BYTES = 2**29
MOST_SECONDS = 5
MOST_FILE_BYTES = 1_000_000
ALARM_SECONDS = 60
ADDRESSES = 3 * 2**30  # Of the child, so that a bomb cannot take the host.

Content = bytes | dict[str, bytes]  # Of a file, or of each file of a folder.


def deflated(count: int, wbits: int = 15) -> bytes:
  """Returns so many zeros, deflated."""
  squeeze = zlib.compressobj(9, wbits=wbits)
  whole, rest = divmod(count, 2**20)
  parts = [squeeze.compress(bytes(2**20)) for _ in range(whole)]
  return b''.join([*parts, squeeze.compress(bytes(rest)), squeeze.flush()])


# TIFF: (tag, type, values) of each page; types are 2 text, 3 u16, 4 u32.
WIDTH, HEIGHT, BITS, CODEC, PHOTO, TEXT = 256, 257, 258, 259, 262, 270
OFFSETS, SAMPLES, ROWS, COUNTS, SUBFILE = 273, 277, 278, 279, 254
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, FORMAT = 317, 322, 323, 339
TILE_OFFSETS, TILE_COUNTS = 324, 325


def tiff(
  strip: bytes | bytearray, side=64, pages=1, shared=(), **tags
) -> bytes:
  """Returns a TIFF whose pages share one strip.

  Args:
    strip: its bytes.
    side: rows and columns of a page.
    pages: how many.
    shared: (tag, type, count, bytes) whose values all pages share.
    **tags: `t256=(type, values)` adds a tag or replaces one.
  """
  data = bytearray(b'II*\0\0\0\0\0' + strip)
  common = {}
  for tag, kind, count, values in shared:
    data += bytes(len(data) % 2)
    common[tag] = struct.pack('<HHII', tag, kind, count, len(data))
    data += values
  fields = {
    WIDTH: (4, [side]),
    HEIGHT: (4, [side]),
    BITS: (3, [8]),
    CODEC: (3, [1]),
    PHOTO: (3, [1]),
    OFFSETS: (4, [8]),
    SAMPLES: (3, [1]),
    ROWS: (4, [side]),
    COUNTS: (4, [len(strip)]),
  }
  fields |= {int(name[1:]): value for name, value in tags.items()}
  placed = {}
  for tag, (kind, values) in fields.items():
    packed = struct.pack(f'<{len(values)}{"-BBHI"[kind]}', *values)
    if len(packed) > 4:
      data += bytes(len(data) % 2)
      placed[tag] = struct.pack('<HHII', tag, kind, len(values), len(data))
      data += packed
    else:
      placed[tag] = struct.pack('<HHI', tag, kind, len(values)) + packed.ljust(
        4, b'\0'
      )
  placed |= common
  directory = b''.join(placed[tag] for tag in sorted(placed))
  data += bytes(len(data) % 2)
  data[4:8] = struct.pack('<I', len(data))
  size = 6 + len(directory)
  for page in range(pages):
    following = len(data) + size if page < pages - 1 else 0
    data += struct.pack('<H', len(placed)) + directory
    data += struct.pack('<I', following)
  return bytes(data)


def codecs_in_tiff() -> Iterator[tuple[str, bytes]]:
  """Yields small TIFF pages whose strip holds a large picture."""
  gray = np.zeros((64, 64), np.uint8)

  def j2k(side):
    code = bytearray(imagecodecs.jpeg2k_encode(gray, codecformat='j2k'))
    at = code.index(b'\xff\x51') + 6
    code[at : at + 8] = struct.pack('>II', side, side)
    code[at + 16 : at + 24] = struct.pack('>II', side, side)
    return bytes(code)

  for side in (11_000, 24_000, 65_000):
    yield f'j2k {side}', tiff(j2k(side), t259=(3, [34712]))
    yield f'aperio {side}', tiff(j2k(side), t259=(3, [33005]))
    yield f'jpeg {side}', tiff(jpeg_of(side), t259=(3, [7]))
    yield f'old jpeg {side}', tiff(jpeg_of(side), t259=(3, [6]))
    yield f'dng {side}', tiff(jpeg_of(side), t259=(3, [34892]))
    picture = png(side, 1, rows=64)
    yield f'png {side}', tiff(picture, t259=(3, [34933]))
  blank = np.zeros((12_000, 12_000), np.uint8)
  whole = imagecodecs.jpeg_encode(blank)
  yield 'jpeg whole', tiff(whole, t259=(3, [7]))
  yield (
    'jpeg scans',
    tiff(
      scans(Image.fromarray(blank[:4000, :4000]), 2000),
      side=4000,
      t259=(3, [7]),
    ),
  )
  for name, number in (('jpegxl', 50002), ('webp', 50001), ('jpegxr', 34934)):
    large = np.zeros((4000, 4000, 3), np.uint8)
    yield (
      name,
      tiff(
        getattr(imagecodecs, f'{name}_encode')(large),
        t259=(3, [number]),
        t277=(3, [3]),
        t258=(3, [8, 8, 8]),
        t262=(3, [2]),
      ),
    )
  lerc = imagecodecs.lerc_encode(np.zeros((4000, 4000), np.float32))
  yield 'lerc', tiff(lerc, t259=(3, [34887]))
  for number in (34925, 50000, 34926, 8, 32946):
    size = 2**28
    if number == 34925:
      strip = lzma.compress(bytes(size), preset=0)
    elif number in (50000, 34926):
      strip = imagecodecs.zstd_encode(bytes(size), 1)
    else:
      strip = deflated(size)
    for side in (64, 11_000, 16_000, 30_000):
      yield f'codec {number} {side}', tiff(strip, side, t259=(3, [number]))
    yield (
      f'codec {number} 64 bits',
      tiff(strip, 11_000, t259=(3, [number]), t258=(3, [64]), t339=(3, [3])),
    )
    yield (
      f'codec {number} big-endian predicted',
      tiff(strip, 8000, t259=(3, [number]), t258=(3, [16]), t317=(3, [2])),
    )
  for number, side in itertools.product((5, 32773, 2, 3, 4), (11_000, 32_000)):
    bits = 1 if number < 5 else 8
    # LZW: clear, 0 and ever longer runs of it; PackBits: 128 zeros in a pair.
    strip = b'\x81\0' * 450_000
    if number == 5:
      strip = imagecodecs.lzw_encode(bytes(2**26))[:900_000]
    if number < 5:
      strip = bytes(900_000)
    yield (
      f'codec {number} {side}',
      tiff(strip, side, t259=(3, [number]), t258=(3, [bits])),
    )


def tiffs() -> Iterator[tuple[str, bytes]]:
  """Yields TIFFs with many pages, long tags and metadata that claim more."""
  squeezed = deflated(2**28)
  for side, pages in ((16_384, 20), (11_000, 40), (4096, 2000), (64, 9000)):
    strip = squeezed if side > 64 else deflated(4096)
    yield f'{pages} pages', tiff(strip, side, pages, t259=(3, [8]))
  yield 'mapped pages', tiff(bytes(490_000), 700, 3000)
  yield (
    'mapped floats',
    tiff(
      bytes(10**5),
      t256=(4, [10]),
      t257=(4, [1250]),
      pages=5000,
      t258=(3, [64]),
      t339=(3, [3]),
      t278=(4, [1250]),
    ),
  )
  yield 'thin pages', tiff(b'\0', 1, 8000)
  count = 60_000
  array = struct.pack('<I', 8) * count
  ones = struct.pack('<I', 1) * count
  for pages in (1, 3000):
    yield (
      f'strips of {pages} pages',
      tiff(
        b'\0',
        pages=pages,
        shared=[(OFFSETS, 4, count, array), (COUNTS, 4, count, ones)],
        t256=(4, [1]),
        t257=(4, [count]),
        t278=(4, [1]),
      ),
    )
  for side in (2**31 - 1, 2**32 - 1, 70_000):
    yield f'claims {side}', tiff(b'\0' * 64, side)
    yield f'claims {side} deflated', tiff(deflated(64), side, t259=(3, [8]))
  yield 'samples', tiff(bytes(64), 8, t277=(3, [65_535]))
  yield (
    'samples deflated',
    tiff(squeezed, 64, t277=(3, [65_535]), t259=(3, [8])),
  )
  for bits in (1, 2, 4, 12, 16, 31):
    yield (
      f'bits {bits}',
      tiff(squeezed, 11_500, t258=(3, [bits]), t259=(3, [8])),
    )
  palette = np.arange(768, dtype=np.uint16).tolist()
  yield (
    'palette',
    tiff(squeezed, 11_000, t259=(3, [8]), t262=(3, [3]), t320=(3, palette)),
  )
  for orientation in (3, 6):
    yield (
      f'orientation {orientation}',
      tiff(squeezed, 11_000, t259=(3, [8]), t274=(3, [orientation])),
    )
  tile = deflated(2**26)
  for side in (8192, 2**20, 2**30):
    yield (
      f'tile {side}',
      tiff(
        tile,
        t322=(4, [side]),
        t323=(4, [side]),
        t324=(4, [8]),
        t325=(4, [len(tile)]),
        t259=(3, [8]),
      ),
    )
  endless = bytearray(tiff(bytes(4096)))
  endless[-4:] = endless[4:8]
  yield 'endless', bytes(endless)

  def described(name, text):
    return name, tiff(bytes(4096), t270=(2, text.encode() + b'\0'))

  for images in (10**9, 2**62):
    yield described(
      f'imagej {images}',
      f'ImageJ=1.53\nimages={images}\nframes={images}\nhyperstack=true\n',
    )
    yield described(f'shaped {images}', json.dumps({'shape': [images, 64, 64]}))
    pixels = (
      f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
      f'Type="uint8" SizeX="64" SizeY="64" SizeC="1" SizeZ="1" '
      f'SizeT="{images}"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
      f'<TiffData IFD="0" PlaneCount="{images}"/></Pixels></Image>'
    )
    head = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/'
    head += 'Schemas/OME/2016-06">'
    yield described(f'ome {images}', f'{head}{pixels}</OME>')
    many = pixels.replace(str(images), '60000')
    yield described(f'ome of many {images}', f'{head}{many * 1500}</OME>')
  yield described('ome of <', '<OME' * 200_000 + '</OME>')
  yield described('ome of blanks', '<OME' + ' ' * 900_000 + '</OME>')
  yield described(
    'uuid of <', '<?xml version="1.0"?><OME>' + '<UUID' * 150_000 + '</OME>'
  )
  laughs = ''.join(
    f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 20)
  )
  yield described(
    'ome that laughs',
    f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY l0 "ha">{laughs}]>'
    '<OME>&l19;</OME>',
  )
  yield described(
    'ome of depth', '<?xml version="1.0"?><OME>' + '<a>' * 200_000 + '</OME>'
  )


def png(side, bits, rows=None, kind=0, before=b'') -> bytes:
  """Returns a PNG that claims `side` x `side` pixels and holds `rows`."""
  channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
  rows = side if rows is None else rows
  line = 1 + (side * bits * channels + 7) // 8
  header = struct.pack('>IIBBBBB', side, side, bits, kind, 0, 0, 0)
  data = chunk(b'IHDR', header) + before
  if kind == 3:
    data += chunk(b'PLTE', bytes(range(96)))
  data += chunk(b'IDAT', deflated(line * rows)) + chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + data


def chunk(name: bytes, data: bytes) -> bytes:
  checksum = struct.pack('>I', zlib.crc32(name + data))
  return struct.pack('>I', len(data)) + name + data + checksum


def pngs() -> Iterator[tuple[str, bytes]]:
  for kind, bits in (
    *((0, bits) for bits in (1, 2, 4, 8, 16)),
    *((3, bits) for bits in (1, 2, 4, 8)),
    *((kind, bits) for kind in (2, 4, 6) for bits in (8, 16)),
  ):
    for side in (5700, 11_500, 32_000):
      rows = None if side < 20_000 else 64
      data = png(side, bits, rows, kind)
      if len(data) < MOST_FILE_BYTES:
        yield f'{kind} {bits} {side}', data
  yield 'claims', png(2**31 - 1, 1, 0)
  for name, text in (
    (b'iCCP', b'a\0\0' + deflated(2**28)),
    (b'zTXt', b'a\0\0' + deflated(2**28)),
    (b'iTXt', b'a\0\1\0\0\0' + deflated(2**28)),
  ):
    yield name.decode(), png(64, 8, before=chunk(name, text))
  yield 'chunks', png(64, 8, before=chunk(b'aaAa', b'') * 70_000)
  texts = chunk(b'zTXt', b'a\0\0' + deflated(2**20 - 9)) * 800
  yield 'texts', png(64, 8, before=texts)
  frames = chunk(b'acTL', struct.pack('>II', 2**31 - 1, 0))
  yield 'frames', png(64, 8, before=frames)


def jpeg_of(side: int) -> bytes:
  """Returns a JPEG of 64 x 64 pixels that claims more."""
  file = io.BytesIO()
  Image.new('L', (64, 64)).save(file, 'JPEG')
  data = bytearray(file.getvalue())
  at = data.index(b'\xff\xc0') + 5
  data[at : at + 4] = struct.pack('>HH', side, side)
  return bytes(data)


def scans(picture: Image.Image, count: int) -> bytes:
  """Returns a progressive JPEG whose last scan is there `count` times."""
  file = io.BytesIO()
  picture.save(file, 'JPEG', progressive=True, quality=50)
  data = file.getvalue()[:-2]
  last = data[data.rindex(b'\xff\xda') :]
  count = min(count, (MOST_FILE_BYTES - len(data)) // len(last) - 1)
  return data + last * count + b'\xff\xd9'


def jpegs() -> Iterator[tuple[str, bytes]]:
  for side in (8000, 11_000, 32_000, 65_500):
    yield f'claims {side}', jpeg_of(side)
  for mode, side in itertools.product(('L', 'RGB', 'CMYK'), (5600, 9000)):
    picture = Image.new(mode, (side, side))
    for progressive in (False, True):
      file = io.BytesIO()
      picture.save(file, 'JPEG', progressive=progressive, optimize=True)
      if file.tell() < MOST_FILE_BYTES:
        yield f'{mode} {side} {progressive}', file.getvalue()
  for side in (1000, 4000, 8000):
    yield f'scans {side}', scans(Image.new('L', (side, side)), 10**5)
  exif = b'Exif\0\0II*\0\x08\0\0\0' + struct.pack('<H', 65_535)
  exif += struct.pack('<HHII', 0x112, 3, 2**31, 8) * 5000
  segment = b'\xff\xe1' + struct.pack('>H', len(exif[:65_000]) + 2)
  yield (
    'exif',
    jpeg_of(64)[:2] + (segment + exif[:65_000]) * 14 + jpeg_of(64)[2:],
  )


def gif(side, screen, frames, size=None) -> bytes:
  """Returns a GIF of frames of `side` x `side` on a screen of its own size."""
  head = b'GIF89a' + struct.pack('<HHBBB', screen, screen, 0x80, 0, 0)
  head += bytes([0, 0, 0, 255, 255, 255])
  # LZW of two bits: clear, one pixel, end.
  frame = b',' + struct.pack('<HHHHB', 0, 0, side, side, 0) + b'\2\2\x44\1\0'
  return head + frame * frames + b';'


def pictures() -> Iterator[tuple[str, bytes]]:
  """Yields GIF, BMP and WebP."""
  for side, screen, count in (
    (1, 1, 60_000),
    (1, 64, 60_000),
    (1, 30, 50_000),
    (1, 65_535, 1),
    (65_535, 65_535, 1),
    (1, 11_000, 2),
    (1, 6000, 5),
    (6000, 1, 2),
    (1, 2000, 60_000),
    (2000, 2000, 8),
  ):
    yield f'gif {side} {screen} {count}', gif(side, screen, count)
  for width, height, codec, bits in itertools.product(
    (11_000, 2**27, 2**31 - 1), (1, 11_000), (0, 1, 2), (1, 4, 8, 24, 32)
  ):
    if bool(codec) and bits != {1: 8, 2: 4}[codec]:
      continue
    head = struct.pack(
      '<IiiHHIIiiII', 40, width, height, 1, bits, codec, 0, 0, 0, 2, 0
    )
    begin = b'BM' + struct.pack('<IHHI', 10**6, 0, 0, 62) + head + bytes(8)
    yield (
      f'bmp {width} {height} {codec} {bits}',
      begin + (b'\0\2\xff\xff\0\0' * 100_000 if codec else bytes(60_000)),
    )
  for side in (4700, 8000, 11_000, 16_000):
    picture = Image.new('RGB', (side, side))
    for lossless in (False, True):
      file = io.BytesIO()
      try:
        picture.save(file, 'WEBP', lossless=lossless, quality=0, method=0)
      except ValueError:  # Too large for the encoder.
        continue
      if file.tell() < MOST_FILE_BYTES:
        yield f'webp {side} {lossless}', file.getvalue()


def npy(shape, dtype, data: bytes = b'') -> bytes:
  """Returns a .npy that claims a shape and dtype and holds `data`."""
  file = io.BytesIO()
  header = {'descr': dtype, 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(file, header)
  return file.getvalue() + data


def npys() -> Iterator[tuple[str, bytes]]:
  for shape in ((2**40,), (2**20, 2**20), (2**62, 4), (1, 2**31, 2**31, 1)):
    for dtype in ('|u1', '<f8', '>u2', '|V2147483647'):
      yield f'{shape} {dtype}', npy(shape, dtype, bytes(64))
  for dtype in ('|u1', '|b1', '|i1', '<f2'):
    size = np.dtype(dtype).itemsize
    values = 900_000 // size
    yield f'pages {dtype}', npy((values, 1, 1), dtype, bytes(900_000))
    yield (
      f'2000 pages {dtype}',
      npy((2000, 450 // size, 1), dtype, bytes(900_000)),
    )
    yield f'a page {dtype}', npy((900, values // 900), dtype, bytes(900_000))
  yield 'no width', npy((2**40, 5, 0), '|u1')
  yield 'fields', npy((4, 4), [('', '|u1')] * 3000, bytes(48_000))
  nested = b'(' * 4000 + b')' * 4000
  yield (
    'parentheses',
    (b'\x93NUMPY\1\0' + struct.pack('<H', len(nested)) + nested),
  )
  long = b'{' + b' ' * 900_000 + b'}'
  yield 'long header', b'\x93NUMPY\2\0' + struct.pack('<I', len(long)) + long


def zarrs() -> Iterator[tuple[str, dict[str, bytes]]]:
  """Yields Zarr v2 and v3 whose chunks or metadata claim more."""

  def v2(shape, chunks, compressor, chunk, dtype='|u1', **more):
    metadata = {
      'zarr_format': 2,
      'shape': shape,
      'chunks': chunks,
      'dtype': dtype,
      'compressor': compressor and {'id': compressor},
      'fill_value': 0,
      'order': 'C',
      'filters': None,
    }
    name = '.'.join('0' * len(shape))
    return {'.zarray': json.dumps(metadata | more).encode(), name: chunk}

  def v3(shape, chunks, codecs, chunk, dtype='uint8', **more):
    metadata = {
      'zarr_format': 3,
      'node_type': 'array',
      'shape': shape,
      'data_type': dtype,
      'chunk_grid': {
        'name': 'regular',
        'configuration': {'chunk_shape': chunks},
      },
      'chunk_key_encoding': {'name': 'default'},
      'fill_value': 0,
      'codecs': codecs,
    }
    name = '/'.join('c' + '0' * len(shape))
    return {'zarr.json': json.dumps(metadata | more).encode(), name: chunk}

  blosc = bytearray(
    imagecodecs.blosc_encode(bytes(2**26), 9, compressor='zstd')
  )
  large = imagecodecs.blosc_encode(bytes(2**29), 9, compressor='zstd')
  lying = bytes(blosc[:4]) + struct.pack('<I', 2**31 - 1) + bytes(blosc[8:])
  bombs = {
    'gzip': [deflated(2**28, 31), deflated(2**20, 31) * 700],
    'zlib': [deflated(2**28)],
    'zstd': [
      imagecodecs.zstd_encode(bytes(2**28), 1),
      imagecodecs.zstd_encode(bytes(2**26), 1) * 100,
    ],
    'bz2': [imagecodecs.bz2_encode(bytes(2**28), 9)],
    'blosc': [bytes(blosc), lying, large],
  }
  data_of = {'name': 'bytes', 'configuration': {'endian': 'little'}}
  for codec, chunks in bombs.items():
    for i, data in enumerate(chunks):
      if len(data) >= MOST_FILE_BYTES:
        continue
      for side in (64, 11_000):
        shape = [side, side]
        yield f'{codec} {i} {side}', v2(shape, shape, codec, data)
        configuration = {
          'gzip': {'level': 5},
          'zstd': {'level': 1, 'checksum': False},
          'blosc': {
            'cname': 'zstd',
            'clevel': 5,
            'shuffle': 'noshuffle',
            'typesize': 1,
            'blocksize': 0,
          },
        }.get(codec)
        if configuration is None:
          continue
        codecs = [data_of, {'name': codec, 'configuration': configuration}]
        yield f'v3 {codec} {i} {side}', v3(shape, shape, codecs, data)
        index = struct.pack('<QQ', 0, len(data))
        sharding = {
          'name': 'sharding_indexed',
          'configuration': {
            'chunk_shape': shape,
            'codecs': codecs,
            'index_codecs': [data_of],
            'index_location': 'end',
          },
        }
        yield (
          f'sharded {codec} {i} {side}',
          v3(shape, shape, [sharding], data + index),
        )
  for shape in (
    [2**40, 2**20],
    [2**62, 2**62],
    [2**30, 1, 1],
    [10**6, 8, 8],
    [60_000, 2, 2],
    [30_000, 30_000],
    [11_000, 11_000],
    [1, 1, 1, 2**40],
  ):
    chunks = [min(side, 64) for side in shape]
    chunk = bytes(math.prod(chunks))
    if len(chunk) < MOST_FILE_BYTES:
      yield f'shape {shape}', v2(shape, chunks, None, chunk)
      yield f'v3 shape {shape}', v3(shape, chunks, [data_of], chunk)
      floats = bytes(8 * math.prod(chunks))
      if len(floats) < MOST_FILE_BYTES:
        yield f'floats {shape}', v2(shape, chunks, None, floats, '<f8')
  for chunks in ([2**40, 2**20], [30_000, 30_000], [2**31, 1]):
    yield f'chunks {chunks}', v2([64, 64], chunks, None, bytes(4096))
    yield f'v3 chunks {chunks}', v3([64, 64], chunks, [data_of], bytes(4096))
  deep = b'[' * 400_000 + b']' * 400_000
  yield 'deep', {'.zarray': deep}
  yield 'deep v3', {'zarr.json': deep}
  yield (
    'deep attributes',
    {
      **v2([64, 64], [64, 64], None, bytes(4096)),
      '.zattrs': deep,
    },
  )
  nested: dict = {'name': 'bytes'}
  for _ in range(300):
    nested = {
      'name': 'sharding_indexed',
      'configuration': {'chunk_shape': [64, 64], 'codecs': [nested]},
    }
  yield 'shards in shards', v3([64, 64], [64, 64], [nested], bytes(4096))


def zipped(members: dict[str, bytes], deflate=True) -> bytes:
  file = io.BytesIO()
  method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
  with zipfile.ZipFile(file, 'w', method) as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return file.getvalue()


def npzs() -> Iterator[tuple[str, bytes]]:
  for size in (2**26, 2**28):
    array = npy((size // 4,), '<f4', bytes(size))
    yield f'inflates {size}', zipped({'a.npy': array})
    # Says that it inflates to little.
    data = bytearray(zipped({'a.npy': array}))
    for at in (22, data.rindex(b'PK\1\2') + 24):
      data[at : at + 4] = struct.pack('<I', 1000)
    yield f'inflates, hidden {size}', bytes(data)
  for shape in ((2**40,), (2**28,), (2**31 - 1, 2**31 - 1), (2**33,)):
    for dtype in ('<f4', '<f8', '<f2', '<U1000000'):
      yield f'{shape} {dtype}', zipped({'a.npy': npy(shape, dtype, b'0' * 99)})
  one = npy((1,), '<f4', bytes(4))
  yield 'slashes', zipped({f'{"/" * 65_000}.npy': one})
  yield 'letters', zipped({f'{"a/" * 32_000}b.npy': one})
  yield 'members', zipped({f'a/{i}.npy': npy((0,), '<f4') for i in range(4000)})
  about = json.dumps(['a']).replace('"a"', '[' * 300_000)
  for text in (about, '{"a":' * 100_000, '9' * 300_000):
    yield (
      f'about {text[:4]}',
      zipped(
        {'__about__.npy': npy((), f'<U{len(text)}', text.encode('utf-32-le'))}
      ),
    )
  yield 'about claims', zipped({'__about__.npy': npy((2**20,), '<U1000')})


def safetensor_files() -> Iterator[tuple[str, bytes]]:
  def of(header, data=b'', size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if size is None else size
    return struct.pack('<Q', size) + text + data

  for shape in ([2**40], [2**62, 4], [2**31, 0]):
    for dtype in ('F32', 'F16', 'BF16'):
      entry = {'dtype': dtype, 'shape': shape, 'data_offsets': [0, 4]}
      yield f'{shape} {dtype}', of({'a': entry}, bytes(4))
  one = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}
  for size in (2**62, 10**8, 2**27):
    yield f'header {size}', of({'a': one}, bytes(4), size)
  yield 'slashes', of({'/' * 900_000: one}, bytes(4))
  yield 'letters', of({'a/' * 450_000: one}, bytes(4))
  yield 'deep', of(b'{"a":' + b'[' * 900_000)
  shared = {f'a{i}': one for i in range(10_000)}
  yield 'shared', of(shared, bytes(4))
  empty = {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
  yield 'empty', of({f'a{i}': empty for i in range(13_000)})
  yield (
    'about',
    of({'__metadata__': {'__about__': '[' * 900_000}, 'a': one}, bytes(4)),
  )


# MATLAB: (type, bytes) elements; 14 is a matrix, 6 u32, 5 i32, 1 i8, 2 u8.
def element(kind: int, data: bytes) -> bytes:
  return struct.pack('<II', kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind, dims, content=b'', name=b'', size=None) -> bytes:
  inner = element(6, struct.pack('<II', kind, 0))
  inner += element(5, struct.pack(f'<{len(dims)}i', *dims))
  inner += element(1, name) + content
  return struct.pack('<II', 14, len(inner) if size is None else size) + inner


def mats() -> Iterator[tuple[str, bytes]]:
  head = b'MATLAB 5.0 MAT-file'.ljust(124) + b'\0\1IM'

  def compressed(data):
    data = zlib.compress(data, 9)
    return struct.pack('<II', 15, len(data)) + data

  for depth in (100, 2000, 12_000):
    nested = b''
    # From the inside, each with its size.
    for _ in range(depth):
      nested = matrix(1, (1, 1), nested) if len(nested) < 900_000 else nested
    whole = matrix(1, (1, 1), nested, b'x')
    yield f'depth {depth}', head + whole
    yield f'depth {depth} compressed', head + compressed(whole)
  blocks = matrix(1, (1, 1), b'', size=2**31 - 1)
  yield (
    'depth inflated',
    head + compressed(matrix(1, (1, 1), b'', b'x') + blocks * 500_000),
  )
  empty = struct.pack('<II', 14, 0)
  for claim in (2**20, 2**24, 2**28, 2**31 - 1):
    for kind, name in ((1, 'cell'), (2, 'struct'), (4, 'text'), (9, 'numbers')):
      content = {
        1: empty,
        2: element(5, struct.pack('<i', 8)) + element(1, b'a'.ljust(8)),
        4: element(4, b''),
        9: element(2, b'ab'),
      }[kind]
      yield f'{name} {claim}', head + matrix(kind, (claim, 1), content, b'x')
      yield (
        f'{name} {claim} compressed',
        head + compressed(matrix(kind, (claim, 1), content, b'x')),
      )
    yield (
      f'cells of cells {claim}',
      head + matrix(1, (claim, 1), matrix(1, (claim, 1), empty) * 20, b'x'),
    )
  yield 'empty cells', head + matrix(1, (110_000, 1), empty * 110_000, b'x')
  yield (
    'empty cells inflated',
    head + compressed(matrix(1, (4 * 10**6, 1), empty * 4 * 10**6, b'x')),
  )
  names = b''.join(b'f%06d\0' % i for i in range(10_000))
  fields = element(5, struct.pack('<i', 8)) + element(1, names)
  yield 'fields', head + matrix(2, (10**5, 1), fields, b'x')
  for size in (2**24, 2**28, 2**29):
    label = element(2, bytes(size))
    yield (
      f'label {size}',
      head + compressed(matrix(9, (2**13, size // 2**13), label, b'x')),
    )
  large = deflated(2**29)
  yield 'never ends', head + struct.pack('<II', 15, len(large)) + large
  sparse = element(5, bytes(4)) + element(5, bytes(8)) + element(9, bytes(8))
  yield 'sparse', head + matrix(5, (2**31 - 1, 1), sparse, b'x')
  for mopt, rows in itertools.product((0, 50, 1, 2), (2**16, 2**31 - 1)):
    old = struct.pack('<5i', mopt, rows, rows, 0, 2) + b'x\0' + bytes(400)
    yield f'version 4 {mopt} {rows}', old
    old = struct.pack('<5i', mopt, 3, 3, 0, 2) + b'x\0'
    values = struct.pack('<9d', *[2.0**30] * 9)
    yield f'version 4 {mopt} {rows} sparse', old + values


def kerases() -> Iterator[tuple[str, bytes]]:
  import h5py

  def h5(fill):
    file = io.BytesIO()
    with h5py.File(file, 'w') as root:
      fill(root)
    return file.getvalue()

  def claim(shape, dtype='f4', **how):
    return h5(lambda root: root.create_dataset('a/b', shape, dtype, **how))

  claims = {
    f'{shape} {dtype}': claim(shape, dtype, chunks=(2**16,))
    for shape in ((2**40,), (2**28,), (4 * 10**8,))
    for dtype in ('f2', 'f4', 'f8')
  }
  claims['late'] = claim((2**28,), 'f4')
  for size in (2**26, 2**28):
    claims[f'one chunk {size}'] = (
      h5(
        lambda root, size=size: root.create_dataset(
          'a/b',
          data=np.zeros(size // 4, 'f4'),
          chunks=(size // 4,),
          compression='gzip',
          compression_opts=1,
        )
      )
      if size < 2**27
      else claim((size // 4,), chunks=(size // 4,))
    )
  claims['chunk beyond'] = h5(
    lambda root: root.create_dataset(
      'a/b',
      data=np.zeros(10, 'f4'),
      maxshape=(None,),
      chunks=(2**28,),
      compression='gzip',
    )
  )

  def many(root):
    for i in range(300):
      root.create_dataset(f'a{i}/b', (2**23,), 'f4', chunks=(2**10,))

  claims['many'] = h5(many)

  def deep(root):
    for _ in range(700):
      root = root.create_group('a')
    root['b'] = np.zeros(3, 'f4')

  claims['deep'] = h5(deep)

  def wide(root):
    for i in range(1000):
      root.create_group(f'a{i}')

  claims['wide'] = h5(wide)
  for name, data in claims.items():
    if len(data) < MOST_FILE_BYTES:
      yield name, data
      yield f'{name}.keras', zipped({'model.weights.h5': data})
  yield (
    'external',
    h5(
      lambda root: root.create_dataset(
        'a/b', (4,), 'f4', external=[('/etc/passwd', 0, 16)]
      )
    ),
  )
  for size in (2**26, 2**28):
    archive = {'model.weights.h5': bytes(size)}
    yield f'zeros {size}.keras', zipped(archive)


def varint(value: int) -> bytes:
  out = b''
  while value > 127:
    out += bytes([value & 127 | 128])
    value >>= 7
  return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
  return varint(number << 3 | 2) + varint(len(data)) + data


def caffemodels() -> Iterator[tuple[str, bytes]]:
  name = field(1, b'fc')
  for size in (2**31, 2**40, 2**62, 2**63):
    shape = field(7, field(1, varint(size)))
    blob = field(7, shape + field(5, bytes(16)))
    yield f'shape {size}', field(100, name + blob)
    yield f'span {size}', varint(100 << 3 | 2) + varint(size) + bytes(64)
    packed = field(7, field(7, field(1, varint(size) * 32)) + field(5, b'0000'))
    yield f'axes {size}', field(100, name + packed)
  yield 'fields', b'\x08\x01' * 490_000
  yield 'in a layer', field(100, name + b'\x10\x01' * 490_000)
  yield 'in a blob', field(100, name + field(7, b'\x50\x01' * 490_000))
  yield (
    'in a shape',
    field(100, name + field(7, field(7, b'\x10\x01' * 490_000))),
  )
  yield 'layers', field(100, b'') * 300_000
  blob = field(7, field(7, field(1, b'\1')) + field(5, bytes(4)))
  yield 'blobs', field(100, name + blob * 60_000)
  yield (
    'names',
    b''.join(field(100, field(1, b'%d' % i) + blob) for i in range(40_000)),
  )
  pieces = field(
    7, field(7, field(1, varint(190_000))) + field(5, bytes(4)) * 150_000
  )
  yield 'pieces', field(100, name + pieces)
  yield 'endless number', b'\xff' * 900_000


def pths() -> Iterator[tuple[str, bytes]]:
  """Yields pickles and zip files; without PyTorch all are refused unread."""
  with contextlib.suppress(ImportError):
    import torch  # pyright: ignore[reportMissingImports]  # Optional.

    torch.set_num_threads(1)  # Forked processes have none but the first.

    def saved(value):
      file = io.BytesIO()
      torch.save(value, file)
      return file.getvalue()

    # Of stride 0, they claim any size.
    for count in (2**20, 2**28, 2**33, 2**60):
      for dtype in (torch.float16, torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype).expand(count)
        yield f'expanded {count} {dtype}', saved({'a': one})
    half = torch.ones(2**18, dtype=torch.float16)
    yield 'shared', saved({f'a{i}': half for i in range(2000)})
    zeros = saved({'a': torch.zeros(2**26)})
    with zipfile.ZipFile(io.BytesIO(zeros)) as archive:
      members = {name: archive.read(name) for name in archive.namelist()}
    yield 'inflates', zipped(members)
    sparse = torch.sparse_coo_tensor([[0], [0]], [1.0], (2**31, 2**31))
    yield 'sparse', saved({'a': sparse})
    deep = half
    for _ in range(200):
      deep = [deep]
    yield 'deep', saved({'a': deep})
  for depth in (100, 100_000):
    yield f'lists {depth}', b'\x80\2' + b'(' * depth + b'l.' * depth
  yield 'text', b'\x80\4\x8d' + struct.pack('<Q', 2**40) + b'a'
  yield 'bytes', b'\x80\4\x8e' + struct.pack('<Q', 2**40) + b'a'
  yield 'long', b'\x80\2\x8b' + struct.pack('<i', 2**31 - 1)
  yield 'memo', b'\x80\2' + b'r' + struct.pack('<I', 2**31 - 1) + b'N.'
  laughs = b'\x80\2]q\0' + b''.join(
    b'(' + b'h%c' % i * 10 + b'lq%c' % (i + 1) for i in range(100)
  )
  yield 'laughs', laughs + b'.'
  yield 'zeros', zipped({'archive/data.pkl': bytes(2**28)})
  yield 'dict', pickle.dumps({f'a{i}': i for i in range(60_000)})


def jsons() -> Iterator[tuple[str, bytes]]:
  """Yields what config.json and the records of checkpoints could hold."""
  yield 'lists', b'[' * 900_000
  yield 'dicts', b'{"a":' * 150_000
  yield 'closed', b'[' * 400_000 + b']' * 400_000
  yield 'digits', b'9' * 900_000
  yield 'exponent', b'{"data": {"seed": 1e999999999}}'
  yield 'keys', json.dumps({f'a{i}': i for i in range(60_000)}).encode()
  yield 'words', json.dumps([''] * 200_000).encode()
  yield 'text', json.dumps('a' * 900_000).encode()
  yield 'other', '{"data": "\ud800"}'.encode('utf-8', 'surrogatepass')


def lists() -> Iterator[tuple[str, bytes]]:
  yield 'lines', b'a\n' * 490_000
  yield 'words', b'a ' * 490_000
  yield 'slashes', b'/' * 900_000
  yield 'dots', b'a/../' * 180_000
  yield 'folders', b'a/' * 450_000
  yield 'a word', b'a' * 900_000
  yield 'blanks', b' ' * 900_000
  yield 'empty lines', b'\n' * 900_000 + b'a'
  yield 'wide', b'\xff\xfe' + b'a\0' * 450_000
  yield 'marks', b'\xef\xbb\xbf' * 300_000
  yield 'accents', ('e' + '\u0301' * 400_000).encode()


def read_images(path: Path) -> None:
  """Reads a file as images and as labels; raises what the first one raises."""
  try:
    files.read_stack(path)
  finally:
    try:
      files.read_labels(path)
      files.read_palette(path)
    except InputError:
      pass


def read_weights(path: Path) -> None:
  try:
    read_metadata(path)
  finally:
    read_params(path)


def read_json(path: Path) -> None:
  os.rename(path, path.with_name('config.json'))
  try:
    workdir.read_config(path.parent)
  finally:
    os.rename(path.with_name('config.json'), path.with_name('7.record.json'))
    integrity.read_record(path.parent, 7)


# Reader -> ending, what makes its files, and what reads them.
READERS: dict[str, tuple[str, Callable, Callable]] = {
  'TIFF, codecs': ('.tif', codecs_in_tiff, read_images),
  'TIFF, tags and pages': ('.tif', tiffs, read_images),
  'PNG': ('.png', pngs, read_images),
  'JPEG': ('.jpg', jpegs, read_images),
  'GIF, BMP, WebP': ('.gif', pictures, read_images),
  '.npy': ('.npy', npys, read_images),
  'Zarr': ('.zarr', zarrs, read_images),
  '.npz': ('.npz', npzs, read_weights),
  '.safetensors': ('.safetensors', safetensor_files, read_weights),
  '.mat': ('.mat', mats, lambda path: matlab.read_label(path, 'x')),
  'Keras': ('.h5', kerases, convert.read_tensors),
  '.caffemodel': ('.caffemodel', caffemodels, convert.read_tensors),
  '.pth': ('.pth', pths, convert.read_tensors),
  'JSON': ('.json', jsons, read_json),
  'lists of files': (
    '.txt',
    lists,
    lambda path: (layout.read_list(path), layout.read_names(path)),
  ),
}


def write(path: Path, content: Content) -> int:
  """Writes a file or folder, and returns its bytes."""
  if isinstance(content, bytes):
    path.write_bytes(content)
    return len(content)
  for name, data in content.items():
    file = path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
  return sum(map(len, content.values()))


def status(name: str) -> int:
  """Returns a figure of this process in bytes, such as VmRSS."""
  text = Path('/proc/self/status').read_text()
  return int(text.partition(f'{name}:')[2].split()[0]) * 1024


def measure(read: Callable, path: Path) -> tuple[str, int, float]:
  """Reads a file in a forked process.

  Returns:
    What happened: 'read', 'refused', or the exception or signal; the peak of
    memory above that before, in bytes; seconds of CPU of all threads.
  """
  parent, child = os.pipe()
  pid = os.fork()
  if not pid:
    how = 'read'
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    most = ADDRESSES + status('VmSize')
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(ALARM_SECONDS)
    Path('/proc/self/clear_refs').write_text('5')  # Resets VmHWM.
    before, start = status('VmRSS'), time.process_time()
    try:
      read(path)
    except (InputError, DamagedError) as e:
      message = str(e)
      how = 'refused' if len(message) < 1000 and '\n' not in message else 'long'
    except BaseException as e:  # noqa: BLE001
      how = f'{type(e).__name__}: {e}'[:200]
    seconds = time.process_time() - start
    result = how, status('VmHWM') - before, seconds
    os.write(child, json.dumps(result).encode())
    os._exit(0)
  os.close(child)
  with open(parent, 'rb') as file:
    data = file.read()
  _, code = os.waitpid(pid, 0)
  if code or not data:
    name = signal.Signals(code & 127).name if code & 127 else f'status {code}'
    return name, 0, 0.0
  return tuple(json.loads(data))


def main(_):
  warnings.simplefilter('ignore')
  failed = 0
  print('| reader | files | refused | peak, MiB | longest, s |')
  print('|---|---|---|---|---|')
  for reader, (ending, make, read) in READERS.items():
    if flags.FLAGS.only and flags.FLAGS.only not in reader:
      continue
    rows = []
    with tempfile.TemporaryDirectory() as folder:
      for i, (name, content) in enumerate(make()):
        path = Path(folder, f'{i}', f'a{ending}')
        if name.endswith('.keras'):
          path = path.with_suffix('.keras')
        path.parent.mkdir()
        if (size := write(path, content)) >= MOST_FILE_BYTES:
          continue
        how, peak, seconds = measure(read, path)
        rows.append((how, peak, seconds))
        bad = how not in ('read', 'refused')
        if (
          bad
          or peak > MOST_BYTES
          or seconds > MOST_SECONDS
          or (flags.FLAGS.verbose)
        ):
          failed += 1
          print(
            f'{reader}, {name}, {size} bytes: {how}, {peak >> 20} MiB, '
            f'{seconds:.2f} s',
            file=sys.stderr,
          )
    counts = collections.Counter(how for how, _, _ in rows)
    print(
      f'| {reader} | {len(rows)} | {counts["refused"]} | '
      f'{max(peak for _, peak, _ in rows) >> 20} | '
      f'{max(seconds for _, _, seconds in rows):.1f} |',
      flush=True,
    )
  return int(failed > 0)


if __name__ == '__main__':
  flags.DEFINE_string('only', '', 'Readers whose name holds this text.')
  flags.DEFINE_bool('verbose', False, 'Whether to print every file.')
  app.run(main)
