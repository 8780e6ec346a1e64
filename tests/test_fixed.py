# SPDX-License-Identifier: Apache-2.0
"""Tests of the check of bilinear deconvolutions."""

import numpy as np

from segjax.weights.fixed import is_bilinear
from segjax.weights.matching import Tensor


def test_bilinear_weights_saved_in_float16_are_known():
  line = 1 - np.abs(np.arange(64) - 31.5) / 32
  kernel = np.outer(line, line)[None, None].astype(np.float32)
  halves = kernel.astype(np.float16).astype(np.float32)
  assert np.abs(halves - kernel).max() > 1e-5
  for values in (kernel, halves):
    assert is_bilinear(Tensor('upscore', values, 'IOHW'), 64)
    assert not is_bilinear(Tensor('upscore', values * 1.001, 'IOHW'), 64)
