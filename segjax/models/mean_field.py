# SPDX-License-Identifier: Apache-2.0
"""CRF as a layer that is trained with the network (Zheng et al. 2015)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.crf import LEARNABLE, Refinement, refine

# Factor on the parameters. Adam moves each by about the learning rate, and one
# that suits kernels would hardly move these few numbers.
_RATE = 30.0


class MeanField(nn.Module):
  """`refine` of a batch, with learned weights, widths and compatibility.

  Parameters: `log_NAME` for each weight and width of `Refinement`, whose value
  is exp(30 log_NAME), and `compatibility` [K, K]; 30 times it is added to the
  Potts model. They start at the values of `start`.

  Attributes:
    start: settings before training, with the Potts model; `intensity_width` is
      in the unit of the image that the network takes.
  """

  start: Refinement

  @nn.compact
  def __call__(
    self, scores: jax.Array, image: jax.Array, size: jax.Array | None = None
  ) -> jax.Array:
    """Returns refined scores f32[B, H, W, K].

    Args:
      scores: logits f32[B, H, W, K].
      image: f32[B, H, W, C].
      size: i32[B, 2], true height and width of each image; None if the images
        fill the array.
    """

    def learned(name):
      first = jnp.log(getattr(self.start, name)) / _RATE
      return jnp.exp(_RATE * self.param(f'log_{name}', lambda _: first))

    num_classes = scores.shape[-1]
    potts = 1 - jnp.eye(num_classes)
    zeros = nn.initializers.zeros
    others = self.param('compatibility', zeros, (num_classes, num_classes))
    settings = dataclasses.replace(
      self.start,
      compatibility=potts + _RATE * others,
      **{name: learned(name) for name in LEARNABLE},
    )
    height, width = image.shape[1:3]
    if size is None:
      size = jnp.tile(jnp.array([height, width]), (len(image), 1))

    def refine_one(scores, image, size):
      rows, columns = jnp.arange(height) < size[0], jnp.arange(width) < size[1]
      return refine(scores, image, settings, rows[:, None] & columns[None])

    return jax.vmap(refine_one)(scores, image, size)
