# SPDX-License-Identifier: Apache-2.0
"""Weighted pixel-wise cross-entropy."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax.errors import InputError

REDUCTIONS = ('mean', 'mean_of_images', 'sum')

Array = TypeVar('Array', jax.Array, np.ndarray)


def cross_entropy(
  logits: jax.Array,
  label: jax.Array,
  weight: jax.Array | None,
  ignore_label: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sum of pixel losses and the number of pixels.

  sum_x -w(x) log p_label(x)(x) with p = softmax(logits): equation 1 of
  Ronneberger et al. 2015 with the sign that makes it a loss. The caller
  chooses between sum and mean (`reduce_image`).

  Args:
    logits: f32[..., K].
    label: i32[...] in 0..K-1, or `ignore_label`.
    weight: f32[...], the weight map w; None is 1 everywhere.
    ignore_label: label of pixels that count nowhere.

  Returns:
    (f32[], f32[]): the sum over pixels that are not ignored, and their number.

  >>> import jax, segjax
  >>> logits = jax.numpy.zeros((1, 3, 2))
  >>> label = jax.numpy.array([[0, 1, 255]])
  >>> total, count = segjax.cross_entropy(logits, label, None, 255)
  >>> round(float(total / count), 4)  # log 2.
  0.6931
  """
  valid = label != ignore_label
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(valid, label, 0)
  )
  if weight is not None:
    losses = weight * losses
  total = jnp.sum(jnp.where(valid, losses, 0.0))
  return total, jnp.sum(valid, dtype=jnp.float32)


def split_heads(
  scores: Array, label: Array, head_sizes: Sequence[int]
) -> Iterator[tuple[Array, Array]]:
  """Yields the scores and the label of each head.

  Args:
    scores: f32[..., K], those of all heads one after another.
    label: i32[...] for one head, i32[..., T] for T.
    head_sizes: number of classes of each head, T numbers of sum K.
  """
  if len(head_sizes) == 1:
    label = label[..., None]
  first = 0
  for head, size in enumerate(head_sizes):
    yield scores[..., first : first + size], label[..., head]
    first += size


def reduce_image(
  total: jax.Array, count: jax.Array, reduction: str
) -> tuple[jax.Array, jax.Array | float]:
  """Returns the loss of an image and what it adds to the batch's divisor.

  The loss of a batch is the sum of the first over its images, divided by the
  sum of the second, or by 1 where that is less:

    'mean'            over all pixels of the batch that count,
    'mean_of_images'  of the means over each image's pixels: Caffe's, where it
                      accumulates gradients of normalised losses,
    'sum'             over all pixels: Caffe's with `normalize: false`, for one
                      image. It multiplies the learning rate of SGD by their
                      number.

  Pixels of several heads count once for each.

  Args:
    total: f32[], sum of the losses of an image's pixels.
    count: f32[], number of the pixels that count.
    reduction: one of `REDUCTIONS`.
  """
  if reduction == 'mean':
    return total, count
  if reduction == 'mean_of_images':
    return total / jnp.maximum(count, 1.0), 1.0
  if reduction == 'sum':
    return total, 0.0
  raise InputError(f'loss_reduction={reduction!r} is not one of {REDUCTIONS}')
