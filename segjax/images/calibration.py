# SPDX-License-Identifier: Apache-2.0
"""Calibration of image files: axes of the pages, pixel sizes and units."""

import dataclasses
import math
from collections.abc import Mapping

# Micrometres or seconds of a unit -> its spellings in OME-Zarr, OME-TIFF and
# ImageJ.
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
      order; empty if the file names none.
    steps: distances between pixels along 't', 'z', 'y' and 'x'.
    origin: positions of the first pixel along these axes.
    units: units of the steps and positions, in the words of OME-Zarr, such as
      'micrometer'. An axis without a step has no unit.
  """

  pages: Mapping[str, int] = dataclasses.field(default_factory=dict)
  steps: Mapping[str, float] = dataclasses.field(default_factory=dict)
  origin: Mapping[str, float] = dataclasses.field(default_factory=dict)
  units: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if not self.units.keys() <= self.steps.keys():
      raise ValueError(f'units {self.units} of steps {self.steps}')

  def size(self, axis: str, unit: str) -> float | None:
    """Returns the distance of pixels along an axis; None if it is unknown.

    Args:
      axis: 't', 'z', 'y' or 'x'.
      unit: 'micrometer' or 'second', the unit of the returned distance.
    """
    factor, known = _UNITS.get(self.units.get(axis, ''), (1, None))
    return self.steps[axis] * factor if known == unit else None

  def axes(self, shape: tuple[int, ...]) -> dict[str, int]:
    """Returns names and lengths of the axes of a stack, the slowest axis first.

    The shape is [N, H, W] or [N, H, W, C]. If the axes of the pages are
    unknown, the pages lie along z.
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
      units, as ImageJ or OME spell them. A distance that is not a positive
      number, or has an unknown unit, is left out.
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
  """Returns the calibration of several files that become one file.

  The pixel sizes along y and x are kept if they are the same in all files.
  """
  if len(found) == 1:
    return found[0]
  first, *others = [_along_yx(one) for one in found]
  return first if all(other == first for other in others) else Calibration()


def _along_yx(one):
  """Returns the pixel sizes along y and x alone."""
  steps, units = (
    {axis: values[axis] for axis in 'yx' if axis in values}
    for values in (one.steps, one.units)
  )
  return Calibration(steps=steps, units=units)
