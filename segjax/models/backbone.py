# SPDX-License-Identifier: Apache-2.0
"""The classification networks under FCN: tables of layers, and what runs them.

`vgg.vgg16`, `alexnet.caffenet` and `googlenet.googlenet` return a `Backbone`:
rows that compute features when called inside a linen module and state their
geometry without it. `Classifier` is the original classifier, and the same
network slid over larger images; `fcn.FCN` puts its decoders on the same rows.
The parameter trees differ only in the shape of the fully connected kernels.

Images are float32 [B, H, W, C]. Colour order, mean and scale are the caller's;
the weights published by the authors expect BGR in 0..255 minus the mean.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.errors import InputError
from segjax.geometry import Footprint
from segjax.models.layers import (
  Conv,
  at_precision,
  he_init,
  local_response_norm,
  max_pool_ceil,
  zero_beyond,
)

PADDINGS = ('native', 'pad100', 'same')


class Row(Protocol):
  """A layer: geometry in `footprint`, parameters under `name` in the caller."""

  # Rows are dataclasses.
  __dataclass_fields__: ClassVar[dict[str, Any]]

  @property
  def name(self) -> str: ...

  @property
  def footprint(self) -> Footprint: ...

  def __call__(
    self,
    x: jax.Array,
    train: bool,
    dtype: jnp.dtype,
    extent: jax.Array | None = None,
  ) -> jax.Array:
    """Maps [B, H, W, C] to [B, H', W', C'] in `dtype`.

    Args:
      x: if `extent` is given, zero beyond what its maps truly have.
      train: whether to drop out.
      dtype: compute dtype.
      extent: i32[B,2], rows and columns that the output truly has, of images
        that are padded; zero beyond. None: all.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Convolution:
  """Convolution and ReLU."""

  name: str
  features: int
  footprint: Footprint
  groups: int = 1

  def __call__(self, x, train, dtype, extent=None):
    k, s = self.footprint.kernel, self.footprint.stride
    conv = Conv(
      self.features,
      (k, k),
      self.footprint.pad,
      (s, s),
      dtype=dtype,
      groups=self.groups,
      name=self.name,
    )
    return zero_beyond(nn.relu(conv(x)), extent)


@dataclasses.dataclass(frozen=True)
class FullyConnected:
  """A fully connected layer: a convolution, or `dense` on maps of its size.

  The dense kernel is [k * k * C, O], its inputs flattened in the order H, W, C.
  """

  name: str
  features: int
  footprint: Footprint
  dense: bool
  relu: bool = True

  def __call__(self, x, train, dtype, extent=None):
    if self.dense:
      x = x.reshape(x.shape[0], 1, 1, -1)
      layer = nn.Dense(
        self.features, dtype=dtype, kernel_init=he_init, name=self.name
      )
    else:
      size = (self.footprint.kernel,) * 2
      mode = self.footprint.pad
      layer = Conv(self.features, size, mode, dtype=dtype, name=self.name)
    x = layer(x)
    return zero_beyond(nn.relu(x) if self.relu else x, extent)


@dataclasses.dataclass(frozen=True)
class MaxPool:
  """Maximum pooling with Caffe's sizes.

  With an `extent`, windows that hang over the true end see zeros there, where
  they should see nothing. It is the same to them: every pooling of the networks
  here follows a ReLU, so nothing is below zero, and a gradient that goes to a
  tie with zero ends at that ReLU.
  """

  name: str
  footprint: Footprint

  def __call__(self, x, train, dtype, extent=None):
    return zero_beyond(max_pool_ceil(x, self.footprint), extent)


@dataclasses.dataclass(frozen=True)
class AveragePool:
  """Mean of every whole window, stride 1."""

  name: str
  footprint: Footprint

  def __call__(self, x, train, dtype, extent=None):
    return zero_beyond(nn.avg_pool(x, (self.footprint.kernel,) * 2), extent)


@dataclasses.dataclass(frozen=True)
class LocalResponseNorm:
  """`local_response_norm` over 5 channels, as AlexNet and GoogLeNet have it."""

  name: str
  footprint: Footprint = Footprint()

  def __call__(self, x, train, dtype, extent=None):
    return local_response_norm(x)  # Zero where x is.


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Drops single values, not channels; needs an rng named 'dropout'."""

  name: str
  rate: float
  footprint: Footprint = Footprint()

  def __call__(self, x, train, dtype, extent=None):
    return nn.Dropout(self.rate, deterministic=not train)(x)  # Zero where x is.


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A network for classification, as rows.

  Attributes:
    trunk: the rows before the fully connected layers.
    pool: what the classifier has between trunk and head, and FCN has not.
    head: fully connected layers and dropout, without the last layer.
    classifier: name of the last layer.
    native_size: height and width, in pixels, of the images it was made for.
    upscore_kernel: taps of FCN's 32-fold deconvolution. 64, or 63 where only
      an odd kernel puts the scores on the pixels of the image.
    strides: what FCN offers: 32, and with the skips from pool4 and pool3, 16
      and 8.
  """

  trunk: tuple[Row, ...]
  pool: tuple[Row, ...]
  head: tuple[Row, ...]
  classifier: str
  native_size: int
  upscore_kernel: int
  strides: tuple[int, ...] = (32,)


class Classifier(nn.Module):
  """A backbone as the classifier it was, or as a convolution.

  Attributes:
    backbone: `vgg16`, `caffenet` or `googlenet`.
    convolutional: False: images of the native size, fully connected layers are
      `nn.Dense`. True: any image of at least that size; every cell of the
      result classifies one window of the image.
    num_classes: K.
    width: multiplies the channels of the trunk.
    fc_features: channels of fc6 and fc7; None for the original's.
    dropout_rate: fraction of values dropped in training; None for the
      original's.
    dtype: compute dtype. Parameters and logits stay float32.
    in_channels: C, channels of the image.
    precision: of products in float32; see `layers.at_precision`.
  """

  backbone: Callable[..., Backbone]
  convolutional: bool = False
  num_classes: int = 1000
  width: float = 1.0
  fc_features: int | None = None
  dropout_rate: float | None = None
  dtype: jnp.dtype = jnp.float32
  in_channels: int = 3
  precision: str = 'highest'

  @nn.compact
  @at_precision
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Returns the logits of image f32[B,H,W,C]: before any softmax.

    Args:
      image: preprocessed as the weights expect.
      train: whether to drop out; needs an rng named 'dropout'.

    Returns:
      f32[B,K], or f32[B,h,w,K] if convolutional.

    Raises:
      InputError: if the image is not of the native size, or is too small, or
        C is not `in_channels`.
    """
    if image.shape[-1] != self.in_channels:
      raise InputError(
        f'image has {image.shape[-1]} channels; the model was built for '
        f'in_channels={self.in_channels}'
      )
    dense = not self.convolutional
    net = self.backbone(
      width=self.width,
      fc_features=self.fc_features,
      dropout_rate=self.dropout_rate,
      dense=dense,
    )
    native = net.native_size
    if dense and image.shape[1:3] != (native, native):
      raise InputError(
        f'images of {image.shape[1]} x {image.shape[2]} px; the classifier '
        f'takes {native} x {native} px, convolutional=True larger ones'
      )
    if min(image.shape[1:3]) < native:
      raise InputError(
        f'images of {image.shape[1]} x {image.shape[2]} px are smaller than '
        f'the window of the classifier, {native} x {native} px'
      )
    x = image
    for row in (*net.trunk, *net.pool, *net.head):
      x = row(x, train, self.dtype)
    last = FullyConnected(
      net.classifier, self.num_classes, Footprint(), dense, relu=False
    )
    logits = last(x, train, jnp.float32)
    return logits[:, 0, 0] if dense else logits


def scaled(features: int, width: float, multiple_of: int = 1) -> int:
  """Returns the multiple, at least one, that is closest to width features."""
  return max(1, round(features * width / multiple_of)) * multiple_of


def check_padding(padding: str) -> None:
  """Raises `InputError` unless `padding` is one of PADDINGS."""
  if padding not in PADDINGS:
    raise InputError(f'padding={padding!r} is not one of {PADDINGS}')
