# SPDX-License-Identifier: Apache-2.0
"""Refinement of logits by a fully connected CRF (DenseCRF) in a window.

The mean field of Krähenbühl and Koltun ("Efficient Inference in Fully Connected
CRFs with Gaussian Edge Potentials", NIPS 2011) gives one class to pixels that
are close to each other and look alike. As in Teichmann and Cipolla
("Convolutional CRFs for Semantic Segmentation", 2018), only pairs of pixels in
a square window count, with their exact kernels. So the result is local, and
images can be refined by tiles. A window that covers the image gives the fully
connected CRF itself.
"""

import dataclasses
import functools
import itertools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from segjax.errors import InputError, check_least, counted

# Exponent of a kernel of 0: below all others, and finite for gradients.
_NOTHING = -1e30

# Neighbours whose terms are written out in a program; more are in a loop, by
# this number, since compiling all of a wide window would take minutes.
_WRITTEN_OUT = 48

# The smallest width, whose square float32 still holds.
_LEAST_WIDTH = 1e-9

# The numbers of `Refinement` that can be learned.
LEARNABLE = (
  'appearance_weight',
  'appearance_width_px',
  'intensity_width',
  'smoothness_weight',
  'smoothness_width_px',
)


def _check_number(name: str, value: Any) -> None:
  """Raises InputError unless a weight or a width is in its range."""
  if 'width' in name and not value >= _LEAST_WIDTH:
    raise InputError(f'{name}={value} must be > 0, at least {_LEAST_WIDTH:g}')
  if 'weight' in name and not 0 <= value < math.inf:
    raise InputError(f'{name}={value} must be >= 0 and finite')


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[*LEARNABLE, 'compatibility'],
  meta_fields=['iterations', 'radius_px'],
)
@dataclasses.dataclass(frozen=True)
class Refinement:
  """The settings of `refine`, which has the formulas.

  All but `iterations` and `radius_px` are leaves of a tree: they may be arrays,
  traced, and differentiated. The defaults were chosen for FCN-8s on CamVid.

  Attributes:
    iterations: T, number of updates of the mean field; 0 changes no logits.
    radius_px: r; a pixel is compared with those up to r rows and r columns
      away. The default, 3, is Teichmann and Cipolla's filter of 7 px.
    appearance_weight: w_a, weight of neighbours that look alike, in logits.
    appearance_width_px: theta_alpha, distance over which they count, in pixels.
    intensity_width: theta_beta, difference of values over which they count, in
      the unit of the image. In `segjax.predict` that is the one of
      `to_unit_range` with `preprocessing.limits`: 0.03 is 8 of 255 without
      limits, and .12 of the image's deviation where `per_image` is set and the
      limits are -2 and 2.
    smoothness_weight: w_s, weight of all neighbours, in logits.
    smoothness_width_px: theta_gamma, distance over which they count, in pixels.
    compatibility: mu, [K, K] numbers: row l, column l' is the penalty of class
      l beside class l'. () is the Potts model: 1 for different classes.

  >>> import segjax
  >>> segjax.Refinement(iterations=5, radius_px=3).reach_px
  15
  """

  iterations: int = 5
  radius_px: int = 3
  appearance_weight: float = 4.0
  appearance_width_px: float = 80.0
  intensity_width: float = 0.03
  smoothness_weight: float = 0.3
  smoothness_width_px: float = 3.0
  compatibility: tuple[tuple[float, ...], ...] = ()

  def __post_init__(self):
    if isinstance(self.compatibility, (list, tuple)):  # Settings are hashed.
      rows = tuple(
        tuple(r) if isinstance(r, list) else r for r in self.compatibility
      )
      object.__setattr__(self, 'compatibility', rows)
      for value in itertools.chain(*(r for r in rows if isinstance(r, tuple))):
        if isinstance(value, numbers.Real) and not math.isfinite(value):
          raise InputError(f'compatibility has {value}; it must be finite')
    elif isinstance(self.compatibility, numbers.Real):
      raise InputError(
        f'compatibility={self.compatibility} must be rows of numbers, or ()'
      )
    for name in ('iterations', 'radius_px'):
      value = getattr(self, name)
      if not isinstance(value, numbers.Integral):
        raise InputError(f'{name}={value!r} must be a whole number')
    check_least(self, iterations=0, radius_px=1)
    for name in LEARNABLE:
      # Arrays may be traced, or gradients, of any sign.
      if isinstance(getattr(self, name), numbers.Real):
        _check_number(name, getattr(self, name))

  @property
  def reach_px(self) -> int:
    """Number of pixels on each side that change a refined pixel: T r."""
    return self.iterations * self.radius_px

  def describe(self) -> str:
    """Returns a description for messages; '' if no logits change."""
    if not self.iterations:
      return ''
    return (
      f'refined by a CRF: {counted(self.iterations, "iteration")} in a window '
      f'of {2 * self.radius_px + 1} px'
    )


# No refinement: logits stay as they are.
OFF = Refinement(iterations=0)


def refine(
  scores: jax.Array | np.ndarray,
  image: jax.Array | np.ndarray,
  settings: Refinement = Refinement(),
  present: jax.Array | np.ndarray | None = None,
) -> jax.Array:
  """Returns logits f32[H, W, K] that agree with those of similar neighbours.

  Their softmax Q is the mean field. With u_i the logits of pixel i, p_i its
  row and column and I_i its values in the image, Q starts as softmax(u), and T
  times

      Q_i <- softmax_l(u_i(l) - sum_l' mu(l, l') (w_a a_i(l') + w_s s_i(l')))
      a_i = sum_j k_a(i, j) Q_j / sum_j k_a(i, j),  the same for s with k_s
      k_a(i, j) = exp(-|p_i - p_j|^2 / (2 theta_alpha^2)
                      -|I_i - I_j|^2 / (2 theta_beta^2))
      k_s(i, j) = exp(-|p_i - p_j|^2 / (2 theta_gamma^2))

  where j are the pixels of the image in the window around i, except i. The sums
  of kernels in the second line (the authors' "normalised after filtering") are
  not in the paper's formulas. With them, a weight means the same in every
  window and at borders, where pixels have fewer neighbours. A pixel that
  differs from all its neighbours follows the most similar ones.

  The function is pure, for `jit`, `vmap` and `grad`. With N = (2 r + 1)^2 - 1,
  it takes T N K products and about 4 N numbers in memory per pixel: 16 KiB
  where r is 15. Offsets that leave the image everywhere are left out.

  Args:
    scores: logits f[H, W, K] of a network, before its softmax.
    image: f[H, W, C], gray or colour, in the unit of `intensity_width`, such as
      `to_unit_range` returns.
    settings: weights, widths, window and iterations.
    present: bool[H, W]; pixels that are False, such as padding, are nobody's
      neighbours, and what they hold, even NaN, does not count. None for all
      True.

  Raises:
    InputError: shapes or types are wrong, `compatibility` is not [K, K], or a
      weight or width that is not traced is out of range.

  >>> import numpy, segjax
  >>> scores = numpy.zeros((5, 6, 2))
  >>> scores[:, :3, 0] = scores[:, 3:, 1] = 2  # Two halves.
  >>> scores[2, 1] = 0, 1  # An odd pixel in one of them.
  >>> image = numpy.zeros((5, 6, 1))
  >>> image[:, 3:] = 1
  >>> refined = segjax.refine(scores, image, segjax.Refinement(radius_px=2))
  >>> refined.argmax(-1)[2].tolist()
  [0, 0, 0, 1, 1, 1]
  """
  if not isinstance(scores, jax.Array):
    scores = np.asarray(scores)
  if not isinstance(image, jax.Array):
    image = np.asarray(image)
  _check(scores, image, settings)
  # [H, K, W], so that the weights of a row serve all of its classes.
  unary = jnp.asarray(scores, jnp.float32).transpose(0, 2, 1)
  image = jnp.asarray(image, jnp.float32)
  if present is None:
    present = jnp.ones(image.shape[:2], bool)
  else:
    present = _check_present(present, image.shape[:2])
    # Their factor is 0, which does not take off NaN.
    unary = jnp.where(present[:, None], unary, 0)
    image = jnp.where(present[..., None], image, 0)
  compatibility = read_compatibility(settings, scores.shape[-1])
  reach = _reach(settings.radius_px, image.shape)
  weights = _weights(image, present, settings)

  def update(logits, _):
    message = _message(weights, jax.nn.softmax(logits, axis=1), reach)
    if compatibility is None:
      # The softmax cancels the sum over all classes in the Potts model.
      return unary + message, None
    penalty = jnp.einsum(
      'lm,hmw->hlw', compatibility, message, precision='highest'
    )
    return unary - penalty, None

  logits, _ = jax.lax.scan(update, unary, length=settings.iterations)
  return logits.transpose(0, 2, 1)


def read_compatibility(
  settings: Refinement, num_classes: int
) -> jax.Array | None:
  """Returns mu f32[K, K], or None for the Potts model.

  Raises:
    InputError: `compatibility` is not [K, K], or not finite.
  """
  if not len(settings.compatibility):
    return None
  try:
    matrix = jnp.asarray(settings.compatibility, jnp.float32)
  except (TypeError, ValueError) as error:
    raise InputError(
      'compatibility has rows of unequal length; expected '
      f'{num_classes} x {num_classes} numbers, or () for Potts'
    ) from error
  if matrix.shape != (num_classes, num_classes):
    raise InputError(
      f'compatibility has shape {matrix.shape}; expected {num_classes} x '
      f'{num_classes} numbers, or () for Potts'
    )
  is_traced = isinstance(matrix, Tracer)
  if not is_traced and not np.isfinite(np.asarray(matrix)).all():
    raise InputError('compatibility has NaN or inf; it must be finite')
  return matrix


def _reach(radius, shape):
  """Returns how many rows and columns the window reaches inside an image."""
  return tuple(min(radius, max(size - 1, 1)) for size in shape[:2])


def _neighbours(reach):
  """Returns the steps i32[N, 2] (rows, columns) from a pixel to neighbours."""
  rows, columns = (range(-far, far + 1) for far in reach)
  window = itertools.product(rows, columns)
  return np.array([step for step in window if step != (0, 0)], np.int32)


def _weights(image, present, settings):
  """Returns f32[N, H, W], the factor of Q for each of N neighbours.

  It is w_a k_a / sum k_a + w_s k_s / sum k_s.
  """
  reach = _reach(settings.radius_px, image.shape)
  steps = _neighbours(reach)
  distances = np.square(steps).sum(axis=1).astype(np.float32)
  # A loop on the device, since N copies of its body take seconds to compile.
  margin = [(far, far) for far in reach]
  around = jnp.pad(image, (*margin, (0, 0)))
  exists = jnp.pad(jnp.asarray(present, jnp.float32), margin)

  def compare(at):
    first, distance = at
    other = jax.lax.dynamic_slice(around, (*first, 0), image.shape)
    counts = jax.lax.dynamic_slice(exists, first, image.shape[:2])
    difference = jnp.sum(jnp.square(image - other), axis=-1)
    exponent = -distance / (2 * settings.appearance_width_px**2)
    exponent -= difference / (2 * settings.intensity_width**2)
    return exponent, counts

  alike, counts = jax.lax.map(compare, (steps + np.array(reach), distances))
  near = -distances / (2 * settings.smoothness_width_px**2)
  near = jnp.broadcast_to(near[:, None, None], counts.shape)

  def normalised(exponents):
    # k / sum k as a softmax, since small widths would make it 0 / 0.
    exponents = jnp.where(counts > 0, exponents, _NOTHING)
    return counts * jax.nn.softmax(exponents, axis=0)

  return settings.appearance_weight * normalised(
    alike
  ) + settings.smoothness_weight * normalised(near)


def _over_neighbours(function, total, *lists):
  """Returns what `jax.lax.scan` does, compiled in a time that is bounded."""
  return jax.lax.scan(
    lambda total, at: function(total, *at),
    total,
    lists,
    unroll=min(_WRITTEN_OUT, len(lists[0])),
  )


def _summed(
  weights: jax.Array, field: jax.Array, reach: tuple[int, int]
) -> jax.Array:
  """Returns sum_o weights[o] field(. + o), f32[H, K, W].

  Args:
    weights: f32[N, H, W].
    field: f32[H, K, W].
    reach: rows and columns of `_neighbours`.
  """
  around = _padded(field, reach)

  def add(total, weight, step):
    return total + weight[:, None] * _shifted(around, step, reach), None

  steps = _neighbours(reach)
  return _over_neighbours(add, jnp.zeros_like(field), weights, steps)[0]


def _summed_forward(weights, field, reach):
  return _summed(weights, field, reach), (weights, field)


def _summed_backward(reach, saved, slope):
  """Returns both gradients; those of jax would copy the map for each o."""
  weights, field = saved
  around = _padded(field, reach)

  def slopes(_, weight, step):
    of_weight = jnp.sum(slope * _shifted(around, step, reach), axis=1)
    # The weight of a pixel for its neighbour, for which it is at -step.
    given = _shifted(_padded(weight[:, None], reach), step, reach)[:, 0]
    return None, (of_weight, given)

  _, (of_weights, given) = _over_neighbours(
    slopes, None, weights[::-1], _neighbours(reach)
  )
  return of_weights, _summed(given, slope, reach)


_message = jax.custom_vjp(_summed, nondiff_argnums=(2,))
_message.defvjp(_summed_forward, _summed_backward)


def _padded(field, reach):
  """Returns a map [H, K, W] with zeros around its rows and columns."""
  rows, columns = reach
  return jnp.pad(field, ((rows, rows), (0, 0), (columns, columns)))


def _shifted(around, step, reach):
  """Returns a padded map, shifted by `step` and without the padding."""
  rows, columns = reach
  height, num_classes, width = around.shape
  return jax.lax.dynamic_slice(
    around,
    (rows + step[0], 0, columns + step[1]),
    (height - 2 * rows, num_classes, width - 2 * columns),
  )


def _check_present(present, size):
  """Returns a mask as an array; raises InputError if it is none of `size`."""
  if not isinstance(present, jax.Array):
    present = np.asarray(present)
  if present.shape != size:
    raise InputError(
      f'present has shape {present.shape}; expected {size}, that of the image'
    )
  if present.dtype != bool:
    raise InputError(
      f'present is {present.dtype}; expected bool, such as mask > 0'
    )
  return jnp.asarray(present)


def _check(scores: Any, image: Any, settings: Refinement) -> None:
  """Raises InputError if scores, image and settings do not fit together."""
  if not isinstance(settings, Refinement):
    raise InputError(f'settings={settings!r}; expected segjax.Refinement(...)')
  for name, array in (('scores', scores), ('image', image)):
    if np.ndim(array) != 3:
      raise InputError(
        f'{name} has shape {np.shape(array)}; expected three axes, such as '
        '[H, W, 1] of a gray image; use jax.vmap for batches'
      )
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise InputError(
        f'{name} is {array.dtype}; expected floating point'
        + '; segjax.to_unit_range makes it of images' * (name == 'image')
      )
  for name in LEARNABLE:
    value = getattr(settings, name)
    if isinstance(value, (jax.Array, np.ndarray)):
      if value.shape:
        raise InputError(
          f'{name} has shape {value.shape}; it must be one number'
        )
    elif not isinstance(value, numbers.Real):
      raise InputError(f'{name}={value!r} must be a number')
    if not isinstance(value, Tracer):
      _check_number(name, float(value))
  if scores.shape[:2] != image.shape[:2]:
    raise InputError(
      'scores of {} x {} px and an image of {} x {} px; their sizes must be '
      'equal'.format(*scores.shape[:2], *image.shape[:2])
    )
