# SPDX-License-Identifier: Apache-2.0
"""The best and the worst held-out image, and predictions of one class only."""

import numpy as np
import pytest

from segjax.data.examples import Dataset
from segjax.recipes import unet_folder_config
from segjax.scoring import classes
from segjax.scoring.stack import evaluate_stack

pytestmark = pytest.mark.smoke

NAMES = ('wall', 'cell')
# Columns of 10 that an image's prediction has wrong; None for all ignored.
WRONG = (3, 1, None, 4, 0, 2)


def examples_of(wrong):
  examples = []
  for number, columns in enumerate(wrong):
    label = np.zeros((10, 10), np.int32)
    label[:, 5:] = 1
    image = np.full((10, 10, 1), columns or 0, np.uint8)
    if columns is None:
      label[:] = 255
    examples.append({'image': image, 'label': label, 'name': f'i{number}'})
  return examples


def predict(image):
  """The probabilities of walls, `image` columns too wide."""
  probability = np.zeros((10, 10, 2), np.float32)
  probability[:, : 5 + image[0, 0, 0], 0] = 1
  probability[:, 5 + image[0, 0, 0] :, 1] = 1
  return probability


def config_of(num_pictures=1, present_only=False):
  config = unet_folder_config(NAMES)
  config.evaluation.update(num_pictures=num_pictures, present_only=present_only)
  return config


def evaluate_classes(examples, num_pictures=1, complete=True):
  return classes.evaluate_classes(
    predict,
    examples,
    Dataset(NAMES, [], examples, ''),
    heads=(('', 2),),
    config=config_of(num_pictures),
    complete=complete,
    detail=False,
  )


def iu(wrong):
  return (5 / (5 + wrong) + (5 - wrong) / 5) / 2


def test_best_and_worst_by_their_own_mean_iu():
  examples = examples_of(WRONG)
  got = evaluate_classes(examples)
  assert [p.name for p in got.panels] == ['i0']
  best, worst = got.extremes
  assert (best.name, worst.name) == ('i4', 'i3')
  assert best.score == 1 and worst.score == pytest.approx(iu(4))
  assert got.panels[0].score == pytest.approx(iu(3))
  # The same pictures as where all are shown.
  shown = {p.name: p for p in evaluate_classes(examples, num_pictures=6).panels}
  np.testing.assert_array_equal(worst.picture, shown['i3'].picture)
  np.testing.assert_array_equal(best.picture, shown['i4'].picture)
  assert np.isnan(shown['i2'].score)


def test_best_and_worst_by_the_metric_of_the_run():
  """Small objects that are all missed cost mean AP more than mean IU."""
  examples = []
  for number, (found, missed) in enumerate(((30, 2), (20, 0), (0, 0))):
    instances = np.zeros((40, 40), np.int32)
    instances[:found, 0:20] = 1
    for k in range(missed):
      instances[6 * k, 30] = 2 + k
    image = np.zeros((40, 40, 1), np.uint8)
    image[..., 0] = instances == 1
    if number == 1:
      image[20:27, 0:20] = 1  # An object a third too long.
    label = (instances > 0).astype(np.int32)
    name = f'i{number}'
    examples.append(dict(image=image, label=label, instances=instances))
    examples[-1]['name'] = name

  def extremes(metric):
    config = config_of()
    config.evaluation.best_metric = metric
    got = classes.evaluate_classes(
      lambda image: np.concatenate([1.0 - image, image], -1),
      examples,
      Dataset(NAMES, [], examples, ''),
      heads=(('', 2),),
      config=config,
      complete=True,
      detail=False,
    )
    return [(p.name, p.score) for p in got.extremes], got.scores

  # Of 3 objects one is found; or one of one, at thresholds below 20 / 27.
  by_ap, scores = extremes('mean_ap')
  assert by_ap == [('i1', pytest.approx(0.5)), ('i0', pytest.approx(1 / 3))]
  assert scores['mean_ap'] == pytest.approx((0.5 + 1 / 3) / 2)
  assert [name for name, _ in extremes('mean_iu')[0]] == ['i2', 'i1']
  by_cell, _ = extremes('iu/cell')
  assert by_cell[1] == ('i1', pytest.approx(20 / 27))


def test_best_and_worst_of_a_stack_by_v_rand():
  examples = examples_of((0, 0, 0))
  for example, row in zip(examples, (2, 5, 8), strict=True):
    example['label'][row] = 0  # Divides the cell, which the prediction misses.
  examples += examples_of((1,))
  got = evaluate_stack(predict, examples, config_of(4), True, NAMES, False)
  own = [panel.score for panel in got.panels]
  # Cells of a and b px are one: 2 (a^2 + b^2) / ((a + b)^2 + a^2 + b^2).
  a, b = np.array([(10, 35), (25, 20), (40, 5)]).T
  expected = 2 * (a**2 + b**2) / ((a + b) ** 2 + a**2 + b**2)
  np.testing.assert_allclose(own, [*expected, 1])
  assert got.scores['v_rand'] == pytest.approx(np.mean(own))
  assert [p.name for p in got.extremes] == ['i0', 'i1']


def test_none_is_best_of_one_or_while_training():
  assert evaluate_classes(examples_of((3,))).extremes == []
  assert evaluate_classes(examples_of((3, 1)), complete=False).extremes == []


def test_predictions_of_one_class_only():
  assert evaluate_classes(examples_of((5, 5))).sole_class == 'wall'
  assert evaluate_classes(examples_of((5, 4))).sole_class == ''
  stack = evaluate_stack(
    predict, examples_of((5, 5)), config_of(), False, NAMES, False
  )
  assert stack.sole_class == 'wall'
  walls = examples_of((5, 5))
  for example in walls:
    example['label'][:] = 0  # They are right.
  assert evaluate_classes(walls).sole_class == ''


def test_classes_without_labels_count_in_no_mean_that_leaves_them_out():
  # By true and predicted class: 5 right, a wrong one and 3 right.
  label = np.array([[0] * 6 + [1] * 3])
  probability = np.eye(3, dtype=np.float32)[[[0] * 5 + [2] + [1] * 3]]
  examples = [{'image': label[..., None], 'label': label, 'name': 'a'}]
  scores = [
    classes.evaluate_classes(
      lambda image: probability,
      examples,
      Dataset(['background', 'a', 'b'], [], examples, ''),
      heads=(('', 3),),
      config=config_of(0, present_only),
      complete=False,
      detail=False,
    ).scores
    for present_only in (False, True)
  ]
  assert [s['mean_iu_but_background'] for s in scores] == [0.5, 1.0]
  # A class that no label shows has no score of its own, either.
  assert scores[0]['iu/b'] == 0 and np.isnan(scores[1]['iu/b'])
