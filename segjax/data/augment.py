# SPDX-License-Identifier: Apache-2.0
"""Augmentation: random training tiles of whole images, resampled once.

Shift, rotation, flip and elastic deformation (Ronneberger et al. 2015, section
3.1) are composed into one map from tile pixels to image positions. The image is
then read once, by cubic convolution, which blurs it less than linear reading
does, and is mirrored at its borders. Afterwards gray values vary. All functions
are pure, and the training step maps them over a batch of keys and examples
(`jax.vmap`) on the device.

The step is compiled for one size, but images have many. So the host cuts the
region that a tile can reach out of each image (`cut_region`), and draws the
same centre of the tile as the device (`region_corner`).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import InputError

# Normal f32 values of jax come from 2^24 uniform ones: none is beyond 5.42.
_FURTHEST_NORMAL = 5.5


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """The ranges of the augmentation. All zeros and False make random crops.

  Without rotation and elastic deformation, tiles lie on whole pixels.

  Attributes:
    elastic_sigma_px: standard deviation of each component of the displacement
      of the grid's nodes (10 in the paper).
    elastic_grid: number of nodes along each side of the input tile (3 in the
      paper).
    rotation_deg: largest angle; angles are uniform in +- `rotation_deg`.
    flip: whether the columns of half of the tiles are mirrored.
    shift_px: pixels by which an output window may leave the image; see
      `sample_positions`.
    black: largest change of the level of black, up or down, as a share of the
      range of gray values.
    white: largest change of the level of white.
    log_gamma: largest logarithm of the exponent of gray values; logarithms are
      uniform in +- `log_gamma`.

  >>> import segjax
  >>> segjax.Augmentation(rotation_deg=180.0, flip=True).elastic_sigma_px
  0.0
  """

  elastic_sigma_px: float = 0.0
  elastic_grid: int = 3
  rotation_deg: float = 0.0
  flip: bool = False
  shift_px: float = 0.0
  black: float = 0.0
  white: float = 0.0
  log_gamma: float = 0.0

  def __post_init__(self):
    if self.elastic_grid < 1:
      raise InputError(f'elastic_grid={self.elastic_grid} must be at least 1')


def augment(
  key: jax.Array,
  image: jax.Array,
  label: jax.Array,
  weight: jax.Array | None,
  *,
  input_size: int,
  output_size: int,
  amount: Augmentation,
  size: jax.Array | None = None,
  corner: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Returns one training tile (image, label, weight).

  With `size` and `corner`, arrays hold a region of the image (see
  `cut_region`), and the tile is that of the whole image.

  Args:
    key: jax key.
    image: f32[H, W, C] in [0, 1].
    label: i32[H, W].
    weight: f32[H, W], or None, for which None is returned.
    input_size: s, side of the image tile, in pixels.
    output_size: o <= s, side of the label tile, which has the same centre.
    amount: ranges of the augmentation.
    size: i32[2], height and width of the whole image; None for those of
      `image`.
    corner: i32[2], row and column where the region begins; None for 0, 0.

  Returns:
    f32[s, s, C] read by cubic convolution, which may leave [0, 1] beside edges,
    i32[o, o] read at the nearest pixel and f32[o, o] read linearly, so that
    weights stay positive, all at the same positions.

  >>> import jax, segjax
  >>> image = jax.numpy.zeros((40, 50, 1))
  >>> label = jax.numpy.ones((40, 50), int)
  >>> amount = segjax.Augmentation(elastic_sigma_px=3.0, rotation_deg=180.0)
  >>> tile, target, _ = segjax.augment(
  ...   jax.random.key(0), image, label, None,
  ...   input_size=28, output_size=20, amount=amount)
  >>> tile.shape, target.shape
  ((28, 28, 1), (20, 20))
  """
  position_key, gray_key = jax.random.split(key)
  whole = label.shape if size is None else size
  first = (0, 0) if corner is None else corner
  positions = sample_positions(
    position_key, whole, input_size, output_size, amount
  )
  margin = (input_size - output_size) // 2
  central = positions[:, margin : margin + output_size]
  central = central[:, :, margin : margin + output_size]
  read = functools.partial(_read, size=whole, corner=first)
  sharp = functools.partial(read, shares=_cubic_shares)
  tile = jax.vmap(sharp, in_axes=(2, None), out_axes=2)(image, positions)
  row, column = (
    _mirror(jax.lax.round(x), n) - c
    for x, n, c in zip(central, whole, first, strict=True)
  )
  return (
    vary_gray_values(gray_key, tile, amount),
    label[row, column],
    None if weight is None else read(weight, central, shares=_linear_shares),
  )


def _read(plane, positions, size, corner, shares):
  """Returns the values f32[...] of an image between its pixels.

  Args:
    plane: f32[H, W], region of the image.
    positions: f32[2, ...], rows and columns in the image; it is mirrored where
      they are outside.
    size: height and width of the image.
    corner: row and column where the region begins.
    shares: position in [0, 1] between two pixels -> share of each pixel around
      it, of as many on either side.
  """
  taps = []
  for position, length, first in zip(positions, size, corner, strict=True):
    below = jnp.floor(position)
    parts = shares(position - below)
    begin = below - (len(parts) // 2 - 1)
    taps.append(
      [
        (_mirror(begin + n, length) - first, part)
        for n, part in enumerate(parts)
      ]
    )
  return functools.reduce(
    jnp.add,
    [
      row_share * column_share * plane[row, column]
      for row, row_share in taps[0]
      for column, column_share in taps[1]
    ],
  )


def _linear_shares(x):
  return 1 - x, x


def _cubic_shares(x):
  """Returns the shares of four pixels in cubic convolution.

  It has a = -1/2 (Keys 1981). At a pixel, x = 0 or 1, the shares are exactly
  those of this pixel alone.
  """

  def near(d):
    return (1.5 * d - 2.5) * d * d + 1

  def far(d):
    return ((2.5 - 0.5 * d) * d - 4) * d + 2

  return far(1 + x), near(x), near(1 - x), far(2 - x)


def _mirror(index, length):
  """Returns indices in 0 .. length - 1, i32[...], after any reflections.

  At a multiple of the period, either rounding of the quotient is right.

  Args:
    index: f32[...], whole numbers; on CPU f32 divides faster than i32.
    length: number of indices.
  """
  last = jnp.asarray(length, jnp.float32) - 1
  period = jnp.maximum(2 * last, 1)  # One pixel is its own mirror image.
  turned = index + last
  turned = jnp.abs(turned - period * jnp.floor(turned / period))
  return jnp.abs(turned - last).astype(jnp.int32)


def sample_positions(
  key: jax.Array,
  image_shape: Sequence[int] | jax.Array,
  input_size: int,
  output_size: int,
  amount: Augmentation,
) -> jax.Array:
  """Returns the image position (row, column) of every pixel of a random tile.

  The position is t + R F (u + e(u)), with u the pixel's offset from the tile's
  centre, e the elastic displacement, F a flip, R a rotation and t the centre.

  The centre is uniform over the positions at which the output lies inside the
  image, and `shift_px` beyond. So border pixels are trained less often than
  central ones. In 3,000 draws of ISBI's card (388 of 512 px come out, rotated,
  shift_px=16) the outermost 16 px were read .13 times as often as the centre,
  .20 times with their mirror images, and those of the corners less than .01
  times. The Fiji plug-in of U-Net's authors draws the centre from a map over
  the whole image, and then moves it by up to 8 px. In short runs of a narrow
  network here, centres anywhere in the image brought no gain beyond the
  differences between seeds.

  Without rotation and elastic deformation, positions are whole pixels, so that
  tiles are as sharp as the image.

  Returns:
    f32[2, input_size, input_size], in pixels; some may be outside the image.
  """
  elastic_key, angle_key, flip_key, centre_key = jax.random.split(key, 4)
  offset = jnp.arange(input_size) - (input_size - 1) / 2
  u = jnp.stack(jnp.meshgrid(offset, offset, indexing='ij'))
  u += elastic_displacement(
    elastic_key, input_size, amount.elastic_grid, amount.elastic_sigma_px
  )
  angle = jnp.deg2rad(amount.rotation_deg) * jax.random.uniform(
    angle_key, minval=-1.0
  )
  mirrored = amount.flip & jax.random.bernoulli(flip_key)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  row, column = u[0], jnp.where(mirrored, -u[1], u[1])
  turned = jnp.stack((cos * row - sin * column, sin * row + cos * column))
  t = _sample_centre(centre_key, image_shape, output_size, amount)
  return turned + t.reshape(2, 1, 1)


def _sample_centre(key, image_shape, output_size, amount):
  """Returns the position of a tile's centre, f32[2]."""
  if not isinstance(image_shape, jax.Array):
    image_shape = np.asarray(image_shape)
  centre = jnp.asarray((image_shape - 1) / 2, jnp.float32)
  slack = (image_shape - output_size).clip(0) / 2
  half_range = jnp.asarray(slack + amount.shift_px, jnp.float32)
  draw = jax.random.uniform(key, (2,), minval=-1.0)
  if amount.rotation_deg or amount.elastic_sigma_px:
    return centre + half_range * draw
  # Uniform over the whole pixels where the output window may begin.
  begin = centre - (output_size - 1) / 2
  lowest = jnp.ceil(begin - half_range)
  count = jnp.maximum(jnp.floor(begin + half_range) - lowest + 1, 1)
  index = jnp.minimum(jnp.floor((draw + 1) / 2 * count), count - 1)
  return lowest + index + (output_size - 1) / 2


def region_side(input_size: int, amount: Augmentation) -> int:
  """Returns the side of a square, in pixels, that holds what any tile reads."""
  matrix = np.abs(cubic_matrix(input_size, amount.elastic_grid))
  furthest = _FURTHEST_NORMAL * abs(amount.elastic_sigma_px)
  displacement = furthest * matrix.sum(1).max() ** 2
  angle = math.radians(min(abs(amount.rotation_deg), 45.0))
  reach = (input_size - 1) / 2 + displacement
  reach *= math.cos(angle) + math.sin(angle)
  # The reach counts on both sides of the centre or, if the centre is outside
  # the image, up to the mirrored end. The 8 px are for the pixels around a
  # position and for the roundings of host and device.
  return math.ceil(reach + max(reach, amount.shift_px)) + 8


def region_corner(
  key: jax.Array,
  size: jax.Array,
  *,
  side: int,
  output_size: int,
  amount: Augmentation,
) -> jax.Array:
  """Returns row and column where the region of a tile begins, i32[2].

  Args:
    key, output_size, amount: arguments of `augment` for the tile.
    size: i32[2], height and width of the image.
    side: side of the region, see `region_side`.
  """
  centre_key = jax.random.split(jax.random.split(key)[0], 4)[3]
  centre = _sample_centre(centre_key, size, output_size, amount)
  corner = jnp.round(centre - (side - 1) / 2).astype(jnp.int32)
  return jnp.clip(corner, 0, jnp.maximum(size - side, 0))


def cut_region(
  array: np.ndarray, corner: Sequence[int] | np.ndarray, side: int
) -> np.ndarray:
  """Returns a region [side, side, ...] of [H, W, ...], 0 outside the image."""
  row, column = corner
  part = array[row : row + side, column : column + side]
  if part.shape[:2] == (side, side):
    return part
  region = np.zeros((side, side, *array.shape[2:]), array.dtype)
  region[: part.shape[0], : part.shape[1]] = part
  return region


def elastic_displacement(
  key: jax.Array, size: int, grid: int, sigma: float
) -> jax.Array:
  """Returns a smooth random displacement field f32[2, size, size], in pixels.

  Independent N(0, sigma^2) components at grid x grid nodes are interpolated
  bicubically (`cubic_matrix`). The outermost nodes are the corner pixels of the
  tile. The standard deviation is `sigma` at the nodes, and less between them.
  """
  nodes = sigma * jax.random.normal(key, (2, grid, grid), jnp.float32)
  matrix = jnp.asarray(cubic_matrix(size, grid))
  return jnp.einsum('ia,kab,jb->kij', matrix, nodes, matrix)


def cubic_matrix(size: int, grid: int) -> np.ndarray:
  """Returns the f32[size, grid] that interpolates nodes to pixels of an axis.

  It is cubic convolution (`_cubic_shares`), with the outermost nodes repeated
  beyond the ends. Rows sum to 1; a pixel on a node takes its value.
  """
  position = np.linspace(0, grid - 1, size)
  base = np.clip(np.floor(position).astype(int), 0, max(grid - 2, 0))
  matrix = np.zeros((size, grid))
  for tap, share in enumerate(_cubic_shares(position - base), start=-1):
    node = np.clip(base + tap, 0, grid - 1)
    np.add.at(matrix, (np.arange(size), node), share)
  return matrix.astype(np.float32)


def vary_gray_values(
  key: jax.Array, image: jax.Array, amount: Augmentation
) -> jax.Array:
  """Returns black + (white - black) image^gamma with random levels.

  Args:
    key: jax key.
    image: f32[...], most of it in [0, 1].
    amount: ranges of black, white - 1 and log gamma.
  """
  if not (amount.black or amount.white or amount.log_gamma):
    return image  # Saves a power for each pixel.
  draw = jax.random.uniform(key, (3,), minval=-1.0)
  black, white = amount.black * draw[0], 1 + amount.white * draw[1]
  gamma = jnp.exp(amount.log_gamma * draw[2])
  # Below 0, where powers are undefined, values stay as they are.
  powers = jnp.maximum(image, 0.0) ** gamma + jnp.minimum(image, 0.0)
  return black + (white - black) * powers
