# SPDX-License-Identifier: Apache-2.0
"""The loss of held-out images, comparable with the training loss."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from segjax import losses
from segjax.data.examples import IGNORE_LABEL
from segjax.devices import parallel


def image_loss(
  probability: np.ndarray,
  label: np.ndarray,
  weight: np.ndarray | None,
  head_sizes: Sequence[int],
  loss: str,
) -> np.ndarray:
  """Returns the two sums of `losses.image_loss`, each summed over heads.

  The logarithms of the probabilities serve as logits. Ignored pixels are added
  up to a power of two, so that few programs serve images of all sizes.

  Args:
    probability: f32[h, w, K], probabilities of all heads.
    label: i32[h, w], or i32[h, w, T] for T heads.
    weight: f32[h, w], or None.
    head_sizes: number of classes of each head.
    loss: see `losses.image_loss`.
  """
  num_pixels = probability.shape[0] * probability.shape[1]
  spare = (1 << (num_pixels - 1).bit_length()) - num_pixels

  def flat(array, value):
    array = array.reshape(num_pixels, *array.shape[2:])
    ends = [(0, spare), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array, ends, constant_values=value)

  weight = None if weight is None else flat(weight, 0)
  heads = losses.split_heads(flat(probability, 1), flat(label, 255), head_sizes)
  program = _loss_program(loss)
  sums = [program(scores, truth, weight) for scores, truth in heads]
  return np.sum(np.array(sums, np.float64), axis=0)


@functools.cache
def _loss_program(loss):
  least = np.finfo(np.float32).tiny

  def compute(probability, label, weight):
    logits = jnp.log(jnp.maximum(probability, least))
    return losses.image_loss(logits, label, weight, IGNORE_LABEL, loss)

  return parallel.jit(compute)


def mean_loss(
  image_losses: Sequence[np.ndarray] | np.ndarray, config: ConfigDict
) -> float:
  """Returns the loss of images as if they were one training batch.

  The reduction 'sum' grows with the batch; with it, the loss is the mean over
  batches of `batch_size` images.

  Args:
    image_losses: what `image_loss` returned for each image.
    config: config of the run; reads `loss_reduction` and `batch_size`.
  """
  reduced = [
    losses.reduce_image(total, count, config.loss_reduction)
    for total, count in image_losses
  ]
  total, divisor = np.sum(np.array(reduced, np.float64), axis=0)
  if config.loss_reduction == 'sum':
    divisor = len(image_losses) / config.batch_size
  return float(total / divisor)
