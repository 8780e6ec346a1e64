# SPDX-License-Identifier: Apache-2.0
"""Reader of .caffemodel files, without Caffe.

A .caffemodel is one protobuf message, NetParameter of caffe.proto (BVLC/caffe
at 9b89154). The reader goes through its wire format and keeps the fields that
hold weights; it knows no network and changes no layout.

The file is memory-mapped: the arrays are views of it. Time and memory are
bounded by a multiple of the file's size, whatever the file claims.
"""

import math
import mmap
import os
from collections.abc import Iterator, Mapping

import numpy as np

from segjax.errors import InputError
from segjax.weights.matching import Tensor

# Wire types, and wire type -> number of bytes if that is fixed.
_VARINT, _SPAN = 0, 2
_FIXED_SIZES = {1: 8, 5: 4}

# Field of NetParameter -> fields of a layer's name and blobs; old, then new.
_LAYERS = {2: (4, 6), 100: (1, 7)}
# Fields of BlobProto. Old files have num, channels, height and width.
_LEGACY_SHAPE = (1, 2, 3, 4)
_SHAPE = 7
_VALUES = {5: '<f4', 8: '<f8'}  # data and double_data, packed or not.
_MAX_AXES = 32  # kMaxBlobAxes of caffe/blob.hpp.
_MAX_NAME_BYTES = 1000
_KINDS = {0: 'kernel', 1: 'bias'}  # Blobs of a layer.


class _Garbled(Exception):
  """The bytes are no NetParameter; the message says where and why."""


def read_caffemodel(path: str | os.PathLike) -> dict[str, list[np.ndarray]]:
  """Returns the blobs (arrays) of every layer that has some, weights first.

  Both messages of layers are read: V1LayerParameter (`layers`, until 2014) and
  LayerParameter (`layer`). Shapes are the stored ones: a file with four legacy
  dimensions gives f32[1,1,O,I] for an InnerProduct and f32[1,1,1,O] for a bias.

  Args:
    path: the file. It must not shrink while the arrays are in use.

  Returns:
    Layer name -> read-only arrays, f32 or, from double_data, f64, in the
    order of the file.

  Raises:
    InputError: the file cannot be read, is truncated or damaged, is of another
      kind, or has two layers with blobs of one name.

  >>> import segjax
  >>> blobs = segjax.read_caffemodel('fc.caffemodel')
  >>> [(name, [array.shape for array in blobs[name]]) for name in blobs]
  [('fc6', [(2, 36), (2,)])]
  """
  try:
    with open(path, 'rb') as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except (OSError, ValueError) as e:  # ValueError: the file is empty.
    reason = getattr(e, 'strerror', None) or 'the file is empty'
    raise InputError(f'cannot read {path}: {reason}') from e
  layers = {}
  try:
    for name, blobs in _layers(data):
      if name in layers:
        raise _Garbled(f'two layers with blobs are named {name!r}')
      layers[name] = blobs
  except _Garbled as e:
    raise InputError(f'{path} is not a whole .caffemodel: {e}') from e
  if not layers:
    raise InputError(f'{path} holds no layer with weights; give a .caffemodel')
  return layers


def tensors_of(layers: Mapping[str, list[np.ndarray]]) -> dict[str, Tensor]:
  """Returns parameter path -> tensor, from the result of `read_caffemodel`.

  The first two blobs of layer `x` are `x/kernel` and `x/bias`. Layers with
  `upscore` in their name are deconvolutions.
  """
  return {
    f'{layer}/{_KINDS.get(i, i)}': Tensor(
      name=f'{layer}[{i}]',
      values=values,
      layout='IOHW' if 'upscore' in layer else 'OIHW',
    )
    for layer, blobs in layers.items()
    for i, values in enumerate(blobs)
  }


def _layers(data: mmap.mmap) -> Iterator[tuple[str, list[np.ndarray]]]:
  for number, span in _fields(data, range(len(data))):
    if number not in _LAYERS:
      continue
    name_field, blobs_field = _LAYERS[number]
    name, spans, span = None, [], _span(span)
    for number, value in _fields(data, span):
      if number == name_field:
        name = _text(data, value)
      elif number == blobs_field:
        spans.append(_span(value))
    if not spans:
      continue
    if name is None:
      raise _Garbled(f'the layer at byte {span.start} has no name')
    yield name, [_blob(data, blob, name) for blob in spans]


def _blob(data: mmap.mmap, span: range, layer: str) -> np.ndarray:
  legacy_shape, shape, values = {}, [], {}
  for number, value in _fields(data, span):
    if number in _LEGACY_SHAPE:
      legacy_shape[number] = _integer(value)
    elif number == _SHAPE:
      shape = _dimensions(data, _span(value), shape)
    elif number in _VALUES:
      span = _span(value)
      piece = memoryview(data)[span.start : span.stop]
      values[number] = _joined(values.get(number), piece)
  # The rules of Blob::FromProto: legacy dimensions and doubles go first.
  if legacy_shape:
    shape = [legacy_shape.get(number, 0) for number in _LEGACY_SHAPE]
  number = max(values, default=None)
  if number is None:
    raise _Garbled(f'a blob of layer {layer!r} has no data')
  dtype = _VALUES[number]
  size, rest = divmod(len(values[number]), np.dtype(dtype).itemsize)
  if rest or size == 0 or math.prod(shape) != size:
    raise _Garbled(
      f'a blob of layer {layer!r} has shape {shape} and '
      f'{len(values[number])} bytes of {dtype[1:]}'
    )
  array = np.frombuffer(values[number], dtype).reshape(shape)
  array.flags.writeable = False
  return array


def _joined(
  old: memoryview | bytearray | None, piece: memoryview
) -> memoryview | bytearray:
  """Returns old + piece; a single piece stays a view of the file."""
  if old is None:
    return piece
  joined = old if isinstance(old, bytearray) else bytearray(old)
  joined += piece
  return joined


def _dimensions(data: mmap.mmap, span: range, before: list[int]) -> list[int]:
  """Returns `before` and the sizes in a BlobShape, packed or one by one."""
  sizes = list(before)
  for number, value in _fields(data, span):
    if number != 1:
      continue
    for size in [value] if isinstance(value, int) else _varints(data, value):
      sizes.append(size)
      if len(sizes) > _MAX_AXES:
        raise _Garbled(f'a blob has more than {_MAX_AXES} axes')
  return sizes


def _fields(data: mmap.mmap, span: range) -> Iterator[tuple[int, int | range]]:
  """Yields the number and the value of each field of a message.

  The value is the integer of a varint, else the range of its bytes.
  """
  start, stop = span.start, span.stop
  while start < stop:
    at = start
    tag, start = _varint(data, start, stop)
    number, wire_type = tag >> 3, tag & 7
    if wire_type == _VARINT:
      value, start = _varint(data, start, stop)
      yield number, value
      continue
    if wire_type == _SPAN:
      size, start = _varint(data, start, stop)
    elif wire_type in _FIXED_SIZES:
      size = _FIXED_SIZES[wire_type]
    else:
      raise _Garbled(f'wire type {wire_type} at byte {at}')
    if size > stop - start:
      raise _Garbled(
        f'the field at byte {at} takes {size} bytes and {stop - start} follow'
      )
    yield number, range(start, start + size)
    start += size


def _varint(data: mmap.mmap, start: int, stop: int) -> tuple[int, int]:
  """Returns the integer of 7-bit groups at `start`, and the byte after it."""
  value = 0
  for i, byte in enumerate(data[start : min(start + 10, stop)]):
    value |= (byte & 0x7F) << (7 * i)
    if byte < 0x80:
      return value, start + i + 1
  raise _Garbled(f'the number at byte {start} does not end')


def _varints(data: mmap.mmap, span: range) -> Iterator[int]:
  start = span.start
  while start < span.stop:
    value, start = _varint(data, start, span.stop)
    yield value


def _span(value: int | range) -> range:
  if isinstance(value, int):
    raise _Garbled(f'a number, {value}, stands where bytes should')
  return value


def _integer(value: int | range) -> int:
  if isinstance(value, range):
    raise _Garbled(f'bytes {value.start} on should be a number')
  return value


def _text(data: mmap.mmap, value: int | range) -> str:
  span = _span(value)
  if len(span) > _MAX_NAME_BYTES:
    raise _Garbled(f'the name at byte {span.start} has {len(span)} bytes')
  try:
    return data[span.start : span.stop].decode()
  except UnicodeDecodeError as e:
    raise _Garbled(f'the name at byte {span.start} is not text') from e
