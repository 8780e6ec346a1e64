# SPDX-License-Identifier: Apache-2.0
"""Losses against loops in NumPy, their gradients against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import losses
from segjax.errors import InputError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (5, 6, 4))
LABEL = RNG.choice([0, 1, 3, 255], (5, 6))  # No pixel of class 2.
WEIGHT = RNG.uniform(0.5, 3, (5, 6))


def oracle(logits, label, weight, loss):
  """The sum over the pixels of an image, and their number, by loops."""
  entropy, count = 0.0, 0
  both, whole, size = np.zeros((3, logits.shape[-1]))
  for at in np.ndindex(label.shape):
    if label[at] == 255:
      continue
    p = np.exp(logits[at]) / np.exp(logits[at]).sum()
    entropy -= weight[at] * np.log(p[label[at]])
    count += 1
    both[label[at]] += p[label[at]]
    size[label[at]] += 1
    whole += p
  whole += size
  dice = [2 * b / w for b, w, s in zip(both, whole, size, strict=True) if s]
  if loss == 'cross_entropy' or not dice:
    return entropy, count
  return entropy + count * (1 - np.mean(dice)), count


def image_loss(logits, loss, label=LABEL, weight=WEIGHT):
  return losses.image_loss(
    jnp.asarray(logits, jnp.float32), label, weight, 255, loss
  )


@pytest.mark.smoke
@pytest.mark.parametrize('loss', losses.LOSSES)
def test_an_image_has_the_loss_of_the_loop(loss):
  got = image_loss(LOGITS, loss)
  np.testing.assert_allclose(
    got, oracle(LOGITS, LABEL, WEIGHT, loss), rtol=1e-5
  )


@pytest.mark.parametrize('loss', losses.LOSSES)
def test_gradients_are_those_of_differences(loss):
  got = jax.grad(lambda logits: image_loss(logits, loss)[0])(LOGITS)
  expected = np.zeros_like(LOGITS)
  for at in np.ndindex(LOGITS.shape):
    ends = []
    for change in (-1e-5, 1e-5):
      moved = LOGITS.copy()
      moved[at] += change
      ends.append(oracle(moved, LABEL, WEIGHT, loss)[0])
    expected[at] = (ends[1] - ends[0]) / 2e-5
  np.testing.assert_allclose(got, expected, atol=1e-4)
  assert not got[LABEL == 255].any() and np.abs(got).max() > 0.1


def test_dice_is_near_0_where_right_and_near_1_where_wrong():
  for label, right, wrong in ((1, 1, 0), (0, 0, 1)):
    label = np.full((3, 3), label)
    for k, expected in ((right, 0.0), (wrong, 1.0)):
      logits = 40 * jax.nn.one_hot(np.full((3, 3), k), 2)
      got = losses.dice_loss(logits, label, 255)
      assert got == pytest.approx(expected, abs=1e-6)


def test_padding_and_images_that_are_ignored_add_nothing():
  """Not even NaN, where padding has logits that are infinite."""
  pad = ((0, 3), (0, 2))
  label = np.pad(LABEL, pad, constant_values=255)
  logits = np.pad(LOGITS, (*pad, (0, 0)), constant_values=np.inf)
  weight = np.pad(WEIGHT, pad)
  got = image_loss(logits, 'dice_cross_entropy', label, weight)
  np.testing.assert_allclose(
    got, image_loss(LOGITS, 'dice_cross_entropy'), rtol=1e-6
  )
  nothing = np.full_like(LABEL, 255)
  value, gradient = jax.value_and_grad(
    lambda logits: image_loss(logits, 'dice_cross_entropy', nothing)[0]
  )(LOGITS)
  assert value == 0 and not gradient.any()


def test_weights_are_of_the_cross_entropy_alone():
  plain, weighted = (
    [
      float(image_loss(LOGITS, loss, weight=weight)[0])
      for loss in losses.LOSSES
    ]
    for weight in (None, WEIGHT)
  )
  assert weighted[0] != pytest.approx(plain[0], rel=0.01)
  assert weighted[1] - weighted[0] == pytest.approx(
    plain[1] - plain[0], rel=1e-4
  )


def test_an_unknown_loss_is_refused():
  with pytest.raises(InputError, match="loss='dice' is not one of"):
    image_loss(LOGITS, 'dice')
