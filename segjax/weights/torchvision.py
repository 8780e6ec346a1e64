# SPDX-License-Identifier: Apache-2.0
"""Reader of PyTorch's state dicts: torchvision's VGG16, Caffe's layer names.

Torchvision's VGG16 was trained on RGB images in [0, 1], standardised with mean
(.485, .456, .406) and deviation (.229, .224, .225), unlike Caffe's.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segjax.errors import InputError
from segjax.models.vgg import BLOCKS
from segjax.weights.files import MAX_INFLATION, check_inflation, read_arrays
from segjax.weights.matching import Tensor

_VGG16_DENSE = {
  'classifier.0': 'fc6',
  'classifier.3': 'fc7',
  'classifier.6': 'fc8',
}
# Before 2.6, weights_only=True can run code from a file (CVE-2025-32434).
_OLDEST_TORCH = (2, 6)
_PARALLEL = 'module.'  # The prefix that torch.nn.DataParallel adds.


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the arrays of a .pth, .pt or .safetensors file by name.

  A .pth is a pickle; `torch.load` reads it with `weights_only=True`, which runs
  no code from it since torch 2.6. If the file holds `{'state_dict': ...}`, the
  inner dict is read. The prefix `module.` of DataParallel is removed.

  Raises:
    InputError: the file cannot be read or holds anything but dense tensors, or
      torch is needed and is missing or too old.
  """
  if Path(path).suffix.lower() == '.safetensors':
    return read_arrays(path)
  try:
    import torch  # pyright: ignore[reportMissingImports]  # Optional.
  except ImportError as e:
    raise InputError(
      f'{path}: .pth needs a package: pip install torch; or give .safetensors'
    ) from e
  _check_torch(torch.__version__, path)
  _check_start(path)
  try:
    with open(path, 'rb') as file:
      check_inflation(file)
    state = torch.load(path, map_location='cpu', weights_only=True)
  except OSError as e:
    raise InputError(f'cannot read {path}: {e.strerror or e}') from e
  except Exception as e:  # A damaged file can raise any.
    first_line = str(e).partition('\n')[0]
    if 'Weights only load failed' in first_line:
      raise InputError(
        f'{path} holds Python objects, such as a whole pickled model, which '
        'are not loaded because they can run code; save model.state_dict()'
      ) from e
    raise InputError(f'{path} is not a whole state dict: {first_line}') from e
  if isinstance(state, Mapping) and isinstance(
    state.get('state_dict'), Mapping
  ):
    state = state['state_dict']  # A checkpoint of a training loop.
  if not isinstance(state, Mapping) or not all(
    isinstance(name, str) and isinstance(value, torch.Tensor)
    for name, value in state.items()
  ):
    raise InputError(
      f'{path} is not a state dict of tensors; save model.state_dict()'
    )
  if state and all(name.startswith(_PARALLEL) for name in state):
    state = {name[len(_PARALLEL) :]: state[name] for name in state}
  # A tensor of stride 0 claims any size. Layers may share their weights.
  room = MAX_INFLATION * os.stat(path).st_size
  for name, tensor in state.items():
    if tensor.layout != torch.strided:
      raise InputError(
        f'{path}: {name} is a sparse tensor; save {name}.to_dense()'
      )
    room -= 4 * tensor.numel()
    if room < 0:
      raise InputError(f'{path}: {name} is too large for the size of the file')
  return {
    name: tensor.detach().to(torch.float32).numpy()
    for name, tensor in state.items()
  }


def _check_torch(version, path):
  major, minor = (int(n) for n in re.findall(r'\d+', version)[:2])
  if (major, minor) < _OLDEST_TORCH:
    raise InputError(
      f'{path}: torch {version} can run code from a .pth '
      '(CVE-2025-32434); install torch>=2.6, or give .safetensors'
    )


def _check_start(path):
  """Raises `InputError` for a page or a pointer saved in place of the file."""
  try:
    with open(path, 'rb') as file:
      start = file.read(200).lstrip().lower()
  except OSError as e:
    raise InputError(f'cannot read {path}: {e.strerror or e}') from e
  if start.startswith(b'version https://git-lfs'):
    raise InputError(
      f'{path} is a git-LFS pointer, not the file; run git lfs pull'
    )
  if start.startswith((b'<!doctype html', b'<html')):
    raise InputError(
      f'{path} is an HTML page, not the file; download the file itself'
    )


def tensors_of(state: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
  """Returns parameter path -> tensor of a state dict, for `matching.match`.

  `features.28.weight` of torchvision's VGG16 is `conv5_3/kernel`. Any other
  `NAME.weight` is `NAME/kernel`: networks with Caffe's layer names.

  Raises:
    InputError: the network has batch normalisation or is torchvision's AlexNet,
      which no network of segjax takes weights from.
  """
  if any(name.endswith('running_mean') for name in state):
    raise InputError(
      'the state dict has batch normalisation, which no network takes from '
      "files of others; of torchvision's, vgg16 can be converted"
    )
  first = state.get('features.0.weight')
  if first is not None and first.shape[2:] == (11, 11):
    raise InputError(
      "torchvision's alexnet is another network than Caffe's: it has no groups "
      'and other widths; give a .caffemodel'
    )
  layers = vgg16_layers()
  tensors = {}
  for name, values in state.items():
    module, _, kind = name.rpartition('.')
    layer = layers.get(module, module)
    kind = 'kernel' if kind == 'weight' else kind
    layout = 'IOHW' if 'upscore' in layer else 'OIHW'
    tensors[f'{layer}/{kind}'] = Tensor(name, values, layout)
  return tensors


def vgg16_layers() -> dict[str, str]:
  """Returns torchvision's name -> Caffe's name of each layer of VGG16."""
  layers, index = dict(_VGG16_DENSE), 0
  for block, (_, convolutions) in enumerate(BLOCKS, start=1):
    for i in range(1, convolutions + 1):
      layers[f'features.{index}'] = f'conv{block}_{i}'
      index += 2  # A ReLU follows each convolution,
    index += 1  # and a pooling each block.
  return layers
