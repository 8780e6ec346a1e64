# SPDX-License-Identifier: Apache-2.0
"""Types of scipy.ndimage, as far as segjax uses it.

SciPy has no annotations: a checker infers that a distance transform may be
None and that `label` may return a single number, which takes other arguments.
"""

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

def label(
  input: ArrayLike, structure: ArrayLike | None = None
) -> tuple[np.ndarray, int]: ...

# None for a number, up to the largest, that no pixel has. Who knows that there
# is no such number need not ask, hence Any.
def find_objects(
  input: np.ndarray, max_label: int = 0
) -> list[tuple[slice, ...] | Any]: ...
@overload
def distance_transform_edt(
  input: ArrayLike,
  sampling: float | Sequence[float] | None = None,
  return_distances: Literal[True] = True,
  return_indices: Literal[False] = False,
) -> np.ndarray: ...
@overload
def distance_transform_edt(
  input: ArrayLike,
  sampling: float | Sequence[float] | None = None,
  return_distances: Literal[True] = True,
  *,
  return_indices: Literal[True],
) -> tuple[np.ndarray, np.ndarray]: ...
def gaussian_filter(
  input: ArrayLike, sigma: float | Sequence[float]
) -> np.ndarray: ...
def gaussian_filter1d(
  input: ArrayLike, sigma: float, axis: int = -1
) -> np.ndarray: ...
def minimum_filter(
  input: ArrayLike, size: int, *, mode: str, cval: float
) -> np.ndarray: ...
def maximum_filter(
  input: ArrayLike, size: int, *, mode: str, cval: float
) -> np.ndarray: ...
