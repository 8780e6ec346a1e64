# SPDX-License-Identifier: Apache-2.0
"""Data sets: a file for each set, and what all sets share.

`segjax.data.examples` has the contract of an example, `segjax.data.sets` finds
the sets by their names.
"""

from typing import TYPE_CHECKING

from segjax.data.examples import IGNORE_LABEL, Dataset

if TYPE_CHECKING:
  from segjax.data.sets import LOADERS, create_dataset, look_of

__all__ = ('IGNORE_LABEL', 'LOADERS', 'Dataset', 'create_dataset', 'look_of')


def __getattr__(name):
  # Late: a training step needs no library that reads files.
  if name in ('LOADERS', 'create_dataset', 'look_of'):
    from segjax.data import sets

    return getattr(sets, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
