# SPDX-License-Identifier: Apache-2.0
"""Boundary IoU and the trimap curve against loops over windows of pixels."""

import numpy as np
import pytest

from segjax.errors import InputError
from segjax.metrics import boundaries


def blobs(seed, num_classes=4, height=23, width=31, ignored=0.0):
  """A label and a prediction of rectangles, of which some pixels differ."""
  rng = np.random.default_rng(seed)
  label = np.zeros((height, width), np.int32)
  for _ in range(6):
    top, left = rng.integers(height), rng.integers(width)
    bottom, right = top + rng.integers(3, 12), left + rng.integers(3, 12)
    label[top:bottom, left:right] = rng.integers(num_classes)
  prediction = np.roll(label, (1, -1), (0, 1))
  wrong = rng.random(label.shape) < 0.02
  prediction[wrong] = rng.integers(num_classes, size=wrong.sum())
  label[rng.random(label.shape) < ignored] = 255
  return label, prediction


def near_others(classes, counted, distance, edge):
  """Whether each pixel has another class in its window, pixel by pixel."""
  height, width = classes.shape
  near = np.zeros(classes.shape, bool)
  for y, x in np.argwhere(counted):
    for v in range(y - distance, y + distance + 1):
      for u in range(x - distance, x + distance + 1):
        if not (0 <= v < height and 0 <= u < width):
          near[y, x] |= edge
        elif counted[v, u]:
          near[y, x] |= classes[v, u] != classes[y, x]
  return near


@pytest.mark.parametrize('ignored', [0.0, 0.1])
@pytest.mark.parametrize('distance', [1, 2, 5])
def test_boundary_iou_is_that_of_loops(distance, ignored):
  total, expected = np.zeros((4, 3), int), np.zeros((4, 3), int)
  for seed in range(2):
    label, prediction = blobs(seed, ignored=ignored)
    total += boundaries.boundary_counts(label, prediction, 4, distance)
    counted = label != 255
    near = [
      near_others(classes, counted, distance, edge=True)
      for classes in (label, prediction)
    ]
    for k in range(4):
      true, found = near[0] & (label == k), near[1] & (prediction == k)
      expected[k] += (true & found).sum(), true.sum(), found.sum()
  np.testing.assert_array_equal(total, expected)
  both, true, found = expected.T
  scores = boundaries.boundary_iou(total)
  np.testing.assert_allclose(scores, both / (true + found - both))
  assert 0 < scores.min() and scores.max() < 1


def test_boundary_iou_of_a_mask_is_by_hand():
  """A square of 6 px, and one of 4 px in its middle, at 1 px."""
  label, prediction = np.zeros((2, 20, 20), int)
  label[5:11, 5:11] = 1
  prediction[6:10, 6:10] = 1
  counts = boundaries.boundary_counts(label, prediction, 2, 1)
  # Rings of 20 px and 12 px that have nothing in common.
  assert counts[1].tolist() == [0, 20, 12]
  counts = boundaries.boundary_counts(label, prediction, 2, 2)
  assert counts[1].tolist() == [12, 32, 16]
  assert boundaries.boundary_iou(counts)[1] == 12 / 36


def test_a_class_without_contours_has_no_boundary_iou():
  label = np.zeros((30, 30), int)
  counts = boundaries.boundary_counts(label, label, 3, 2)
  scores = boundaries.boundary_iou(counts)
  assert scores[0] == 1  # At the edge of the image.
  assert np.isnan(scores[1:]).all()


@pytest.mark.parametrize(
  ('size', 'distance'), [((360, 480), 12), ((3, 4), 1), ((1024, 2048), 46)]
)
def test_the_distance_is_2_percent_of_the_diagonal(size, distance):
  assert boundaries.default_distance(*size) == distance


def test_the_distance_of_an_image_is_taken_by_default():
  label, prediction = blobs(0, height=90, width=120)
  np.testing.assert_array_equal(
    boundaries.boundary_counts(label, prediction, 4),
    boundaries.boundary_counts(label, prediction, 4, 3),
  )


@pytest.mark.parametrize('ignored', [0.0, 0.1])
def test_the_trimap_curve_is_that_of_loops(ignored):
  label, prediction = blobs(3, ignored=ignored)
  radii = (1, 3, 6)
  counts = boundaries.trimap_counts(label, prediction, 4, radii)
  counted = label != 255
  for matrix, radius in zip(counts, radii, strict=True):
    expected = np.zeros((4, 4), int)
    for pixel in np.argwhere(near_others(label, counted, radius, edge=False)):
      expected[label[*pixel], prediction[*pixel]] += 1
    np.testing.assert_array_equal(matrix, expected)
  curve = boundaries.trimap_curve(counts)
  hits = np.diag(counts[1])
  ius = hits / (counts[1].sum(0) + counts[1].sum(1) - hits)
  assert curve[1] == pytest.approx(ius.mean())
  assert curve[0] < curve[2]  # The wrong pixels are at borders.


@pytest.mark.parametrize('distance', [0, -2, 1.5])
def test_a_distance_is_a_number_of_pixels(distance):
  label, prediction = blobs(0)
  with pytest.raises(InputError, match=f'distance_px: {distance} must be'):
    boundaries.boundary_counts(label, prediction, 4, distance)
  with pytest.raises(InputError, match=f'radii_px: {distance} must be'):
    boundaries.trimap_counts(label, prediction, 4, (1, distance))


def test_no_radius_has_no_counts():
  label, prediction = blobs(0)
  counts = boundaries.trimap_counts(label, prediction, 4, ())
  assert counts.shape == (0, 4, 4) and counts.dtype == np.int64


def test_a_label_without_borders_has_no_trimap():
  label = np.zeros((9, 9), int)
  counts = boundaries.trimap_counts(label, label, 2, (1, 2))
  assert np.isnan(boundaries.trimap_curve(counts)).all()


@pytest.mark.parametrize(
  ('label', 'prediction', 'words'),
  [
    (np.zeros((3, 4), int), np.zeros((3, 5), int), r'\(3, 4\).*\(3, 5\)'),
    (np.zeros((3, 4), int), np.full((3, 4), 2), 'prediction holds 2'),
    (np.zeros((3, 4)), np.zeros((3, 4), int), 'label is float64'),
    (np.zeros(3, int), np.zeros(3, int), r'\[H, W\]'),
  ],
)
def test_bad_input(label, prediction, words):
  with pytest.raises(InputError, match=words):
    boundaries.boundary_counts(label, prediction, 2)
  with pytest.raises(InputError, match=words):
    boundaries.trimap_counts(label, prediction, 2)
