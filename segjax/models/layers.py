# SPDX-License-Identifier: Apache-2.0
"""Layers that the networks share: convolutions, poolings, up-convolutions.

All take and return feature maps [B, H, W, C]. Parameters are float32 whatever
the compute dtype.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import InputError
from segjax.geometry import Footprint
from segjax.models.convolution import by_backend, convolve

# Gaussian of standard deviation sqrt(2 / N), N incoming nodes (U-Net, section
# 3; He et al. 2015). Untruncated, unlike `nn.initializers.he_normal`.
he_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
_he_init_upconv = nn.initializers.variance_scaling(
  2.0, 'fan_in', 'normal', batch_axis=(0, 1)
)

# Precisions of float32 products, by JAX's names; see `at_precision`.
PRECISIONS = ('default', 'high', 'highest')

# Collection that receives the next running means of `BatchNorm`.
RUNNING = 'running'
RUNNING_MEANS = ('mean', 'var')  # Their names.
# The share of a batch in the running means that a training step moves.
MOVE = 0.1


def convolution_padding(
  mode: str | int, kernel_size: Sequence[int]
) -> str | list[tuple[int, int]]:
  """Returns the `lax` padding of a convolution mode.

  With k the size of the kernel along an axis of N pixels and t the stride, the
  output has

      'VALID'  floor((N - k) / t) + 1  pixels; the kernel stays inside,
      'SAME'   ceil(N / t)             zeros around, the odd one at the end,
      'FULL'   floor((N + k - 2) / t) + 1; every overlap, however small,
      p >= 0   floor((N + 2p - k) / t) + 1; p zeros at each side (Caffe).

  At stride 1 the first three are the modes of `scipy.signal.correlate2d`.

  Raises:
    InputError: the mode is another.
  """
  if mode == 'FULL':
    return [(k - 1, k - 1) for k in kernel_size]
  if mode in ('VALID', 'SAME'):
    return mode
  if isinstance(mode, int) and mode >= 0:
    return [(mode, mode)] * len(kernel_size)
  raise InputError(
    f"convolution mode {mode!r} is not one of 'VALID', 'SAME', 'FULL' or a "
    'number of zeros >= 0'
  )


def at_precision(call: Callable) -> Callable:
  """Returns a module's method, computed at the `precision` of the module.

  The gradient has the same precision. 'highest' computes products of float32 in
  float32 on every device. 'default' leaves the precision to
  JAX_DEFAULT_MATMUL_PRECISION and XLA, which takes TF32 on NVIDIA's A100 and
  H100 and bfloat16 on TPUs; 'high' is in between on TPUs. CPUs always compute
  in float32.
  """

  @functools.wraps(call)
  def at(self, *args, **kwargs):
    if self.precision == 'default':
      return call(self, *args, **kwargs)
    with jax.default_matmul_precision(self.precision):
      return call(self, *args, **kwargs)

  return at


class Conv(nn.Module):
  """Two-dimensional cross-correlation, plus bias.

  Attributes:
    features: output channels.
    kernel_size: rows and columns, odd or even.
    mode: 'VALID', 'SAME', 'FULL' or zeros; see `convolution_padding`.
    strides: rows and columns from one output to the next.
    dtype: compute dtype.
    groups: G, for a grouped convolution. Input and output channels are divided
      into G equal runs; an output sees the inputs of its own run only.
    kernel_init: initialiser of the kernel [k, k, C / G, features].
    use_bias: whether to add a bias; a norm that follows would subtract it.
  """

  features: int
  kernel_size: Sequence[int] = (3, 3)
  mode: str | int = 'VALID'
  strides: Sequence[int] = (1, 1)
  dtype: jnp.dtype = jnp.float32
  groups: int = 1
  kernel_init: Callable = he_init
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to dtype[B, H', W', features]."""
    in_features = x.shape[-1] // self.groups
    shape = (*self.kernel_size, in_features, self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    y = convolve(
      x,
      kernel,
      convolution_padding(self.mode, self.kernel_size),
      self.strides,
      self.groups,
    )
    if not self.use_bias:
      return y
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return _add_bias(y, bias)


def _add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
  """Returns y + bias in the dtype of y.

  The gradient of the bias, a sum over all pixels, is in the dtype of the bias.
  In bfloat16, with its 8 bits, XLA:CPU returns half of it on 64 x 64 pixels and
  an eighth on 1024 x 1024.
  """

  def plain(y, bias):
    # Broadcast before the cast, so that the gradient is cast, then summed.
    return y + jnp.broadcast_to(bias, y.shape).astype(y.dtype)

  def by_rows(y, bias):
    # The gradient is summed by rows first: XLA:CPU takes 2 to 8 times as long
    # for one sum over all pixels, into which it would join the two sums again.
    return plain(y, _over_rows(bias, y))

  return by_backend(y, bias, cpu=by_rows, default=plain)


class BatchNorm(nn.Module):
  """Batch normalisation of each channel (Ioffe and Szegedy, ICML 2015).

  y = scale (x - mean) / sqrt(var + 1e-5) + bias, in float32. In training, mean
  and var are those of all pixels of the batch, var without Bessel's correction,
  as in Flax. Otherwise, and in training with frozen norms, they are running
  means, and the output of a pixel depends on that pixel alone.

  The running means are the parameters `mean` and `var`, so that a tree of
  parameters is a whole network. No gradient reaches them. In training, their
  next values are .9 times the old ones plus .1 times those of the batch. If the
  collection `RUNNING` is mutable, they are put there under the same names, and
  the training step moves them into the parameters. Frozen norms move nothing.

  Attributes:
    train: whether to normalise by the mean and var of the batch, unless frozen.
    axis_names: axes of `vmap` and `pmap` over which the batch is divided.
    frozen: whether to keep to the running means in training; a bool, or bool[].
  """

  train: bool
  axis_names: tuple[str, ...] = ()
  frozen: bool | jax.Array = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to the same shape and dtype."""
    shape = (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    mean = self.param('mean', nn.initializers.zeros, shape)
    var = self.param('var', nn.initializers.ones, shape)
    mean, var = map(jax.lax.stop_gradient, (mean, var))
    y = x.astype(jnp.float32)
    spread = _over_rows if self.train else _over_channels
    if self.train:
      running = {'mean': mean, 'var': var}
      mean = if_frozen(self.frozen, mean, self._mean_of(y))
      # In two passes: a mean of squares less a squared mean cancels.
      of_batch = self._mean_of(jnp.square(y - spread(mean, y)))
      var = if_frozen(self.frozen, var, of_batch)
      if self.is_mutable_collection(RUNNING):
        for name, new in (('mean', mean), ('var', var)):
          moved = running[name] + MOVE * (new - running[name])
          self.put_variable(RUNNING, name, moved)
    factor = scale * jax.lax.rsqrt(var + 1e-5)
    y = (y - spread(mean, y)) * spread(factor, y) + spread(bias, y)
    return y.astype(x.dtype)

  def _mean_of(self, y):
    # By rows first, as in `_add_bias`.
    mean = jax.lax.optimization_barrier(y.mean(2)).mean((0, 1))
    return jax.lax.pmean(mean, self.axis_names) if self.axis_names else mean


def if_frozen(
  frozen: bool | jax.Array, kept: jax.Array, new: jax.Array
) -> jax.Array:
  """Returns `kept` if norms are frozen, otherwise `new`, in one program."""
  if isinstance(frozen, bool):
    return kept if frozen else new
  return jnp.where(frozen, kept, new)


def _over_channels(values, like):
  return values.reshape(1, 1, 1, -1)


def _over_rows(values, like):
  """Returns [C] as [B, H, 1, C], whose gradient is summed by rows first."""
  rows = jnp.broadcast_to(values, (*like.shape[:2], 1, values.size))
  return jax.lax.optimization_barrier(rows)


class UpConv(nn.Module):
  """2x2 up-convolution of stride 2 (transposed convolution), plus bias.

  With kernel K [2, 2, C, features], y[2i + a, 2j + b] = K[a, b]^T x[i, j]:
  the windows don't overlap, so a 1x1 convolution to four times the features
  and an interleaving compute it. The kernel has the layout of Caffe and
  PyTorch, which is that of `nn.ConvTranspose` flipped in both directions.

  Each output pixel receives C terms, so the initial standard deviation is
  sqrt(2 / C), not sqrt(2 / 4C).

  Attributes:
    features: output channels.
    dtype: compute dtype.
    use_bias: whether to add a bias; see `Conv`.
  """

  features: int
  dtype: jnp.dtype = jnp.float32
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to dtype[B, 2H, 2W, features]."""
    b, h, w, c = x.shape
    kernel = self.param('kernel', _he_init_upconv, (2, 2, c, self.features))
    kernel = kernel.transpose(2, 0, 1, 3).reshape(1, 1, c, 4 * self.features)
    y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), 'VALID')
    y = y.reshape(b, h, w, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(b, 2 * h, 2 * w, self.features)
    if not self.use_bias:
      return y
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return _add_bias(y, bias)


@jax.custom_jvp
def max_pool(x: jax.Array) -> jax.Array:
  """Returns the maxima of the 2x2 cells of [B, H, W, C], H and W even.

  A reduction over a reshaped array, which is faster on CPU than `nn.max_pool`
  in both directions, with the same values and gradients. Of equal maxima, the
  first by rows has the gradient, as in Caffe and PyTorch.
  """
  return _cells(x).max(axis=(2, 4))


@max_pool.defjvp
def _max_pool_jvp(primals, tangents):
  # Pixels are compared with each other. JAX compares them with the maximum. XLA
  # fuses earlier operations into both loops and may round them differently, so
  # that no pixel equals the maximum: its gradient is lost (jax issue 40564).
  (x,), (dx,) = primals, tangents
  cells = _cells(x)
  is_right = cells[..., 1, :] > cells[..., 0, :]
  rows = cells.max(axis=4)
  is_lower = rows[:, :, 1] > rows[:, :, 0]
  is_right = jnp.where(is_lower, is_right[:, :, 1], is_right[:, :, 0])
  lower = np.array([False, True]).reshape(1, 1, 2, 1, 1, 1)
  right = lower.reshape(1, 1, 1, 1, 2, 1)
  is_first = (is_lower[:, :, None, :, None] == lower) & (
    is_right[:, :, None, :, None] == right
  )
  dy = jnp.where(is_first, _cells(dx), 0).sum(axis=(2, 4))
  return max_pool(x), dy


def _cells(x):
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c)


def max_pool_ceil(x: jax.Array, footprint: Footprint) -> jax.Array:
  """Returns the maxima of the windows of [B, H, W, C], as Caffe does.

  Windows that reach beyond the end take the maximum of the pixels that exist.
  `footprint` gives the size and the number of the windows.
  """
  pads = [footprint.padding(n) for n in x.shape[1:3]]
  if (footprint.kernel, footprint.stride, footprint.pad) == (2, 2, 0):
    pads = ((0, 0), *pads, (0, 0))
    return max_pool(jnp.pad(x, pads, constant_values=-jnp.inf))
  size, strides = (footprint.kernel,) * 2, (footprint.stride,) * 2
  return nn.max_pool(
    x,
    size,
    strides,
    padding=pads,  # pyright: ignore[reportArgumentType]  # Flax says str, takes pairs.
  )


def local_response_norm(x: jax.Array) -> jax.Array:
  """Returns x / (1 + 1e-4 / 5 sum x^2)^0.75 of float[B,H,W,C], in its dtype.

  The sum runs over the 5 channels around each, with zeros beyond the ends, as
  in Caffe's AlexNet and GoogLeNet. Caffe divides alpha = 1e-4 by the 5
  channels; Krizhevsky et al. 2012, section 3.3, do not.
  """
  squares = jnp.square(x.astype(jnp.float32))
  squares = jnp.pad(squares, ((0, 0),) * 3 + ((2, 2),))
  total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
  return (x * (1.0 + 1e-4 / 5 * total) ** -0.75).astype(x.dtype)


def zero_beyond(x: jax.Array, extent: jax.Array | None) -> jax.Array:
  """Returns [B, H, W, C] with zeros instead of all values beyond `extent`.

  Args:
    x: feature maps.
    extent: i32[B,2], rows and columns to keep of each map; None keeps all.
  """
  if extent is None:
    return x
  b, h, w, _ = x.shape
  rows = jnp.arange(h).reshape(1, h, 1, 1) < extent[:, 0].reshape(b, 1, 1, 1)
  columns = jnp.arange(w).reshape(1, 1, w, 1) < extent[:, 1].reshape(b, 1, 1, 1)
  return jnp.where(rows & columns, x, 0)


def check_channels(image: jax.Array, in_channels: int) -> None:
  """Raises `InputError` unless image [B, H, W, C] has C = `in_channels`."""
  if image.shape[-1] != in_channels:
    raise InputError(
      f'image has {image.shape[-1]} channels; the model was built for '
      f'in_channels={in_channels}'
    )


def crop(x: jax.Array, margin: int) -> jax.Array:
  """Returns [B, H, W, C] without `margin` pixels at each side."""
  b, h, w, c = x.shape
  # Not by an index, which fails for the symbolic sizes of an export.
  return jax.lax.slice(
    x, (0, margin, margin, 0), (b, h - margin, w - margin, c)
  )
