# SPDX-License-Identifier: Apache-2.0
"""Tests of the .caffemodel reader, against files that protobuf writes."""

import functools
import tracemalloc

import hypothesis
import numpy as np
import pytest
from caffe_messages import LAYER_FIELDS, net_class, net_of
from caffemodel import varint
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from segjax.errors import InputError
from segjax.weights import caffe
from segjax.weights.caffe import read_caffemodel


def saved(folder, net):
  path = folder / 'net.caffemodel'
  path.write_bytes(net if isinstance(net, bytes) else net.SerializeToString())
  return path


def toy_layers():
  rng = np.random.default_rng(0)
  return {
    'conv1': [
      rng.normal(size=(4, 3, 5, 2)).astype(np.float32),
      rng.normal(size=4).astype(np.float32),
    ],
    'inception_3a/1x1': [rng.normal(size=(2, 4, 1, 1)).astype(np.float32)],
    'fc': [rng.normal(size=(300, 7)).astype(np.float32)],
  }


def error_of(path):
  with pytest.raises(InputError) as caught:
    read_caffemodel(path)
  message = str(caught.value)
  assert '\n' not in message
  assert str(path) in message
  return message


@pytest.mark.parametrize('version', ['v1', 'new'])
@pytest.mark.parametrize('shapes', ['blob', 'legacy'])
@pytest.mark.parametrize('packed', [True, False])
def test_reads_what_protobuf_wrote(tmp_path, version, shapes, packed):
  expected = toy_layers()
  net = net_of(expected, version, shapes, packed=packed)
  layers = read_caffemodel(saved(tmp_path, net))
  assert list(layers) == list(expected)
  for name, arrays in expected.items():
    assert len(layers[name]) == len(arrays)
    for actual, array in zip(layers[name], arrays, strict=True):
      if shapes == 'legacy':
        array = array.reshape((1,) * (4 - array.ndim) + array.shape)
      assert actual.dtype == np.float32
      np.testing.assert_array_equal(actual, array, strict=True)


def test_legacy_dimensions_go_before_a_shape(tmp_path):
  net = net_of({'fc': [np.arange(6, dtype=np.float32)]})
  blob = net.layer[1].blobs[0]
  blob.num, blob.channels, blob.height, blob.width = 1, 1, 2, 3
  assert read_caffemodel(saved(tmp_path, net))['fc'][0].shape == (1, 1, 2, 3)


def test_doubles_stay_doubles(tmp_path):
  values = np.array([[1 / 3, -2.5]])
  net = net_of({'fc': [values]}, data='double_data')
  actual = read_caffemodel(saved(tmp_path, net))['fc'][0]
  np.testing.assert_array_equal(actual, values, strict=True)


def test_arrays_are_views_of_the_file(tmp_path):
  path = saved(tmp_path, net_of({'fc': [np.zeros((1024, 1024))]}))
  tracemalloc.start()
  layers = read_caffemodel(path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert layers['fc'][0].nbytes == 2**22
  assert peak < 2**16
  with pytest.raises(ValueError, match='read-only'):
    layers['fc'][0][0, 0] = 1


def test_two_pieces_of_data_are_joined(tmp_path):
  blob = net_of({'fc': [np.array([1.0, 2.0])]}).layer[1].blobs[0]
  blob.shape.dim[:] = [3]
  # Protobuf reads two messages in a row as one whose lists are joined.
  blob_bytes = blob.SerializeToString() + b'\x2a\x04' + np.float32(3).tobytes()
  layer = b'\x0a\x02fc\x3a' + bytes([len(blob_bytes)]) + blob_bytes
  data = b'\xa2\x06' + bytes([len(layer)]) + layer
  assert list(net_class().FromString(data).layer[0].blobs[0].data) == [1, 2, 3]
  actual = read_caffemodel(saved(tmp_path, data))['fc'][0]
  np.testing.assert_array_equal(actual, [1, 2, 3])
  assert not actual.flags.writeable


def test_what_protobuf_finds_truncated_is_refused(tmp_path):
  net = net_of({'fc': [np.ones((2, 3)), np.ones(2)]})
  net.layer.add(name='prob')
  whole, refused = net.SerializeToString(), 0
  for size in range(1, len(whole)):
    try:
      net_class().FromString(whole[:size])
    except DecodeError:
      refused += 1
      message = error_of(saved(tmp_path, whole[:size]))
      assert 'not a whole .caffemodel' in message
  assert refused > 100


def test_axes_of_many_shapes_are_bounded(tmp_path):
  shape = b'\x3a\x12\x0a\x10' + b'\x01' * 16
  blob = shape * 5 + b'\x2a\x04' + np.float32(1).tobytes()
  layer = b'\x0a\x02fc\x3a' + varint(len(blob)) + blob
  data = b'\xa2\x06' + varint(len(layer)) + layer
  assert len(net_class().FromString(data).layer[0].blobs[0].shape.dim) == 80
  assert '32 axes' in error_of(saved(tmp_path, data))


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    (lambda net: net.layer[1].ClearField('name'), 'has no name'),
    (lambda net: setattr(net.layer[1], 'name', 'x' * 2000), '2000 bytes'),
    (lambda net: net.layer.add().CopyFrom(net.layer[1]), "named 'fc'"),
    (lambda net: net.layer[1].blobs[0].ClearField('data'), 'no data'),
    (lambda net: net.layer[1].blobs[0].data.append(0), r'[2, 3] and 28 bytes'),
    (lambda net: net.layer[1].blobs[0].shape.dim.append(-1), 'has shape'),
    (lambda net: net.layer[1].blobs[0].shape.dim.extend([1] * 40), '32 axes'),
    (lambda net: net.layer[1].ClearField('blobs'), 'no layer with weights'),
  ],
)
def test_bad_layers_are_named(tmp_path, change, expected):
  net = net_of({'fc': [np.ones((2, 3))]})
  change(net)
  assert expected in error_of(saved(tmp_path, net))


def test_other_files_are_refused(tmp_path):
  for content in (b'', b'\x0b', b'\xa2\x06' + b'\xff' * 20, b'name: "net"\n'):
    error_of(saved(tmp_path, content))
  error_of(tmp_path)
  error_of(tmp_path / 'none.caffemodel')


@functools.cache
def whole_files():
  layers = {'conv': [np.ones((2, 1, 3, 3)), np.ones(2)], 'fc': [np.ones(40)]}
  return [
    net_of(layers, version, shapes, packed=packed).SerializeToString()
    for version in LAYER_FIELDS
    for shapes in ('blob', 'legacy')
    for packed in (True, False)
  ]


@st.composite
def damaged_files(draw):
  """A whole file with some bytes changed, cut out or put in."""
  data = bytearray(draw(st.sampled_from(whole_files())))
  for _ in range(draw(st.integers(1, 4))):
    start = draw(st.integers(0, len(data)))
    stop = start + draw(st.integers(0, 12))
    data[start:stop] = draw(st.binary(max_size=12))
  return bytes(data)


@st.composite
def messages(draw, depth=3):
  """Well-formed fields whose numbers and values mean anything."""
  parts = []
  for _ in range(draw(st.integers(0, 4))):
    number = draw(st.sampled_from([1, 2, 4, 5, 6, 7, 8, 100]))
    wire_type = draw(st.sampled_from([0, 1, 2, 5]))
    parts.append(varint(number << 3 | wire_type))
    if wire_type == 0:
      parts.append(varint(draw(st.integers(0, 2**64 - 1))))
    elif wire_type == 2:
      inner = messages(depth - 1) if depth else st.binary(max_size=40)
      body = draw(inner)
      parts += [varint(len(body)), body]
    else:
      size = {1: 8, 5: 4}[wire_type]
      parts.append(draw(st.binary(min_size=size, max_size=size)))
  return b''.join(parts)


def limited(function, limit):
  """Fails at the call after `limit` calls, so that a hang ends."""
  calls = []

  def wrapper(*arguments):
    calls.append(1)
    assert len(calls) <= limit
    return function(*arguments)

  return wrapper


def lying_file():
  """Four bytes of data under a shape of 64 MiB."""
  net = net_of({'fc': [np.ones(1)]})
  net.layer[1].blobs[0].shape.dim[:] = [4096, 4096]
  return net.SerializeToString()


# No deadline, since a busy machine is no hang: the work is counted instead.
@hypothesis.settings(
  max_examples=200,
  deadline=None,
  derandomize=True,
  suppress_health_check=[
    hypothesis.HealthCheck.function_scoped_fixture,
    hypothesis.HealthCheck.too_slow,
  ],
)
@hypothesis.example(data=lying_file())
@hypothesis.given(data=damaged_files() | messages() | st.binary(max_size=200))
def test_only_input_errors_escape(tmp_path, data):
  path = saved(tmp_path, data)
  with pytest.MonkeyPatch.context() as patch:
    # Messages lie four deep, and a number takes a byte at least.
    patch.setattr(caffe, '_varint', limited(caffe._varint, 4 * len(data)))
    tracemalloc.start()
    try:
      layers = read_caffemodel(path)
    except InputError:
      layers = {}
    finally:
      _, peak = tracemalloc.get_traced_memory()
      tracemalloc.stop()
  assert sum(a.nbytes for blobs in layers.values() for a in blobs) <= len(data)
  assert peak < 2**20 + 100 * len(data)
