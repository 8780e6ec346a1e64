# SPDX-License-Identifier: Apache-2.0
"""Streamed prediction of images that need not fit in memory.

Threads read the next batch, and write the last one, while a batch is computed.
Memory holds a few batches, whatever the size of the image.
"""

import collections
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from segjax.contracts import SegmentationModel
from segjax.tiling.plans import TilePlan, plan_tiles
from segjax.tiling.programs import create_program
from segjax.tiling.settings import TileSettings
from segjax.tiling.windows import limit_tiles, predict_windows, read_mirrored


def stream_predict(
  reader: Any,
  writer: Any,
  model: SegmentationModel,
  params: Any,
  settings: TileSettings = TileSettings(),
  *,
  finished: Collection[int] = (),
  share: slice = slice(None),
  on_written: Callable[[int, int], None] | None = None,
) -> TilePlan:
  """Writes the prediction of an image window by window; see `predict_image`.

  Args:
    reader: the image, read as `reader[rows, columns]` -> [h, w, C], two slices
      within its `shape` [H, W, C]: an array, a memory map or
      `images.windows.Raster`. The model gets its pixels as they are.
    writer: object that takes the prediction, by `writer[rows, columns] =
      f32[h, w, K]`, in a thread.
    model: the network.
    params: its parameters.
    settings: settings of the prediction.
    finished: numbers of the windows to leave out, in the order of the plan.
    share: slice of the windows, in the order of the plan, that this process
      predicts if several processes write one output.
    on_written: (number of a window, its pixels) -> None, called in the thread
      of `writer` after the window was written.

  Returns:
    The tile plan.

  Raises:
    InputError: a size in the settings is inadmissible; or `reader` or `writer`
      raises it.
  """
  if settings.tile_memory_mib and settings.tile_size is None:
    dtype = read_mirrored(reader, (0, 0), (1, 1)).dtype
    settings = limit_tiles(model, params, reader.shape, dtype, settings)
  height, width, _ = reader.shape
  plan = plan_tiles(height, width, model.geometry, settings)
  transforms = settings.transforms
  most_tiles = len(range(settings.most_tiles or len(plan))[:: share.step])
  program = create_program(
    model, params, settings, most_tiles * len(transforms)
  )
  finished = frozenset(finished)
  todo = [i for i in range(len(plan))[share] if i not in finished]

  def write(number, window, output):
    writer[window] = output
    if on_written is not None:
      on_written(number, output.shape[0] * output.shape[1])

  predicted = predict_windows(
    program,
    lambda origin: read_mirrored(reader, origin, plan.tile_shape),
    plan,
    windows=map(plan.window, todo),
    transforms=transforms,
  )
  with ThreadPoolExecutor(1, 'write') as pool:
    writes = collections.deque()
    for number, (window, output) in zip(todo, predicted, strict=True):
      writes.append(pool.submit(write, number, window, output))
      if len(writes) > program.batch_size:
        writes.popleft().result()
    while writes:
      writes.popleft().result()
  return plan
