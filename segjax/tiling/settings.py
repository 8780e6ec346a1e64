# SPDX-License-Identifier: Apache-2.0
"""The settings of a prediction, checked when they are made."""

import dataclasses
from collections.abc import Sequence

from segjax.errors import InputError, check_least
from segjax.tiling.turns import DIHEDRAL_GROUP, Transform

ACTIVATIONS = ('probabilities', 'logits')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileSettings:
  """The settings of a prediction: activation, averaging, tiles and devices.

  The defaults predict probabilities by the tiles that compute the fewest
  pixels. Tiles change a result by rounding alone.

  Attributes:
    average: True predicts the mean over the eight turns and flips of the image
      (test-time augmentation): the outputs are turned back and averaged in
      float32. A sequence of (quarter turns, flip), as in
      `turns.DIHEDRAL_GROUP`, averages over these only.
    activation: 'probabilities' (softmax over the classes of each head) or
      'logits'.
    tile_size: side of a tile, or its height and width, in input pixels; None
      for the shape that computes the fewest pixels, see `choose_tile_shape`.
    max_tile_size_px: largest side that is chosen where `tile_size` is None, in
      input pixels; None for `Geometry.default_max_tile_size_px`.
    tile_memory_mib: instead of `max_tile_size_px`, the memory that a batch of
      tiles may take on each device, in MiB; 0 for no such limit. See
      `programs.Program.bytes_of`.
    tiles_per_batch: tiles computed at once, on each device.
    bucket_px: a tile that covers a whole side is rounded up to a multiple of
      this, so that images of many sizes share few compiled programs. 0 compiles
      a program for each size. Only for networks that take any size.
    most_tiles: number of tiles of the largest image of the run. If that is too
      few for all local devices, one device is used, for every image alike. 0
      for the tiles of the image at hand.
    space: number of devices that share each tile, by rows; see
      `parallel.place_locally`.

  Raises:
    InputError: a value is out of its range.

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
    check_least(
      self,
      tile_memory_mib=0,
      tiles_per_batch=1,
      bucket_px=0,
      most_tiles=0,
      space=1,
    )

  @property
  def transforms(self) -> Sequence[Transform]:
    """The turns and flips of test-time augmentation; see `turns`."""
    if isinstance(self.average, bool):
      return DIHEDRAL_GROUP if self.average else ((0, False),)
    return self.average

  @property
  def has_quarter_turns(self) -> bool:
    """Whether `transforms` exchange height and width; tiles then are square."""
    return any(turns % 2 for turns, _ in self.transforms)
