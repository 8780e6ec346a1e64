# SPDX-License-Identifier: Apache-2.0
"""Tests of .npz, .pth, .safetensors and Keras's files of weights."""

import zipfile

import numpy as np
import pytest
from narrow_nets import NARROW, VGG16, assert_equal, flat, normal, random_params

from segjax import convert
from segjax.errors import InputError
from segjax.models.backbone import Classifier
from segjax.models.vgg import vgg16
from segjax.weights import files, torchvision


def test_bad_npz_files_are_refused(tmp_path):
  file = tmp_path / 'a.npz'

  def refused(expected):
    with pytest.raises(InputError, match=expected) as caught:
      files.read_params(file)
    assert '\n' not in str(caught.value)

  np.savez(file, allow_pickle=True, **{'a/b': np.array([{}], object)})
  refused('not a whole .npz')
  np.savez(file, **{'a/b': np.arange(3)})
  refused('a/b is int64, not a float array')
  np.savez(file, **{'a/b': normal(3), 'a': normal(3)})
  refused('a is both an array and a layer')
  np.savez(file, **{'a': normal(3), 'a/b': normal(3)})
  refused('a is both an array and a layer')
  np.savez(file)
  refused('holds no arrays')
  np.savez(file, **{'a/b': normal(300)})
  file.write_bytes(file.read_bytes()[:400])
  refused('not a whole .npz')
  with zipfile.ZipFile(file, 'w') as archive:
    shape = (10**15,)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
    header = header.ljust(117).encode() + b'\n'
    archive.writestr('a.npy', b'\x93NUMPY\x01\x00\x76\x00' + header)
  refused('not a whole .npz')
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('a/b', b'text')
  refused(r'a/b is \|S4, not a float array')
  with file.open('wb') as opened:
    np.save(opened, normal(3))
  refused('not a whole .npz')
  file.unlink()
  refused('cannot read')


def vgg16_names():
  """Torchvision's names by hand: features.i, i of each convolution."""
  indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
  counts = (2, 2, 3, 3, 3)
  convs = [
    f'conv{b}_{i}' for b, n in enumerate(counts, 1) for i in range(1, n + 1)
  ]
  names = {
    conv: f'features.{i}' for conv, i in zip(convs, indices, strict=True)
  }
  return names | {f'fc{6 + i}': f'classifier.{3 * i}' for i in range(3)}


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_torchvision_vgg16(tmp_path, ending):
  expected = random_params(VGG16(num_classes=4))
  state = {}
  for path, values in expected.items():
    layer, _, kind = path.partition('/')
    if layer == 'fc6' and kind == 'kernel':
      values = values.reshape(7, 7, 8, 5).transpose(3, 2, 0, 1).reshape(5, -1)
    elif kind == 'kernel':
      values = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
    name = f'{vgg16_names()[layer]}.{"weight" if kind == "kernel" else "bias"}'
    state[name] = np.ascontiguousarray(values)
  file = tmp_path / f'vgg{ending}'
  if ending == '.pth':
    torch = pytest.importorskip('torch')
    torch.save({k: torch.from_numpy(a) for k, a in state.items()}, file)
  else:
    pytest.importorskip('safetensors.numpy').save_file(state, file)
  params, report = convert.convert(
    convert.read_tensors(file), VGG16(num_classes=4)
  )
  assert_equal(flat(params), expected)
  assert ('conv5_3/bias', 'features.28.bias') in report.matched
  file.write_bytes(file.read_bytes()[:-9])
  with pytest.raises(InputError) as caught:
    convert.read_tensors(file)
  assert '\n' not in str(caught.value)


def test_torchvisions_other_networks_are_refused():
  with pytest.raises(InputError, match='batch normalisation'):
    torchvision.tensors_of({'bn1.running_mean': normal(3)})
  with pytest.raises(InputError, match='alexnet is another network'):
    torchvision.tensors_of({'features.0.weight': normal(64, 3, 11, 11)})


@pytest.mark.parametrize('style', ['2016', 'model', 'keras 3'])
def test_keras_vgg16(tmp_path, style):
  h5py = pytest.importorskip('h5py')
  model = Classifier(vgg16, convolutional=True, num_classes=4, **NARROW)
  expected = random_params(model)
  counts = (2, 2, 3, 3, 3)
  file = tmp_path / 'vgg.h5'
  layers = [
    f'conv{b}_{i}' for b, n in enumerate(counts, 1) for i in range(1, n + 1)
  ]
  layers += ['fc6', 'fc7', 'fc8']
  dense = {'fc6': 'fc1', 'fc7': 'fc2', 'fc8': 'predictions'}
  with h5py.File(file, 'w') as root:
    for i, layer in enumerate(layers):
      kernel, bias = expected[f'{layer}/kernel'], expected[f'{layer}/bias']
      if layer in dense:
        kernel = kernel.reshape(-1, kernel.shape[-1])
      name = dense.get(
        layer, layer.replace('conv', 'block').replace('_', '_conv')
      )
      names = {
        '2016': (f'{name}/{name}_W_1:0', f'{name}/{name}_b_1:0'),
        'model': (
          f'model_weights/{name}/{name}/kernel:0',
          f'model_weights/{name}/{name}/bias:0',
        ),
        'keras 3': tuple(
          f'layers/{"dense" if layer in dense else "conv2d"}'
          f'{"" if i in (0, 13) else f"_{i % 13}"}/vars/{j}'
          for j in range(2)
        ),
      }[style]
      root[names[0]], root[names[1]] = kernel, bias
    root['optimizer/vars/0'] = np.float32(1)
  if style == 'keras 3':
    with zipfile.ZipFile(tmp_path / 'vgg.keras', 'w') as archive:
      archive.write(file, 'model.weights.h5')
    file = tmp_path / 'vgg.keras'
  params, _ = convert.convert(convert.read_tensors(file), model)
  assert_equal(flat(params), expected)
  file.write_bytes(file.read_bytes()[:5000])
  with pytest.raises(InputError) as caught:
    convert.read_tensors(file)
  assert '\n' not in str(caught.value)
