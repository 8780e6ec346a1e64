# SPDX-License-Identifier: Apache-2.0
"""U-Net's expanding path on the convolutions of VGG16.

On the same trunk, FCN-8s adds the scores of its skips; this network
concatenates their features. `UNetVGG16.geometry` has the sizes.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.geometry import UNetGeometry
from segjax.models.backbone import scaled
from segjax.models.layers import (
  BatchNorm,
  Conv,
  at_precision,
  crop,
  max_pool,
)
from segjax.models.unet import OneHead, UpBlock, check_image
from segjax.models.vgg import BLOCKS

_EXPANDING_CONVS = 2


class UNetVGG16(OneHead, nn.Module):
  """A U-Net of depth 4 whose contracting path is VGG16 up to conv5_3.

  Iglovikov and Shvets 2018 (TernausNet) did this with VGG11, in another form.
  Blocks 1 to 4 of VGG16 are followed by 2x2 max pooling and give the skips;
  block 5 is the bottleneck. The expanding blocks are those of `UNet`; each has
  as many channels as its skip.

  Parameters are named `conv1_1` .. `conv5_3` as in Caffe, so that published
  weights of VGG16 fit, `up3` .. `up0` (each `upconv`, `conv0` and `conv1`) and
  `head`.

  Attributes:
    num_classes: K, channels of the logits.
    in_channels: C, channels of the image.
    width: multiplies the channels; published weights fit width 1 only.
    padding: 'SAME' (zeros, as VGG16 has; output as large as input) or 'VALID'.
    dropout_rate: fraction of the bottleneck's values dropped in training.
    dtype: compute dtype. Parameters and logits stay float32.
    norm: norm of the expanding blocks, see `UNet`. The trunk has none, so that
      published weights fit.
    precision: precision of float32 products; see `layers.at_precision`.
  """

  num_classes: int = 2
  in_channels: int = 3
  width: float = 1.0
  padding: str = 'SAME'
  dropout_rate: float = 0.5
  dtype: jnp.dtype = jnp.float32
  norm: str = 'none'
  precision: str = 'default'

  @property
  def geometry(self) -> UNetGeometry:
    """Sizes, margins and crops."""
    convs = tuple(convs for _, convs in BLOCKS)
    return UNetGeometry(len(BLOCKS) - 1, _EXPANDING_CONVS, self.padding, convs)

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
      image: pixels as the weights of the trunk expect them.
      train: see `UNet`.
      axis_names: see `BatchNorm`.
      frozen_norm: whether norms are frozen in training, see `BatchNorm`.

    Raises:
      InputError: H or W is inadmissible (see `UNetGeometry.output_size`), or C
        is not `in_channels`.
    """
    geometry = self.geometry
    check_image(image, geometry, self.in_channels)
    norm = None
    if self.norm == 'batch':
      norm = functools.partial(BatchNorm, train, axis_names, frozen_norm)
    x, skips = image, []
    for level, (features, convs) in enumerate(BLOCKS):
      if level:
        x = max_pool(x)
      for i in range(convs):
        x = Conv(
          scaled(features, self.width),
          mode=self.padding,
          dtype=self.dtype,
          name=f'conv{level + 1}_{i + 1}',
        )(x)
        x = nn.relu(x)
      skips.append(x)
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    for level in reversed(range(geometry.depth)):
      skip = crop(skips[level], geometry.crop(level))
      x = UpBlock(
        skip.shape[-1],
        _EXPANDING_CONVS,
        self.padding,
        self.dtype,
        norm=norm,
        upconv_features=skip.shape[-1],
        upconv_relu=False,
        skip_first=True,
        name=f'up{level}',
      )(x, skip)
    return Conv(self.num_classes, (1, 1), name='head')(x)
