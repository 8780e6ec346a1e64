# SPDX-License-Identifier: Apache-2.0
"""Losses: weighted pixel-wise cross-entropy, and the soft Dice loss."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax.errors import InputError

LOSSES = ('cross_entropy', 'dice_cross_entropy')
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


def dice_loss(
  logits: jax.Array, label: jax.Array, ignore_label: int
) -> jax.Array:
  """Returns 1 minus the soft Dice coefficient of an image, a mean over classes.

  1 - mean_k 2 sum_x p_k(x) y_k(x) / sum_x (p_k(x) + y_k(x)) with
  p = softmax(logits), y_k(x) = 1 where the label is k and else 0, x over the
  pixels that are not ignored, and k over the classes that the label has.

  Milletari et al. 2016 (V-Net) introduced the soft Dice loss, with squares of p
  and y in the denominator. nnU-Net (Isensee et al. 2021) has it without the
  squares and adds it to the cross-entropy. Ours: class 0 counts like the
  others, since it need not be a background, and a class that the label lacks is
  left out, which avoids 0 / 0 without a constant.

  Args:
    logits: f32[..., K], of one image.
    label: i32[...] in 0..K-1, or `ignore_label`.
    ignore_label: label of pixels that count nowhere.

  Returns:
    f32[] in [0, 1]; 0 if all pixels are ignored.
  """
  num_classes = logits.shape[-1]
  valid = (label != ignore_label)[..., None]
  probability = jnp.where(valid, jax.nn.softmax(logits), 0.0)
  truth = jnp.where(valid, jax.nn.one_hot(label, num_classes), 0.0)
  pixels = tuple(range(label.ndim))
  both = jnp.sum(probability * truth, pixels)
  size = jnp.sum(truth, pixels)
  whole = jnp.sum(probability, pixels) + size
  present = size > 0
  dice = jnp.where(present, 2 * both / jnp.where(present, whole, 1.0), 0.0)
  num_present = jnp.sum(present)
  return (num_present - jnp.sum(dice)) / jnp.maximum(num_present, 1)


def image_loss(
  logits: jax.Array,
  label: jax.Array,
  weight: jax.Array | None,
  ignore_label: int,
  loss: str,
) -> tuple[jax.Array, jax.Array]:
  """Returns the loss of an image, summed over pixels, and their number.

  'cross_entropy' is `cross_entropy`. 'dice_cross_entropy' adds the `dice_loss`
  of the image once for each of its pixels that count. So both losses are sums,
  which devices and parts of a batch can add up before `reduce_image` divides
  once. With 'mean_of_images', the loss of a batch is the mean cross-entropy
  plus the mean Dice loss of its images. With 'mean', it is the same if as many
  pixels count in each image; else images are weighted by these numbers.

  Args:
    logits: see `cross_entropy`.
    label: see `cross_entropy`.
    weight: see `cross_entropy`; it does not apply to the Dice loss.
    ignore_label: see `cross_entropy`.
    loss: one of `LOSSES`.

  Raises:
    InputError: there is no such loss.
  """
  if loss not in LOSSES:
    raise InputError(f'loss={loss!r} is not one of {LOSSES}')
  total, count = cross_entropy(logits, label, weight, ignore_label)
  if loss == 'dice_cross_entropy':
    total += count * dice_loss(logits, label, ignore_label)
  return total, count


def split_heads(
  scores: Array, label: Array, head_sizes: Sequence[int]
) -> Iterator[tuple[Array, Array]]:
  """Yields the scores and the label of each head.

  Args:
    scores: f32[..., K], the scores of all heads one after another.
    label: i32[...] for one head, i32[..., T] for T heads.
    head_sizes: number of classes of each head, T numbers whose sum is K.
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
  """Returns the loss of an image and its part of the batch's divisor.

  The loss of a batch is the sum of the first over its images, divided by the
  sum of the second, or by 1 if that is less:

    'mean'            mean over all pixels of the batch that count,
    'mean_of_images'  mean of each image's mean: Caffe's, where it accumulates
                      gradients of normalised losses,
    'sum'             sum over all pixels: Caffe's with `normalize: false`, for
                      one image. It multiplies the learning rate of SGD by
                      their number.

  Pixels of several heads count once for each.

  Args:
    total: f32[], sum of the losses of an image's pixels.
    count: f32[], number of the pixels that count.
    reduction: one of `REDUCTIONS`.

  Raises:
    InputError: there is no such reduction.
  """
  if reduction == 'mean':
    return total, count
  if reduction == 'mean_of_images':
    return total / jnp.maximum(count, 1.0), 1.0
  if reduction == 'sum':
    return total, 0.0
  raise InputError(f'loss_reduction={reduction!r} is not one of {REDUCTIONS}')
