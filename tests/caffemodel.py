# SPDX-License-Identifier: Apache-2.0
"""Writes small caffemodels, byte by byte, for tests that read them."""

import numpy as np

# Field numbers of caffe.proto (proto2).
_NEW = {'layer': 100, 'name': 1, 'type': 2, 'blobs': 7}
_V1 = {'layer': 2, 'name': 4, 'type': 5, 'blobs': 6}
_V1_CONVOLUTION, _V1_INNER_PRODUCT, _V1_DECONVOLUTION = 4, 14, 39


def varint(value):
  """Returns the base-128 encoding of an integer >= 0."""
  encoded = bytearray()
  while value > 0x7F:
    encoded.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*encoded, value])


def integer_field(number, value):
  """Returns a field of wire type 0."""
  return varint(number << 3) + varint(value)


def bytes_field(number, value):
  """Returns a field of wire type 2: a string, a message, packed numbers."""
  return varint(number << 3 | 2) + varint(len(value)) + value


def blob(array, legacy=False):
  """Returns a BlobProto: shape, or the legacy four dimensions, and floats."""
  if legacy:
    dims = (1,) * (4 - array.ndim) + array.shape
    shape = b''.join(integer_field(1 + i, n) for i, n in enumerate(dims))
  else:
    dims = b''.join(varint(n) for n in array.shape)
    shape = bytes_field(7, bytes_field(1, dims))
  return shape + bytes_field(5, np.asarray(array, '<f4').tobytes())


def write_caffemodel(path, layers, version='new'):
  """Writes a network that holds nothing but names, types and blobs.

  Args:
    path: file to write.
    layers: dict of layer name to its arrays, weights first, in Caffe's layout.
    version: 'new' (LayerParameter, BlobShape) or 'v1' (V1LayerParameter with
      the legacy four dimensions: biases [1,1,1,O], matrices [1,1,O,I]).
  """
  fields = {'new': _NEW, 'v1': _V1}[version]
  with open(path, 'wb') as f:
    f.write(bytes_field(1, b'net'))
    for name, arrays in layers.items():
      layer = bytes_field(fields['name'], name.encode())
      is_matrix = bool(arrays) and arrays[0].ndim == 2
      if version == 'new':
        kind = b'InnerProduct' if is_matrix else b'Convolution'
        if 'upscore' in name:
          kind = b'Deconvolution'
        layer += bytes_field(fields['type'], kind)
      else:
        kind = _V1_INNER_PRODUCT if is_matrix else _V1_CONVOLUTION
        if 'upscore' in name:
          kind = _V1_DECONVOLUTION
        layer += integer_field(fields['type'], kind)
      for array in arrays:
        layer += bytes_field(fields['blobs'], blob(array, version == 'v1'))
      f.write(bytes_field(fields['layer'], layer))
