# SPDX-License-Identifier: Apache-2.0
"""segjax.models.convolution: the forms of a CPU are XLA's convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.models import convolution
from segjax.models.convolution import convolve
from segjax.models.unet import UNet

# Of the norm; one float32 operation errs by 6e-8.
_TOLERANCE = 3e-6

# Image, kernel, padding: Winograd's form with every number of columns left
# over, in the forward pass only and in the gradient too, and the other forms.
_CASES = {
  'whole cells': ((1, 54, 54, 64), (3, 3, 64, 64), 'VALID'),
  'one column over': ((2, 40, 39, 64), (3, 3, 64, 128), 'VALID'),
  'two columns over': ((1, 52, 60, 128), (3, 3, 128, 64), [(2, 2), (2, 2)]),
  'three columns over': ((1, 30, 31, 64), (3, 3, 64, 64), 'SAME'),
  'uneven zeros': ((1, 56, 50, 64), (3, 3, 64, 64), [(0, 3), (2, 1)]),
  'few columns': ((1, 1400, 4, 64), (3, 3, 64, 64), 'VALID'),
  'narrow': ((1, 30, 31, 8), (3, 3, 8, 8), 'SAME'),
  'narrow, in pairs': ((2, 30, 32, 8), (3, 3, 8, 16), 'VALID'),
  'narrow, uneven zeros': ((1, 9, 8, 3), (3, 3, 3, 8), [(0, 3), (2, 1)]),
  'narrow, one column': ((1, 9, 3, 4), (3, 3, 4, 8), 'VALID'),
  'one channel': ((2, 19, 24, 1), (3, 3, 1, 16), 'VALID'),
  'one channel, uneven zeros': ((1, 9, 8, 1), (3, 3, 1, 4), [(0, 3), (2, 1)]),
  'much padding': ((1, 9, 12, 3), (3, 3, 3, 8), [(100, 100)] * 2),
  'kernel as large': ((2, 7, 7, 8), (7, 7, 8, 8), 'VALID'),
  'kernel larger': ((2, 5, 6, 8), (7, 7, 8, 8), [(3, 3)] * 2),
  '1 x 1': ((2, 9, 8, 8), (1, 1, 8, 4), 'VALID'),
}


def _plain(padding, x, kernel):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _random(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal(shape, np.float32) for shape in shapes]


def _difference(actual, expected):
  assert actual.shape == expected.shape
  assert actual.dtype == expected.dtype
  actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
  return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize('case', _CASES)
def test_values_and_derivatives_are_the_plain_ones(case):
  shape, kernel_shape, padding = _CASES[case]
  x, kernel, dx, dkernel = _random(*[shape, kernel_shape] * 2)

  def evaluate(function, x, kernel, dx, dkernel):
    y, pull_back = jax.vjp(function, x, kernel)
    # Of neither argument alone are the derivatives those of both.
    only_kernel = jax.grad(lambda k: jnp.mean(function(x, k) ** 2))(kernel)
    only_x = jax.jvp(lambda x: function(x, kernel), (x,), (dx,))[1]
    both = jax.jvp(function, (x, kernel), (dx, dkernel))[1]
    weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    return y, *pull_back(weights), both, only_kernel, only_x

  got, want = (
    jax.jit(functools.partial(evaluate, function))(x, kernel, dx, dkernel)
    for function in (
      lambda x, kernel: convolve(x, kernel, padding),
      functools.partial(_plain, padding),
    )
  )
  for actual, expected in zip(got, want, strict=True):
    assert _difference(actual, expected) < _TOLERANCE


def test_errs_little_more_than_the_plain_convolution():
  x, kernel = _random((1, 40, 40, 256), (3, 3, 256, 64))
  x = np.maximum(x, 0)
  with jax.enable_x64(True):
    exact = np.asarray(
      _plain('VALID', x.astype(np.float64), kernel.astype(np.float64))
    )
  errors = [
    np.abs(np.asarray(function(x, kernel), np.float64) - exact).max()
    for function in (
      jax.jit(lambda x, kernel: convolve(x, kernel, 'VALID')),
      jax.jit(functools.partial(_plain, 'VALID')),
    )
  ]
  assert errors[0] < 8 * errors[1]
  assert errors[0] < 1e-5 * np.abs(exact).max()


def _convolutions(function, *args, platform='cpu'):
  """Returns how many convolutions a function is lowered to."""
  traced = jax.jit(function).trace(*args)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  return text.count('stablehlo.convolution')


def _loss(kernel, x):
  return jnp.sum(convolve(x, kernel, 'VALID') ** 2)


_LOSSES = _loss, jax.grad(_loss), jax.grad(_loss, argnums=(0, 1))
# Convolutions of each where Winograd's form pays and is taken, and elsewhere.
_ON_CPU, _ELSEWHERE = [6, 7, 13], [1, 2, 3]


@pytest.mark.parametrize(
  ('backend', 'counts'), [('cpu', _ON_CPU), ('gpu', _ELSEWHERE)]
)
def test_each_backend_gets_its_own_form(backend, counts, monkeypatch):
  args = _random((3, 3, 64, 64), (1, 54, 54, 64))
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  for loss, count in zip(_LOSSES, counts, strict=True):
    assert _convolutions(lambda *args, f=loss: f(*args), *args) == count


def test_exports_give_each_platform_its_own_form():
  (batch,) = jax.export.symbolic_shape('n')
  args = [
    jax.ShapeDtypeStruct(shape, jnp.float32)
    for shape in ((3, 3, 64, 64), (batch, 54, 54, 64))
  ]

  def count(platform):
    return [
      jax.export.export(jax.jit(loss), platforms=(platform,))(*args)
      .mlir_module()
      .count('stablehlo.convolution')
      for loss in _LOSSES
    ]

  assert count('cpu') == _ON_CPU
  assert count('cuda') == count('tpu') == _ELSEWHERE


@pytest.mark.parametrize(
  ('shape', 'kernel_shape'),
  [
    ((1, 54, 54, 63), (3, 3, 63, 64)),
    ((1, 54, 54, 64), (3, 3, 64, 63)),
    ((1, 29, 28, 64), (3, 3, 64, 64)),
    ((2, 260, 260, 64), (3, 3, 64, 64)),
    ((1, 54, 54, 64), (3, 1, 64, 64)),
    ((1, 54, 54, 64), (5, 5, 64, 64)),
  ],
)
def test_where_it_does_not_pay_the_form_is_plain(shape, kernel_shape):
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, kernel_shape)]
  assert _convolutions(lambda x, k: convolve(x, k, 'VALID'), *args) == 1


@pytest.mark.parametrize('channels', [1, 64])
def test_bfloat16_is_convolved_plainly(channels):
  args = [
    jax.ShapeDtypeStruct(s, jnp.bfloat16)
    for s in ((1, 54, 54, channels), (3, 3, channels, 64))
  ]
  assert _convolutions(lambda x, k: convolve(x, k, 'VALID'), *args) == 1


def test_one_channel_is_convolved_without_a_convolution():
  args = [
    jax.ShapeDtypeStruct(s, jnp.float32)
    for s in ((1, 54, 54, 1), (3, 3, 1, 64))
  ]
  assert _convolutions(lambda x, k: convolve(x, k, 'VALID'), *args) == 0


@pytest.mark.parametrize(('channels', 'columns'), [(16, 2), (17, 3)])
def test_few_channels_are_convolved_by_pairs_of_columns(channels, columns):
  args = [
    jax.ShapeDtypeStruct(s, jnp.float32)
    for s in ((1, 54, 54, channels), (3, 3, channels, 8))
  ]
  lowered = jax.jit(lambda x, k: convolve(x, k, 'VALID')).lower(*args)
  assert f'tensor<3x{columns}x' in lowered.as_text()


@pytest.mark.parametrize('channels', [(8, 8), (16, 8), (8, 16), (3, 8)])
def test_pairs_of_columns_begin_anywhere(channels):
  x, kernel = _random((1, 40, 75, channels[0]), (3, 3, *channels))
  evaluate = jax.jit(lambda x: convolve(x, kernel, 'VALID'))
  # Tiles may begin at any column: a pixel is the same, left or right in a pair.
  np.testing.assert_array_equal(evaluate(x[:, :, 1:]), evaluate(x)[:, :, 1:])


def test_vmap_and_second_derivatives():
  arrays = _random((3, 1, 54, 54, 64), *[(3, 3, 64, 64)] * 2)

  def evaluate(function, x, kernel, dkernel):
    def loss(kernel, x):
      return jnp.mean(jnp.tanh(function(x, kernel)))

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(kernel, x)
    first = functools.partial(jax.grad(loss), x=x[0])
    forward = jax.jvp(first, (kernel,), (dkernel,))[1]
    reverse = jax.grad(lambda k: jnp.vdot(first(k), dkernel))(kernel)
    return gradients, forward, reverse

  got, want = (
    jax.jit(functools.partial(evaluate, function))(*arrays)
    for function in (
      lambda x, kernel: convolve(x, kernel, 'VALID'),
      functools.partial(_plain, 'VALID'),
    )
  )
  for actual, expected in zip(got, want, strict=True):
    assert _difference(actual, expected) < 2e-4


def test_rows_split_over_devices():
  x, kernel = _random((2, 56, 54, 64), (3, 3, 64, 64))

  def evaluate(function, x, kernel):
    y, pull_back = jax.vjp(function, x, kernel)
    return y, *pull_back(y)

  mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ('data', 'space'))
  rows = NamedSharding(mesh, PartitionSpec('data', 'space'))
  everywhere = NamedSharding(mesh, PartitionSpec())
  ours = jax.jit(
    functools.partial(evaluate, lambda x, k: convolve(x, k, 'SAME')),
    in_shardings=(rows, everywhere),
    out_shardings=everywhere,
  )
  plain = jax.jit(
    functools.partial(evaluate, functools.partial(_plain, 'SAME'))
  )
  for actual, expected in zip(ours(x, kernel), plain(x, kernel), strict=True):
    assert _difference(actual, expected) < _TOLERANCE


def test_a_network_that_is_wide_is_the_plain_network(monkeypatch):
  model = UNet(base_width=64, depth=1, dropout_rate=0.0)
  image, label = _random((1, 72, 88, 1), (1, 56, 72, 2))
  params = jax.jit(model.init)(jax.random.key(0), image)

  def evaluate(params):
    def loss(params):
      logits = model.apply(params, image)
      return jnp.mean((logits - label) ** 2), logits

    return jax.grad(loss, has_aux=True)(params)

  assert _convolutions(evaluate, params) > 60
  got, got_logits = jax.jit(evaluate)(params)
  monkeypatch.setattr(convolution, '_on_cpu', _plain)
  want, want_logits = jax.jit(lambda params: evaluate(params))(params)
  assert _difference(got_logits, want_logits) < 1e-5
  # Of random values some lie so close to a ReLU's corner that they change
  # sides.
  for actual, expected in zip(
    jax.tree.leaves(got), jax.tree.leaves(want), strict=True
  ):
    assert _difference(actual, expected) < 2e-3
