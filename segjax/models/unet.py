# SPDX-License-Identifier: Apache-2.0
"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015) in linen.

`UNet()` is the network of figure 1: valid 3x3 convolutions with ReLU, 2x2 max
pooling, 2x2 up-convolutions that halve the channels, cropped skips and a 1x1
head; 31,030,658 parameters, 572 x 572 pixels in, 388 x 388 out. `UNet2015` is
the network of the authors' Caffe release of 2015; 31,100,354 parameters. Sizes
follow from `UNet.geometry`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.geometry import KERNEL, UNetGeometry
from segjax.models.layers import (
  BatchNorm,
  Conv,
  UpConv,
  at_precision,
  check_channels,
  crop,
  max_pool,
)

NORMS = ('none', 'batch')


class Block(nn.Module):
  """3x3 convolutions `conv0`, `conv1`, ..., each followed by ReLU.

  With `norm`, which makes a layer from a name, layers `norm0`, `norm1`, ...
  come between. The convolutions then have no bias, which the norm would
  subtract again.
  """

  features: int
  convs: int
  padding: str
  dtype: jnp.dtype
  norm: Callable[..., BatchNorm] | None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return self.convolve(x)

  def convolve(self, x: jax.Array) -> jax.Array:
    kernel_size = (KERNEL, KERNEL)
    for i in range(self.convs):
      x = Conv(
        self.features,
        kernel_size,
        self.padding,
        dtype=self.dtype,
        use_bias=self.norm is None,
        name=f'conv{i}',
      )(x)
      if self.norm is not None:
        x = self.norm(name=f'norm{i}')(x)
      x = nn.relu(x)
    return x


class UpBlock(Block):
  """`Block` on the output of `upconv`, concatenated with the cropped skip."""

  upconv_features: int
  upconv_relu: bool
  skip_first: bool

  @nn.compact
  def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
    # Unless a ReLU follows, a norm subtracts this bias, too.
    use_bias = self.norm is None or self.upconv_relu
    x = UpConv(self.upconv_features, self.dtype, use_bias, name='upconv')(x)
    if self.upconv_relu:
      x = nn.relu(x)
    x = jnp.concatenate((skip, x) if self.skip_first else (x, skip), axis=-1)
    return self.convolve(x)


class OneHead:
  """Part of the networks with a single head, which has no name."""

  num_classes: int
  head_names = ('',)

  @property
  def head_sizes(self) -> tuple[int, ...]:
    """The classes of the head."""
    return (self.num_classes,)


class UNet(OneHead, nn.Module):
  """U-Net; the defaults are the paper's network.

  Parameters are named `down0` .. `down{depth-1}`, `bottleneck`,
  `up{depth-1}` .. `up0` (each `conv0`, `conv1`, ...; the ups also `upconv`;
  with a norm also `norm0`, `norm1`, ...) and `head`; level 0 is the finest.

  Attributes:
    num_classes: K, channels of the logits.
    in_channels: C, channels of the image.
    depth: number of poolings.
    base_width: channels at level 0; each level below has twice as many.
    convs_per_block: 3x3 convolutions in a block.
    padding: 'VALID' (the paper) or 'SAME' (zeros; output as large as input).
    dropout_rate: fraction of values dropped in training.
    dropout_blocks: indices of the blocks that end in dropout, in the list of
      the contracting blocks and the bottleneck. The paper says "at the end of
      the contracting path". We read (-2, -1) from the 2015 release, where
      dropout also applies to the skip of the last level.
    dtype: compute dtype. Parameters and logits stay float32.
    remat: whether the feature maps inside a block are computed again for the
      gradient instead of being kept (gradient checkpointing).
    upconv_relu: whether ReLU follows the up-convolutions (2015 release).
    top_upconv_halves: whether the last up-convolution halves the channels, as
      the others do; False in the 2015 release.
    skip_first: whether the skip's channels come first in the concatenation.
    norm: 'none' (the paper), or 'batch': a `BatchNorm` between each 3x3
      convolution and its ReLU, as in the authors' 3D U-Net (Çiçek et al.,
      MICCAI 2016), and no bias before it.
    precision: precision of float32 products; see `layers.at_precision`.

  >>> import jax, segjax
  >>> segjax.UNet().geometry.output_size(572)  # The paper's network and tile.
  388
  >>> model = segjax.UNet2015(num_classes=3, depth=2, base_width=4)
  >>> image = jax.numpy.zeros((1, 60, 60, 1))
  >>> variables = jax.jit(model.init)(jax.random.key(0), image)
  >>> model.apply(variables, image).shape
  (1, 20, 20, 3)
  """

  num_classes: int = 2
  in_channels: int = 1
  depth: int = 4
  base_width: int = 64
  convs_per_block: int = 2
  padding: str = 'VALID'
  dropout_rate: float = 0.5
  dropout_blocks: tuple[int, ...] = (-2, -1)
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  upconv_relu: bool = False
  top_upconv_halves: bool = True
  skip_first: bool = True
  norm: str = 'none'
  precision: str = 'default'

  @property
  def geometry(self) -> UNetGeometry:
    """Sizes, margins and crops."""
    return UNetGeometry(self.depth, self.convs_per_block, self.padding)

  @nn.compact
  @at_precision
  def __call__(
    self,
    image: jax.Array,
    train: bool = False,
    axis_names: tuple[str, ...] = (),
    frozen_norm: bool | jax.Array = False,
  ) -> jax.Array:
    """Returns the logits f32[B, h, w, K] of image [B, H, W, C].

    Args:
      image: standardised gray values or colours.
      train: whether to apply dropout, which needs an rng named 'dropout', and
        to normalise by the batch.
      axis_names: see `BatchNorm`.
      frozen_norm: whether norms are frozen in training, see `BatchNorm`.

    Raises:
      InputError: H or W is inadmissible (see `UNetGeometry.output_size`), or C
        is not `in_channels`.
    """
    geometry = self.geometry
    check_image(image, geometry, self.in_channels)
    down, up = Block, UpBlock
    if self.remat:
      down, up = nn.remat(Block), nn.remat(UpBlock)
    norm = None
    if self.norm == 'batch':
      norm = functools.partial(BatchNorm, train, axis_names, frozen_norm)
    shared: dict[str, Any] = dict(
      convs=self.convs_per_block,
      padding=self.padding,
      dtype=self.dtype,
      norm=norm,
    )
    num_blocks = self.depth + 1
    dropped = {block % num_blocks for block in self.dropout_blocks}

    x = image
    skips = []
    for level in range(num_blocks):
      name = f'down{level}' if level < self.depth else 'bottleneck'
      x = down(self.base_width * 2**level, **shared, name=name)(x)
      if level in dropped:
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
      if level < self.depth:
        skips.append(crop(x, geometry.crop(level)))
        x = max_pool(x)

    for level in reversed(range(self.depth)):
      features = self.base_width * 2**level
      halves = self.top_upconv_halves or level > 0
      x = up(
        features,
        **shared,
        upconv_features=features if halves else 2 * features,
        upconv_relu=self.upconv_relu,
        skip_first=self.skip_first,
        name=f'up{level}',
      )(x, skips[level])
    return Conv(self.num_classes, (1, 1), name='head')(x)


def check_image(
  image: jax.Array, geometry: UNetGeometry, in_channels: int
) -> None:
  """Raises `InputError` unless a U-Net can take image [B, H, W, C]."""
  for size in image.shape[1:3]:
    geometry.output_size(size)
  check_channels(image, in_channels)


# The authors' Caffe network of 2015, as its third-party ports agree: the last
# up-convolution keeps 2 x base_width channels, ReLU follows every
# up-convolution, and the up-sampled channels come first.
UNet2015 = functools.partial(
  UNet, upconv_relu=True, top_upconv_halves=False, skip_first=False
)
