# SPDX-License-Identifier: Apache-2.0
"""Images and labels in memory as a data set, for `segjax.fit`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segjax.data import border_weights
from segjax.data.examples import Dataset, digest_of_arrays
from segjax.data.folder import make_weighting
from segjax.data.label_coding import LabelCoding
from segjax.errors import InputError


def check_arrays(
  images: Sequence | np.ndarray | None, labels: Sequence | np.ndarray | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Returns images [H, W, C] of one kind, and labels [H, W] of their sizes.

  Args:
    images: arrays [H, W] or [H, W, C], uint8, uint16 or float.
    labels: integers or bool [H, W].

  Raises:
    InputError: they are something else, or do not fit together.
  """
  images, labels = ([] if x is None else [*x] for x in (images, labels))
  if len(images) != len(labels) or not images:
    raise InputError(
      f'{len(images)} images and {len(labels)} labels; expected one for each'
    )
  checked = [], []
  for i, (image, label) in enumerate(zip(images, labels, strict=True)):
    image, label = np.asarray(image), np.asarray(label)
    if label.ndim != 2 or label.dtype.kind not in 'iub':
      raise InputError(
        f'label {i} is {label.dtype}{list(label.shape)}; expected integers '
        '[H, W]'
      )
    if image.dtype == np.float64:
      image = image.astype(np.float32)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[:2] != label.shape or not image.size:
      raise InputError(
        f'image {i} is {image.dtype}{list(image.shape)} and its label '
        f'{list(label.shape)}; expected [H, W] or [H, W, C] and [H, W]'
      )
    if image.dtype not in ('uint8', 'uint16', 'float32'):
      raise InputError(
        f'image {i} is {image.dtype}; expected uint8, uint16 or float32'
      )
    if image.dtype.kind == 'f' and not np.isfinite(image).all():
      raise InputError(f'image {i} has pixels that are NaN or infinite')
    first = checked[0][0] if i else image
    if (image.dtype, image.shape[-1]) != (first.dtype, first.shape[-1]):
      raise InputError(
        f'image {i} is {image.dtype} of {image.shape[-1]} channel(s), image 0 '
        f'{first.dtype} of {first.shape[-1]}; expected one kind'
      )
    checked[0].append(image)
    checked[1].append(label.astype(np.uint8) if label.dtype == bool else label)
  return checked


def make_dataset(
  images: Sequence[np.ndarray],
  labels: Sequence[np.ndarray],
  settings: Mapping[str, Any],
  seed: int,
) -> Dataset:
  """Returns arrays as `folder.load` returns files, split at random.

  Args:
    images, labels: see `check_arrays`.
    settings: `class_names`, `label_values`, `ignore_value`, `label_kind`, `w0`,
      `sigma_px`, `balance` and `heldout_fraction`, see `folder.load`.
    seed: random seed of the split.

  Raises:
    InputError: no image is left to train on, or a label has another value than
      the settings say.
  """
  heldout_fraction, num_heldout = settings['heldout_fraction'], 0
  if 0 < heldout_fraction < 1 and len(images) > 1:
    num_heldout = max(round(heldout_fraction * len(images)), 1)
  if not 0 <= heldout_fraction < 1 or num_heldout == len(images):
    raise InputError(
      f'heldout_fraction={heldout_fraction} of {len(images)} images; expected '
      '0 or more, and some images left to train on'
    )
  names = settings['class_names']
  are_objects = settings['label_kind'] == 'instances'
  coding = LabelCoding(
    len(names), (), settings['ignore_value'], settings['label_values']
  )
  examples = []
  for i, (image, stored) in enumerate(zip(images, labels, strict=True)):
    example = {'image': image, 'name': str(i)}
    if are_objects:
      carved = border_weights.separate_touching(stored)
      example['label'] = (carved > 0).astype(np.int32)
      example['instances'] = stored
    else:
      example['label'] = coding.decode(stored[..., None], f'label {i}')
    examples.append(example)
  order = np.random.default_rng(seed).permutation(len(examples))
  held = {*order[:num_heldout].tolist()}
  train = [example for i, example in enumerate(examples) if i not in held]
  weighting = make_weighting(
    (border_weights.class_counts(e['label'], len(names)) for e in train),
    len(names),
    settings['w0'],
    settings['sigma_px'],
    settings['balance'],
  )
  if weighting:
    for example in examples:
      example['weight'] = weighting(example['label'])
  return Dataset(
    class_names=tuple(names),
    train=train,
    heldout=[example for i, example in enumerate(examples) if i in held],
    digest=digest_of_arrays(examples),
    stored=() if are_objects else coding.stored,
  )
