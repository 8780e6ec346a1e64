# SPDX-License-Identifier: Apache-2.0
"""Data sets: the contract of an example, and a file for each set.

The contract is in `segjax.data.examples`, the sets by name in
`segjax.data.sets`.
"""

from typing import TYPE_CHECKING

from segjax.data.examples import IGNORE_LABEL, Dataset

if TYPE_CHECKING:
  from segjax.data.sets import LOADERS, create_dataset, look_of

__all__ = ('IGNORE_LABEL', 'LOADERS', 'Dataset', 'create_dataset', 'look_of')


def __getattr__(name):
  # Late, so that a training step needs no library that reads files.
  if name in ('LOADERS', 'create_dataset', 'look_of'):
    from segjax.data import sets

    return getattr(sets, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
