# SPDX-License-Identifier: Apache-2.0
"""Caffemodels that protobuf writes, from a schema declared here."""

import functools

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# The part of caffe.proto that holds weights: field -> number, type, repeated.
SCHEMA = {
  'BlobShape': {'dim': (1, 'INT64', True)},
  'BlobProto': {
    'num': (1, 'INT32', False),
    'channels': (2, 'INT32', False),
    'height': (3, 'INT32', False),
    'width': (4, 'INT32', False),
    'data': (5, 'FLOAT', True),
    'diff': (6, 'FLOAT', True),
    'shape': (7, 'BlobShape', False),
    'double_data': (8, 'DOUBLE', True),
  },
  'V1LayerParameter': {
    'bottom': (2, 'STRING', True),
    'name': (4, 'STRING', False),
    'type': (5, 'INT32', False),
    'blobs': (6, 'BlobProto', True),
    'blobs_lr': (7, 'FLOAT', True),
  },
  'LayerParameter': {
    'name': (1, 'STRING', False),
    'type': (2, 'STRING', False),
    'loss_weight': (5, 'FLOAT', True),
    'blobs': (7, 'BlobProto', True),
    'phase': (10, 'INT32', False),
  },
  'NetParameter': {
    'name': (1, 'STRING', False),
    'layers': (2, 'V1LayerParameter', True),
    'input_dim': (4, 'INT32', True),
    'force_backward': (5, 'BOOL', False),
    'layer': (100, 'LayerParameter', True),
  },
}
LAYER_FIELDS = {'v1': 'layers', 'new': 'layer'}


@functools.cache
def net_class(packed=True):
  """Returns protobuf's own class for NetParameter."""
  file = descriptor_pb2.FileDescriptorProto(name='caffe', package='caffe')
  for message_name, fields in SCHEMA.items():
    message = file.message_type.add(name=message_name)
    for name, (number, kind, repeated) in fields.items():
      field = message.field.add(name=name, number=number)
      field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
      if kind in SCHEMA:
        field.type, field.type_name = field.TYPE_MESSAGE, f'.caffe.{kind}'
      else:
        field.type = getattr(field, f'TYPE_{kind}')
      field.options.packed = packed and repeated and kind in ('FLOAT', 'DOUBLE')
      if name == 'dim':
        field.options.packed = packed
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName('caffe.NetParameter')
  )


def net_of(layers, version='new', shapes='blob', data='data', packed=True):
  """Encodes layer name -> arrays, between fields that hold no weights."""
  net = net_class(packed)(name='toy', input_dim=[1, 3], force_backward=True)
  for name, arrays in {'relu': [], **layers}.items():
    layer = getattr(net, LAYER_FIELDS[version]).add(name=name)
    layer.type = 4 if version == 'v1' else 'Convolution'
    for array in arrays:
      blob = layer.blobs.add(diff=[7.0])
      getattr(blob, data).extend(array.ravel().tolist())
      if shapes == 'blob':
        blob.shape.dim.extend(array.shape)
      else:
        shape = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = shape
  return net
