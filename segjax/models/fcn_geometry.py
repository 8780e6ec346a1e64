# SPDX-License-Identifier: Apache-2.0
"""Geometry of FCN: steps of the decoder, sizes of maps and crop offsets."""

import dataclasses
import functools
import math
from typing import Any

from segjax.geometry import (
  AnySize,
  Deconvolution,
  Footprint,
  crop_offset,
  locate,
  receptive_field,
)


@dataclasses.dataclass(frozen=True)
class Up:
  """A step of the decoder: deconvolve, then add the scores of a skip.

  Attributes:
    name: name of the deconvolution.
    layer: kernel and stride of the deconvolution.
    skip: 'pool4' or 'pool3'; None for the last step, which gives the logits.
  """

  name: str
  layer: Deconvolution
  skip: str | None = None


def decoder(stride: int, upscore_kernel: int) -> tuple[Up, ...]:
  """Returns the steps of the decoder of FCN-32s, 16s or 8s.

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
class FCNGeometry(AnySize):
  """Sizes of the maps of an FCN and the offsets of its crops.

  Attributes:
    footprints: name and footprint of every layer up to the scores.
    decoder: steps from the scores to the logits.
    reach_px: logits on each side that a refined logit of a CRF depends on.
  """

  footprints: tuple[tuple[str, Footprint], ...]
  decoder: tuple[Up, ...]
  reach_px: int = 0

  @property
  def receptive_field(self) -> int:
    """Image pixels that one coarse score depends on."""
    return receptive_field(footprint for _, footprint in self.footprints)

  @property
  def period(self) -> int:
    """Image pixels per coarse score, 32.

    Tiles agree if their origins differ by a multiple of it. How closely:
    `segjax.tiling`, for float32 on CPU.
    """
    return math.prod(footprint.stride for _, footprint in self.footprints)

  @property
  def margin(self) -> int:
    """Pixels of context that logits of whole periods need on each side.

    It is a multiple of the period. Where the image goes on, a tile ends in the
    padding of the network; logits at least `margin` from there do not depend on
    that padding.
    """
    return self._margin

  @functools.cached_property
  def _margin(self) -> int:
    # Apart, since type checkers do not take a cached property for a property.
    more = self.reach_px
    low, high = self._reach(-more, self.period - 1 + more)
    reach = max(-low, high - self.period + 1)
    return math.ceil(reach / self.period) * self.period

  @functools.cached_property
  def offsets(self) -> dict[str, int]:
    """Rows and columns cropped off before each cropped map, by its name.

    At a skip, the map that begins earlier is cropped: `score_pool4` and
    `score_pool3` with 'pad100', the upsampled scores with 'same'.
    """
    offsets = {}
    at = locate(footprint for _, footprint in self.footprints)
    for up in self.decoder:
      at = up.layer.locate(at)
      skip_at = locate(self._until(up.skip))
      if up.skip is not None and skip_at.shift > at.shift:
        offsets[f'score_{up.skip}'] = crop_offset(skip_at, at)
      else:
        offsets[up.name] = crop_offset(at, skip_at)
        at = skip_at
    return offsets

  def sizes(self, size: Any) -> dict[str, Any]:
    """Returns the sizes of 'image' and of every map before crops, by name.

    Args:
      size: pixels of the image, 1 or more: an integer, or an array of integers,
        traced or not; then the sizes are arrays, too.
    """
    offsets = self.offsets
    sizes = {'image': size}
    n = size
    for name, footprint in self.footprints:
      sizes[name] = n = footprint.output_extent(n)
    for up in self.decoder:
      sizes[up.name] = n = up.layer.output_size(n)
      if up.name in offsets:
        n = sizes[up.skip or 'image']
    return sizes

  def _reach(self, low, high):
    """Returns the image interval that decides the logits low..high.

    Goes back through the decoder, where each map depends on the scores of the
    step before and of a skip.
    """
    offsets = self.offsets
    needed = []
    for up in reversed(self.decoder):
      # low..high are pixels of the map that `up` is cropped or added to.
      if up.skip is not None:
        offset = offsets.get(f'score_{up.skip}', 0)
        needed.append(self._seen(up.skip, low + offset, high + offset))
      offset = offsets.get(up.name, 0)
      kernel, stride = up.layer.kernel, up.layer.stride
      low = -(-(low + offset - kernel + 1) // stride)
      high = (high + offset) // stride
    needed.append(self._seen(self.footprints[-1][0], low, high))
    lows, highs = zip(*needed, strict=True)
    return min(lows), max(highs)

  def _seen(self, name, low, high):
    """Returns the image interval that decides low..high of the map `name`."""
    for footprint in reversed(self._until(name)):
      low = low * footprint.stride - footprint.pad
      high = high * footprint.stride - footprint.pad + footprint.kernel - 1
    return low, high

  def _until(self, name):
    """Returns the footprints up to the map `name`; [] for None, the image."""
    names = [layer for layer, _ in self.footprints]
    end = 0 if name is None else names.index(name) + 1
    return [footprint for _, footprint in self.footprints[:end]]
