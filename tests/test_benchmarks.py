# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic, and that unequal networks are not timed."""

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import REPOSITORY
from flax import traverse_util

from benchmarks import formulations, sides, timing
from segjax.models.layers import Conv
from segjax.models.unet import UNet

MODEL = UNet(depth=1, base_width=3, dropout_rate=0.0)


def test_rounds_are_interleaved_and_timed():
  order = []

  def case(name, seconds):
    def run(calls):
      order.append((name, calls))
      time.sleep(calls * seconds)

    return run

  cases = {'a': case('a', 0.02), 'b': case('b', 0.0), 'c': case('c', 0.0)}
  seconds, cpu_seconds = timing.interleave(cases, rounds=3, calls=2)
  assert order[:3] == [('a', 1), ('b', 1), ('c', 1)]
  assert [name for name, _ in order[3:]] == [*'abc', *'bca', *'cab']
  assert {calls for _, calls in order[3:]} == {2}
  # Of one call, not of two; sleep takes no CPU time.
  assert seconds['a'].shape == (3,) and 0.02 <= seconds['a'].min() < 0.04
  assert cpu_seconds['a'].min() < 0.01


def test_ratio_is_of_rounds_not_of_medians():
  ours, theirs = np.array([1.0, 2.0, 9.0]), np.array([4.0, 2.0, 3.0])
  assert timing.ratio(ours, theirs) == '1.00 (0.25-3.00)'


def test_flops_by_hand():
  conv, image = Conv(5), jnp.zeros((1, 9, 8, 2))
  params = conv.init(jax.random.key(0), image)
  pixels = 7 * 6
  products, bias = pixels * 5 * 9 * 2, pixels * 5
  assert timing.flops(conv.apply, params, image) == 2 * products + bias


def test_difference_by_hand():
  want = {'a': np.array([3.0, 0.0]), 'b': np.array([[4.0]])}
  got = {'a': np.array([3.0, 0.3]), 'b': np.array([[4.4]])}
  assert sides.difference(got, want) == pytest.approx(0.5 / 5)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_training_by_hand(reduction):
  params = sides.random_params(MODEL)
  batch = sides.random_batch(MODEL, 8, 28)  # One for each device.

  def loss(params):
    logits = MODEL.apply({'params': params}, batch['image'])
    chosen = jnp.take_along_axis(
      jax.nn.log_softmax(logits), batch['label'][..., None], axis=-1
    )
    return -getattr(chosen, reduction)()

  gradient = jax.jit(jax.grad(loss))
  first = gradient(params)
  # None is zero, so that none can differ unseen.
  assert all(np.any(leaf) for leaf in jax.tree.leaves(first))
  momentum = sides.MOMENTUM
  rate = 1e-3 / (batch['label'].size if reduction == 'sum' else 1)
  second = gradient(jax.tree.map(lambda p, g: p - rate * g, params, first))
  want = jax.tree.map(
    lambda g, h: np.asarray(-rate * ((1 + momentum) * g + h)), first, second
  )
  want = traverse_util.flatten_dict(want, sep='/')
  got = sides.train(MODEL, params, batch, reduction).result()
  assert sides.STEPS == 2
  assert sides.difference(got, want) < 1e-4


@pytest.mark.parametrize('name', formulations.VARIANTS)
def test_formulations_are_the_same_network(name):
  image = sides.random_batch(MODEL, 1, 28)['image']
  params = sides.random_params(MODEL)

  def forward_and_back():
    def apply(params):
      return MODEL.apply({'params': params}, image)

    logits, pull = jax.vjp(apply, params)
    return logits, pull(logits)[0]

  want = forward_and_back()
  with formulations.replaced(name):
    got = forward_and_back()
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def run(module, *flags):
  return subprocess.run(
    [sys.executable, '-m', f'benchmarks.{module}', *flags],
    cwd=REPOSITORY,
    env=os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
  )


QUICK = ('--rounds=1', '--peak_size=64', '--variants=channels_last')


@pytest.mark.parametrize(
  'command',
  [
    ('unet', '--width=2', '--size=188', *QUICK),
    ('fcn', '--width=2', '--size=33', *QUICK),
  ],
)
def test_twins_are_equal_and_timed(command):
  pytest.importorskip('torch', reason='PyTorch is not installed')
  process = run(*command)
  assert process.returncode == 0, process.stderr
  for mode in ('forward', 'train'):
    assert f'px, {mode}, batch 1, float32\n' in process.stdout
  assert process.stdout.count('| **channels_last** |') == 2
  assert 'python -m benchmarks.' + ' '.join(command) in process.stdout


def test_unequal_networks_are_not_timed():
  pytest.importorskip('torch', reason='PyTorch is not installed')
  code = (
    'from absl.flags import FLAGS\n'
    'from benchmarks import compare, torch_nets\n'
    'from segjax.models.unet import UNet\n'
    "FLAGS(['', '--modes=forward', '--variants=eager', '--peak_size=64'])\n"
    'model = UNet(base_width=2, dropout_rate=0.0, upconv_relu=True)\n'
    "compare.compare('', model, lambda: torch_nets.UNet(2), 188)\n"
  )
  process = subprocess.run(
    [sys.executable, '-c', code],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert 'ArithmeticError: forward: eager differs' in process.stderr
  assert process.stdout == ''


def test_a_wrong_flag_is_one_line():
  pytest.importorskip('torch', reason='PyTorch is not installed')
  process = run('unet', '--variants=fastest')
  assert process.returncode == 2
  assert process.stderr.count('\n') == 1 and 'fastest' in process.stderr


def test_augmentation_agrees_with_scipy_before_it_is_timed():
  process = run('augment', '--size=40', '--rounds=1')
  assert process.returncode == 0, process.stderr
  assert '| scipy, field by matrices |' in process.stdout
