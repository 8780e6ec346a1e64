# SPDX-License-Identifier: Apache-2.0
"""Calibration of images: the axes of their pages, pixel sizes and units."""

import dataclasses
import math
from collections.abc import Mapping

# How OME-Zarr, OME-TIFF and ImageJ spell units, by micrometres and seconds.
_MICROMETERS = {
  1e-6: 'pm picometer',
  1e-4: 'Å angstrom',
  1e-3: 'nm nanometer',
  1: 'um µm μm micron microns micrometer micrometre',
  1e3: 'mm millimeter',
  1e4: 'cm centimeter',
  2.54e4: 'in inch',
  1e6: 'm meter',
}
_SECONDS = {
  1e-3: 'ms millisecond',
  1: 's sec second seconds',
  60: 'min minute',
  3600: 'h hour',
}
_UNITS = {
  word: (size, unit)
  for unit, table in (('micrometer', _MICROMETERS), ('second', _SECONDS))
  for size, words in table.items()
  for word in words.split()
}


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Axes and pixel sizes of an image file, as far as it states them.

  Attributes:
    pages: lengths of the axes 't' and 'z' along which its pages lie, in this
      order; empty if it names none.
    steps: distances between pixels along 't', 'z', 'y' and 'x'.
    origin: positions of the first pixel along these axes.
    units: units of both, in the words of OME-Zarr, such as 'micrometer'. An
      axis without a step has none.
  """

  pages: Mapping[str, int] = dataclasses.field(default_factory=dict)
  steps: Mapping[str, float] = dataclasses.field(default_factory=dict)
  origin: Mapping[str, float] = dataclasses.field(default_factory=dict)
  units: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if not self.units.keys() <= self.steps.keys():
      raise ValueError(f'units {self.units} of steps {self.steps}')

  def size(self, axis: str, unit: str) -> float | None:
    """Returns the step along an axis; None if it is unknown.

    Args:
      axis: 't', 'z', 'y' or 'x'.
      unit: 'micrometer' or 'second'.
    """
    factor, known = _UNITS.get(self.units.get(axis, ''), (1, None))
    return self.steps[axis] * factor if known == unit else None

  def axes(self, shape: tuple[int, ...]) -> dict[str, int]:
    """Returns names and lengths of the axes of a stack, the slowest first.

    Pages lie along z if their axes are unknown.

    Args:
      shape: [N, H, W] or [N, H, W, C].
    """
    pages = dict(self.pages)
    if math.prod(pages.values()) != shape[0]:
      pages = {'z': shape[0]}
    channels = {'c': shape[3]} if len(shape) == 4 else {}
    sizes = {**pages, **channels, 'y': shape[1], 'x': shape[2]}
    return {axis: sizes[axis] for axis in 'tczyx' if axis in sizes}


def calibration_of(
  pages: Mapping[str, int], lengths: Mapping[str, tuple[float, str]]
) -> Calibration:
  """Returns the calibration of a TIFF, in micrometres and seconds.

  Args:
    pages: lengths of the axes 't' and 'z' of its pages.
    lengths: distances between pixels along 't', 'z', 'y' and 'x' with their
      units, as ImageJ or OME spell them. Others are left out.
  """
  steps, units = {}, {}
  for axis, (length, unit) in lengths.items():
    is_number = isinstance(length, int | float)
    if unit in _UNITS and is_number and 0 < length < math.inf:
      factor, units[axis] = _UNITS[unit]
      # The tags of TIFF hold fractions of 32-bit integers.
      steps[axis] = float(f'{length * factor:.9g}')
  return Calibration(pages, steps, units=units)


def common_calibration(found: list[Calibration]) -> Calibration:
  """Returns the calibration of several files that become one.

  Their pixel sizes along y and x count if they are the same in all of them.
  """
  first = found[0]
  if len(found) == 1:
    return first
  common = Calibration(
    {},
    {axis: first.steps[axis] for axis in 'yx' if axis in first.steps},
    {},
    {axis: first.units[axis] for axis in 'yx' if axis in first.units},
  )
  fields = ('steps', 'units')
  same = all(
    getattr(one, field).get(axis) == getattr(common, field).get(axis)
    for one in found
    for field in fields
    for axis in 'yx'
  )
  return common if same else Calibration()
