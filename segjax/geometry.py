# SPDX-License-Identifier: Apache-2.0
"""Geometry of networks: sizes, margins and crops of their images and logits.

Everything about sizes is derived here, once, for one axis at a time (the
networks treat rows and columns alike). Training crops labels by it and the
tile predictor plans by it. Plain integers and fractions: no parameters, and
arrays only where a function says so.

`Geometry` is the contract of every network with training and prediction.
`UNetGeometry` has the closed forms of the U-Net; `Footprint`, `Deconvolution`
and `crop_offset` are the algebra of any chain of layers.

Symbols of `UNetGeometry`: d depth (number of poolings), n convolutions per
block, k kernel size, P = 2^d period of the pooling grid, c = n (k - 1) pixels
that one block of valid convolutions takes off an axis.
"""

import dataclasses
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

from segjax.errors import InputError

KERNEL = 3  # Every U-Net convolution but the up-convolution and the head.

# Most poolings, and most convolutions in a block. No memory suffices for more.
_MOST = 20


@runtime_checkable
class Geometry(Protocol):
  """The sizes of a network along one axis, in pixels.

  Training and prediction ask for these properties instead of asking which
  network it is.

  Attributes:
    period: P; tiles agree if their origins differ by a multiple of it.
    margin: context that the output pixels of a tile need on each side.
    core_offset: pixels to drop from each side of the output of a tile, because
      they lack context; 0 if the network drops them, or if it pads images
      itself, so that all pixels count.
    smallest_input: the smallest admissible image.
    takes_any_size: whether images of every size are admissible and get logits
      of their own size. Then `apply` also takes `size`, the true heights and
      widths of images that are padded at their ends.
    clips_tiles: whether tiles end where the image ends, because the network
      pads images itself. Otherwise the image is mirrored there, and tiles
      reach beyond it by `margin`.
    default_max_tile_size_px: size of the largest tile by default.
  """

  @property
  def period(self) -> int: ...

  @property
  def margin(self) -> int: ...

  @property
  def core_offset(self) -> int: ...

  @property
  def smallest_input(self) -> int: ...

  @property
  def takes_any_size(self) -> bool: ...

  @property
  def clips_tiles(self) -> bool: ...

  @property
  def default_max_tile_size_px(self) -> int: ...

  def output_size(self, input_size: int) -> int:
    """Returns the output size.

    Raises:
      InputError: the size is not admissible; the message gives the rule and the
        nearest admissible sizes.
    """
    ...

  def input_size(self, core_size: int) -> int:
    """Returns the smallest size of a single tile that covers `core_size`."""
    ...

  def tile_size(self, core_size: int) -> int:
    """Returns the smallest size of a tile, one of several, with this core.

    Its margins are inside of it, wherever it lies in the image.
    """
    ...


class AnySize:
  """Part of `Geometry`, for networks that pad images themselves.

  A subclass adds `period` and `margin`.
  """

  core_offset = 0
  smallest_input = 1
  takes_any_size = True
  clips_tiles = True
  # VGG16's margins of 224 px would take half of 1024.
  default_max_tile_size_px = 1536

  def output_size(self, input_size: int) -> int:
    """Returns `input_size`: logits are as large as the image, from 1 px on."""
    if input_size < 1:
      raise InputError(f'images of {input_size} px; at least 1 px is needed')
    return input_size

  def input_size(self, core_size: int) -> int:
    """Returns `core_size`: an image as large as its logits."""
    return self.output_size(core_size)

  def tile_size(self: Geometry, core_size: int) -> int:
    """Returns core and margins, rounded up to whole periods."""
    return -(-(core_size + 2 * self.margin) // self.period) * self.period


@dataclasses.dataclass(frozen=True)
class UNetGeometry:
  """Sizes of a U-Net with square kernels, 2x2 pools and 2x2 up-convolutions.

  A tile of `s` input pixels yields a *core* of `s - 2 margin` output pixels
  that depend on nothing outside the tile. With padding='VALID' the core is
  the whole output; with 'SAME' the output has `s` pixels, of which the outer
  `margin` see the zero padding.

  Attributes:
    depth: number of 2x2 poolings, d >= 0.
    convs_per_block: 3x3 convolutions in each block, n >= 1.
    padding: 'VALID' (the paper) or 'SAME'.
    contracting_convs: numbers of convolutions of the contracting blocks and the
      bottleneck, if they differ from the expanding ones; () for
      `convs_per_block`.
  """

  depth: int = 4
  convs_per_block: int = 2
  padding: str = 'VALID'
  contracting_convs: tuple[int, ...] = ()

  # Not annotated: annotations would make them fields.
  takes_any_size = False
  clips_tiles = False
  default_max_tile_size_px = 1024

  def __post_init__(self):
    if not 0 <= self.depth <= _MOST or not 1 <= self.convs_per_block <= _MOST:
      raise InputError(
        f'depth={self.depth} and convs_per_block={self.convs_per_block} make '
        f'no U-Net; depth must be >= 0, convs_per_block >= 1, both <= {_MOST}'
      )
    if self.padding not in ('VALID', 'SAME'):
      raise InputError(f"padding={self.padding!r} is not 'VALID' or 'SAME'")
    # A geometry that was read from JSON has a list.
    object.__setattr__(self, 'contracting_convs', (*self.contracting_convs,))
    if self.contracting_convs and len(self.contracting_convs) != self.depth + 1:
      raise InputError(
        f'contracting_convs={self.contracting_convs} of depth={self.depth}; '
        f'expected {self.depth + 1} numbers'
      )

  @property
  def period(self) -> int:
    """P: tiles agree if their origins differ by a multiple of it.

    How closely: `segjax.tiling`, for float32 on CPU.
    """
    return 2**self.depth

  @property
  def margin(self) -> int:
    """Pixels of context that a core needs on each side.

    'VALID': half of the pixels that the network takes off, c (3P - 2) / 2 if
    all blocks are alike, 92 for the paper's network. 'SAME': the reach of a
    core that covers whole pooling periods, rounded up to periods (96).
    """
    if self.padding == 'VALID':
      return self._loss(0) // 2
    low, high = self._reach(0, 0, self.period - 1)
    return self._round_up(max(-low, high - self.period + 1))

  @property
  def smallest_core(self) -> int:
    """The smallest core, r. Cores have r + j P pixels, j = 0, 1, ..."""
    if self.padding == 'SAME':
      return self.period
    # Before the expanding blocks take pixels off, a core has whole periods.
    return (-self._expanding_loss * (self.period - 1) - 1) % self.period + 1

  @property
  def smallest_input(self) -> int:
    """The smallest admissible input. Others have j P pixels more."""
    return self.smallest_core + 2 * (self.margin - self.core_offset)

  @property
  def core_offset(self) -> int:
    """Pixels to drop from each side of the network's output to get the core."""
    return 0 if self.padding == 'VALID' else self.margin

  def crop(self, level: int) -> int:
    """Returns pixels to crop off each side of the skip at `level` (0 = top)."""
    if self.padding == 'SAME':
      return 0
    return self._loss(level + 1)

  def output_size(self, input_size: int) -> int:
    """Returns the output size; see `Geometry.output_size`."""
    step, least = self.period, self.smallest_input
    # This form of the condition also works for symbolic sizes of an export.
    if not (input_size >= least and (input_size - least) % step == 0):
      nearest_above = max(least, least + self._round_up(input_size - least))
      nearest = [str(nearest_above)]
      if nearest_above > least:
        nearest.insert(0, str(nearest_above - step))
      raise InputError(
        f'input size {input_size} px is not admissible for a {self.padding} '
        f'U-Net of depth {self.depth} with '
        f'{self.contracting_convs or self.convs_per_block} convolutions '
        f'per block: sizes are {least} + {step} j, j >= 0; '
        f'nearest: {" and ".join(nearest)}'
      )
    return input_size - 2 * (self.margin - self.core_offset)

  def input_size(self, core_size: int) -> int:
    """Returns the smallest admissible input with a core of >= `core_size`."""
    least = self.smallest_core
    core = max(least, least + self._round_up(core_size - least))
    return core + 2 * self.margin

  def tile_size(self, core_size: int) -> int:
    """Returns `input_size`: tiles have their margins wherever they lie."""
    return self.input_size(core_size)

  @property
  def _expanding_loss(self) -> int:
    """Pixels that valid convolutions of an expanding block take off."""
    return self.convs_per_block * (KERNEL - 1)

  def _contracting_loss(self, level: int) -> int:
    convs = self.contracting_convs or [self.convs_per_block] * (self.depth + 1)
    return convs[level] * (KERNEL - 1)

  def _loss(self, level: int) -> int:
    """Returns the pixels that `level` and all below take off, both sides."""
    loss = self._contracting_loss(level)
    if level < self.depth:
      loss += 2 * self._loss(level + 1) + self._expanding_loss
    return loss

  def _round_up(self, size: int) -> int:
    return -(-size // self.period) * self.period

  def _reach(self, level: int, low: int, high: int) -> tuple[int, int]:
    """Returns the input interval that decides outputs low..high of `level`.

    Goes back through the expanding block, both arms (the skip and the deeper
    levels) and the contracting block of `level`, all centred. The level below
    counts its own pixels: its pixel i covers 2i and 2i + 1 here.
    """
    grow = self._contracting_loss(level) // 2
    if level < self.depth:
      expanding = self._expanding_loss // 2
      low, high = low - expanding, high + expanding
      deep_low, deep_high = self._reach(level + 1, low // 2, high // 2)
      low, high = min(low, 2 * deep_low), max(high, 2 * deep_high + 1)
    return low - grow, high + grow


@dataclasses.dataclass(frozen=True)
class FilteredGeometry:
  """The `Geometry` of a network whose logits are filtered, such as by a CRF.

  If tiles reach beyond the image, only the core of the network's logits is
  filtered, and the filter takes more pixels off its edges.

  Attributes:
    network: the geometry of the network.
    reach_px: logits on each side that a filtered logit depends on.
  """

  network: Geometry
  reach_px: int

  @property
  def _more(self) -> int:
    """Pixels of context that the filter adds, in whole periods.

    Whole periods keep tiles on the grid of the network without the filter.
    """
    return -(-self.reach_px // self.period) * self.period

  @property
  def period(self) -> int:
    return self.network.period

  @property
  def margin(self) -> int:
    return self.network.margin + self._more

  @property
  def core_offset(self) -> int:
    return 0 if self.clips_tiles else self._more

  @property
  def smallest_input(self) -> int:
    return self.input_size(1)

  @property
  def takes_any_size(self) -> bool:
    return self.network.takes_any_size

  @property
  def clips_tiles(self) -> bool:
    return self.network.clips_tiles

  @property
  def default_max_tile_size_px(self) -> int:
    return self.network.default_max_tile_size_px

  def output_size(self, input_size: int) -> int:
    """Returns the size of the core of the network's output."""
    size = self.network.output_size(input_size)
    return size - 2 * self.network.core_offset

  def input_size(self, core_size: int) -> int:
    """Returns the smallest size of a single tile that covers `core_size`."""
    return self.network.input_size(core_size + 2 * self.core_offset)

  def tile_size(self, core_size: int) -> int:
    """Returns the smallest size of a tile, one of several, with this core."""
    return self.network.tile_size(core_size + 2 * self._more)


@dataclasses.dataclass(frozen=True)
class Coordinates:
  """The position of a feature map on its image: pixel x lies at y = a x + b.

  Pixels are points at integer coordinates, the first at 0.

  Attributes:
    scale: a, map pixels per image pixel.
    shift: b, position of image pixel 0, in map pixels.
  """

  scale: Fraction = Fraction(1)
  shift: Fraction = Fraction(0)


@dataclasses.dataclass(frozen=True)
class Footprint:
  """The input pixels that a convolution or a pooling takes, along one axis.

  It has as many positions as in Caffe.

  Attributes:
    kernel: k, taps.
    stride: s, pixels from one position to the next.
    pad: p, pixels of padding at each side.
    ceil: whether the last position may reach beyond the end (Caffe's poolings).
  """

  kernel: int = 1
  stride: int = 1
  pad: int = 0
  ceil: bool = False

  def locate(self, at: Coordinates) -> Coordinates:
    """Returns (a / s, (b + p - (k - 1) / 2) / s), for an input at (a, b)."""
    shift = at.shift + self.pad - Fraction(self.kernel - 1, 2)
    return Coordinates(at.scale / self.stride, shift / self.stride)

  def output_size(self, size: int) -> int:
    """Returns floor((N + 2p - k) / s) + 1 for an input of N pixels.

    With `ceil`, the quotient is rounded up. As in Caffe, positions that begin
    in the padding after the input are dropped. Unlike Caffe, where N = 1 can
    give 0, a `ceil` pooling of an input that isn't empty has at least one
    position.

    Raises:
      InputError: the output is empty.
    """
    count = self.output_extent(size)
    if size < 1 or count < 1:
      raise InputError(
        f'{size} px are too few for a footprint of {self.kernel} px with '
        f'{self.pad} px of padding at each side; at least '
        f'{max(self.kernel - 2 * self.pad, 1)} px are needed'
      )
    return count

  def output_extent(self, size: Any) -> Any:
    """Returns `output_size` of an integer or, element by element, an array.

    It has operators only, so that traced integers pass. Sizes that
    `output_size` refuses give meaningless results.
    """
    free = size + 2 * self.pad - self.kernel
    if not self.ceil:
      return free // self.stride + 1
    count = -(-free // self.stride) + 1
    count += (1 - count) * (count < 1)
    if self.pad:
      count -= 1 * ((count - 1) * self.stride >= size + self.pad)
    return count

  def padding(self, size: int) -> tuple[int, int]:
    """Returns the pixels to add before and after `size` to fill all positions.

    The second is negative if the positions leave pixels at the end unused.
    """
    span = (self.output_size(size) - 1) * self.stride + self.kernel
    return self.pad, span - size - self.pad


@dataclasses.dataclass(frozen=True)
class Deconvolution:
  """A transposed convolution without padding, along one axis.

  Attributes:
    kernel: k, taps.
    stride: s, output pixels per input pixel.
  """

  kernel: int
  stride: int

  def locate(self, at: Coordinates) -> Coordinates:
    """Returns (a s, b s + (k - 1) / 2), for an input at (a, b)."""
    shift = at.shift * self.stride + Fraction(self.kernel - 1, 2)
    return Coordinates(at.scale * self.stride, shift)

  def output_size(self, size: Any) -> Any:
    """Returns (N - 1) s + k of an integer or, element by element, an array."""
    return (size - 1) * self.stride + self.kernel


def locate(layers: Iterable[Footprint | Deconvolution]) -> Coordinates:
  """Returns the position of the output of layers that begin on an image."""
  at = Coordinates()
  for layer in layers:
    at = layer.locate(at)
  return at


def receptive_field(footprints: Iterable[Footprint]) -> int:
  """Returns the number of input pixels that one output of layers depends on."""
  field, step = 1, 1
  for footprint in footprints:
    field += (footprint.kernel - 1) * step
    step *= footprint.stride
  return field


def crop_offset(cropped: Coordinates, reference: Coordinates) -> int:
  """Returns the first pixel of `cropped` that lies on pixel 0 of `reference`.

  It is b_cropped - b_reference, and a slice from there has the reference's
  grid. It is no centre crop, and it is the same for every image size.

  Raises:
    InputError: the scales differ, or the offset is negative or no integer.
  """
  offset = cropped.shift - reference.shift
  if cropped.scale != reference.scale:
    raise InputError(
      f'maps of {cropped.scale} and {reference.scale} pixels per image pixel '
      'cannot be aligned by a crop; their strides must be equal'
    )
  if offset < 0 or offset.denominator != 1:
    raise InputError(
      f'crop offset {offset} is not an integer >= 0; change the padding of the '
      'first layer or the parity of the deconvolution kernel'
    )
  return int(offset)
