# SPDX-License-Identifier: Apache-2.0
"""A CRF as a layer, trained with the network below it (Zheng et al. 2015)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.crf import Refinement, refine

# Adam moves every parameter by about the learning rate, and what suits kernels
# would leave these few numbers where they are.
_RATE = 30.0
_LEARNED = (
  'appearance_weight',
  'appearance_width_px',
  'intensity_width',
  'smoothness_weight',
  'smoothness_width_px',
)


class MeanField(nn.Module):
  """`refine` of a batch, whose weights, widths and compatibility are learned.

  Parameters: `log_NAME` for the weights and widths of `Refinement`, which are
  exp(30 log_NAME), and `compatibility` [K, K], of which 30 times is added to
  Potts. They begin as `start` says.

  Attributes:
    start: the settings before training, with Potts; `intensity_width` is in the
      unit of the image that the network is given.
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
      size: i32[B, 2], height and width of each image; None if they fill the
        array.
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
      **{name: learned(name) for name in _LEARNED},
    )
    height, width = image.shape[1:3]
    if size is None:
      size = jnp.tile(jnp.array([height, width]), (len(image), 1))

    def refine_one(scores, image, size):
      rows, columns = jnp.arange(height) < size[0], jnp.arange(width) < size[1]
      return refine(scores, image, settings, rows[:, None] & columns[None])

    return jax.vmap(refine_one)(scores, image, size)
