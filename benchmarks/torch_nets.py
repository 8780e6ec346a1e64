# SPDX-License-Identifier: Apache-2.0
"""U-Net and FCN-8s in PyTorch, as a user of PyTorch writes them.

Layers have segjax's names, so that `load` gives them the same weights. Maps are
[B, C, H, W] here.
"""

from typing import Any

import jax
import numpy as np
import torch
from flax import traverse_util
from torch import nn
from torch.nn import functional as F

from segjax.errors import InputError

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


class Block(nn.Module):
  """Two 3x3 convolutions, each followed by ReLU."""

  def __init__(self, in_features: int, features: int, pad: int):
    super().__init__()
    self.conv0 = nn.Conv2d(in_features, features, 3, padding=pad)
    self.conv1 = nn.Conv2d(features, features, 3, padding=pad)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return F.relu(self.conv1(F.relu(self.conv0(x))))


class UpBlock(Block):
  """`Block` on the cropped skip and the up-convolution, in this order."""

  def __init__(self, features: int, pad: int):
    super().__init__(2 * features, features, pad)
    self.upconv = nn.ConvTranspose2d(2 * features, features, 2, stride=2)

  def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    x = self.upconv(x)
    margin = (skip.shape[-1] - x.shape[-1]) // 2
    if margin:
      skip = skip[..., margin:-margin, margin:-margin]
    return super().forward(torch.cat((skip, x), dim=1))


class UNet(nn.Module):
  """Twin of `segjax.models.unet.UNet` without dropout.

  Args:
    width: channels at the finest level.
    num_classes: channels of the logits.
    pad: zeros around the 3x3 convolutions: 0 ('VALID') or 1 ('SAME').
  """

  DEPTH = 4

  def __init__(self, width: int, num_classes: int = 2, pad: int = 0):
    super().__init__()
    features = [width * 2**level for level in range(self.DEPTH + 1)]
    self.downs = [f'down{level}' for level in range(self.DEPTH)]
    for name, before, after in zip(
      [*self.downs, 'bottleneck'], [1, *features], features, strict=False
    ):
      self.add_module(name, Block(before, after, pad))
    self.ups = [f'up{level}' for level in reversed(range(self.DEPTH))]
    for name, after in zip(self.ups, features[-2::-1], strict=True):
      self.add_module(name, UpBlock(after, pad))
    self.head = nn.Conv2d(width, num_classes, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    skips = []
    for name in self.downs:
      skips.append(self.get_submodule(name)(x))
      x = F.max_pool2d(skips[-1], 2)
    x = self.bottleneck(x)
    for name in self.ups:
      x = self.get_submodule(name)(x, skips.pop())
    return self.head(x)


class FCN8s(nn.Module):
  """Twin of `segjax.models.fcn.FCN8s` on VGG16, 'pad100', without dropout.

  Offsets of the crops are those of the authors' prototxt.

  Args:
    features: channels of the five blocks of VGG16.
    fc_features: channels of fc6 and fc7.
    num_classes: channels of the logits.
  """

  CONVS = (2, 2, 3, 3, 3)

  def __init__(
    self, features: tuple[int, ...], fc_features: int, num_classes: int = 21
  ):
    super().__init__()
    before = 3
    for block, (after, convs) in enumerate(
      zip(features, self.CONVS, strict=True), start=1
    ):
      for i in range(1, convs + 1):
        pad = 100 if block == i == 1 else 1
        conv = nn.Conv2d(before, after, 3, padding=pad)
        self.add_module(f'conv{block}_{i}', conv)
        before = after
    self.fc6 = nn.Conv2d(features[4], fc_features, 7)
    self.fc7 = nn.Conv2d(fc_features, fc_features, 1)
    self.score_fr = nn.Conv2d(fc_features, num_classes, 1)
    self.score_pool4 = nn.Conv2d(features[3], num_classes, 1)
    self.score_pool3 = nn.Conv2d(features[2], num_classes, 1)
    for stride in (2, 8):
      # w[i] = 1 - |i - c| / s of the bilinear kernel; fixed.
      taps = np.arange(2 * stride)
      weights = 1 - np.abs(taps - stride + 0.5) / stride
      kernel = np.tile(np.outer(weights, weights), (num_classes, 1, 1, 1))
      kernel = torch.tensor(kernel, dtype=torch.float32)
      self.register_buffer(f'bilinear{stride}', kernel, persistent=False)

  def forward(self, image: torch.Tensor) -> torch.Tensor:
    x, pools = image, []
    for block, convs in enumerate(self.CONVS, start=1):
      for i in range(1, convs + 1):
        x = F.relu(self.get_submodule(f'conv{block}_{i}')(x))
      x = F.max_pool2d(x, 2, ceil_mode=True)
      pools.append(x)
    x = F.relu(self.fc7(F.relu(self.fc6(x))))
    x = self._upsample(self.score_fr(x), 2)
    x = x + _crop(self.score_pool4(pools[3]), 5, x)
    x = self._upsample(x, 2)
    x = x + _crop(self.score_pool3(pools[2]), 9, x)
    return _crop(self._upsample(x, 8), 31, image)

  def _upsample(self, x, stride):
    # In groups: dense it would multiply by K - 1 zeros for each weight.
    kernel = self.get_buffer(f'bilinear{stride}').to(x.dtype)
    return F.conv_transpose2d(x, kernel, stride=stride, groups=x.shape[1])


def _crop(x, offset, like):
  height, width = like.shape[-2:]
  return x[..., offset : offset + height, offset : offset + width]


def load(module: nn.Module, params: dict[str, Any]) -> nn.Module:
  """Gives a twin segjax's parameters; every one must find its place."""
  tensors = {}
  for path, array in traverse_util.flatten_dict(params).items():
    array = np.asarray(array)
    if path[-1] == 'kernel':
      # A transposed convolution keeps its inputs first.
      array = array.transpose(
        (2, 3, 0, 1) if 'upconv' in path else (3, 2, 0, 1)
      )
    kind = 'weight' if path[-1] == 'kernel' else 'bias'
    tensors['.'.join((*path[:-1], kind))] = torch.tensor(array)
  module.load_state_dict(tensors, strict=True)
  return module


def flattened(module: nn.Module) -> dict[str, np.ndarray]:
  """Returns copies of the parameters in segjax's layout, 'layer/kernel'."""
  arrays = {}
  for name, tensor in module.named_parameters():
    *path, kind = name.removeprefix('_orig_mod.').split('.')
    array = tensor.detach().cpu().numpy().copy()
    if kind == 'weight':
      kind = 'kernel'
      array = array.transpose(
        (2, 3, 0, 1) if 'upconv' in path else (2, 3, 1, 0)
      )
    arrays['/'.join((*path, kind))] = array
  return arrays


def check_device() -> None:
  """Makes PyTorch compute as jax does by default, on the device jax has.

  Raises:
    InputError: if only one of the two sees a GPU.
  """
  if (jax.default_backend() == 'cpu') != (DEVICE == 'cpu'):
    raise InputError(
      f'jax runs on {jax.default_backend()}, PyTorch on {DEVICE}; install both '
      'for the same device, or set JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES='
    )
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.backends.cudnn.allow_tf32 = True
  torch.backends.cudnn.benchmark = True  # The fastest convolutions, measured.


def wait() -> None:
  """Returns when the device has done what it was given."""
  if DEVICE == 'cuda':
    torch.cuda.synchronize()


def autocast(dtype: str) -> torch.autocast:
  """Returns the context that computes in 'float32' or 'bfloat16' (AMP)."""
  return torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == 'bfloat16')
