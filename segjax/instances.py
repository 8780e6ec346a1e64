# SPDX-License-Identifier: Apache-2.0
"""Number and measure the single cells of predicted maps, of any size.

`python -m segjax.instances --input=MAPS --output=FOLDER` takes maps of two
classes, probabilities or labels, that `segjax.predict` wrote. Frames with names
of the Cell Tracking Challenge, t000.tif, become its results, mask000.tif.
`segjax.prediction.components` defines a cell. A table, objects.csv, has the
measurements of every cell; `--rois` and `--geojson` write the outlines.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.cli.command_line import run

  run('instances')

import contextlib
import csv
import dataclasses
import functools
import itertools
import math
import os
import re
from pathlib import Path

import numpy as np
from absl import flags

from segjax.atomic import (
  check_absent,
  check_folder,
  give_name,
  refusing_write_errors,
  remove_leftovers,
  replacing,
  temporary_folder,
)
from segjax.errors import InputError, counted
from segjax.images.files import (
  digest_of_rasters,
  list_rasters,
  open_canvas,
  open_rasters,
  read_calibration,
)
from segjax.images.labels import label_of, map_of
from segjax.images.zarr import is_zarr
from segjax.prediction.components import (
  View,
  blocks_of,
  fill_holes,
  label_blocks,
)
from segjax.prediction.folder_journal import FolderJournal, describe_skipped
from segjax.prediction.objects import count_areas, measure_objects
from segjax.prediction.outlines import (
  check_roifile,
  write_geojson,
  write_rois,
)
from segjax.prediction.outputs import (
  check_apart,
  check_other_folder,
  check_replaceable,
  lock_folder,
)

_MAX_ID = np.iinfo(np.uint16).max  # The limit of result files of the challenge.
_BLOCK_PX = 2048


def label_files(
  source: Path,
  output: Path,
  *,
  threshold: float = 0.5,
  seed_threshold: float | None = None,
  min_area_px: int = 0,
  holes_filled: bool = False,
  rois: bool = False,
  geojson: bool = False,
  pixel_size_um: float | None = None,
  overwrite: bool = False,
) -> None:
  """Writes the instances of map files as u16 TIFFs, and prints what it wrote.

  A table beside them has a row for each instance: the file, the page (from 0),
  the result of `measure_objects` and, if the size of a pixel is known, lengths
  and areas in micrometres.

  If a call for a folder was killed, the same call goes on: it skips the files
  that it has finished and nobody has changed. A lock keeps other calls out of
  the folder until this one ends.

  Args:
    source: file, Zarr, or folder of maps of one channel: probabilities, or
      labels 0 and 1. Probabilities are floats, or uint8 in 0..255, which a
      value above 127 anywhere in the source tells from labels.
    output: a .tif for a file. For a folder, a folder, made if it is missing,
      with maskTTT.tif for tTTT and NAME.tif for another NAME. The table of
      NAME.tif is NAME.csv; the table of a folder is objects.csv in it.
    threshold: value that cells exceed in a map; see `label_instances`.
    seed_threshold: value that seeds exceed; None for components without seeds.
    min_area_px: smallest area of an instance; smaller ones are left out.
    holes_filled: whether holes become part of the instance around them.
    rois: whether to write outlines for ImageJ, NAME.rois.zip.
    geojson: whether to write outlines for QuPath, NAME.geojson.
    pixel_size_um: side of a pixel in micrometres; None for that in the maps.
    overwrite: whether to replace files that exist. Maps are never replaced.

  Raises:
    InputError: a file or an argument is wrong, a page has more than 65535
      instances, or another run writes to the folder.
  """
  outlines = {}
  if rois:
    check_roifile()
    outlines['.rois.zip'] = write_rois
  if geojson:
    outlines['.geojson'] = write_geojson
  _check_arguments(threshold, seed_threshold, pixel_size_um)
  files = list_rasters(source)
  is_folder = source.is_dir() and not is_zarr(source)
  outputs = _plan_outputs(files, is_folder, output)
  if is_folder:
    check_other_folder(output, source)
  sides = [_side(file, ending) for file in outputs for ending in outlines]
  table = output / 'objects.csv' if is_folder else output.with_suffix('.csv')
  sides.append(table)
  check_apart([*outputs, *sides], files)
  settings = threshold, seed_threshold, min_area_px, holes_filled
  journal = None
  if is_folder:
    journal = FolderJournal(output, [os.path.realpath(source), *settings])
  # The folder is made after the checks above, and only for a folder of maps.
  with lock_folder(output) if is_folder else contextlib.nullcontext():
    remove_leftovers(outputs[0].parent)
    digests = [digest_of_rasters([file]) for file in files]
    finished = [False] * len(files)
    if journal is not None:
      finished = journal.find_finished(outputs, digests)
    pending = [not is_finished for is_finished in finished]
    if not overwrite:
      # After a finished file, this command itself made the files beside.
      check_absent(sides if all(pending) else ())
      check_absent(itertools.compress(outputs, pending))
    for target in (*itertools.compress(outputs, pending), *sides):
      check_replaceable(target)
    if any(finished):
      print(describe_skipped(output, finished), flush=True)
    scale = _scale_of(files)
    calibrations = [_calibration(file, pixel_size_um) for file in files]
    sizes = [_size_um(calibration) for calibration in calibrations]
    if pixel_size_um is None:
      for y, x in sorted({size for size in sizes if size is not None}):
        print(f'maps state pixels of {y:g} x {x:g} micrometres', flush=True)
    jobs = zip(files, outputs, digests, calibrations, strict=True)
    for file, target, digest, calibration in itertools.compress(jobs, pending):
      with (
        refusing_write_errors(target),
        temporary_folder(target.parent) as folder,
      ):
        written = folder / target.name
        total = _label_pages(file, written, calibration, scale, *settings)
        if journal is not None:
          journal.enter(target, digest, written)
        give_name(written, target, overwrite)
      print(f'{target}: {counted(total, "instance")}', flush=True)
    replaces = overwrite or any(finished)
    measure = functools.partial(_measure_pages, scale=scale)
    with replacing(table, replaces) as temporary:
      _write_table(temporary, files, outputs, measure, sizes)
    print(table, flush=True)
    for file, target in zip(files, outputs, strict=True) if outlines else ():
      with measure(file, target) as pages:
        for ending, write in outlines.items():
          side = _side(target, ending)
          with replacing(side, replaces) as temporary:
            write(temporary, pages)
          print(side, flush=True)
    if journal is not None:
      journal.remove()


def _check_arguments(threshold, seed_threshold, pixel_size_um):
  """Raises InputError for an impossible threshold or pixel size."""
  for name, value in (
    ('threshold', threshold),
    ('seed_threshold', seed_threshold),
  ):
    if value is not None and not 0 <= value < 1:
      raise InputError(f'{name}={value}; expected 0 or more, and less than 1')
  if pixel_size_um is not None and not 0 < pixel_size_um < math.inf:
    raise InputError(f'pixel_size_um={pixel_size_um}; expected more than 0')


def _plan_outputs(files, is_folder, output):
  """Returns the output of each file; refuses outputs that cannot be made."""
  if is_folder:
    outputs = [output / _result_name(file) for file in files]
    if not output.parent.is_dir() or output.is_file():
      raise InputError(f'output {output} cannot be made a folder')
  else:
    outputs = [output]
    if output.suffix.lower() not in ('.tif', '.tiff'):
      raise InputError(f'output {output} of a file must be a .tif')
    check_folder(output)
  for file in outputs:
    if outputs.count(file) > 1:
      raise InputError(f'{file} would hold two inputs; rename one of them')
  return outputs


def _scale_of(files):
  """Returns the value that stands for 1 in uint8 maps, and says it.

  It is 255 in probabilities, of --dtype=uint8 and .png, and 1 in labels. All
  maps of one command are of the same kind.
  """
  largest = []
  for file in files:
    with open_rasters(file, map_of) as pages:
      for page in pages:
        if page.dtype != np.uint8 or page.shape[2] != 1:
          continue
        for window in blocks_of(page.shape[:2], _BLOCK_PX):
          largest.append(page[window].max())
          # Values from 2 on may be labels of more than two classes.
          if largest[-1] > 127:
            print(f'{file}: uint8 above 127; read as probabilities of 0..255')
            return 255
  if largest and max(largest) <= 1:
    print('maps of uint8 hold only 0 and 1; read as labels')
  return 1


def _calibration(file, pixel_size_um):
  """Returns the calibration of a map, with the given size of pixels if any."""
  calibration = read_calibration(file)
  if pixel_size_um is None:
    return calibration
  return dataclasses.replace(
    calibration,
    steps={**calibration.steps, 'y': pixel_size_um, 'x': pixel_size_um},
    units={**calibration.units, 'y': 'micrometer', 'x': 'micrometer'},
  )


def _size_um(calibration):
  """Returns height and width of a pixel in micrometres; None if unknown."""
  size = [calibration.size(axis, 'micrometer') for axis in 'yx']
  return None if None in size else tuple(size)


def _label_pages(
  file,
  target,
  calibration,
  scale,
  threshold,
  seed_threshold,
  min_area_px,
  holes_filled,
):
  """Writes the instances of all pages, and returns their number.

  For the memory that it takes, see `label_blocks`. A page of numbers lies in a
  file beside `target`.
  """
  total = 0
  with open_rasters(file, map_of) as pages:
    shape = pages[0].shape[:2]
    with open_canvas(
      target, (len(pages), *shape), np.dtype(np.uint16), calibration
    ) as canvas:
      numbers = _numbers(target.with_name('numbers'), shape)
      if holes_filled:
        holes = _numbers(target.with_name('holes'), shape)
      for n, page in enumerate(pages):
        count = label_blocks(
          _map(page, file, scale),
          numbers,
          threshold,
          seed_threshold,
          _BLOCK_PX,
        )
        if holes_filled:
          fill_holes(numbers, holes, _BLOCK_PX)
        kept = count_areas(numbers, count, _BLOCK_PX) >= min_area_px
        kept[0] = False
        renumbered = np.where(kept, np.cumsum(kept), 0)
        count = int(kept.sum())
        if count > _MAX_ID:
          raise InputError(
            f'{file} has {count} instances on a page; {_MAX_ID} fit into a file'
          )
        for rows, columns in blocks_of(shape, _BLOCK_PX):
          ids = renumbered[numbers[rows, columns]]
          canvas[n, rows, columns] = ids.astype(np.uint16)
        total += count
      canvas.sync()
  return total


@contextlib.contextmanager
def _measure_pages(file, target, scale):
  """Yields the numbers and the measurements of each page that was written."""
  with (
    open_rasters(file, map_of) as maps,
    open_rasters(target, label_of) as labels,
  ):
    pages = []
    for page, ids in zip(maps, labels, strict=True):
      numbers = View(ids.shape[:2], lambda window, ids=ids: ids[window][..., 0])
      count = max(
        int(ids[window].max()) for window in blocks_of(numbers.shape, _BLOCK_PX)
      )
      values = _map(page, file, scale)
      pages.append(
        (numbers, measure_objects(numbers, values, count, _BLOCK_PX))
      )
    yield pages


def _write_table(path, files, outputs, measure, sizes):
  """Writes a row for each instance of all files.

  There are columns in micrometres if the size of a pixel is known in any file;
  they are empty for the other files.
  """
  with open(path, 'x', -1, 'utf-8', 'surrogateescape', '') as out:
    rows = csv.writer(out)
    has_header = False
    for file, target, size in zip(files, outputs, sizes, strict=True):
      with measure(file, target) as pages:
        for n, (_, measured) in enumerate(pages):
          columns = dict(measured)
          if any(sizes):
            columns |= _in_um(measured, size or (math.nan, math.nan))
          if not has_header:
            rows.writerow(['image', 'page', *columns])
            has_header = True
          for row in zip(*(c.tolist() for c in columns.values()), strict=True):
            rows.writerow([target.stem, n, *map(_shorten, row)])


def _in_um(measured, size):
  """Returns columns in micrometres; NaN for unknown values."""
  height, width = size
  # If pixels are not square, the length of a perimeter is unknown.
  side = height if math.isclose(height, width, rel_tol=1e-3) else math.nan
  return {
    'area_um2': height * width * measured['area_px'],
    'centroid_row_um': height * measured['centroid_row'],
    'centroid_column_um': width * measured['centroid_column'],
    'perimeter_um': side * measured['perimeter_px'],
  }


def _shorten(value):
  if not isinstance(value, float):
    return value
  if math.isnan(value):
    return ''
  return f'{value:.6g}' if value < 1e5 else f'{value:.1f}'


def _side(target, ending):
  return target.with_name(target.stem + ending)


def _result_name(file):
  return f'{re.sub("^t(?=[0-9]{3,4}$)", "mask", file.stem)}.tif'


def _numbers(path, shape):
  """Returns a memory map in a new file, for the numbers of a page."""
  # There are fewer numbers than pixels.
  dtype = np.dtype(np.int32 if math.prod(shape) < 2**31 else np.int64)
  with open(path, 'xb') as file:
    # The file is written now: while a map is written, a full disk would kill
    # the process.
    for _ in range(shape[0]):
      file.write(bytes(shape[1] * dtype.itemsize))
  return np.memmap(path, dtype, 'r+', shape=shape)


def _map(page, file, scale):
  """Returns a page [H, W, 1] as a map [H, W], which checks what is read."""

  def read(window):
    values = page[window]
    if page.dtype == np.uint8 and scale > 1:
      values = values / scale  # In float32, 204 / 255 would exceed 0.8.
    if values.shape[-1] != 1 or not 0 <= values.min() <= values.max() <= 1:
      raise InputError(
        f'{file} has {values.shape[-1]} channel(s) of values from '
        f'{values.min():g} to {values.max():g}; expected one, of probabilities '
        'or labels in [0, 1], or uint8 probabilities of 0..255 (a uint8 map '
        'without any above 127 may be labels; predict with --dtype=float32)'
      )
    return values[..., 0]

  return View(page.shape[:2], read)


def main(_):
  args = flags.FLAGS
  label_files(
    Path(args.input),
    Path(args.output),
    threshold=args.threshold,
    seed_threshold=args.seed_threshold,
    min_area_px=args.min_area_px,
    holes_filled=args.fill_holes,
    rois=args.rois,
    geojson=args.geojson,
    pixel_size_um=args.pixel_size_um,
    overwrite=args.overwrite,
  )
