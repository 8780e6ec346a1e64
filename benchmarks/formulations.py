# SPDX-License-Identifier: Apache-2.0
"""Other ways to compute the layers: python -m benchmarks.formulations

Each takes the place of one of segjax's own, in the same network, and is checked
to give the same logits and updates before it is timed. With --own, only what
segjax has on a CPU is turned on and off, which depends on jaxlib; see
`segjax.devices.parallel`. FCN-8s is computed forward only:

    python -m benchmarks.formulations --own --size=380 --rounds=7
    python -m benchmarks.formulations --own --size=96 --rounds=7 --fcn8s
"""

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import sides, timing
from segjax.cli.command_line import run_command
from segjax.models import convolution, fcn, layers, unet

_FCN8S = flags.DEFINE_bool('fcn8s', False, 'Compute FCN-8s in place of U-Net.')
_OWN = flags.DEFINE_bool('own', False, 'Time what segjax has on a CPU alone.')
_WIDTH = flags.DEFINE_integer('width', 16, 'Channels at the finest level.', 1)
_SIZE = flags.DEFINE_integer('size', 572, 'Side of the images, in pixels.', 1)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Interleaved rounds.', 1)
_COLUMNS = 'ms', 'this / segjax', 'CPU time'
_NHWC = ('NHWC', 'HWIO', 'NHWC')
_MODES = {'forward': sides.forward, 'train': sides.train}
_TOLERANCES = {'forward': 1e-4, 'train': 1e-2}


def sum_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a bias; its gradient is one sum over all pixels."""
  return y + jnp.broadcast_to(bias, y.shape)


def plain_convolution(pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves, both ways, as XLA does of itself."""
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), pads, dimension_numbers=_NHWC
  )


def pool_reshaped(x: jax.Array) -> jax.Array:
  """Returns the maxima of the cells, with JAX's gradient."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def pool_slices(x: jax.Array) -> jax.Array:
  """Returns the maximum of the four pixels of each cell, taken apart."""
  rows = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def pool_window(x: jax.Array) -> jax.Array:
  """Returns the plain maximum pooling, a reduction over windows."""
  return nn.max_pool(x, (2, 2), (2, 2))


class TransposedUpConv(layers.UpConv):
  """The plain form: a convolution of the map with zeros in between."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param(
      'kernel', layers.he_init, (2, 2, x.shape[-1], self.features)
    )
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    y = jax.lax.conv_general_dilated(
      x,
      kernel[::-1, ::-1],
      window_strides=(1, 1),
      padding=[(1, 1)] * 2,
      lhs_dilation=(2, 2),
      dimension_numbers=_NHWC,
    )
    return layers._add_bias(y, bias)


class MatmulUpConv(layers.UpConv):
  """One product of all pixels with the kernel, interleaved as it is written."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    kernel = self.param('kernel', layers.he_init, (2, 2, c, self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    y = jnp.einsum('bhwc,ijco->bhiwjo', x, kernel)
    y = y.reshape(b, 2 * h, 2 * w, self.features)
    return layers._add_bias(y, bias)


class SplitConv(layers.Conv):
  """Convolves the parts of a concatenation apart, and adds."""

  @nn.compact
  def __call__(self, *parts: jax.Array) -> jax.Array:
    channels = [part.shape[-1] for part in parts]
    shape = (*self.kernel_size, sum(channels), self.features)
    kernel = self.param('kernel', layers.he_init, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    kernels = jnp.split(kernel, np.cumsum(channels)[:-1], axis=2)
    y = sum(
      map(functools.partial(layers.convolve, padding='VALID'), parts, kernels)
    )
    return layers._add_bias(y, bias)


class SplitUpBlock(unet.UpBlock):
  """Two convolutions and a sum instead of the concatenation."""

  @nn.compact
  def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
    x = layers.UpConv(self.upconv_features, name='upconv')(x)
    x = nn.relu(SplitConv(self.features, name='conv0')(skip, x))
    return nn.relu(layers.Conv(self.features, name='conv1')(x))


def kernel_gradient_by_eigen(
  pads, x: jax.Array, kernel: jax.Array
) -> jax.Array:
  """As `convolution._batch_inside`, but with a row of zeros that is cropped.

  XLA leaves no convolution with a negative padding to oneDNN, which takes up to
  three times as long for the gradient of a kernel.
  """
  y = jax.lax.conv_general_dilated(
    jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))),
    kernel,
    (1, 1),
    ((0, -1), (0, 0)),
    dimension_numbers=('NHWC', 'HWIO', 'HWNC'),
  )
  return y.transpose(2, 0, 1, 3)


_OPTION = {'cpu': {'xla_cpu_experimental_ynn_fusion_type': ''}}
# Has an effect from some jaxlib after 0.10.2 on; 0.12.0 has it.
_ONEDNN = {
  'cpu': _OPTION['cpu'] | {'xla_cpu_experimental_onednn_custom_call': True}
}

# What takes whose place, in segjax.
OWN = {
  'segjax': {},
  'with the compiler option': {'devices.parallel._FAST': _OPTION},
  'without the compiler option': {'devices.parallel._FAST': {}},
  'plain convolutions': {'models.convolution._on_cpu': plain_convolution},
  'without Winograd': {'models.convolution._winograd': convolution._plain},
  'few channels: plain': {'models.convolution._paired': convolution._plain},
  'one channel: plain': {'models.convolution._by_taps': convolution._plain},
  "kernel's gradient: plain": {
    'models.convolution._batch_inside': convolution._plain
  },
  'bias: one sum': {'models.layers._add_bias': sum_bias},
  'oneDNN': {
    'devices.parallel._FAST': _ONEDNN,
    'models.layers._add_bias': sum_bias,
    'models.convolution._batch_inside': kernel_gradient_by_eigen,
  },
}
VARIANTS = {
  **OWN,
  "pool: JAX's gradient": {'models.unet.max_pool': pool_reshaped},
  'pool: reduce_window': {'models.unet.max_pool': pool_window},
  'pool: four slices': {'models.unet.max_pool': pool_slices},
  'up: transposed convolution': {'models.unet.UpConv': TransposedUpConv},
  'up: matrix product': {'models.unet.UpConv': MatmulUpConv},
  'split concatenation': {'models.unet.UpBlock': SplitUpBlock},
}


@contextlib.contextmanager
def replaced(name: str) -> Iterator[None]:
  """Puts a variant in its place, for what is traced meanwhile."""
  with contextlib.ExitStack() as stack:
    for target, replacement in VARIANTS[name].items():
      stack.enter_context(mock.patch(f'segjax.{target}', replacement))
    yield


def main(_):
  size, modes = _SIZE.value, _MODES
  if _FCN8S.value:
    model, title = fcn.FCN8s(dropout_rate=0.0), 'FCN-8s'
    modes = {'forward': sides.forward}
  else:
    model = unet.UNet(base_width=_WIDTH.value, dropout_rate=0.0)
    title = f'U-Net {_WIDTH.value}'
  params = sides.random_params(model)
  batch = sides.random_batch(model, 1, size)
  variants = OWN if _OWN.value else VARIANTS
  rows = {name: [name] for name in variants}
  differences = []
  for mode, make in modes.items():
    cases, want = {}, None
    for name in variants:
      with replaced(name):
        side = make(model, params, batch)
        got = side.result()  # Traces, so that the replacement is in.
      want = want or got
      differences.append(sides.difference(got, want))
      if not differences[-1] <= _TOLERANCES[mode]:
        raise ArithmeticError(
          f'{mode}: {name} differs from segjax by {differences[-1]:.1e}'
        )
      cases[name] = side.case
    seconds, cpu_seconds = timing.interleave(cases, _ROUNDS.value)
    for name, times in seconds.items():
      rows[name] += [
        f'{1e3 * np.median(times):.4g}',
        timing.ratio(times, seconds['segjax']),
        timing.ratio(cpu_seconds[name], cpu_seconds['segjax']),
      ]
  timing.print_report(
    f'Formulations, {title}, {size} x {size} px, batch 1, float32',
    ('', *(f'{mode} {what}' for mode in modes for what in _COLUMNS)),
    rows.values(),
    f'{timing.LEGEND} Logits and updates differ by {max(differences):.1e} of '
    'their norm at most.',
  )


if __name__ == '__main__':
  run_command(main)
