# SPDX-License-Identifier: Apache-2.0
"""Codings of classes in label images: indices, other values, or colours."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax.data.examples import IGNORE_LABEL, check_known
from segjax.errors import InputError

_LARGEST = np.iinfo(np.uint16).max


@dataclasses.dataclass(frozen=True)
class LabelCoding:
  """The value or the colour that stands for each class in label images.

  Attributes:
    num_classes: K, 1 to 255.
    colours: K RGB tuples, the colour of each class in label images; () if these
      hold no colours.
    ignore_value: (index,) or (red, green, blue) of ignored pixels; () if there
      are none.
    label_values: K values in 0..65535, the value of each class in label images,
      such as (0, 255); () if these hold indices or colours. A value of a class
      is not ignored even if `ignore_value` has it, too.

  Raises:
    InputError: two classes, or a class and ignored pixels, have one value or
      colour. Without `label_values`, the index of a class may be ignored.
  """

  num_classes: int
  colours: Sequence[Sequence[int]]
  ignore_value: Sequence[int]
  label_values: Sequence[int] = ()

  def __post_init__(self):
    if not 1 <= self.num_classes <= IGNORE_LABEL:
      raise InputError(
        f'{self.num_classes} class names; expected 1 to {IGNORE_LABEL}'
      )
    if len(self.colours) not in (0, self.num_classes):
      raise InputError(
        f'{len(self.colours)} colours for {self.num_classes} classes; expected '
        'one each, or () where labels are indices'
      )
    if self.label_values:
      self._check_label_values()
    kind, expected = 'indices', '(index,)'
    if self.colours:
      kind, expected = 'colours', '(red, green, blue)'
    if len(self.ignore_value) not in (0, 3 if self.colours else 1):
      raise InputError(
        f'ignore_value={self.ignore_value}, but labels are {kind}; expected '
        f'{expected}, or () for none'
      )
    if self.colours:
      self._check_colours()

  def _check_colours(self):
    colours = [tuple(colour) for colour in self.colours]
    if self.ignore_value:
      colours.append(tuple(self.ignore_value))
    for i, colour in enumerate(colours):
      if len(colour) != 3 or not all(0 <= v <= 255 for v in colour):
        raise InputError(
          f'colour {colour}; expected (red, green, blue), each in 0..255'
        )
      if colour in colours[:i]:
        raise InputError(f'colour {colour} is given twice; expected it once')

  def _check_label_values(self):
    values = tuple(self.label_values)
    if self.colours:
      raise InputError(
        f'label_values={values} and colours={tuple(self.colours)} are both '
        'given; expected one of them, and () for the other'
      )
    if not all(0 <= value <= _LARGEST for value in values):
      raise InputError(
        f'label_values={values}; expected whole numbers in 0..{_LARGEST}'
      )
    if len(values) != self.num_classes or len({*values}) != len(values):
      raise InputError(
        f'label_values={values} for {self.num_classes} classes; expected a '
        'different value for each'
      )

  @property
  def stored(self) -> tuple[int, ...]:
    """The value of each class, then that of ignored pixels; see `Dataset`."""
    if self.colours:
      return ()
    values = tuple(self.label_values) or tuple(range(self.num_classes))
    if {*self.label_values} >= {*self.ignore_value}:
      return values
    return values + tuple(self.ignore_value)

  def decode(self, stored: np.ndarray, file: Path | str) -> np.ndarray:
    """Returns i32[H, W], class indices and `IGNORE_LABEL`.

    Args:
      stored: uint8, uint16 or int32 [H, W, C], a page of `read_labels`.
      file: file of the label, for messages.

    Raises:
      InputError: the page holds indices instead of colours or the other way
        round, or a pixel is neither a class nor ignored.
    """
    num_channels = stored.shape[-1]
    if self.colours and num_channels != 3:
      raise InputError(
        f'{file}: {num_channels} channel(s) for a table of colours; expected '
        'an RGB label image, or colours=() if it stores indices'
      )
    if not self.colours and num_channels != 1:
      raise InputError(
        f'{file}: {num_channels} channels for class indices; expected a '
        'palette or gray label image, or one colour a class in `colours`'
      )
    values = self.colours or [(k,) for k in self.stored[: self.num_classes]]
    expected = 'one of colours' if self.colours else f'0..{len(values) - 1}'
    if self.label_values:
      expected = f'one of label_values={tuple(self.label_values)}'
    code, class_codes = _code(stored), _code(values)
    order = np.argsort(class_codes)
    at = np.searchsorted(class_codes[order], code)
    label = order[np.minimum(at, len(order) - 1)]
    known = class_codes[label] == code
    if self.ignore_value:
      expected += f', or {tuple(self.ignore_value)} for ignored'
      is_ignored = code == _code([self.ignore_value])
      if self.label_values:
        is_ignored &= ~known
      label[is_ignored] = IGNORE_LABEL
      known |= is_ignored
    shown = stored
    if not self.colours:
      shown = stored[..., 0]
      expected += ', or their own values in data.label_values'
    check_known(shown, known, file, expected)
    return label.astype(np.int32)


def _code(values):
  """Returns a number for the C values of each pixel: [...] of [..., C]."""
  values = np.asarray(values, np.int64)
  return values @ 2 ** (16 * np.arange(values.shape[-1]))
