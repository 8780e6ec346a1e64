# SPDX-License-Identifier: Apache-2.0
"""The contract of a network with prediction and evaluation."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

from segjax.geometry import Geometry


@runtime_checkable
class SegmentationModel(Protocol):
  """A network that gives logits for every pixel.

  The linen modules of U-Net and FCN fulfil it, and so does an exported
  artifact.

  Attributes:
    geometry: sizes of images, tiles and logits.
    in_channels: C, channels of an image.
    num_classes: K, channels of the logits.
    head_names: the name of each head; '' for a single head.
    head_sizes: the number of classes of each head, in the order of the logits;
      their sum is K.
  """

  @property
  def geometry(self) -> Geometry: ...

  @property
  def in_channels(self) -> int: ...

  @property
  def num_classes(self) -> int: ...

  @property
  def head_names(self) -> tuple[str, ...]: ...

  @property
  def head_sizes(self) -> tuple[int, ...]: ...

  @property
  def apply(self) -> Callable[..., Any]:
    """The function (variables, image, **options) -> logits f32[B, h, w, K].

    Args:
      variables: {'params': params}.
      image: pixels f32[B, H, W, C], normalised like the training images.
      **options: `size` i32[B, 2] if `geometry.takes_any_size`, the true height
        and width of images that are padded at their ends. A linen module also
        takes `train` and `rngs`.
    """
    ...


@dataclasses.dataclass(frozen=True)
class FunctionModel:
  """A `SegmentationModel` that consists of a function and its description.

  Attributes:
    apply: see `SegmentationModel`. Pass the same function object again to reuse
      its compiled programs.
    geometry: sizes of the network behind `apply`.
    in_channels: C, channels of an image.
    head_sizes: the number of classes of each head.
    head_names: the name of each head.
    takes_frame: whether `apply` takes `frame` i32[B, 2, 2] instead of `size`:
      the first row and column of a tile that lie in the image, and the row and
      column after the last.
  """

  apply: Callable[..., jax.Array]
  geometry: Geometry
  in_channels: int
  head_sizes: tuple[int, ...]
  head_names: tuple[str, ...] = ('',)
  takes_frame: bool = False

  @property
  def num_classes(self) -> int:
    """K, the number of classes of all heads together."""
    return sum(self.head_sizes)
