# SPDX-License-Identifier: Apache-2.0
"""Pages of image files, checked, and the canvas of their predictions."""

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from segjax.data.examples import list_some
from segjax.devices import processes
from segjax.errors import InputError, counted
from segjax.images import png_jpeg
from segjax.images.calibration import Calibration
from segjax.images.files import (
  check_picture,
  how_to_join,
  open_canvas,
  open_rasters,
)
from segjax.images.pixels import check_finite
from segjax.images.windows import Canvas, Raster
from segjax.prediction.partial import Partial
from segjax.runs.writers import progress_bar
from segjax.settings.sections import PreprocessingSettings
from segjax.tiling.plans import TilePlan


@dataclasses.dataclass(frozen=True)
class PageWriter:
  """A page of a canvas; it encodes the predictions that are assigned to it."""

  canvas: Canvas
  number: int
  encode: Callable[[np.ndarray], np.ndarray]

  def __setitem__(
    self, window: tuple[slice, slice], predicted: np.ndarray
  ) -> None:
    self.canvas[self.number, *window] = self.encode(predicted)


def measure_pages(
  files: Sequence[Path],
  channels: int,
  preprocessing: PreprocessingSettings,
  output: Path,
  kind: str,
) -> tuple[int, tuple[int, int], np.dtype]:
  """Returns the number of pages in files, their size and their widest dtype.

  The size is (height, width) in pixels. For the arguments see `checked_pages`,
  and for `kind` `outputs.KINDS`.

  Raises:
    InputError: a file cannot be read or has other channels, or the output
      cannot hold pages of these sizes or of this number.
  """
  pages = [
    (page.shape[:2], page.dtype)
    for page in checked_pages(files, channels, preprocessing)
  ]
  sizes = sorted({shape for shape, _ in pages})
  if len(sizes) > 1:
    raise InputError(
      f'{output} cannot hold images of {sizes} pixels together; give a folder '
      'as --output'
    )
  if output.suffix.lower() == '.png' and len(pages) > 1:
    instead = 'use .tif'
    if kind == 'overlay':
      instead = (
        'an overlay shows one image; predict this input by itself with '
        '--kind=labels and an --output of .tif, and the others from a folder '
        'without it'
      )
    raise InputError(
      f'{output} holds one image and the input '
      f'{list_some([str(file) for file in files], 3)} has {len(pages)}; '
      f'{instead}'
    )
  return len(pages), sizes[0], max(dtype for _, dtype in pages)


def checked_pages(
  files: Iterable[Path],
  channels: int,
  preprocessing: PreprocessingSettings,
  dtype: np.dtype | None = None,
) -> Iterator[Raster]:
  """Yields the pages of files one after another; one file is open at a time.

  Float pixels outside [0, 1] are refused when they are read, unless
  `preprocessing` says which range they have.

  Args:
    files: image files.
    channels: number of channels that the network takes.
    preprocessing: settings that say which pixels the network takes.
    dtype: the widest dtype of the pages. All pages are converted to it, so that
      one compiled program takes them; a pixel stays the same share of its
      range. None converts no page.

  Raises:
    InputError: a file cannot be read, or the network does not take its channels
      or pixels.
  """
  for file in files:
    with open_rasters(file) as pages:
      for number, page in enumerate(pages):
        if page.shape[-1] != channels:
          cure = ''
          if page.shape[-1] == 1 and channels in (len(pages), page.shape[1]):
            height, width, _ = page.shape
            cure = (
              f'; it is read as {counted(len(pages), "page")} of {height} x '
              f'{width} px'
              + how_to_join(file, channels, channels != len(pages))
            )
          raise InputError(
            f'{file} has {page.shape[-1]} channels; the network takes '
            f'model.in_channels={channels}{cure}'
          )
        preprocessing.check_dtype(page.dtype, file)
        page = _checked(page, file, number, preprocessing.has_own_range)
        yield page if dtype is None else _widened(page, np.dtype(dtype))


def write_predictions(
  partial: Partial,
  name: str,
  pages: Iterable[Raster],
  shape: tuple[int, int, int],
  stream: Callable[..., TilePlan],
  encode: Callable[[np.ndarray], np.ndarray],
  num_classes: int,
  calibration: Calibration = Calibration(),
) -> TilePlan:
  """Writes the predictions of pages into the folder of an unfinished output.

  If the output is a picture, `finish_picture` makes it afterwards. With several
  processes, each writes its share of the windows of every page.

  Args:
    partial: the unfinished output.
    name: name of the output, with its ending.
    pages: the images.
    shape: N, H, W.
    stream: (page, writer, finished=, share=, on_written=) -> plan, such as
      `streaming.stream_predict` with a model, parameters and settings.
    encode: prediction f32[h, w, K] -> stored values [h, w, ...].
    num_classes: K.
    calibration: axes and pixel sizes that the output states.

  Returns:
    The tile plan of the last page.

  Raises:
    InputError: the pages or `stream` raise it.
    OSError: the output cannot be written.
  """
  output = _canvas_path(partial.folder / name)
  sample = encode(np.zeros((1, 1, num_classes), np.float32))
  shape = (*shape, *sample.shape[2:])
  if output.name != name:
    check_picture(name, shape, sample.dtype)
  begin = functools.partial(
    open_canvas, output, shape, sample.dtype, calibration
  )

  def make_canvas():
    if processes.is_first():
      with begin():
        pass

  processes.together(make_canvas)
  count, index = jax.process_count(), jax.process_index()
  finished = collections.defaultdict(set)
  for page, number in partial.finished:
    finished[page].add(number)
  with contextlib.ExitStack() as stack:
    canvas = stack.enter_context(begin())
    report = _progress(stack, shape, sum(partial.finished.values()))
    for page, image in enumerate(pages):

      def on_written(number, pixels, page=page):
        partial.record((page, number), pixels, canvas.sync)
        report(pixels)

      plan = stream(
        image,
        PageWriter(canvas, page, encode),
        finished=finished[page],
        # The page shifts the share, so that processes share pages of a single
        # window, too.
        share=slice((index - page) % count, None, count),
        on_written=on_written,
      )
    canvas.sync()
  return plan


def finish_picture(
  folder: Path, name: str, colours: np.ndarray | None = None
) -> None:
  """Makes the picture from the canvas, if the output is a .png.

  The output has this name in the folder of an unfinished output. The colours
  uint8[K, 3] show the labels 0..K-1.
  """
  output = folder / name
  canvas = _canvas_path(output)
  if canvas != output:
    # The canvas stays until the picture has got its name, in case of a crash.
    [page] = np.load(canvas, mmap_mode='r')
    with open(output, 'wb') as file:
      png_jpeg.encode(file, page, colours)


def _canvas_path(output):
  """Returns the file that the windows of an output are written to."""
  is_picture = output.suffix.lower() == '.png'
  return output.with_suffix('.npy') if is_picture else output


def _progress(stack, shape, done):
  """Returns (pixels) -> None, which moves a bar if there is a terminal."""
  bar = stack.enter_context(
    progress_bar(
      math.prod(shape[:3]),
      done,
      unit='pixel',
      unit_scale=True,
      # With None, tqdm shows no bar if there is no terminal.
      disable=None if processes.is_first() else True,
    )
  )

  def report(pixels):
    # This assumes that the other processes have written as many pixels.
    bar.update(min(pixels * jax.process_count(), bar.total - bar.n))

  return report


def _checked(page, file, number, has_own_range):
  """Returns the page; reading float pixels from it checks their values."""
  if page.dtype != np.float32:
    return page

  def read(rows, columns):
    pixels = page[rows, columns]
    check_finite(file, number, pixels, (rows.start, columns.start))
    if not has_own_range and not 0 <= pixels.min() <= pixels.max() <= 1:
      raise InputError(
        f'{file} has float pixels from {pixels.min():g} to {pixels.max():g}; '
        'they must be in [0, 1] (integers are divided by the maximum of their '
        'type)'
      )
    return pixels

  return Raster(page.shape, page.dtype, read)


def _widened(page, dtype):
  """Returns the page with its pixels converted to a wider dtype."""
  if page.dtype == dtype:
    return page
  full = dtype.type(np.iinfo(page.dtype).max)

  def read(rows, columns):
    pixels = page[rows, columns].astype(dtype)
    if dtype == np.float32:
      return pixels / full
    return pixels * (np.iinfo(dtype).max // full)

  return Raster(page.shape, dtype, read)
