# SPDX-License-Identifier: Apache-2.0
"""The settings of a prediction, checked when they are made."""

import dataclasses
from collections.abc import Sequence

from segjax.errors import InputError
from segjax.tiling.turns import DIHEDRAL_GROUP, Transform

ACTIVATIONS = ('probabilities', 'logits')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileSettings:
  """What is predicted of an image, by which tiles, on which devices.

  The defaults predict the probabilities of one image by the tiles that compute
  the fewest pixels. Tiles change no result but by rounding.

  Attributes:
    average: True predicts the mean over the eight turns and flips of the square
      (test-time augmentation): each activation is turned back, and the mean is
      taken in float32. A sequence of (quarter turns, flip), as in
      `turns.DIHEDRAL_GROUP`, takes the mean over those.
    activation: 'probabilities' (softmax over the classes of each head) or
      'logits'.
    tile_size: side of a tile, or its height and width, in input pixels; None
      for the shape that computes the fewest pixels, see `choose_tile_shape`.
    max_tile_size_px: limit to that choice, in input pixels; None for
      `Geometry.default_max_tile_size_px`.
    tile_memory_mib: instead of `max_tile_size_px`, the memory that a batch of
      tiles may take of each device, in MiB; 0 for no such limit. See
      `programs.Program.bytes_of`.
    tiles_per_batch: tiles computed at once, on each device.
    bucket_px: rounds a tile that covers a whole side up to a multiple of this,
      so that images of many sizes share few compiled programs. 0 compiles a
      program for each size. Only for networks that take any size.
    most_tiles: number of tiles of the largest image of the run. If that is too
      few for all local devices, one device is used, for every image alike. 0
      for the tiles of the image at hand.
    space: devices that share each tile, by rows; see
      `parallel.place_locally`.

  >>> import segjax
  >>> len(segjax.TileSettings(average=True).transforms)  # Turns and flips.
  8
  """

  average: bool | Sequence[Transform] = False
  activation: str = 'probabilities'
  tile_size: int | tuple[int, int] | None = None
  max_tile_size_px: int | None = None
  tile_memory_mib: int = 0
  tiles_per_batch: int = 1
  bucket_px: int = 0
  most_tiles: int = 0
  space: int = 1

  def __post_init__(self):
    if self.activation not in ACTIVATIONS:
      raise InputError(
        f'activation={self.activation!r} is not one of {ACTIVATIONS}'
      )
    if not isinstance(self.average, bool) and not self.average:
      raise InputError(
        'average=() lists no transforms; use False for the image as it is'
      )
    for name, least in (
      ('tile_memory_mib', 0),
      ('tiles_per_batch', 1),
      ('bucket_px', 0),
      ('most_tiles', 0),
      ('space', 1),
    ):
      value = getattr(self, name)
      if value < least:
        raise InputError(f'{name}={value} must be at least {least}')

  @property
  def transforms(self) -> Sequence[Transform]:
    """The turns and flips over which the mean is taken; see `turns`."""
    if isinstance(self.average, bool):
      return DIHEDRAL_GROUP if self.average else ((0, False),)
    return self.average

  @property
  def has_quarter_turns(self) -> bool:
    """Whether `transforms` exchange height and width; tiles then are square."""
    return any(turns % 2 for turns, _ in self.transforms)
