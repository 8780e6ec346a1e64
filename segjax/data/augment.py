# SPDX-License-Identifier: Apache-2.0
"""Training tiles drawn from whole images, by one resampling, on device.

Shift, rotation, flip and elastic deformation (Ronneberger et al. 2015, section
3.1) are composed into one map from tile pixels to image positions; the image
is then read once, linearly, and mirrored where the map leaves it. Gray values
vary afterwards. Everything is a pure function of (key, example) and is made to
be vmapped over both inside the jitted training step.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from segjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """How much tiles vary. All zeros and False: plain random crops.

  Attributes:
    elastic_sigma_px: standard deviation of each component of the displacement
      at the grid's nodes (10 in the paper).
    elastic_grid: nodes along each side of the input tile (3 in the paper).
    rotation_deg: the angle is uniform in +- this.
    flip: whether to mirror columns for half of the tiles.
    shift_px: the tile's centre is uniform where the output window lies inside
      the image, widened by this on each side.
    black: the level of black moves by a uniform value in +- this, where 1 is
      the range of gray values.
    white: the same for the level of white.
    log_gamma: logarithm of the exponent applied to gray values, uniform in
      +- this.

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
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Returns one training tile (image, label, weight).

  Args:
    key: jax key.
    image: f32[H, W, C] in [0, 1].
    label: i32[H, W].
    weight: f32[H, W], or None, which comes back as None.
    input_size: s, side of the image tile, in pixels.
    output_size: o <= s, side of the label tile, concentric with the former.
    amount: how much to vary.

  Returns:
    f32[s, s, C] read linearly, i32[o, o] read at the nearest pixel and
    f32[o, o] read linearly, all at the same positions.

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
  positions = sample_positions(
    position_key, image.shape[:2], input_size, output_size, amount
  )
  margin = (input_size - output_size) // 2
  central = positions[:, margin : margin + output_size]
  central = central[:, :, margin : margin + output_size]
  tile = jax.vmap(read_linear, in_axes=(2, None), out_axes=2)(image, positions)
  return (
    vary_gray_values(gray_key, tile, amount),
    map_coordinates(label, list(central), order=0, mode='mirror'),
    None if weight is None else read_linear(weight, central),
  )


def read_linear(plane: jax.Array, positions: jax.Array) -> jax.Array:
  """Reads f32[H, W] at f32[2, ...] (row, column), mirrored outside."""
  return map_coordinates(plane, list(positions), order=1, mode='mirror')


def sample_positions(
  key: jax.Array,
  image_shape: Sequence[int],
  input_size: int,
  output_size: int,
  amount: Augmentation,
) -> jax.Array:
  """Returns the image position (row, column) of every pixel of a random tile.

  With u the pixel's offset from the tile's centre, e the elastic displacement,
  F a flip, R a rotation and t the tile's place: t + R F (u + e(u)).

  Returns:
    f32[2, input_size, input_size], in pixels; may lie outside the image.
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

  centre = (np.asarray(image_shape) - 1) / 2
  slack = np.maximum(np.asarray(image_shape) - output_size, 0) / 2
  half_range = jnp.asarray(slack + amount.shift_px, jnp.float32)
  t = centre + half_range * jax.random.uniform(centre_key, (2,), minval=-1.0)
  return turned + t.astype(jnp.float32).reshape(2, 1, 1)


def elastic_displacement(
  key: jax.Array, size: int, grid: int, sigma: float
) -> jax.Array:
  """Returns a smooth random displacement field f32[2, size, size], in pixels.

  Independent N(0, sigma^2) components at grid x grid nodes, the outermost at
  the tile's corner pixels, bicubically interpolated (`cubic_matrix`), so that
  the standard deviation is exactly `sigma` at the nodes and less between.
  """
  nodes = sigma * jax.random.normal(key, (2, grid, grid))
  matrix = jnp.asarray(cubic_matrix(size, grid))
  return jnp.einsum('ia,kab,jb->kij', matrix, nodes, matrix)


def cubic_matrix(size: int, grid: int) -> np.ndarray:
  """Returns f32[size, grid] that interpolates nodes to pixels along an axis.

  Cubic convolution with a = -1/2 (Keys 1981); beyond the ends the outermost
  node is repeated. Rows sum to 1; a pixel on a node takes the node's value.
  """
  position = np.linspace(0, grid - 1, size)
  base = np.clip(np.floor(position).astype(int), 0, max(grid - 2, 0))
  matrix = np.zeros((size, grid))
  for tap in range(-1, 3):
    d = np.abs(position - base - tap)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    value = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    node = np.clip(base + tap, 0, grid - 1)
    np.add.at(matrix, (np.arange(size), node), value)
  return matrix.astype(np.float32)


def vary_gray_values(
  key: jax.Array, image: jax.Array, amount: Augmentation
) -> jax.Array:
  """Returns black + (white - black) image^gamma with random levels.

  Args:
    key: jax key.
    image: f32[...], most of it in [0, 1].
    amount: gives the ranges of black, white - 1 and log gamma.
  """
  if not (amount.black or amount.white or amount.log_gamma):
    return image  # Spares a power for each pixel.
  draw = jax.random.uniform(key, (3,), minval=-1.0)
  black, white = amount.black * draw[0], 1 + amount.white * draw[1]
  gamma = jnp.exp(amount.log_gamma * draw[2])
  # Below 0, where powers are undefined, values stay as they are.
  powers = jnp.maximum(image, 0.0) ** gamma + jnp.minimum(image, 0.0)
  return black + (white - black) * powers
