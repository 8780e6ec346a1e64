# SPDX-License-Identifier: Apache-2.0
"""Predictions that know nothing of tiles, and how tiles differ from them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax.devices import parallel
from segjax.tiling.plans import TilePlan
from segjax.tiling.windows import read_mirrored


def predict_rows(
  model: nn.Module, params: dict, image: np.ndarray, band_size: int
) -> np.ndarray:
  """Returns the probabilities [H, W, K], by plain passes over bands of rows.

  Each is over all columns and the margin around, of the image mirrored at its
  edges; so it is what one pass over everything would give.

  Args:
    band_size: rows that a pass gives, a multiple of the period, or all.
  """
  geometry = model.geometry
  margin, (height, width) = geometry.margin, image.shape[:2]

  @parallel.jit
  def score(params, band):
    logits = model.apply({'params': params}, band[None])[0]
    return jax.nn.softmax(logits.astype(jnp.float32))

  bands = []
  for start in range(0, height, band_size):
    shape = (geometry.input_size(band_size), geometry.input_size(width))
    band = read_mirrored(image, (start - margin, -margin), shape)
    rows = min(band_size, height - start)
    scores = score(params, band)[
      margin : margin + rows, margin : margin + width
    ]
    bands.append(np.asarray(scores))
  return np.concatenate(bands)


def largest_differences(
  got: np.ndarray, want: np.ndarray, plan: TilePlan
) -> tuple[float, float]:
  """Returns them of all pixels, and of those within a period of two windows.

  Args:
    got: [H, W, K].
    want: the same.
    plan: of the windows; of one alone the second difference is NaN.
  """
  difference = np.abs(got - want).max(axis=-1)
  seams = [np.nan]
  for across, windows in (
    (difference, plan.rows),
    (difference.T, plan.columns),
  ):
    for window in windows[1:]:
      near = across[window.start - plan.period : window.start + plan.period]
      seams.append(near.max())
  return difference.max(), np.fmax.reduce(seams)
