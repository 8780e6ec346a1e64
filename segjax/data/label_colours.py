# SPDX-License-Identifier: Apache-2.0
"""Palettes of label files, which must agree if labels are class indices.

A program that makes a palette for each file numbers the colours as they occur,
so that an index is one class in one file and another class in the next.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segjax.devices import processes
from segjax.errors import InputError

_PLAIN, _COLOURED = -1, -2  # Keys of files without and with a palette.


class LabelColours:
  """The colour of each index in label files, and the file that first has it.

  Attributes:
    conflict: message on two files in which an index has different colours; ''
      if there are none.
  """

  def __init__(self):
    self.conflict = ''
    self._found: dict[int, tuple[tuple[int, ...], str]] = {}

  def add(
    self, file: Path, colours: Mapping[int, tuple[int, ...]] | None
  ) -> None:
    """Adds a file by the colours of its indices; None if it has no palette."""
    if colours is None:
      self._enter(_PLAIN, (), str(file))
      return
    for index, colour in {_COLOURED: (), **colours}.items():
      self._enter(index, colour, str(file))

  def gathered(self, others: Sequence['LabelColours'] = ()) -> 'LabelColours':
    """Returns the colours that all processes have found, here and in `others`.

    Raises:
      InputError: an index has different colours; the message names both files.
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
    """Returns a warning if some files have a palette and others not, else ''.

    It is no error: VOC's own labels have a palette, and the labels that the
    authors of DeepLab made of VOC's and SBD's have none.
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
