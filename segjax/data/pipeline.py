# SPDX-License-Identifier: Apache-2.0
"""Batches as a function of (seed, step); the only file that knows grain."""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from segjax.errors import InputError

_PASSES = 2**32  # Endless; grain's own endless length overflows when sliced.


def create_batches(
  examples: Sequence[dict], batch_size: int, seed: int, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
  """Returns the batches of steps start_step, start_step + 1, ... without end.

  Every example is seen once in each pass over the data, in an order that
  changes from pass to pass. Batch n is the same whatever `start_step` is.

  Args:
    examples: dicts of `image`, `label`, `weight`, of equal shapes.
    batch_size: examples in a batch.
    seed: of the order.
    start_step: the first batch's number.
  """
  shapes = {example['image'].shape for example in examples}
  if len(shapes) != 1:
    raise InputError(
      f'training images must exist and have one shape; found {sorted(shapes)}'
    )
  arrays = [
    {name: example[name] for name in ('image', 'label', 'weight')}
    for example in examples
  ]
  dataset = (
    grain.MapDataset.source(arrays)
    .seed(seed)
    .shuffle()
    .repeat(_PASSES)
    .batch(batch_size)
  )
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
  return iter(dataset.slice(slice(start_step, None)).to_iter_dataset(options))
