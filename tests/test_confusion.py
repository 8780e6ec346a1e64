# SPDX-License-Identifier: Apache-2.0
"""FCN's four metrics against a loop over pixels and numbers by hand."""

import numpy as np
import pytest

from segjax.errors import InputError
from segjax.metrics import confusion

pytestmark = pytest.mark.smoke


def _random_pair(rng, num_classes=4, shape=(3, 7, 5)):
  label = rng.integers(0, num_classes, shape).astype(np.uint8)
  label[rng.random(shape) < 0.2] = 255
  return label, rng.integers(0, num_classes, shape)


def _loop_matrix(label, prediction, num_classes):
  matrix = [[0] * num_classes for _ in range(num_classes)]
  for true, predicted in zip(label.flat, prediction.flat, strict=True):
    if true != 255:
      matrix[true][predicted] += 1
  return np.array(matrix)


def test_matrix_equals_a_loop_over_pixels():
  label, prediction = _random_pair(np.random.default_rng(0))
  matrix = confusion.confusion_matrix(label, prediction, 4)
  assert matrix.dtype == np.int64
  np.testing.assert_array_equal(matrix, _loop_matrix(label, prediction, 4))


def test_many_classes_do_not_overflow_small_label_types():
  label = np.array([199, 0, 150], np.uint8)
  prediction = np.array([198, 199, 150], np.uint8)
  expected = np.zeros((200, 200), np.int64)
  expected[199, 198] = expected[0, 199] = expected[150, 150] = 1
  matrix = confusion.confusion_matrix(label, prediction, 200)
  np.testing.assert_array_equal(matrix, expected)


def test_predictions_at_ignored_pixels_do_not_matter():
  label, prediction = np.array([0, 255, 1]), np.array([0, 99, 0])
  expected = [[1, 0], [1, 0]]
  matrix = confusion.confusion_matrix(label, prediction, 2)
  np.testing.assert_array_equal(matrix, expected)


def test_any_label_can_be_the_ignored_one():
  label, prediction = np.array([0, 1, 1, 2]), np.array([2, 1, 0, 2])
  expected = [[0, 0, 1], [0, 0, 0], [0, 0, 1]]
  matrix = confusion.confusion_matrix(label, prediction, 3, 1)
  np.testing.assert_array_equal(matrix, expected)


def test_scores_by_hand():
  # Class 2 is in no label but predicted once, class 3 is nowhere.
  matrix = np.array([[5, 1, 1, 0], [2, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
  scores = confusion.segmentation_scores(matrix)
  assert scores['pixel_accuracy'] == pytest.approx(8 / 12)
  assert scores['mean_accuracy'] == pytest.approx((5 / 7 + 3 / 5) / 2)
  np.testing.assert_allclose(scores['iu'], [5 / 9, 3 / 6, 0, np.nan])
  assert scores['mean_iu'] == pytest.approx((5 / 9 + 3 / 6 + 0) / 3)
  assert scores['frequency_weighted_iu'] == pytest.approx(
    (7 * 5 / 9 + 5 * 3 / 6) / 12
  )


def test_present_only_changes_mean_iu_and_mean_dice_alone():
  # Class 1 is in no label but predicted twice, class 2 is nowhere, and class 3
  # is in the labels but never predicted.
  matrix = np.array([[6, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [2, 1, 0, 0]])
  union = confusion.segmentation_scores(matrix)
  present = confusion.segmentation_scores(matrix, present_only=True)
  assert union.pop('mean_iu') == pytest.approx((6 / 9 + 0 + 0) / 3)
  assert present.pop('mean_iu') == pytest.approx((6 / 9 + 0) / 2)
  assert union.pop('mean_dice') == pytest.approx((12 / 15 + 0 + 0) / 3)
  assert present.pop('mean_dice') == pytest.approx((12 / 15 + 0) / 2)
  np.testing.assert_equal(present, union)
  np.testing.assert_allclose(present['iu'], [6 / 9, 0, np.nan, 0])
  assert present['mean_accuracy'] == pytest.approx((6 / 7 + 0) / 2)


def test_scores_are_those_of_the_whole_set_not_means_of_images():
  rng = np.random.default_rng(2)
  label, prediction = _random_pair(rng)
  parts = [
    confusion.confusion_matrix(x, y, 4)
    for x, y in zip(label, prediction, strict=True)
  ]
  got = confusion.segmentation_scores(sum(parts))
  counted = label != 255
  ious = []
  for k in range(4):
    true, found = (label == k) & counted, (prediction == k) & counted
    ious.append((true & found).sum() / (true | found).sum())
  np.testing.assert_allclose(got['iu'], ious)
  assert got['mean_iu'] == pytest.approx(np.mean(ious))
  assert got['pixel_accuracy'] == pytest.approx(
    (label == prediction)[counted].mean()
  )


@pytest.mark.parametrize(
  ('label', 'prediction', 'message'),
  [
    ([[0, 2]], [[0, 1]], 'label holds 2; must be in 0..1 .*255'),
    ([[0, -1]], [[0, 1]], 'label holds -1'),
    ([[0, 1]], [[0, 2]], 'prediction holds 2; must be in 0..1 '),
    ([[0, 1]], [[0, -1]], 'prediction holds -1'),
    ([[0, 1]], [[0.0, 1.0]], 'prediction is float64'),
    ([[0, 1]], [0, 1], r'label has shape \(1, 2\), prediction \(2,\)'),
  ],
)
def test_bad_input_is_refused(label, prediction, message):
  with pytest.raises(InputError, match=message):
    confusion.confusion_matrix(np.array(label), np.array(prediction), 2)


def test_without_ignore_label_255_is_refused():
  label = np.array([255])
  with pytest.raises(InputError, match='label holds 255; must be in 0..1 '):
    confusion.confusion_matrix(label, label * 0, 2, ignore_label=None)


@pytest.mark.parametrize(
  ('matrix', 'message'),
  [
    (np.zeros((2, 2), int), 'no pixel was counted'),
    (np.eye(2), 'matrix is float64'),
    (np.array([[1, -1], [0, 1]]), 'matrix holds -1; counts must be >= 0'),
    (np.zeros((2, 3), int), r'shape \(2, 3\)'),
  ],
)
def test_bad_matrices_are_refused(matrix, message):
  with pytest.raises(InputError, match=message):
    confusion.segmentation_scores(matrix)


def test_dice_is_f1_of_the_pixels_of_each_class():
  rng = np.random.default_rng(0)
  label, prediction = rng.integers(0, 3, (2, 500))
  label[:50] = 255
  prediction[prediction == 2] = 3  # Class 2 is never found, 3 never labelled.
  matrix = confusion.confusion_matrix(label, prediction, num_classes=5)
  scores = confusion.segmentation_scores(matrix)
  want = []
  for k in range(4):
    pairs = [
      (a == k, b == k) for a, b in zip(label[50:], prediction[50:], strict=True)
    ]
    hits = sum(a and b for a, b in pairs)
    want.append(2 * hits / sum(int(a) + int(b) for a, b in pairs))
  assert want[2] == want[3] == 0 < min(want[:2])
  np.testing.assert_allclose(scores['dice'], [*want, np.nan])
  assert scores['mean_dice'] == pytest.approx(np.mean(want))
  present = confusion.segmentation_scores(matrix, present_only=True)
  assert present['mean_dice'] == pytest.approx(np.mean(want[:3]))
