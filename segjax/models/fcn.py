# SPDX-License-Identifier: Apache-2.0
"""FCN (Long, Shelhamer, Darrell, CVPR 2015; PAMI 2017) in linen.

A backbone slid over the image gives class scores every 32 pixels. Bilinear
deconvolutions bring them back to the pixels of the image; on the way, scores of
pool4 (FCN-16s) and pool3 (FCN-8s) are added. Layers have Caffe's names, so the
authors' weights fit one to one. Crop offsets follow from `FCN.geometry`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.crf import Refinement
from segjax.errors import InputError
from segjax.models.alexnet import caffenet
from segjax.models.backbone import Backbone, MaxPool, Row
from segjax.models.fcn_geometry import FCNGeometry, decoder
from segjax.models.googlenet import googlenet
from segjax.models.layers import (
  Conv,
  at_precision,
  check_channels,
  zero_beyond,
)
from segjax.models.mean_field import MeanField
from segjax.models.upsampling import (
  LearnedDeconvolution,
  bilinear_deconvolution,
)
from segjax.models.vgg import vgg16

PADDINGS = ('pad100', 'same')


class FCN(nn.Module):
  """FCN; the defaults are FCN-32s on VGG16 for the 21 classes of PASCAL VOC.

  Parameters: those of the backbone, then `score_fr`, `score_pool4` and
  `score_pool3` (1x1 convolutions that start at zero), and the deconvolutions
  that are learned. A fixed deconvolution has no parameters. With `heads`, each
  head has score layers and deconvolutions of its own, such as `score_fr_sem`.
  With `streams`, each stream has layers of its own up to the scores, such as
  `conv1_1color` and `score_frcolor`.

  Attributes:
    num_classes: K, channels of the logits; the sum over all heads.
    in_channels: C, channels of the image; the sum over all streams.
    backbone: `vgg16`, `caffenet` or `googlenet`; skips need `vgg16`.
    stride: 32, 16 or 8, image pixels per pixel of the finest scores.
    padding: 'pad100' pads the image by 100 zeros, as the authors' networks do,
      so that their weights give their outputs. 'same' pads every layer by what
      it takes off the borders: far less to compute for small images, the same
      receptive field, other values near the borders.
    pool4_scale: factor on the features of pool4 before `score_pool4`; .01 for
      FCN-8s trained at once, else 1.
    pool3_scale: factor on the features of pool3 before `score_pool3`; .0001 for
      FCN-8s trained at once, else 1.
    learned: names of the deconvolutions that are learned, from bilinear ones.
      The authors' release learns none, the CVPR paper all but the last. With
      heads, each head learns its own.
    width: multiplies the channels of the backbone's trunk.
    fc_features: channels of fc6 and fc7; None for the original number.
    dropout_rate: fraction of values dropped in training; None for the original
      rate.
    dtype: compute dtype of the backbone. Parameters, scores and logits stay
      float32.
    remat: whether feature maps between two poolings are computed again for the
      gradient instead of being kept (gradient checkpointing).
    heads: name and number of classes of each head, in the order of the logits;
      for SIFT Flow, the authors have (('sem', 33), ('geo', 3)). () is a single
      head without a name.
    first_conv: another name for the first convolution. The authors rename it
      where it takes other channels than the classifier's: 'conv1_1_bgrd' takes
      colours and depth. '' keeps the backbone's name.
    crf_iterations: updates of a CRF over the logits of each head, in a layer
      `crf` or `crf_sem`; see `mean_field.MeanField`. 0 is no CRF.
    crf_radius_px: radius of the CRF's window; see `crf.Refinement`.
    crf_intensity_width: how much neighbours may differ, before the CRF is
      trained, in the unit of the image that the network takes.
    streams: suffixes of backbones side by side. Each takes an equal run of the
      image's channels, and their scores are averaged before the upsampling
      (late fusion). For NYUDv2, the authors have ('color', 'hha'). Streams need
      stride=32. () is a single backbone without a suffix.
    precision: precision of float32 products; see `layers.at_precision`.

  >>> import jax, segjax
  >>> segjax.FCN8s() == segjax.FCN(stride=8)
  True
  >>> segjax.FCN16s().stride, segjax.FCN32s().stride
  (16, 32)
  >>> model = segjax.FCN8s(num_classes=5, padding='same', width=0.05)
  >>> image = jax.numpy.zeros((1, 40, 50, 3))
  >>> variables = jax.jit(model.init)(jax.random.key(0), image)
  >>> model.apply(variables, image).shape  # Logits have the image's size.
  (1, 40, 50, 5)
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
  remat: bool = False
  heads: tuple[tuple[str, int], ...] = ()
  first_conv: str = ''
  streams: tuple[str, ...] = ()
  precision: str = 'highest'
  crf_iterations: int = 0
  crf_radius_px: int = 3
  crf_intensity_width: float = 0.13

  @property
  def geometry(self) -> FCNGeometry:
    """Sizes and crops. Layers of streams are named without the suffix.

    Raises:
      InputError: an attribute is invalid, or two don't go together.
    """
    rows, steps = self._network()
    return FCNGeometry(
      tuple((row.name, row.footprint) for row in rows),
      steps,
      self._refinement().reach_px,
    )

  @property
  def head_names(self) -> tuple[str, ...]:
    """The name of each head; '' for a single one."""
    return tuple(name for name, _ in self.heads) or ('',)

  @property
  def head_sizes(self) -> tuple[int, ...]:
    """The number of classes of each head, in the order of the logits."""
    return tuple(size for _, size in self.heads) or (self.num_classes,)

  def head_layers(self, layer: str) -> tuple[str, ...]:
    """Returns the names that `layer` has in the heads."""
    return tuple(f'{layer}_{n}' if n else layer for n in self.head_names)

  @nn.compact
  @at_precision
  def __call__(
    self,
    image: jax.Array,
    train: bool = False,
    size: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the logits f32[B,H,W,K] of image f32[B,H,W,C].

    Args:
      image: pixels of any size from 1 x 1 px, preprocessed as the weights
        expect. The authors' expect BGR in 0..255 minus the mean, so that the
        zeros of the padding are the mean.
      train: whether dropout is active; it needs an rng named 'dropout'.
      size: i32[B,2], true height and width of each image, 1 x 1 to H x W, for a
        batch of images of unequal sizes, padded below and at the right by any
        values. Logits of the image are then those of the image alone (to 1e-5
        of their range, on CPU in float32), and zero beyond. One program serves
        all sizes. None: the images fill the array.

    Raises:
      InputError: C is not `in_channels`, the image is empty, or `size` has
        another shape.
    """
    check_channels(image, self.in_channels)
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

    rows, steps = self._network()
    streams = self.streams or ('',)
    of_streams, maps = [], {}
    image = zero_beyond(image, size)
    for stream, x in zip(
      streams, jnp.split(image, len(streams), axis=-1), strict=True
    ):
      for block in _blocks(rows):
        compute = functools.partial(
          _compute, rows=block, suffix=stream, train=train, extents=extents
        )
        compute = nn.remat(compute) if self.remat else compute
        x = maps[block[-1].name] = compute(self, x)
      of_streams.append(self._score(f'score_fr{stream}', x) / len(streams))
    scores = sum(of_streams[1:], of_streams[0])
    scores = zero_beyond(scores, extents.get(rows[-1].name))
    for up in steps:
      # Either the scores are cropped, or the skip if it is the larger map.
      like = (up.skip or 'image') if up.name in offsets else up.name
      shape, offset = (heights[like], widths[like]), offsets.get(up.name, 0)
      scores = self._upscore(up, scores, offset, shape)
      if up.skip is not None:
        name = f'score_{up.skip}'
        skip = slice_from(maps[up.skip], offsets.get(name, 0), shape)
        scores = scores + self._score(name, skip * scales[up.skip])
      scores = zero_beyond(scores, extents.get(like))
    if self.crf_iterations:
      scores = zero_beyond(self._refine(scores, image, size), size)
    return scores

  def _refinement(self):
    try:
      return Refinement(
        iterations=self.crf_iterations,
        radius_px=self.crf_radius_px,
        intensity_width=self.crf_intensity_width,
      )
    except InputError as error:
      raise InputError(f'crf_{error}') from error

  def _refine(self, scores, image, size):
    heads = _split(scores, self.head_sizes)
    refined = [
      MeanField(self._refinement(), name=name)(head, image, size)
      for name, head in zip(self.head_layers('crf'), heads, strict=True)
    ]
    return jnp.concatenate(refined, axis=-1)

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
    rows = net.trunk + net.head
    if self.first_conv:
      first, *others = rows
      if self.first_conv in {row.name for row in others}:
        raise InputError(
          f'first_conv={self.first_conv!r} is the name of another layer'
        )
      rows = (dataclasses.replace(first, name=self.first_conv), *others)
    self._check_branches()
    steps = decoder(self.stride, net.upscore_kernel)
    names = tuple(up.name for up in steps)
    if not set(self.learned) <= set(names):
      raise InputError(
        f'learned={self.learned}; the deconvolutions are {names}'
      )
    return rows, steps

  def _check_branches(self):
    """Raises `InputError` if the heads or the streams are invalid."""
    for field, names in (
      ('heads', [name for name, _ in self.heads]),
      ('streams', self.streams),
    ):
      if len(set(names)) < len(names) or '' in names:
        raise InputError(
          f'{field}={getattr(self, field)} must have a name each, no two equal'
        )
    if sum(self.head_sizes) != self.num_classes:
      raise InputError(
        f'num_classes={self.num_classes} must be {sum(self.head_sizes)}, the '
        f'sum over heads={self.heads}'
      )
    if self.streams and self.stride != 32:
      raise InputError(
        f'stride={self.stride} must be 32 with streams={self.streams}, which '
        'are joined at their last scores'
      )
    if self.streams and self.in_channels % len(self.streams):
      raise InputError(
        f'in_channels={self.in_channels} must be a multiple of '
        f'{len(self.streams)}, the number of streams={self.streams}'
      )

  def _score(self, layer, x):
    scores = [
      Conv(size, (1, 1), kernel_init=nn.initializers.zeros, name=name)(x)
      for name, size in zip(
        self.head_layers(layer), self.head_sizes, strict=True
      )
    ]
    return jnp.concatenate(scores, axis=-1)

  def _upscore(self, up, scores, offset, size):
    if up.name not in self.learned:
      return bilinear_deconvolution(scores, up.layer, offset, size)
    # A head mixes its own classes only.
    heads = _split(scores, self.head_sizes)
    scores = [
      LearnedDeconvolution(up.layer, name=name)(head)
      for name, head in zip(self.head_layers(up.name), heads, strict=True)
    ]
    return slice_from(jnp.concatenate(scores, axis=-1), offset, size)


def _blocks(rows: tuple[Row, ...]) -> list[tuple[Row, ...]]:
  """Returns the rows in blocks; all but the last end with a pooling."""
  ends = [i for i, row in enumerate(rows, 1) if isinstance(row, MaxPool)]
  bounds = sorted({0, *ends, len(rows)})
  return [rows[start:end] for start, end in itertools.pairwise(bounds)]


def _compute(fcn, x, rows, suffix, train, extents):
  """Returns the output of the rows for x, with parameters in `fcn`."""
  for row in rows:
    extent = extents.get(row.name)
    row = dataclasses.replace(row, name=row.name + suffix)
    x = row(x, train, fcn.dtype, extent)
  return x


def _split(scores, sizes):
  """Returns the scores [B, H, W, ...] of each head."""
  ends = tuple(itertools.accumulate(sizes))
  return jnp.split(scores, ends[:-1], axis=-1)


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
