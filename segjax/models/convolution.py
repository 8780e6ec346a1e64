# SPDX-License-Identifier: Apache-2.0
"""Convolutions of feature maps, as fast as each backend allows.

GPUs and TPUs use XLA's convolution, in the precision that
`layers.at_precision` sets. On a CPU, some convolutions have a faster form,
whose results are equal up to the rounding of float32:

  * 3x3 convolutions of wide layers: Winograd's minimal filtering, four columns
    at a time, with half the multiplications (Lavin and Gray, "Fast Algorithms
    for Convolutional Neural Networks", CVPR 2016, section 4);
  * 3x3 convolutions of few channels: two columns are taken for one of twice the
    channels, since XLA's copying of the windows takes longer than the products;
  * 3x3 convolutions of one channel, such as of gray images: a sum of nine maps;
  * kernels larger than the map, such as fc6 on small images: a matrix product;
  * the gradient of a kernel: a convolution of the map that was padded before.

benchmarks/README.md has the gain of each.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.custom_derivatives import SymbolicZero

_Pads = tuple[tuple[int, int], tuple[int, int]]
_NO_PADS = ((0, 0), (0, 0))
_DIMENSIONS = 'NHWC', 'HWIO', 'NHWC'

# F(4, 3): four outputs y of six inputs x and three weights w along a line are
# y = A ((G w) * (B x)), six multiplications instead of twelve.
_COLUMNS = 4
_B = (
  (4, 0, -5, 0, 1, 0),
  (0, -4, -4, 1, 1, 0),
  (0, 4, -4, -1, 1, 0),
  (0, -2, -1, 2, 1, 0),
  (0, 2, -1, -2, 1, 0),
  (0, 4, 0, -5, 0, 1),
)
_G = (
  (1 / 4, 0, 0),
  (-1 / 6, -1 / 6, -1 / 6),
  (-1 / 6, 1 / 6, -1 / 6),
  (1 / 24, 1 / 12, 1 / 6),
  (1 / 24, -1 / 12, 1 / 6),
  (0, 0, 1),
)
_A = (
  (1, 1, 1, 1, 1, 0),
  (0, 1, -1, 2, -2, 0),
  (0, 1, 1, 4, 4, 0),
  (0, 1, -1, 8, -8, 1),
)

# Where Winograd's form is faster, measured on two cores with 32 MiB of cache:
# in layers this wide; in narrower ones only while the maps fit the cache; and
# on maps with so many pixels that transforming the kernel costs little.
_WIDE = 128
_NARROW = 64
_MOST_PIXELS_NARROW = 1 << 16
_FEWEST_PIXELS = 768
_FEWEST_PIXELS_TRANSPOSED = 2560

# Input and output channels together, up to which pairs of columns are faster.
_FEW = 24


_IS_PLAIN = contextvars.ContextVar('is_plain', default=False)


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
  """Makes code that is traced inside use XLA's convolution on CPUs, too.

  For exports to other compilers, which optimise convolutions themselves.
  """
  token = _IS_PLAIN.set(True)
  try:
    yield
  finally:
    _IS_PLAIN.reset(token)


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  padding: str | Sequence[tuple[int, int]],
  strides: Sequence[int] = (1, 1),
  groups: int = 1,
) -> jax.Array:
  """Returns the cross-correlation of feature maps with a kernel.

  Args:
    x: [B, H, W, C].
    kernel: [k, l, C / groups, O], of the dtype of x.
    padding: 'VALID', 'SAME', or zeros before and after the rows and columns.
    strides: rows and columns from one output to the next.
    groups: number of groups of channels; see `layers.Conv`.

  Returns:
    [B, H', W', O].
  """

  def plain(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=strides,
      padding=padding,
      dimension_numbers=_DIMENSIONS,
      feature_group_count=groups,
    )

  if (*strides, groups) != (1, 1, 1):
    return plain(x, kernel)
  pads = padding
  if isinstance(padding, str):
    size = x.shape[1:3], kernel.shape[:2]
    pads = jax.lax.padtype_to_pads(*size, strides, padding)
  cpu = functools.partial(_on_cpu, tuple(map(tuple, pads)))
  return by_backend(x, kernel, cpu=cpu, default=plain)


def by_backend(
  x: jax.Array, *args: jax.Array, cpu: Callable, default: Callable
) -> jax.Array:
  """Returns cpu(x, *args) if JAX's default backend is a CPU, else default(...).

  An export with a symbolic batch size may be for several platforms. It holds
  both functions (`jax.lax.platform_dependent`), and each platform takes its
  own. Every program could do so, but then tracing a training step takes twice
  as long. Inside `plain_forms`, all platforms take `default`.
  """
  if _IS_PLAIN.get():
    return default(x, *args)
  if any(map(export.is_symbolic_dim, x.shape)):
    return jax.lax.platform_dependent(x, *args, cpu=cpu, default=default)
  return (cpu if jax.default_backend() == 'cpu' else default)(x, *args)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _on_cpu(pads: _Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
  return _choose(pads, x, kernel)(pads, x, kernel)


def _on_cpu_jvp(pads, primals, tangents):
  """The product rule, each term in the form whose transpose is fast."""
  x, kernel = primals
  dx, dkernel = tangents
  terms = []
  if not isinstance(dx, SymbolicZero):
    form = _choose(pads, x, kernel, transposed=True)
    terms.append(form(pads, dx, kernel))
  if not isinstance(dkernel, SymbolicZero):
    form = _as_product if _is_larger(kernel, x) else _batch_inside
    # Where the convolution itself pads, XLA:CPU takes up to twice as long for
    # the gradient of the kernel; with FCN's 100 zeros, 20 times as long.
    terms.append(form(_NO_PADS, _pad(x, *pads), dkernel))
  return _on_cpu(pads, x, kernel), sum(terms[1:], terms[0])


_on_cpu.defjvp(_on_cpu_jvp, symbolic_zeros=True)


def _choose(pads: _Pads, x: jax.Array, kernel: jax.Array, transposed=False):
  """Returns the fastest of the forms below for these shapes.

  With `transposed`, it is the form whose transpose, the gradient of x, is
  fastest.
  """
  if _is_larger(kernel, x):
    return _as_product
  rows, columns, *channels = kernel.shape
  if (rows, columns) != (3, 3) or x.dtype != jnp.float32:
    return _plain
  if channels[0] == 1 and not transposed:
    return _by_taps
  if min(channels) > 1 and sum(channels) <= _FEW:
    return _paired
  h, w = _output_size(pads, x, kernel)
  pixels = h * w  # The batch may be symbolic, as in an export.
  narrow = _NARROW if pixels <= _MOST_PIXELS_NARROW else _WIDE
  fewest = _FEWEST_PIXELS_TRANSPOSED if transposed else _FEWEST_PIXELS
  if min(channels) >= narrow and pixels >= fewest:
    return _winograd
  return _plain


def _plain(pads: _Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), pads, dimension_numbers=_DIMENSIONS
  )


def _batch_inside(pads: _Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves to [H, W, B, O]: no copy in the gradient for a single image.

  In the gradient of the kernel, the gradient of y takes the place of a kernel.
  XLA:CPU copies it unless its pixels come first and then the batch.
  """
  y = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), pads, dimension_numbers=('NHWC', 'HWIO', 'HWNC')
  )
  return y.transpose(2, 0, 1, 3)


# In jit, since each operation outside of a program is compiled on its own.
@functools.partial(jax.jit, static_argnums=0)
def _paired(pads: _Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves pairs of columns, [B, H, W / 2, 2 C], with a 3x2 kernel.

  A third of the kernel is zeros, but a third fewer values are copied, and for
  half as many windows. Zeros fill up the last pair, and their output is left
  out.
  """
  row_pads, (left, right) = pads
  *_, c, features = kernel.shape
  width = x.shape[2] + left + right - 2
  x = _pad(x, (0, 0), (left, right + width % 2))
  x = x.reshape(*x.shape[:2], x.shape[2] // 2, 2 * c)
  # For the left pixel of a pair and for the right one.
  both = [jnp.pad(kernel, ((0, 0), (i, 1 - i), (0, 0), (0, 0))) for i in (0, 1)]
  kernel = jnp.stack(both, axis=3).reshape(3, 2, 2 * c, 2 * features)
  y = _plain((row_pads, (0, 0)), x, kernel)
  y = y.reshape(*y.shape[:2], width + width % 2, features)
  return y[:, :, :width]


@functools.partial(jax.jit, static_argnums=0)
def _by_taps(pads: _Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves one channel by a sum over taps, which XLA fuses to one loop."""
  rows, columns, _, features = kernel.shape
  h, w = _output_size(pads, x, kernel)
  x = _pad(x, *pads)
  taps = kernel.reshape(rows, columns, 1, 1, 1, features)
  terms = [
    x[:, i : i + h, j : j + w] * taps[i, j]
    for i in range(rows)
    for j in range(columns)
  ]
  return sum(terms[1:], terms[0])


@functools.partial(jax.jit, static_argnums=0)
def _winograd(pads: _Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves with a 3x3 kernel: six 3x1 convolutions of quarters of the map.

  Zeros fill up the last four columns, and their outputs are left out.
  """
  row_pads, (left, right) = pads
  width = x.shape[2] + left + right - 2
  cells = -(-width // _COLUMNS)
  last = (cells - 1) * _COLUMNS + 1
  x = _pad(x, (0, 0), (left, right + cells * _COLUMNS - width))
  inputs = [
    jax.lax.slice_in_dim(x, i, i + last, _COLUMNS, axis=2) for i in range(6)
  ]
  weights = jnp.split(kernel, 3, axis=1)
  products = [
    _plain((row_pads, (0, 0)), _combine(b, inputs), _combine(g, weights))
    for b, g in zip(_B, _G, strict=True)
  ]
  y = jnp.stack([_combine(a, products) for a in _A], axis=3)
  y = y.reshape(*y.shape[:2], cells * _COLUMNS, y.shape[-1])
  return y[:, :, :width]


def _combine(coefficients, arrays):
  terms = [
    array if c == 1 else np.float32(c) * array
    for c, array in zip(coefficients, arrays, strict=True)
    if c
  ]
  return sum(terms[1:], terms[0])


def _as_product(pads: _Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves as one product of all windows with the kernel.

  For kernels that are larger than the map, such as fc6 on small images. There,
  XLA:CPU falls back to a loop, 75 times slower at 7 x 7 on 6 x 6 x 512.
  """
  rows, columns, c, features = kernel.shape
  h, w = _output_size(pads, x, kernel)
  x = _pad(x, *pads)
  shifted = [
    x[:, i : i + h, j : j + w] for i in range(rows) for j in range(columns)
  ]
  return jnp.einsum(
    'bhwi,io->bhwo',
    jnp.concatenate(shifted, axis=-1),
    kernel.reshape(rows * columns * c, features),
  )


def _is_larger(kernel: jax.Array, x: jax.Array) -> bool:
  return any(k > n for k, n in zip(kernel.shape[:2], x.shape[1:3], strict=True))


def _output_size(pads, x, kernel):
  return (
    n + sum(pad) - k + 1
    for n, pad, k in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True)
  )


def _pad(x, rows, columns):
  return jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
