# SPDX-License-Identifier: Apache-2.0
"""Palettes of label files, which must agree where labels are class indices.

Programs that make a palette for each file number the colours as they come: an
index is then one class in one file and another class in the next.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segjax.devices import processes
from segjax.errors import InputError

_PLAIN, _COLOURED = -1, -2  # Stand for the files without and with a palette.


class LabelColours:
  """The colour that each index has in label files, and where it was first seen.

  Attributes:
    conflict: two files in which an index has different colours, in words; ''
      where there are none.
  """

  def __init__(self):
    self.conflict = ''
    self._found: dict[int, tuple[tuple[int, ...], str]] = {}

  def add(
    self, file: Path, colours: Mapping[int, tuple[int, ...]] | None
  ) -> None:
    """Enters a file: its indices with their colours, None for no palette."""
    if colours is None:
      self._enter(_PLAIN, (), str(file))
      return
    for index, colour in {_COLOURED: (), **colours}.items():
      self._enter(index, colour, str(file))

  def gathered(self, others: Sequence['LabelColours'] = ()) -> 'LabelColours':
    """Returns what all processes have found, here and in `others`.

    Raises:
      InputError: an index has different colours; names both files.
    """
    found = [item for each in (self, *others) for item in each._found.items()]
    conflicts = [each.conflict for each in (self, *others) if each.conflict]
    text = json.dumps([found, conflicts]) + '\n'
    rows = processes.gather_rows(np.frombuffer(text.encode(), np.uint8))
    whole = LabelColours()
    for line in rows.tobytes().splitlines():
      found, conflicts = json.loads(line)
      for conflict in conflicts:
        whole.conflict = whole.conflict or conflict
      for index, (colour, file) in found:
        whole._enter(index, tuple(colour), file)
    processes.together(whole.check)
    return whole

  def check(self) -> None:
    """Raises InputError if an index has different colours; see `conflict`."""
    if self.conflict:
      raise InputError(self.conflict)

  def doubt(self) -> str:
    """Returns which files have a palette and which not, '' where all agree.

    They are no error: the labels that DeepLab's authors made of VOC's and SBD's
    have none, and VOC's own have one.
    """
    if not {_PLAIN, _COLOURED} <= self._found.keys():
      return ''
    return (
      f'{self._found[_COLOURED][1]} has a palette and {self._found[_PLAIN][1]} '
      'has none, so nothing shows that an index is the same class in both; '
      'look at both'
    )

  def _enter(self, index, colour, file):
    known, first = self._found.setdefault(index, (colour, file))
    if known != colour and not self.conflict:
      self.conflict = (
        f'{file}: the colour of index {index} is {colour}, and {known} in '
        f'{first}; expected one palette, or labels in RGB'
      )
