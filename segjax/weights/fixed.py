# SPDX-License-Identifier: Apache-2.0
"""Checks of the layers that an FCN computes without parameters.

The authors' files hold these layers, too: bilinear deconvolutions, and the
factors on pool3 and pool4 of FCN-8s trained at once.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np

from segjax.errors import InputError
from segjax.models.fcn import FCN
from segjax.models.upsampling import bilinear_weights
from segjax.weights.matching import Tensor


def fixed_layers(
  model: FCN, source: Mapping[str, Tensor]
) -> dict[str, Callable[[Tensor], bool]]:
  """Returns layer without parameters -> check of a tensor for it.

  The check tells whether the tensor holds what the model computes.

  Args:
    model: the network.
    source: parameter path -> tensor of a file, which may lack these layers.

  Raises:
    InputError: a file of another framework lacks the factors on the pools. Our
      own files never hold them.
  """
  fixed = {
    name: functools.partial(is_bilinear, kernel=up.layer.kernel)
    for up in model.geometry.decoder
    if up.name not in model.learned
    for name in model.head_layers(up.name)
  }
  for pool, scale in (
    ('pool4', model.pool4_scale),
    ('pool3', model.pool3_scale),
  ):
    if scale == 1:
      continue
    name = f'scale_{pool}'
    fixed[name] = functools.partial(_is_constant, value=scale)
    for layer in model.head_layers(f'score_{pool}'):
      score = source.get(f'{layer}/kernel')
      is_foreign = score is not None and score.layout != 'HWIO'
      if is_foreign and f'{name}/kernel' not in source:
        raise InputError(
          f'the file has {layer} without {name}: it is no FCN-8s trained at '
          'once; give model=fcn8s'
        )
  return fixed


def is_bilinear(tensor: Tensor, kernel: int) -> bool:
  """Returns whether a deconvolution is Caffe's bilinear one, kernel x kernel.

  It maps each class onto itself by the bilinear kernel, and onto others by
  zero; or, with a group for each class, has the diagonal alone. Values that
  were rounded to float16 count, too.
  """
  values = tensor.values
  if tensor.layout == 'HWIO' and values.ndim == 4:
    values = values.transpose(2, 3, 0, 1)
  classes = len(values)
  if values.shape == (classes, 1, kernel, kernel):
    mixing = np.ones((classes, 1))
  elif values.shape == (classes, classes, kernel, kernel):
    mixing = np.eye(classes)
  else:
    return False
  weights = bilinear_weights(kernel)
  expected = mixing[..., None, None] * np.outer(weights, weights)
  halves = expected.astype(np.float16)  # For files saved in float16.
  return any(
    np.allclose(values, e, rtol=0, atol=1e-6) for e in (expected, halves)
  )


def _is_constant(tensor, value):
  return np.allclose(tensor.values, value, rtol=1e-6, atol=0)
