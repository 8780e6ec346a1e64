# SPDX-License-Identifier: Apache-2.0
"""Losses, schedules and updates against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from segjax import losses
from segjax.errors import InputError
from segjax.optimizers import create_optimizer, create_schedule

pytestmark = pytest.mark.smoke


def test_cross_entropy_is_the_weighted_loop():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
  label = rng.integers(0, 3, (2, 4, 5)).astype(np.int32)
  label[0, 1] = 255
  weight = rng.uniform(0, 4, (2, 4, 5)).astype(np.float32)
  want, count = 0.0, 0
  for at in np.ndindex(*label.shape):
    if label[at] != 255:
      p = np.exp(logits[at]) / np.exp(logits[at]).sum()
      want -= weight[at] * np.log(p[label[at]])
      count += 1
  label, weight = jnp.asarray(label), jnp.asarray(weight)
  total, pixels = losses.cross_entropy(logits, label, weight, 255)
  assert total == pytest.approx(want, rel=1e-5)
  assert pixels == count == 35
  plain, _ = losses.cross_entropy(logits, label, None, 255)
  ones, _ = losses.cross_entropy(logits, label, jnp.ones_like(weight), 255)
  assert float(plain) == pytest.approx(float(ones), rel=1e-6)


def test_reductions_of_two_images():
  def reduced(reduction):
    images = ((6.0, 2.0), (1.0, 4.0), (0.0, 0.0))
    rows = [losses.reduce_image(*image, reduction) for image in images]
    loss, divisor = np.sum(rows, axis=0)
    return loss / max(divisor, 1)

  assert reduced('mean') == pytest.approx(7 / 6)
  assert reduced('mean_of_images') == pytest.approx((3 + 0.25) / 3)
  assert reduced('sum') == pytest.approx(7)
  with pytest.raises(InputError, match='median'):
    reduced('median')


def test_heads_split_scores_and_labels():
  scores = np.arange(2 * 5).reshape(1, 2, 5)
  label = np.array([[[0, 10], [1, 11]]])
  (a, b), (c, d) = losses.split_heads(scores, label, (3, 2))
  np.testing.assert_array_equal(a, [[[0, 1, 2], [5, 6, 7]]])
  np.testing.assert_array_equal(c, [[[3, 4], [8, 9]]])
  np.testing.assert_array_equal([b, d], [[[0, 1]], [[10, 11]]])
  ((only, same),) = losses.split_heads(scores, label[..., 0], (5,))
  np.testing.assert_array_equal(only, scores)
  np.testing.assert_array_equal(same, [[0, 1]])


def test_schedules():
  constant = create_schedule('constant', 0.1, 10, 100)
  assert [float(constant(s)) for s in (0, 5, 10, 99)] == pytest.approx(
    [0, 0.05, 0.1, 0.1]
  )
  cosine = create_schedule('cosine', 0.1, 0, 100)
  assert [float(cosine(s)) for s in (0, 50, 100)] == pytest.approx(
    [0.1, 0.05, 0]
  )
  for wrong in (
    ('linear', 0.1, 0, 100),
    ('cosine', 0.1, -1, 100),
    ('cosine', 0.1, 0, 0),
    ('cosine', -0.1, 0, 100),
  ):
    with pytest.raises(InputError):
      create_schedule(*wrong)


@pytest.mark.parametrize('clip_norm', [0.0, 1.0])
def test_sgd_is_caffes_momentum(clip_norm):
  momentum, decay = 0.99, 0.01
  rates = [0.01, 0.04, 0.2, 0.1]
  optimizer = create_optimizer(
    'sgd', lambda step: jnp.array(rates)[step], momentum, decay, clip_norm
  )
  params = {'kernel': jnp.array([1.0, 2.0]), 'bias': jnp.array([3.0])}
  state = optimizer.init(params)
  want = {k: np.array(v) for k, v in params.items()}
  velocity = {k: np.zeros_like(v) for k, v in want.items()}
  for step in range(4):
    gradient = {
      'kernel': np.float32([3, step]),
      'bias': np.float32([4]),
    }
    updates, state = optimizer.update(gradient, state, params)
    params = {k: params[k] + updates[k] for k in params}
    norm = np.sqrt(25 + step**2)
    for k, g in gradient.items():
      g = g / norm if clip_norm else g
      g = g + (decay * want[k] if k == 'kernel' else 0)
      velocity[k] = momentum * velocity[k] - rates[step] * g
      want[k] = want[k] + velocity[k]
  for k in want:
    np.testing.assert_allclose(params[k], want[k], rtol=1e-5)


def test_adamw_decays_kernels_only():
  optimizer = create_optimizer('adamw', lambda _: 0.1, 0.9, 0.5, 0.0)
  params = {'kernel': jnp.array([2.0]), 'bias': jnp.array([2.0])}
  gradient = {'kernel': jnp.array([0.0]), 'bias': jnp.array([0.0])}
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  assert updates['kernel'] == pytest.approx(-0.1 * 0.5 * 2)
  assert updates['bias'] == 0


def test_biases_of_named_layers_learn_at_their_own_rate():
  params = {
    layer: {'kernel': jnp.array([2.0]), 'bias': jnp.array([2.0])}
    for layer in ('conv1', 'score_fr')
  }
  gradient = {
    layer: {'kernel': jnp.array([3.0]), 'bias': jnp.array([3.0])}
    for layer in params
  }

  def update(**biases):
    optimizer = create_optimizer('sgd', lambda _: 0.1, 0.9, 0.5, 0.0, **biases)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return {
      f'{layer}/{leaf}': float(value[0])
      for layer, leaves in updates.items()
      for leaf, value in leaves.items()
    }

  # Caffe: rate * lr_mult * (gradient + decay * decay_mult * value).
  plain, doubled = -0.1 * (3 + 0.5 * 2), -0.1 * 2 * 3
  all_biases = update(bias_rate=2.0, bias_decay=False, bias_layers=('',))
  scores = update(bias_rate=2.0, bias_decay=False, bias_layers=('score',))
  assert all_biases == pytest.approx(
    {
      'conv1/kernel': plain,
      'conv1/bias': doubled,
      'score_fr/kernel': plain,
      'score_fr/bias': doubled,
    }
  )
  assert scores == pytest.approx(all_biases | {'conv1/bias': plain})
  decaying = update(bias_rate=2.0, bias_decay=True, bias_layers=('score',))
  assert decaying['score_fr/bias'] == pytest.approx(2 * plain)


def test_a_warmup_of_all_steps_is_shortened_to_a_tenth():
  for name in ('constant', 'cosine'):
    rates = create_schedule(name, 0.5, warmup_steps=100, num_steps=60)
    same = create_schedule(name, 0.5, warmup_steps=6, num_steps=60)
    assert rates(6) == pytest.approx(0.5) and rates(3) == pytest.approx(0.25)
    assert [rates(i) for i in range(60)] == [same(i) for i in range(60)]


def test_wrong_recipes_are_refused():
  with pytest.raises(InputError, match='adagrad'):
    create_optimizer('adagrad', lambda _: 0.1, 0.9, 0.0, 0.0)
  with pytest.raises(InputError, match='momentum=1.5'):
    create_optimizer('sgd', lambda _: 0.1, 1.5, 0.0, 0.0)
  with pytest.raises(InputError, match='bias_rate=0'):
    create_optimizer('sgd', lambda _: 0.1, 0.9, 0.0, 0.0, bias_rate=0)
