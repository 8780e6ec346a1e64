# SPDX-License-Identifier: Apache-2.0
"""FCN as Caffe prototxts, and OpenCV to run them: the independent oracle.

Written from the published definitions, paddings and crop offsets as numbers,
nothing taken from segjax; only the channel counts are smaller.
"""

import numpy as np
import pytest
from caffemodel import write_caffemodel

VGG_BLOCKS = ((4, 2), (8, 2), (16, 3), (32, 3), (32, 3))
FC_FEATURES = 24


class Prototxt:
  """Layers as text, in order; `add` returns the name of the layer's top."""

  def __init__(self, height, width, channels=3):
    dims = ' '.join(f'dim: {n}' for n in (1, channels, height, width))
    self.text = f'input: "data"\ninput_shape {{ {dims} }}\n'

  def add(self, name, kind, bottoms, params='', top=None):
    bottoms = [bottoms] if isinstance(bottoms, str) else bottoms
    bottoms = ' '.join(f'bottom: "{bottom}"' for bottom in bottoms)
    self.text += (
      f'layer {{ name: "{name}" type: "{kind}" {bottoms} '
      f'top: "{top or name}" {params} }}\n'
    )
    return top or name

  def conv(self, name, bottom, features, k, s=1, p=0, groups=1):
    return self.add(
      name,
      'Convolution',
      bottom,
      f'convolution_param {{ num_output: {features} kernel_size: {k} '
      f'stride: {s} pad: {p} group: {groups} }}',
    )

  def conv_relu(self, name, bottom, *sizes, **more):
    top = self.conv(name, bottom, *sizes, **more)
    return self.add(f'relu_{name}', 'ReLU', top, top=top)

  def max_pool(self, name, bottom, k, s, p=0):
    params = f'pool: MAX kernel_size: {k} stride: {s} pad: {p}'
    return self.add(name, 'Pooling', bottom, f'pooling_param {{ {params} }}')

  def norm(self, name, bottom):
    params = 'local_size: 5 alpha: 0.0001 beta: 0.75'
    return self.add(name, 'LRN', bottom, f'lrn_param {{ {params} }}')

  def deconv(self, name, bottom, classes, k, s, p=0):
    return self.add(
      name,
      'Deconvolution',
      bottom,
      f'convolution_param {{ num_output: {classes} bias_term: false '
      f'kernel_size: {k} stride: {s} pad: {p} }}',
    )

  def crop(self, name, bottom, like, offset):
    params = f'crop_param {{ axis: 2 offset: {offset} }}'
    return self.add(name, 'Crop', [bottom, like], params)

  def sum(self, name, *bottoms, coefficients=()):
    params = ' '.join(f'coeff: {c}' for c in coefficients)
    params = f'eltwise_param {{ operation: SUM {params} }}'
    return self.add(name, 'Eltwise', bottoms, params)

  def split(self, bottom, tops, at):
    """Puts channels 0 .. at - 1 and the others into two blobs."""
    self.text += (
      f'layer {{ name: "slice" type: "Slice" bottom: "{bottom}" '
      f'top: "{tops[0]}" top: "{tops[1]}" '
      f'slice_param {{ axis: 1 slice_point: {at} }} }}\n'
    )

  def scale(self, name, bottom):
    params = 'scale_param { axis: 1 bias_term: false }'
    return self.add(name, 'Scale', bottom, params)

  def fully_connected(self, bottom, k, p=0, suffix=''):
    x = self.conv_relu(f'fc6{suffix}', bottom, FC_FEATURES, k, p=p)
    x = self.add(f'drop6{suffix}', 'Dropout', x, top=x)
    x = self.conv_relu(f'fc7{suffix}', x, FC_FEATURES, 1)
    return self.add(f'drop7{suffix}', 'Dropout', x, top=x)

  def vgg16(self, x, first='conv1_1', suffix='', same=False):
    """Up to fc7, with 100 zeros around conv1_1 or, with `same`, few."""
    for block, (features, convs) in enumerate(VGG_BLOCKS, start=1):
      for i in range(1, convs + 1):
        is_first = (block, i) == (1, 1)
        name = (first if is_first else f'conv{block}_{i}') + suffix
        pad = 100 if is_first and not same else 1
        x = self.conv_relu(name, x, features, 3, p=pad)
      x = self.max_pool(f'pool{block}{suffix}', x, 2, 2)
    return self.fully_connected(x, 7, p=3 if same else 0, suffix=suffix)

  def decode(self, x, classes, stride, head='', at_once=False, same=False):
    """From fc7 to the logits, named 'score' and the head."""

    def fuse(up, pool, offset):
      skip = self.scale(f'scale_{pool}', pool) if at_once else pool
      skip = self.conv(f'score_{pool}{head}', skip, classes, 1)
      if same:
        up = self.crop(f'{up}c', up, skip, 0)
      else:
        skip = self.crop(f'score_{pool}{head}c', skip, up, offset)
      return self.sum(f'fuse_{pool}{head}', up, skip)

    pad = 1 if same else 0
    x = self.conv(f'score_fr{head}', x, classes, 1)
    if stride < 32:
      x = self.deconv(f'upscore2{head}', x, classes, 4, 2, p=pad)
      x = fuse(x, 'pool4', 5)
    if stride < 16:
      x = self.deconv(f'upscore_pool4{head}', x, classes, 4, 2, p=pad)
      x = fuse(x, 'pool3', 9)
    name = {32: 'upscore', 16: 'upscore16', 8: 'upscore8'}[stride] + head
    pad = stride // 2 if same else 0
    x = self.deconv(name, x, classes, 2 * stride, stride, p=pad)
    offset = {32: 19, 16: 27, 8: 31}[stride]
    return self.crop(f'score{head}', x, 'data', 0 if same else offset)


def fcn_vgg16(size, classes, stride, at_once=False, same=False):
  """FCN-32s, 16s, 8s; `same` has every layer padded and nothing to crop."""
  net = Prototxt(*size)
  x = net.vgg16('data', same=same)
  net.decode(x, classes, stride, at_once=at_once, same=same)
  return net.text


def siftflow(size, heads, stride):
  """Two heads; `heads` are names and classes, their logits concatenated."""
  net = Prototxt(*size)
  x = net.vgg16('data')
  tops = [net.decode(x, k, stride, head=f'_{name}') for name, k in heads]
  net.add('score', 'Concat', tops)
  return net.text


def nyud_color_d(size, classes):
  """Early fusion: FCN-32s of colours and depth."""
  net = Prototxt(*size, channels=4)
  net.decode(net.vgg16('data', first='conv1_1_bgrd'), classes, 32)
  return net.text


def nyud_color_hha(size, classes):
  """Late fusion: two FCN-32s, their scores averaged."""
  net = Prototxt(*size, channels=6)
  net.split('data', ('color', 'hha'), at=3)
  scores = [
    net.conv(f'score_fr{x}', net.vgg16(x, suffix=x), classes, 1)
    for x in ('color', 'hha')
  ]
  x = net.sum('score_fused', *scores, coefficients=(0.5, 0.5))
  net.crop('score', net.deconv('upscore', x, classes, 64, 32), 'data', 19)
  return net.text


def fcn_alexnet(size, classes):
  net = Prototxt(*size)
  x = net.conv_relu('conv1', 'data', 6, 11, 4, 100)
  x = net.norm('norm1', net.max_pool('pool1', x, 3, 2))
  x = net.conv_relu('conv2', x, 16, 5, p=2, groups=2)
  x = net.norm('norm2', net.max_pool('pool2', x, 3, 2))
  x = net.conv_relu('conv3', x, 24, 3, p=1)
  x = net.conv_relu('conv4', x, 24, 3, p=1, groups=2)
  x = net.conv_relu('conv5', x, 16, 3, p=1, groups=2)
  x = net.fully_connected(net.max_pool('pool5', x, 3, 2), 6)
  x = net.conv('score_fr', x, classes, 1)
  net.crop('score', net.deconv('upscore', x, classes, 63, 32), 'data', 18)
  return net.text


def fcn_googlenet(size, classes):
  """FCN-GoogLeNet with an eighth of the channels."""
  net = Prototxt(*size)
  x = net.conv_relu('conv1/7x7_s2', 'data', 8, 7, 2, 100)
  x = net.norm('pool1/norm1', net.max_pool('pool1/3x3_s2', x, 3, 2))
  x = net.conv_relu('conv2/3x3_reduce', x, 8, 1)
  x = net.norm('conv2/norm2', net.conv_relu('conv2/3x3', x, 24, 3, p=1))
  x = net.max_pool('pool2/3x3_s2', x, 3, 2)

  def inception(name, x, one, reduce3, three, reduce5, five, projection):
    name = f'inception_{name}'
    branches = [net.conv_relu(f'{name}/1x1', x, one, 1)]
    y = net.conv_relu(f'{name}/3x3_reduce', x, reduce3, 1)
    branches.append(net.conv_relu(f'{name}/3x3', y, three, 3, p=1))
    y = net.conv_relu(f'{name}/5x5_reduce', x, reduce5, 1)
    branches.append(net.conv_relu(f'{name}/5x5', y, five, 5, p=2))
    y = net.max_pool(f'{name}/pool', x, 3, 1, 1)
    branches.append(net.conv_relu(f'{name}/pool_proj', y, projection, 1))
    return net.add(f'{name}/output', 'Concat', branches)

  x = inception('3a', x, 8, 12, 16, 2, 4, 4)
  x = inception('3b', x, 16, 16, 24, 4, 12, 8)
  x = net.max_pool('pool3/3x3_s2', x, 3, 2)
  x = inception('4a', x, 24, 12, 26, 2, 6, 8)
  x = inception('4b', x, 20, 14, 28, 3, 8, 8)
  x = inception('4c', x, 16, 16, 32, 3, 8, 8)
  x = inception('4d', x, 14, 18, 36, 4, 8, 8)
  x = inception('4e', x, 32, 20, 40, 4, 16, 16)
  x = net.max_pool('pool4/3x3_s2', x, 3, 2)
  x = inception('5a', x, 32, 20, 40, 4, 16, 16)
  x = inception('5b', x, 48, 24, 48, 6, 16, 16)
  x = net.conv('score_fr', x, classes, 1)
  net.crop('score', net.deconv('upscore', x, classes, 63, 32), 'data', 98)
  return net.text


def bilinear(k, classes):
  """Caffe's bilinear filler on the diagonal of [C, C, k, k]."""
  f = (k + 1) // 2
  centre = f - 1 if k % 2 else f - 0.5
  rows, columns = np.ogrid[:k, :k]
  kernel = np.zeros((classes, classes, k, k), np.float32)
  kernel[range(classes), range(classes)] = (1 - abs(rows - centre) / f) * (
    1 - abs(columns - centre) / f
  )
  return kernel


def run_caffe(folder, text, layers, image):
  """Returns the blob 'score' as [B,H,W,K], by OpenCV.

  Args:
    folder: a pathlib.Path to write the two files to.
    text: the prototxt.
    layers: dict of layer name to arrays in Caffe's layout.
    image: f32[1,H,W,C].
  """
  cv2 = pytest.importorskip(
    'cv2', reason='OpenCV, the independent implementation, is not installed'
  )
  if not hasattr(cv2.dnn, 'readNetFromCaffe'):
    pytest.skip(f'OpenCV {cv2.__version__} has no Caffe importer; 4.x has')
  (folder / 'net.prototxt').write_text(text)
  write_caffemodel(folder / 'net.caffemodel', layers)
  net = cv2.dnn.readNetFromCaffe(
    str(folder / 'net.prototxt'), str(folder / 'net.caffemodel')
  )
  net.setInput(np.ascontiguousarray(image.transpose(0, 3, 1, 2)), 'data')
  return net.forward('score').transpose(0, 2, 3, 1)
