# SPDX-License-Identifier: Apache-2.0
"""Batches of training examples as a function of (seed, step).

Only this file knows grain.
"""

from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from segjax.data.examples import IGNORE_LABEL, map_in_threads
from segjax.devices import processes
from segjax.errors import InputError

ORDERS = ('shuffled', 'with_replacement')
_NOT_TRAINED_ON = ('name', 'instances')
_PASSES = 2**32  # Without end: grain's own endless length overflows in slices.


def have_one_size(examples: Sequence[dict]) -> bool:
  """Returns whether all images have the same height and width.

  Examples are read in a few threads until two differ, or only their sizes if
  they have a method `size(index)`. Each of P processes reads one P-th of the
  examples, and all processes get the same answer.

  Raises:
    InputError: an example cannot be read.
  """

  def extremes():
    sizes = set()
    for size in map_in_threads(size_of, processes.share(len(examples))):
      sizes.add(size)
      if len(sizes) > 1:
        break
    return np.array([min(sizes), max(sizes)])

  def size_of(index):
    index %= len(examples)
    size = getattr(examples, 'size', None)
    return size(index) if size else examples[index]['image'].shape[:2]

  if not len(examples):
    return True
  found = processes.gather(processes.together(extremes))
  return bool((found == found[0, 0]).all())


def create_batches(
  examples: Sequence[dict],
  batch_size: int,
  seed: int,
  start_step: int,
  order: str = 'shuffled',
  bucket_px: int = 0,
  rows: Sequence[int] | np.ndarray | None = None,
  cut: Callable[[int, int, dict], dict] | None = None,
  by_image: Callable[[np.ndarray], np.ndarray] = lambda image: image,
) -> Iterator[dict[str, np.ndarray]]:
  """Returns the batches of steps start_step, start_step + 1, ... without end.

  The batch of a step does not depend on `start_step`. Two threads read the
  examples ahead of their use. Each process makes one iterator, and all
  processes take the batches of the same steps.

  Args:
    examples: dicts of `image`, `label` and, for all examples or none, `weight`.
    batch_size: number of examples in a batch, over all processes.
    seed: random seed of the order.
    start_step: number of the first batch.
    order: 'shuffled' takes every example once in each pass over the data, in an
      order that changes from pass to pass; 'with_replacement' draws uniformly
      from all examples, as the authors of FCN train.
    bucket_px: see `pad_and_stack`; the images of all processes get one size.
    rows: ascending indices of the examples of each batch that this process
      reads. None reads all.
    cut: (step, row of the batch, example) -> example with arrays of one size;
      see `steps.make_cut`. None leaves examples as they are.
    by_image: whole image as stored -> the image to train on, before `cut`; see
      `PreprocessingSettings.by_image`.

  Raises:
    InputError: there is no example, or another order. The iterator raises the
      errors of reading and of `pad_and_stack`.
  """
  if not len(examples):
    raise InputError('there is no example to train on; expected at least one')
  if order not in ORDERS:
    raise InputError(f'batching.order={order!r} is not one of {ORDERS}')
  if order == 'shuffled':
    indices = grain.MapDataset.range(len(examples)).seed(seed).shuffle()
    indices = indices.repeat(_PASSES)
  else:
    indices = grain.MapDataset.range(_PASSES).map(
      lambda i: np.random.default_rng((seed, i)).integers(len(examples))
    )

  def read(step, row, index):
    example = examples[index]
    example = {k: example[k] for k in example if k not in _NOT_TRAINED_ON}
    example['image'] = by_image(example['image'])
    return cut(step, row, example) if cut else example

  def share(step, batch):
    own = range(batch_size) if rows is None else rows
    read_ones = [read(step, row, batch[row]) for row in own]
    return pad_and_stack(read_ones, bucket_px)

  dataset = indices.batch(batch_size).map_with_index(share)
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
  batches = iter(
    dataset.slice(slice(start_step, None)).to_iter_dataset(options)
  )
  # Images of one size need no exchange between processes, which would wait.
  return map(_equally_large, batches) if bucket_px else batches


def _equally_large(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the batch, padded to the largest image of all processes."""
  sizes = processes.gather(np.array(batch['image'].shape[1:3]))
  if (sizes == sizes[0]).all():
    return batch
  return {
    name: array
    if name == 'size'
    else np.stack([_pad(name, each, *sizes.max(axis=0)) for each in array])
    for name, array in batch.items()
  }


def pad_and_stack(
  examples: Sequence[dict], bucket_px: int = 0
) -> dict[str, np.ndarray]:
  """Returns examples as a batch.

  Args:
    examples: dicts of arrays [H, W, ...].
    bucket_px: side of a bucket, in pixels. Rows and columns are added at the
      end of each image, up to a multiple of `bucket_px` that is the same for
      all: pixels of value 0 and ignored labels. The batch then has `size`
      i32[B, 2], the sizes before. 0 adds nothing.

  Raises:
    InputError: sizes differ and `bucket_px` is 0, or channels or types differ.
  """
  sizes = [example['image'].shape[:2] for example in examples]
  kinds = {(e['image'].dtype, e['image'].shape[2:]) for e in examples}
  if len(kinds) > 1 or (len(set(sizes)) > 1 and not bucket_px):
    shapes = sorted({str(e['image'].shape) for e in examples})
    raise InputError(
      f'images of {" and ".join(shapes)} cannot be in one batch; sizes that '
      'differ need batching.bucket_px=64, or batch_size=1; types and numbers '
      'of channels must be equal'
    )
  if not bucket_px:
    return {
      name: np.stack([example[name] for example in examples])
      for name in examples[0]
    }
  height, width = -(-np.max(sizes, axis=0) // bucket_px) * bucket_px
  batch = {
    name: np.stack([_pad(name, e[name], height, width) for e in examples])
    for name in examples[0]
  }
  return batch | {'size': np.asarray(sizes, np.int32)}


def _pad(name, array, height, width):
  """Returns a field of an example with rows and columns added at its end."""
  h, w = array.shape[:2]
  padding = ((0, height - h), (0, width - w)) + ((0, 0),) * (array.ndim - 2)
  value = IGNORE_LABEL if name == 'label' else 0
  return np.pad(array, padding, constant_values=value)
