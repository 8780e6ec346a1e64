# SPDX-License-Identifier: Apache-2.0
"""FCN (Long, Shelhamer, Darrell, CVPR 2015; PAMI 2017) in linen.

A backbone slid over the image gives class scores every 32 pixels; bilinear
deconvolutions bring them back to the pixels, joined on the way by scores of
pool4 (FCN-16s) and pool3 (FCN-8s). Layers have Caffe's names, so the authors'
weights fit one to one. Crop offsets follow from `FCN.geometry`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.errors import InputError
from segjax.geometry import (
  Coordinates,
  Deconvolution,
  Window,
  crop_offset,
  locate,
  receptive_field,
)
from segjax.models.alexnet import caffenet
from segjax.models.backbone import Backbone
from segjax.models.googlenet import googlenet
from segjax.models.layers import Conv, zero_beyond
from segjax.models.upsampling import (
  LearnedDeconvolution,
  bilinear_deconvolution,
)
from segjax.models.vgg import vgg16

PADDINGS = ('pad100', 'same')


@dataclasses.dataclass(frozen=True)
class Up:
  """A step of the decoder: deconvolve, then add the scores of a skip.

  Attributes:
    name: the deconvolution's.
    layer: its kernel and stride.
    skip: 'pool4' or 'pool3'; None for the last step, which goes to the image.
  """

  name: str
  layer: Deconvolution
  skip: str | None = None


def decoder(stride: int, upscore_kernel: int) -> tuple[Up, ...]:
  """Returns the steps of FCN-32s, 16s or 8s.

  Args:
    stride: 32, 16 or 8.
    upscore_kernel: taps of the deconvolution of FCN-32s.
  """
  if stride == 32:
    return (Up('upscore', Deconvolution(upscore_kernel, 32)),)
  from_pool4 = Up('upscore2', Deconvolution(4, 2), 'pool4')
  if stride == 16:
    return (from_pool4, Up('upscore16', Deconvolution(32, 16)))
  from_pool3 = Up('upscore_pool4', Deconvolution(4, 2), 'pool3')
  return (from_pool4, from_pool3, Up('upscore8', Deconvolution(16, 8)))


@dataclasses.dataclass(frozen=True)
class FCNGeometry:
  """Sizes of the maps of an FCN and the offsets of its crops.

  Attributes:
    windows: name and window of every layer up to the scores.
    decoder: the steps from there.
  """

  windows: tuple[tuple[str, Window], ...]
  decoder: tuple[Up, ...]

  @property
  def receptive_field(self) -> int:
    """Image pixels that one coarse score depends on."""
    return receptive_field(window for _, window in self.windows)

  @property
  def offsets(self) -> dict[str, int]:
    """Pixels cropped off before each map that is cropped, rows and columns.

    At a skip the map that begins earlier is cropped: `score_pool4` and
    `score_pool3` with 'pad100', the upsampled scores with 'same'.
    """
    offsets = {}
    at = locate(window for _, window in self.windows)
    for up in self.decoder:
      at = up.layer.locate(at)
      skip_at = self._locate(up.skip)
      if up.skip is not None and skip_at.shift > at.shift:
        offsets[f'score_{up.skip}'] = crop_offset(skip_at, at)
      else:
        offsets[up.name] = crop_offset(at, skip_at)
        at = skip_at
    return offsets

  def sizes(self, size: Any) -> dict[str, Any]:
    """Returns the size of 'image' and of every map by its name, uncropped.

    Args:
      size: pixels of the image, 1 or more: an integer, or an array of them,
        traced or not, for arrays of sizes.
    """
    offsets = self.offsets
    sizes = {'image': size}
    n = size
    for name, window in self.windows:
      sizes[name] = n = window.output_extent(n)
    for up in self.decoder:
      sizes[up.name] = n = up.layer.output_size(n)
      if up.name in offsets:
        n = sizes[up.skip or 'image']
    return sizes

  def output_size(self, size: int) -> int:
    """Returns `size`: every image from 1 px on has logits of its own size."""
    if size < 1:
      raise InputError(f'images of {size} px; at least 1 px is needed')
    return size

  def input_size(self, core_size: int) -> int:
    """Returns `core_size`: an image as large as its logits."""
    return self.output_size(core_size)

  def _locate(self, name):
    """Returns where the map `name` lies; for None the image."""
    if name is None:
      return Coordinates()
    names = [layer for layer, _ in self.windows]
    layers = self.windows[: names.index(name) + 1]
    return locate(window for _, window in layers)


class FCN(nn.Module):
  """FCN; the defaults are FCN-32s on VGG16 for the 21 classes of PASCAL VOC.

  Parameters: the backbone's, then `score_fr`, `score_pool4`, `score_pool3`
  (1x1 convolutions, zero at first) and the learned of the deconvolutions. A
  fixed one has no parameters.

  Attributes:
    num_classes: K, channels of the logits.
    in_channels: C, channels of the image.
    backbone: `vgg16`, `caffenet` or `googlenet`; skips need `vgg16`.
    stride: 32, 16 or 8, image pixels per pixel of the finest scores.
    padding: 'pad100' pads the image by 100 zeros, as the authors' networks do:
      their weights give their outputs. 'same' pads every layer by what it
      takes off the borders: far less to compute for small images, the same
      receptive field, other values near the borders.
    pool4_scale: factor on the features of pool4 before `score_pool4`; .01 for
      FCN-8s trained at once, else 1.
    pool3_scale: the same for pool3; .0001 for FCN-8s trained at once.
    learned: names of the deconvolutions that are learned, starting bilinear.
      None in the authors' release; in the CVPR paper all but the last.
    width: multiplies the channels of the backbone's trunk.
    fc_features: channels of fc6 and fc7; None for the original's.
    dropout_rate: fraction of values dropped in training; None for the
      original's.
    dtype: compute dtype of the backbone. Parameters, scores and logits stay
      float32.
  """

  num_classes: int = 21
  in_channels: int = 3
  backbone: Callable[..., Backbone] = vgg16
  stride: int = 32
  padding: str = 'pad100'
  pool4_scale: float = 1.0
  pool3_scale: float = 1.0
  learned: tuple[str, ...] = ()
  width: float = 1.0
  fc_features: int | None = None
  dropout_rate: float | None = None
  dtype: jnp.dtype = jnp.float32

  @property
  def geometry(self) -> FCNGeometry:
    """Sizes and crops.

    Raises:
      InputError: if `stride`, `padding`, or `learned` is not one of the above.
    """
    rows, steps = self._network()
    return FCNGeometry(tuple((row.name, row.window) for row in rows), steps)

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    train: bool = False,
    size: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the logits f32[B,H,W,K] of image f32[B,H,W,C].

    Args:
      image: any size from 1 x 1 px, preprocessed as the weights expect: the
        authors' BGR in 0..255 minus the mean. Padding is zero, so the mean.
      train: whether to drop out; needs an rng named 'dropout'.
      size: i32[B,2], true height and width of each image, 1 x 1 to H x W, in
        a batch of unequal ones that are padded below and at the right by
        anything. Logits there are those of the image alone, and zero beyond.
        One program serves all sizes. None: the images fill the array.

    Raises:
      InputError: if C is not `in_channels`, the image is empty, or `size` has
        another shape.
    """
    if image.shape[-1] != self.in_channels:
      raise InputError(
        f'image has {image.shape[-1]} channels; the model was built for '
        f'in_channels={self.in_channels}'
      )
    if size is not None and size.shape != (image.shape[0], 2):
      raise InputError(
        f'size has shape {list(size.shape)}; it must be height and width of '
        f'each image, {[image.shape[0], 2]}'
      )
    geometry = self.geometry
    heights, widths = (
      geometry.sizes(geometry.output_size(n)) for n in image.shape[1:3]
    )
    extents = {} if size is None else geometry.sizes(size)
    offsets = geometry.offsets
    scales = {'pool4': self.pool4_scale, 'pool3': self.pool3_scale}

    x = zero_beyond(image, size)
    maps = {}
    rows, steps = self._network()
    for row in rows:
      extent = extents.get(row.name)
      x = maps[row.name] = row(x, train, self.dtype, extent)
    scores = zero_beyond(self._score('score_fr', x), extent)
    for up in steps:
      # The scores are cropped, or the skip where it is the larger map.
      like = (up.skip or 'image') if up.name in offsets else up.name
      shape, offset = (heights[like], widths[like]), offsets.get(up.name, 0)
      scores = self._upscore(up, scores, offset, shape)
      if up.skip is not None:
        name = f'score_{up.skip}'
        skip = slice_from(maps[up.skip], offsets.get(name, 0), shape)
        scores = scores + self._score(name, skip * scales[up.skip])
      scores = zero_beyond(scores, extents.get(like))
    return scores

  def _network(self):
    """Returns the rows up to the scores and the steps of the decoder."""
    if self.padding not in PADDINGS:
      raise InputError(f'padding={self.padding!r} is not one of {PADDINGS}')
    net = self.backbone(
      width=self.width,
      fc_features=self.fc_features,
      dropout_rate=self.dropout_rate,
      padding=self.padding,
    )
    if self.stride not in net.strides:
      raise InputError(
        f'stride={self.stride} is not one of {net.strides}, which the backbone '
        'has'
      )
    steps = decoder(self.stride, net.upscore_kernel)
    names = tuple(up.name for up in steps)
    if not set(self.learned) <= set(names):
      raise InputError(
        f'learned={self.learned}; the deconvolutions are {names}'
      )
    return net.trunk + net.head, steps

  def _score(self, name, x):
    zeros = nn.initializers.zeros
    return Conv(self.num_classes, (1, 1), kernel_init=zeros, name=name)(x)

  def _upscore(self, up, scores, offset, size):
    if up.name not in self.learned:
      return bilinear_deconvolution(scores, up.layer, offset, size)
    scores = LearnedDeconvolution(up.layer, name=up.name)(scores)
    return slice_from(scores, offset, size)


def slice_from(x: jax.Array, offset: int, size: tuple[int, int]) -> jax.Array:
  """Returns `size` rows and columns of [B, H, W, C] from `offset` on."""
  height, width = size
  return x[:, offset : offset + height, offset : offset + width]


FCN32s = FCN
FCN16s = functools.partial(FCN, stride=16)
FCN8s = functools.partial(FCN, stride=8)
FCN8sAtOnce = functools.partial(
  FCN, stride=8, pool4_scale=1e-2, pool3_scale=1e-4
)
FCNAlexNet = functools.partial(FCN, backbone=caffenet)
FCNGoogLeNet = functools.partial(FCN, backbone=googlenet)
