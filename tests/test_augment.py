# SPDX-License-Identifier: Apache-2.0
"""Augmentation against numpy, scipy and by statistics of its fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from segjax.data.augment import (
  Augmentation,
  augment,
  cubic_matrix,
  cut_region,
  elastic_displacement,
  region_corner,
  region_side,
  sample_positions,
  vary_gray_values,
)

STRONG = Augmentation(
  elastic_sigma_px=10.0, rotation_deg=180.0, flip=True, shift_px=30.0
)
INPUT, OUTPUT = 60, 40


def example(seed=0, shape=(50, 64)):
  rng = np.random.default_rng(seed)
  image = rng.uniform(size=(*shape, 2)).astype(np.float32)
  label = rng.integers(0, 3, shape).astype(np.int32)
  weight = rng.uniform(1, 5, shape).astype(np.float32)
  return image, label, weight


def run(key, arrays, amount):
  return jax.jit(
    lambda key, *arrays: augment(
      key, *arrays, input_size=INPUT, output_size=OUTPUT, amount=amount
    )
  )(key, *arrays)


def keys(distance):
  """Kernel of cubic convolution with a = -1/2 (Keys 1981), piece by piece."""
  d = np.abs(distance)
  near = 1.5 * d**3 - 2.5 * d**2 + 1
  far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
  return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def read_cubic(plane, positions):
  """Sum over all pixels of the mirrored plane, each times its kernel."""
  pad = 45
  mirrored = np.pad(plane.astype(float), pad, mode='reflect')
  row, column = (
    keys(np.subtract.outer(at, np.arange(n) - pad))
    for at, n in zip(positions.astype(float), mirrored.shape, strict=True)
  )
  return np.einsum('abi,abj,ij->ab', row, column, mirrored, optimize=True)


def test_image_label_and_weight_are_read_at_the_same_places_as_scipy_does():
  arrays = image, label, weight = example()
  key = jax.random.key(3)
  tiles = run(key, arrays, STRONG)
  positions = np.asarray(
    sample_positions(
      jax.random.split(key)[0], label.shape, INPUT, OUTPUT, STRONG
    )
  )
  # The map does leave the image, so that mirroring is tested.
  assert positions.min() < -5 and positions.max() > 64
  central = positions[:, 10:50, 10:50]

  def read(plane, at, order):
    return scipy.ndimage.map_coordinates(plane, at, order=order, mode='mirror')

  for channel in range(2):
    np.testing.assert_allclose(
      tiles[0][..., channel],
      read_cubic(image[..., channel], positions),
      atol=1e-4,
    )
  np.testing.assert_allclose(tiles[2], read(weight, central, 1), atol=1e-3)
  # Ties between two pixels may round to either.
  assert np.mean(tiles[1] != read(label, central, 0)) < 2e-3
  assert tiles[1].dtype == jnp.int32


def test_no_augmentation_is_a_crop_of_the_mirrored_image():
  arrays = image, label, weight = example(shape=(40, 40))
  tile, tile_label, tile_weight = run(jax.random.key(0), arrays, Augmentation())
  want = np.pad(image, [(10, 10), (10, 10), (0, 0)], mode='reflect')
  np.testing.assert_allclose(tile, want, atol=1e-6)
  np.testing.assert_array_equal(tile_label, label)
  np.testing.assert_allclose(tile_weight, weight, atol=1e-6)


def test_a_tile_is_a_function_of_its_key():
  arrays = example()
  once, again = (run(jax.random.key(5), arrays, STRONG) for _ in range(2))
  other = run(jax.random.key(6), arrays, STRONG)
  for a, b, c in zip(once, again, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_crops_stay_inside_unless_shifted():
  keys = jax.random.split(jax.random.key(0), 300)

  def corners(amount):
    positions = jax.vmap(
      lambda key: sample_positions(key, (60, 80), 30, 20, amount)[:, 5:25, 5:25]
    )(keys)
    return np.asarray(positions).transpose(1, 0, 2, 3).reshape(2, -1)

  low, high = corners(Augmentation()).min(1), corners(Augmentation()).max(1)
  assert (low >= -1e-4).all() and (low < 1).all()
  assert (high <= [59 + 1e-4, 79 + 1e-4]).all() and (high > [58, 78]).all()
  low = corners(Augmentation(shift_px=8)).min(1)
  assert ((-8 <= low) & (low < -7)).all()


def test_rotation_and_flip_are_rigid_and_uniform():
  keys = jax.random.split(jax.random.key(1), 400)
  amount = Augmentation(rotation_deg=180.0, flip=True)
  positions = np.asarray(
    jax.vmap(lambda key: sample_positions(key, (9, 9), 9, 9, amount))(keys)
  )
  down = positions[:, :, 8, 4] - positions[:, :, 0, 4]
  right = positions[:, :, 4, 8] - positions[:, :, 4, 0]
  np.testing.assert_allclose(np.linalg.norm(down, axis=1), 8, rtol=1e-5)
  np.testing.assert_allclose(np.sum(down * right, axis=1), 0, atol=1e-3)
  determinant = down[:, 0] * right[:, 1] - down[:, 1] * right[:, 0]
  assert 0.4 < np.mean(determinant < 0) < 0.6
  angle = np.arctan2(down[:, 1], down[:, 0])
  quarters = np.histogram(angle, bins=4, range=(-np.pi, np.pi))[0]
  assert quarters.min() > 60


def test_elastic_displacement_has_its_deviation_at_the_nodes():
  keys = jax.random.split(jax.random.key(2), 2000)
  fields = jax.vmap(lambda key: elastic_displacement(key, 41, 3, 10.0))(keys)
  deviation = np.std(fields, axis=0)
  nodes = deviation[:, ::20, ::20]
  np.testing.assert_allclose(nodes, 10, rtol=0.06)
  between = deviation[:, 10, 10]
  assert (between < 8).all() and (between > 4).all()


@pytest.mark.parametrize('grid', [2, 3, 5])
def test_cubic_matrix_is_keys_interpolation(grid):
  size = 24 * (grid - 1) + 1
  matrix = cubic_matrix(size, grid)
  np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(matrix[::24], np.eye(grid), atol=1e-6)
  # Half-way between inner nodes: (-1, 9, 9, -1) / 16.
  if grid == 5:
    np.testing.assert_allclose(
      matrix[36], [-1 / 16, 9 / 16, 9 / 16, -1 / 16, 0], atol=1e-6
    )


def test_gray_values_vary_within_their_ranges():
  keys = jax.random.split(jax.random.key(4), 500)
  amount = Augmentation(black=0.1, white=0.2, log_gamma=0.5)
  image = jnp.array([0.0, 0.5, 1.0])
  got = np.asarray(
    jax.vmap(lambda key: vary_gray_values(key, image, amount))(keys)
  )
  black, middle, white = got.T
  assert -0.1 <= black.min() < -0.09 and 0.09 < black.max() <= 0.1
  assert 0.8 <= white.min() < 0.81 and 1.19 < white.max() <= 1.2
  gamma = np.log((middle - black) / (white - black)) / np.log(0.5)
  assert np.exp(-0.5) - 1e-3 <= gamma.min() < 0.63
  assert 1.6 < gamma.max() <= np.exp(0.5) + 1e-3
  same = vary_gray_values(keys[0], image, Augmentation())
  np.testing.assert_array_equal(same, image)


def mirrored(index, length):
  """Walks from pixel to pixel and turns round at both ends."""
  place, step = 0, 1
  for _ in range(abs(index)):  # Both directions read the same.
    if length > 1 and not 0 <= place + step < length:
      step = -step
    place += step if length > 1 else 0
  return place


@pytest.mark.parametrize('shape', [(7, 1), (2, 19), (39, 40)])
def test_an_image_smaller_than_a_tile_is_mirrored_as_often_as_needed(shape):
  arrays = image, label, weight = example(shape=shape)
  # The output begins on the whole pixel that centres it, or half a pixel off.
  rows, columns = (
    [mirrored(i - (OUTPUT - n) // 2 - 10, n) for i in range(INPUT)]
    for n in shape
  )
  tiles = run(jax.random.key(0), arrays, Augmentation())
  np.testing.assert_array_equal(tiles[0], image[np.ix_(rows, columns)])
  central = np.ix_(rows[10:50], columns[10:50])
  np.testing.assert_array_equal(tiles[1], label[central])
  np.testing.assert_array_equal(tiles[2], weight[central])


@pytest.mark.parametrize('shift_px', [0.0, 3.7])
@pytest.mark.parametrize('flip', [False, True])
def test_plain_crops_are_sharp_and_begin_at_every_pixel_alike(flip, shift_px):
  stripes = np.tile(np.float32([0, 1]), (30, 13))[..., None]
  amount = Augmentation(flip=flip, shift_px=shift_px)
  keys = jax.random.split(jax.random.key(3), 4000)
  positions = np.asarray(
    jax.vmap(lambda key: sample_positions(key, (30, 26), 16, 16, amount))(keys)
  )
  np.testing.assert_array_equal(positions, np.round(positions))
  shift = int(shift_px)
  for axis, length in enumerate((30, 26)):
    begin = positions[:, axis].min((1, 2)).astype(int)
    counts = np.bincount(begin + shift, minlength=length - 15 + 2 * shift)
    assert len(counts) == length - 15 + 2 * shift
    expected = 4000 / len(counts)
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)
  tile, _, _ = augment(
    keys[0],
    stripes,
    np.zeros((30, 26), np.int32),
    None,
    input_size=16,
    output_size=16,
    amount=amount,
  )
  assert {*np.ravel(tile)} == {0, 1}


def test_deformed_tiles_have_continuous_centres():
  keys = jax.random.split(jax.random.key(7), 20)
  for amount in (
    Augmentation(rotation_deg=5.0, shift_px=3.3),
    Augmentation(elastic_sigma_px=1e-9, shift_px=3.3),
  ):
    for key in keys:
      positions = sample_positions(key, (90, 70), 21, 11, amount)
      draw = jax.random.uniform(jax.random.split(key, 4)[3], (2,), minval=-1.0)
      half_range = np.float32([79 / 2 + 3.3, 59 / 2 + 3.3])
      expected = np.float32([44.5, 34.5]) + half_range * np.asarray(draw)
      np.testing.assert_allclose(positions[:, 10, 10], expected, atol=1e-5)


@pytest.mark.parametrize(
  'amount',
  [
    Augmentation(),
    Augmentation(shift_px=150.0, flip=True),
    Augmentation(rotation_deg=20.0, shift_px=5.3),
    STRONG,
  ],
)
def test_a_region_gives_the_tile_of_the_whole_image(amount):
  side = region_side(INPUT, amount)
  keys = jax.random.split(jax.random.key(8), 40)
  sizes = dict(input_size=INPUT, output_size=OUTPUT, amount=amount)
  corner_of = jax.jit(
    jax.vmap(
      lambda key, size: region_corner(
        key, size, side=side, output_size=OUTPUT, amount=amount
      ),
      (0, None),
    )
  )
  of_whole = jax.jit(
    jax.vmap(
      lambda key, *arrays: augment(key, *arrays, **sizes), (0, *[None] * 3)
    )
  )
  of_region = jax.jit(
    jax.vmap(
      lambda key, size, corner, *arrays: augment(
        key, *arrays, **sizes, size=size, corner=corner
      ),
      (0, None, 0, 0, 0, 0),
    )
  )
  is_plain = not (amount.rotation_deg or amount.elastic_sigma_px)
  for shape in ((1, 1), (9, side + 40), (side, side), (side + 1, side + 300)):
    arrays = example(shape=shape)
    size = np.array(shape, np.int32)
    corners = np.asarray(corner_of(keys, size))
    regions = [
      np.stack([cut_region(array, corner, side) for corner in corners])
      for array in arrays
    ]
    for region, padding in zip(regions, (np.nan, 7, np.nan), strict=True):
      for axis in (1, 2):  # Whatever lies beyond the image is not read.
        beyond = np.moveaxis(region, axis, 0)[shape[axis - 1] :]
        beyond[:] = padding
    whole = of_whole(keys, *arrays)
    cut = of_region(keys, size, corners, *regions)
    for a, b in zip(whole, cut, strict=True):
      a, b = np.asarray(a), np.asarray(b)
      if is_plain:
        np.testing.assert_array_equal(a, b)
      elif a.dtype == np.int32:
        assert np.mean(a != b) < 1e-3  # Ties between two pixels.
      else:
        # Of positions up to `side` + 300 px, whose last bit may differ.
        np.testing.assert_allclose(a, b, atol=2e-3)
  assert of_region._cache_size() == 1
