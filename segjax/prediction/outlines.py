# SPDX-License-Identifier: Apache-2.0
"""Outlines of objects, as ROIs for ImageJ and as GeoJSON for QuPath.

An outline encloses the centres of the pixels of its object and of no others.
Coordinates are those of both programs: x points to the right, y points down,
and the first pixel covers 0 to 1.

This is the only file that knows roifile.
"""

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage import measure

from segjax.errors import InputError

# The objects of each page: their numbers, and the result of `measure_objects`.
Objects = Sequence[tuple[Any, Mapping[str, np.ndarray]]]


def check_roifile() -> None:
  """Raises InputError if roifile, which `write_rois` needs, is missing."""
  if importlib.util.find_spec('roifile') is None:
    raise InputError("rois need roifile: pip install 'segjax[fiji]'")


def trace_outlines(
  numbers: Any, measured: Mapping[str, np.ndarray]
) -> Iterator[tuple[int, list[np.ndarray]]]:
  """Yields the number of each object and its rings, f64[N, 2] of x and y.

  The first ring is the outer one, and the others are holes. Each ring ends
  where it begins. Memory holds the bounding box of one object. The numbers
  [H, W] are read by windows; `objects.measure_objects` has measured them.
  """
  boxes = (measured[name].tolist() for name in ('top', 'left'))
  ends = (measured[name].tolist() for name in ('bottom', 'right'))
  for label, top, left, bottom, right in zip(
    measured['label'].tolist(), *boxes, *ends, strict=True
  ):
    mask = np.asarray(numbers[slice(top, bottom), slice(left, right)]) == label
    rings = measure.find_contours(np.pad(mask, 1), 0.5)
    rings.sort(key=lambda ring: -np.ptp(ring, axis=0).prod())
    # Rings count from the centre of the first pixel, which is padding.
    yield label, [ring[:, ::-1] + (left - 0.5, top - 0.5) for ring in rings]


def write_geojson(file: Path, objects: Objects) -> None:
  """Writes the outlines of all objects as detections of QuPath."""
  with open(file, 'x', encoding='utf-8') as out:
    out.write('{"type": "FeatureCollection", "features": [')
    separator = '\n'
    for page, (numbers, measured) in enumerate(objects):
      for label, rings in trace_outlines(numbers, measured):
        feature = {
          'type': 'Feature',
          'geometry': {
            'type': 'Polygon',
            'coordinates': [ring.tolist() for ring in rings],
            'plane': {'c': -1, 'z': page, 't': 0},
          },
          'properties': {'objectType': 'detection', 'name': str(label)},
        }
        out.write(separator + json.dumps(feature))
        separator = ',\n'
    out.write('\n]}\n')


def write_rois(file: Path, objects: Objects) -> None:
  """Writes the outlines of all objects as a .zip for ImageJ's ROI manager.

  Holes are left out, since a polygon of ImageJ has none.
  """
  import roifile

  def rois():
    for page, (numbers, measured) in enumerate(objects):
      for label, rings in trace_outlines(numbers, measured):
        # roifile counts positions from 0.
        position = page if len(objects) > 1 else None
        yield roifile.ImagejRoi.frompoints(
          rings[0][:-1], name=f'{page + 1}-{label}', position=position
        )

  roifile.roiwrite(file, rois(), mode='w')
