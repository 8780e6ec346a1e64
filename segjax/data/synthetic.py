# SPDX-License-Identifier: Apache-2.0
"""Drawn electron micrographs of nerve tissue, with exact labels.

The demo and the tests use them in place of the ISBI 2012 stack. Cells are
additively weighted Voronoi regions of seeds that wander from slice to slice,
seen through a smooth warp. The membranes between them differ in width and
darkness, and some are nearly invisible. Mitochondria, vesicles, granules,
tubules, dark cells and dark patches distract; they are never labelled. One
pixel stands for 4 nm, as in ISBI 2012.

Brightness, share of membrane, number and sizes of cells are similar to those of
the real stack, and no threshold on gray values finds the membranes. Scores on
these images say nothing about scores on real tissue.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from segjax.data import isbi2012
from segjax.data.examples import Dataset
from segjax.errors import InputError

Array = np.ndarray
Rng = np.random.Generator

# Of a stack; more take minutes and gigabytes.
_MOST_PIXELS = 2**26
_MARGIN_PX = 60  # Cells are seeded up to this far outside the picture.
_BLOCK_PX = 32  # The nearest cell is searched block by block.
_CRUMB_PX = 25  # Smaller pieces of cells become membrane.


class _Cells(NamedTuple):
  """N cells in Z slices; lengths in pixels, tones in gray values."""

  centre: Array  # [Z,N,2] row, column
  radius: Array  # [Z,N]
  stretch: Array  # [N,2,2], unit determinant
  tone: Array  # [N], added to the cytoplasm
  vesicles: Array  # [N], probability of keeping a vesicle
  half_width: Array  # [N,N], symmetric, of the membrane between two
  darkness: Array  # [N,N], symmetric, of the same


def load(
  num_slices: int,
  size_px: int,
  seed: int,
  fold: int,
  gap: int,
  w0: float,
  sigma_px: float,
  balance: bool,
) -> Dataset:
  """Returns a drawn stack as a data set of two classes, membrane and cell.

  Args:
    num_slices, size_px, seed: see `neuron_stack`.
    fold, gap, w0, sigma_px, balance: see `isbi2012.stack_dataset`.
  """
  images, labels = neuron_stack(num_slices, size_px, seed)
  return isbi2012.stack_dataset(
    images[..., np.newaxis],
    labels,
    fold=fold,
    gap=gap,
    w0=w0,
    sigma_px=sigma_px,
    balance=balance,
  )


def neuron_stack(
  num_slices: int, size_px: int, seed: int
) -> tuple[Array, Array]:
  """Returns a drawn stack of micrographs and its labels.

  Args:
    num_slices: N >= 1. Neighbouring slices show the same cells, moved on.
    size_px: height and width of a slice, >= 32. Cells keep their size.
    seed: >= 0. The result is a function of the three arguments alone.

  Returns:
    images: uint8[N,size_px,size_px].
    labels: int32[N,size_px,size_px], 0 membrane, 1 cell. Pixels of different
      cells are never 4-connected.

  Raises:
    InputError: an argument is no integer or out of range, or the stack would
      have more than 2^26 pixels.
  """
  named = {'num_slices': num_slices, 'size_px': size_px, 'seed': seed}
  for (name, value), low in zip(named.items(), (1, 32, 0), strict=True):
    if not isinstance(value, int | np.integer) or value < low:
      raise InputError(f'{name} is {value!r}; it must be an integer >= {low}')
  if num_slices * size_px**2 > _MOST_PIXELS:
    raise InputError(
      f'{num_slices} slices of {size_px} x {size_px} px are too many to draw; '
      f'expected at most {_MOST_PIXELS:,} pixels'
    )
  rng = np.random.default_rng(seed)
  cells = _scatter_cells(rng, num_slices, size_px)
  coarse = _walk(rng, (num_slices, 2, *_knots(size_px, 56)))
  fine = _walk(rng, (num_slices, 2, *_knots(size_px, 15)))
  images, labels = [], []
  for z in range(num_slices):
    points = np.indices((size_px, size_px)) + rng.normal(0, 1.5, (2, 1, 1))
    points += 13 * _spline(coarse[z], size_px) + 2.8 * _spline(fine[z], size_px)
    region = _nearest_cell(points, cells, z)
    distance, half_width, darkness = _borders(rng, region, cells)
    label = _label(distance, half_width)
    inside = ndimage.gaussian_filter(label.astype(float), 1.0)
    ink = 108 * darkness * (1 - inside) ** 1.5
    ink += inside**2 * (
      _draw_mitochondria(rng, points, region, cells, z, seed)
      + _draw_small_organelles(rng, region, cells)
    )
    ink += _draw_patches(rng, distance)
    images.append(_expose(rng, 170 + cells.tone[region] - ink))
    labels.append(label.astype(np.int32))
  return np.stack(images), np.stack(labels)


def _scatter_cells(rng: Rng, num_slices: int, size_px: int) -> _Cells:
  """Returns cells of very different radii that hardly overlap, large first."""
  extent = size_px + 2 * _MARGIN_PX
  radius = rng.lognormal(np.log(12.5), 0.74, extent**2 // 400).clip(6.5, 64)
  covered = np.cumsum(np.pi * radius**2)
  radius = np.sort(radius[covered < 0.8 * extent**2])[::-1]
  num = len(radius)
  centre = np.empty((num, 2))
  for i in range(num):
    tried = rng.uniform(-_MARGIN_PX, size_px + _MARGIN_PX, (40, 2))
    apart = np.linalg.norm(tried[:, None] - centre[:i], axis=-1)
    room = np.min(apart - radius[:i] - radius[i], axis=1, initial=np.inf)
    centre[i] = tried[(room > 0).argmax() if room.max() > 0 else room.argmax()]
  turn = _turn(rng.uniform(0, np.pi, num))
  scale = np.exp(rng.normal(0, 0.25, (num, 1)) * [1, -1])
  wander = _walk(rng, (num_slices, num, 2)) * np.minimum(8, radius / 2)[:, None]
  pair = np.triu(rng.random((4, num, num)))
  pair += pair.transpose(0, 2, 1)  # doubles the diagonal, which is never read
  oblique = pair[1] < 0.15
  dark = np.where(pair[3] < 0.2, 0.4 + pair[3], 0.65 + 0.4 * pair[3])
  return _Cells(
    centre=centre + wander,
    radius=radius * np.exp(0.16 * _walk(rng, (num_slices, num))),
    stretch=np.einsum('nji,nj,njk->nik', turn, scale, turn),
    tone=rng.normal(0, 13, num) - 34 * (rng.random(num) < 0.15),
    vesicles=rng.random(num) ** 2,
    half_width=1.6 + 0.9 * pair[0] + np.where(oblique, 3 * pair[2], 0),
    darkness=dark * np.where(oblique, 0.75, 1),
  )


def _nearest_cell(points: Array, cells: _Cells, z: int) -> Array:
  """Returns i32[H,W], the cell with the smallest |S (x - c)| - r."""
  centre, radius, stretch = cells.centre[z], cells.radius[z], cells.stretch

  def distance(at, cell):  # [2,h,w], [n] -> [n,h,w]
    away = at - centre[cell][..., None, None]
    stretched = np.einsum('nij,njyx->inyx', stretch[cell], away)
    return np.hypot(*stretched) - radius[cell][:, None, None]

  steepest = np.linalg.norm(stretch, 2, axis=(1, 2))
  _, height, width = points.shape
  region = np.empty((height, width), np.int32)
  for top in range(0, height, _BLOCK_PX):
    for left in range(0, width, _BLOCK_PX):
      block = np.s_[top : top + _BLOCK_PX, left : left + _BLOCK_PX]
      at = points[:, *block]
      middle = at.mean(axis=(1, 2), keepdims=True)
      slack = steepest * np.hypot(*(at - middle)).max()
      reach = distance(middle, np.arange(len(centre)))[:, 0, 0]
      # Only these can be nearest anywhere in the block.
      cell = np.flatnonzero(reach - slack <= (reach + slack).min())
      region[block] = cell[distance(at, cell).argmin(axis=0)]
  return region


def _borders(
  rng: Rng, region: Array, cells: _Cells
) -> tuple[Array, Array, Array]:
  """Returns distance [H,W] to the nearest border, its half width, darkness."""
  below = np.pad(region, ((0, 1), (0, 0)), 'edge')[1:]
  right = np.pad(region, ((0, 0), (0, 1)), 'edge')[:, 1:]
  other = np.where(right != region, right, below)
  border = other != region
  if not border.any():
    ones = np.ones(region.shape)
    return np.full(region.shape, np.inf), ones, ones.copy()
  distance, (rows, columns) = ndimage.distance_transform_edt(
    ~border, return_indices=True
  )
  pair = region[rows, columns], other[rows, columns]
  half_width = cells.half_width[pair] + 0.4 * _field(rng, len(region), 9)
  darkness = cells.darkness[pair] + 0.16 * _field(rng, len(region), 14)
  # Both jump where the nearest border changes.
  half_width = ndimage.gaussian_filter(np.maximum(half_width, 1.1), 1.0)
  darkness = ndimage.gaussian_filter(np.clip(darkness, 0.3, 1.1), 1.5)
  return distance, half_width, darkness


def _label(distance: Array, half_width: Array) -> Array:
  """Returns bool[H,W], True in cells, which are rounded and without crumbs."""
  cell = distance > half_width + 0.3
  core = distance > half_width + 2.5
  if core.any():
    cell &= ndimage.distance_transform_edt(~core) < 2.9
  numbered, _ = ndimage.label(cell)
  return cell & (np.bincount(numbered.ravel()) >= _CRUMB_PX)[numbered]


def _draw_mitochondria(
  rng: Rng, points: Array, region: Array, cells: _Cells, z: int, seed: int
) -> Array:
  """Returns the darkness [H,W] of gray bodies with cristae and two outlines."""
  ink = np.zeros(region.shape)
  uneven, phase = (_field(rng, len(region), 12) for _ in range(2))
  num_slices, rooms = len(cells.radius), cells.radius.mean(axis=0)
  for cell, window in enumerate(ndimage.find_objects(region + 1)):
    room = rooms[cell]
    if window is None or room < 15:
      continue
    # A generator of its own gives the cell the same bodies in every slice.
    own = np.random.default_rng([seed, cell])
    rate = (room / 36) ** 2 * (num_slices + 8) / 12
    for _ in range(own.poisson(rate)):
      away = own.uniform(0, 0.55) * room * _turn(own.uniform(0, 2 * np.pi))[0]
      axes = _turn(own.uniform(0, np.pi))
      minor = min(own.uniform(7, 14), 0.55 * room)
      major = minor * own.uniform(1, 2)
      middle, half_length = own.uniform((-4, 3), (num_slices + 4, 8))
      section = 1 - ((z - middle) / half_length) ** 2
      if section < 0.2:
        continue
      centre = cells.centre[z, cell] + away
      offset = points[:, *window] - centre[:, None, None]
      along, across = np.einsum('ij,jyx->iyx', axes, offset)
      radial = np.hypot(along / major, across / minor)
      depth = minor * (np.sqrt(section) - radial) + 0.9 * uneven[window]
      cristae = np.sin(1.15 * along + 0.5 * across + 1.8 * phase[window])
      drawn = np.clip(depth, 0, 1) * (36 + 18 * cristae)
      drawn += 50 * np.exp(-((depth / 1.3) ** 2))
      drawn += 22 * np.exp(-(((depth - 4) / 1.2) ** 2))
      drawn *= region[window] == cell
      ink[window] = np.maximum(ink[window], drawn)
  return ink


def _draw_small_organelles(rng: Rng, region: Array, cells: _Cells) -> Array:
  """Returns the darkness [H,W] of vesicles (rings), granules and tubules."""
  ink = np.zeros(region.shape)

  def scatter(px_each):
    num = rng.poisson(region.size / px_each)
    return rng.uniform(0, 1, (num, 1, 2)) * region.shape

  def splat(points, amount):
    strength = amount * rng.uniform(0.3, 1.0, (len(points), 1))
    at = np.rint(points).astype(int)
    seen = ((at >= 0) & (at < region.shape)).all(axis=-1)
    strength = np.broadcast_to(strength, seen.shape)
    np.add.at(ink, tuple(at[seen].T), strength[seen])

  at = scatter(px_each=90)
  owner = region[tuple(at[:, 0].astype(int).T)]
  at = at[rng.random(len(at)) < cells.vesicles[owner]]
  radius = rng.uniform(2.0, 4.5, (len(at), 1, 1))
  squash = np.exp(rng.normal(0, 0.2, (len(at), 1, 2)))
  circle = _turn(np.linspace(0, 2 * np.pi, 20, endpoint=False))[:, 0]
  splat(at + radius * squash * circle, 0.75 * radius[..., 0])
  at = scatter(px_each=500)
  spread = rng.uniform(0.5, 1.5, (len(at), 1, 1))
  splat(at + spread * rng.normal(size=(len(at), 30, 2)), 0.4)
  at = scatter(px_each=1200)
  bends = rng.normal(0, 0.16, (len(at), 40))
  heading = rng.uniform(0, 2 * np.pi, (len(at), 1)) + np.cumsum(bends, axis=1)
  splat(at + 0.6 * np.cumsum(_turn(heading)[..., 0, :], axis=1), 0.75)
  ink = ndimage.gaussian_filter(ink, 0.7)
  return 105 * ink / (1 + 0.8 * ink)


def _draw_patches(rng: Rng, distance: Array) -> Array:
  """Returns the darkness [H,W] of dense patches on a few membranes."""
  ink = np.zeros(distance.shape)
  border = np.argwhere(distance == 0)
  height, width = distance.shape
  y, x = np.ogrid[:height, :width]
  for _ in range(rng.poisson(distance.size / 16000) if len(border) else 0):
    row, column = border[rng.integers(len(border))]
    spread = rng.uniform(5, 13)
    spot = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * spread**2))
    ink += rng.uniform(25, 60) * spot * np.exp(-distance / rng.uniform(4, 14))
  return ink


def _expose(rng: Rng, image: Array) -> Array:
  """Returns u8[H,W]: the image with clouds and noise, blur and contrast."""
  for sigma, strength in ((2.2, 9), (1.1, 14)):
    grain = ndimage.gaussian_filter(rng.normal(size=image.shape), sigma)
    image = image + strength * 2 * np.sqrt(np.pi) * sigma * grain
  image = image + 13 * _field(rng, len(image), 60)
  dose = 0.3  # electrons per gray value
  image = rng.poisson(dose * np.clip(image, 5, 400)) / dose
  image = ndimage.gaussian_filter(image, rng.uniform(0.55, 0.75))
  image = 126 + rng.normal(1.1, 0.09) * (image - 140) + rng.normal(0, 7)
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _walk(rng: Rng, shape: tuple[int, ...]) -> Array:
  """Returns noise of variance about 1, smooth along the first axis."""
  sigma = 2.5
  noise = ndimage.gaussian_filter1d(rng.normal(size=shape), sigma, axis=0)
  return noise * np.sqrt(2 * np.sqrt(np.pi) * sigma)


def _field(rng: Rng, size_px: int, spacing_px: int) -> Array:
  return _spline(rng.normal(size=_knots(size_px, spacing_px)), size_px)


def _knots(size_px: int, spacing_px: int) -> tuple[int, int]:
  side = -(-size_px // spacing_px) + 3
  return side, side


def _spline(knots: Array, size_px: int) -> Array:
  """Returns the cubic B-spline [...,size_px,size_px] of knots [...,G,G]."""
  num = knots.shape[-1]
  at = 1 + np.arange(size_px) * ((num - 3) / size_px)
  t = np.abs(at[:, None] - np.arange(num))
  far = np.clip(2 - t, 0, None) ** 3 / 6
  basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, far)
  # Plain einsum does not call BLAS, whose sums depend on the thread count.
  rows = np.einsum('yg,...gh->...yh', basis, knots)
  return np.einsum('...yh,xh->...yx', rows, basis)


def _turn(angle: Array | float) -> Array:
  """Returns rotation matrices [...,2,2]."""
  sin, cos = np.sin(angle), np.cos(angle)
  return np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
