# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from segjax.tiling.turns import (
  DIHEDRAL_GROUP,
  is_reversed,
  restored,
  turned,
  turned_shape,
)


@pytest.mark.parametrize('transform', DIHEDRAL_GROUP)
def test_turns_are_undone_and_said_of_the_axes(transform):
  array = np.arange(12).reshape(3, 4)
  after = turned(array, *transform)
  np.testing.assert_array_equal(restored(after, *transform), array)
  assert turned_shape((3, 4), *transform) == after.shape
  # Rows grow by 4 and columns by 1.
  steps = {
    abs(s): s < 0
    for s in (after[1, 0] - after[0, 0], after[0, 1] - after[0, 0])
  }
  assert is_reversed(*transform) == (steps[4], steps[1])


def test_dihedral_group_has_eight_different_members():
  square = np.arange(9).reshape(3, 3)
  images = {
    turned(square, *transform).tobytes() for transform in DIHEDRAL_GROUP
  }
  assert len(images) == 8
