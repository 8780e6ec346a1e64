# SPDX-License-Identifier: Apache-2.0
"""Backbones of FCN: image classifiers as tables of layers.

`vgg.vgg16`, `alexnet.caffenet` and `googlenet.googlenet` return a `Backbone` of
rows, which compute features when called inside a linen module. `Classifier` is
the original classifier, or the same network slid over larger images; `fcn.FCN`
adds its decoder to the same rows. Their parameter trees differ only in the
shape of the fully connected kernels.

Images are float32 [B, H, W, C]. The caller chooses the order of colours, mean
and scale; the authors' weights expect BGR in 0..255 minus the mean.
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
  check_channels,
  he_init,
  local_response_norm,
  max_pool_ceil,
  zero_beyond,
)


class Row(Protocol):
  """A layer, whose parameters lie under `name` in the module that calls it."""

  # Rows are dataclasses, for `dataclasses.replace`.
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
      x: feature maps; with `extent`, zero beyond the true size of each.
      train: whether dropout is active.
      dtype: compute dtype.
      extent: i32[B,2], true rows and columns of each output, if the images are
        padded; the output is zero beyond. None: the whole array.
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
  """A fully connected layer, as a convolution or, if `dense`, as `nn.Dense`.

  `nn.Dense` takes maps of k x k pixels, flattened in the order H, W, C; its
  kernel is [k * k * C, O].
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
  """Maximum pooling with Caffe's output sizes.

  With an `extent`, windows that reach beyond the true end of a map see zeros
  there. They change no maximum, since every pooling here follows a ReLU; a
  gradient that a tie gives to such a zero ends at that ReLU.
  """

  name: str
  footprint: Footprint

  def __call__(self, x, train, dtype, extent=None):
    return zero_beyond(max_pool_ceil(x, self.footprint), extent)


@dataclasses.dataclass(frozen=True)
class AveragePool:
  """Mean of every window that lies whole in the map, at stride 1."""

  name: str
  footprint: Footprint

  def __call__(self, x, train, dtype, extent=None):
    return zero_beyond(nn.avg_pool(x, (self.footprint.kernel,) * 2), extent)


@dataclasses.dataclass(frozen=True)
class LocalResponseNorm:
  """`local_response_norm` as a row."""

  name: str
  footprint: Footprint = Footprint()

  def __call__(self, x, train, dtype, extent=None):
    return local_response_norm(x)  # Zeros stay zeros.


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Dropout of single values, not channels; needs an rng named 'dropout'."""

  name: str
  rate: float
  footprint: Footprint = Footprint()

  def __call__(self, x, train, dtype, extent=None):
    return nn.Dropout(self.rate, deterministic=not train)(x)  # Zeros stay.


@dataclasses.dataclass(frozen=True)
class Backbone:
  """An image classifier as rows.

  Attributes:
    trunk: rows before the fully connected layers.
    pool: rows between trunk and head, which FCN leaves out.
    head: fully connected layers and dropout, without the last layer.
    classifier: name of the last layer.
    native_size: height and width of the classifier's images, in pixels.
    upscore_kernel: taps of the deconvolution of FCN-32s: 64, or 63 if only an
      odd kernel puts the scores on the pixels of the image.
    strides: strides that FCN offers on it: 32, and 16 and 8 if pool4 and pool3
      can be skips.
  """

  trunk: tuple[Row, ...]
  pool: tuple[Row, ...]
  head: tuple[Row, ...]
  classifier: str
  native_size: int
  upscore_kernel: int
  strides: tuple[int, ...] = (32,)


class Classifier(nn.Module):
  """An image classifier, which can also be slid over larger images.

  Attributes:
    backbone: `vgg16`, `caffenet` or `googlenet`.
    convolutional: False: images have the native size, and fully connected
      layers are `nn.Dense`. True: images have at least that size, and every
      cell of the output classifies one window of the image.
    num_classes: K.
    width: multiplies the channels of the trunk.
    fc_features: channels of fc6 and fc7; None for the original number.
    dropout_rate: fraction of values dropped in training; None for the original
      rate.
    dtype: compute dtype. Parameters and logits stay float32.
    in_channels: C, channels of the image.
    precision: precision of float32 products; see `layers.at_precision`.
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
    """Returns the logits of image f32[B,H,W,C], before any softmax.

    Args:
      image: pixels, preprocessed as the weights expect.
      train: whether dropout is active; it needs an rng named 'dropout'.

    Returns:
      f32[B,K], or f32[B,h,w,K] if convolutional.

    Raises:
      InputError: the image has not the native size (if convolutional, it is
        smaller), or C is not `in_channels`.
    """
    check_channels(image, self.in_channels)
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
        f'takes {native} x {native} px; convolutional=True takes larger ones'
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
  """Returns features * width, rounded to a multiple >= 1 of `multiple_of`."""
  return max(1, round(features * width / multiple_of)) * multiple_of


def fc_head(
  kernel: int,
  pad: int,
  features: int | None,
  dropout_rate: float | None,
  dense: bool,
) -> tuple[Row, ...]:
  """Returns the rows of fc6 and fc7, which VGG16 and CaffeNet have in common.

  Args:
    kernel: rows and columns of the map that fc6 takes.
    pad: zeros around the map.
    features: channels of fc6 and fc7; None for 4096.
    dropout_rate: dropout rate after fc6 and fc7; None for 0.5.
    dense: whether fc6 and fc7 are dense layers.
  """
  features = 4096 if features is None else features
  rate = 0.5 if dropout_rate is None else dropout_rate
  return (
    FullyConnected('fc6', features, Footprint(kernel, pad=pad), dense),
    Dropout('drop6', rate),
    FullyConnected('fc7', features, Footprint(), dense),
    Dropout('drop7', rate),
  )
