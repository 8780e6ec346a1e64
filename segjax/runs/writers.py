# SPDX-License-Identifier: Apache-2.0
"""What a run tells: metrics on disk, one progress line, text tables.

The only file that knows tensorboardX. `MetricWriter` has the method names of
clu's writers, which need TensorFlow.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

import numpy as np
import tensorboardX
from flax.traverse_util import flatten_dict

from segjax.atomic import replacing


class MetricWriter:
  """Scalars to `metrics.jsonl`, scalars and pictures to `tensorboard/`.

  A context manager. Each line of the JSONL file is one object, `step` first
  and then the scalars; NaN and inf, which JSON lacks, are null there.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    resume_step: int | None = None,
    enabled: bool = True,
  ):
    """Opens both records in `workdir`, at their end.

    Args:
      workdir: folder of the run.
      resume_step: the step of the restored checkpoint. What was written for
        later steps, by the run that was killed there, is dropped, and so is
        a line cut short. None keeps every complete line.
      enabled: False writes nothing, for all processes of a run but the first.
    """
    self._file = self._tensorboard = None
    if not enabled:
      return
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / 'metrics.jsonl'
    last_step = math.inf if resume_step is None else resume_step
    if path.exists():
      rows = _rows_until(path.read_bytes(), last_step)
      with replacing(path) as temporary:
        temporary.write_text(rows, encoding='utf-8')
    self._file = path.open('a', encoding='utf-8')
    self._tensorboard = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'),
      purge_step=None if resume_step is None else resume_step + 1,
    )

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds one row; `scalars` may be 0-d arrays. On disk when this returns."""
    if self._file is None or self._tensorboard is None:
      return
    values = {name: float(value) for name, value in scalars.items()}
    row: dict[str, float | None] = {'step': int(step)}
    for name, value in values.items():
      row[name] = value if math.isfinite(value) else None
      self._tensorboard.add_scalar(name, value, step)
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Adds pictures, name -> u8[H,W,3], to TensorBoard alone."""
    if self._tensorboard is None:
      return
    for name, image in images.items():
      self._tensorboard.add_image(name, image, step, dataformats='HWC')

  def flush(self) -> None:
    """Brings everything written so far to disk."""
    if self._file is not None:
      self._file.flush()
    if self._tensorboard is not None:
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes both records."""
    if self._file is not None:
      self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()


def _rows_until(text: bytes, last_step: float) -> str:
  """The complete rows of `text` up to and with `last_step`."""
  rows = []
  for line in text.split(b'\n'):
    try:
      row = json.loads(line)
      if row['step'] <= last_step:
        rows.append(line.decode() + '\n')
    except (ValueError, TypeError, KeyError):
      continue  # Cut short when the process was killed.
  return ''.join(rows)


class Progress:
  """One line on a terminal, rewritten in place; else one line per call.

  `step 1200/4000  loss 0.1873  12.3 images/s  data wait 0.2%  eta 0:03:40`

  `names` are what it calls a step and what `batch_size` counts.

  The rate is the wall clock's over the last `window` calls, evaluation and
  saving included, and so are the share of it that was spent in
  `waiting_for_data`, shown once that is used, and the estimated time of
  arrival, in h:mm:ss. The time to the first call, which holds the compilation,
  counts in that call alone.
  """

  def __init__(
    self,
    total_steps: int,
    start_step: int = 0,
    batch_size: int = 1,
    stream: TextIO | None = None,
    window: int = 20,
    names: tuple[str, str] = ('step', 'images'),
    enabled: bool = True,
  ):
    """Starts the clock; `enabled` is as in `MetricWriter`."""
    self._step_name, self._unit = names
    self._enabled = enabled
    self._total_steps = total_steps
    self._batch_size = batch_size
    self._stream = stream or sys.stderr
    self._calls = collections.deque(
      [(start_step, time.monotonic(), 0.0)], maxlen=window
    )
    self._waited = None  # Seconds since the start.
    self._has_reported = False

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  @contextlib.contextmanager
  def waiting_for_data(self) -> Iterator[None]:
    """Adds the time in its block to the wait for data.

    A device at work on earlier steps doesn't stand still meanwhile, so that
    the share is an upper bound on its idleness for want of data.
    """
    start = time.monotonic()
    yield
    self._waited = (self._waited or 0.0) + time.monotonic() - start

  def update(self, step: int, **scalars: float) -> None:
    """Reports that `step` is done; `scalars` are shown as `name value`."""
    if not self._enabled:
      return
    now = time.monotonic()
    first_step, start, waited_before = self._calls[0]
    elapsed = max(now - start, 1e-9)
    steps_per_second = (step - first_step) / elapsed
    parts = [f'{self._step_name} {step}/{self._total_steps}']
    parts += [f'{name} {float(value):.4g}' for name, value in scalars.items()]
    if steps_per_second > 0:
      eta = round((self._total_steps - step) / steps_per_second)
      rate = steps_per_second * self._batch_size
      digits = '.0f' if rate >= 100 else '.3g'
      parts.append(f'{rate:{digits}} {self._unit}/s')
      if self._waited is not None:
        share = (self._waited - waited_before) / elapsed
        parts.append(f'data wait {share:.1%}')
      parts.append(f'eta {eta // 3600}:{eta // 60 % 60:02}:{eta % 60:02}')
    if not self._has_reported:
      self._calls.clear()
    self._has_reported = True
    self._calls.append((step, now, self._waited or 0.0))
    line = '  '.join(parts)
    # \x1b[K erases what a longer line before this one left.
    in_place = self._stream.isatty()
    self._stream.write(f'\r{line}\x1b[K' if in_place else f'{line}\n')
    self._stream.flush()

  def close(self) -> None:
    """Ends the line, so that what is printed next starts on its own."""
    if self._has_reported and self._stream.isatty():
      self._stream.write('\n')
      self._stream.flush()


def table(
  rows: Mapping[str, Any] | Iterable[tuple[Any, ...]], header: tuple = ()
) -> str:
  """Aligned text; floats get four decimals, columns of numbers end flush.

  >>> print(table({'v_rand': 0.95551, 'slices': 30}))
  v_rand  0.9555
  slices      30
  """
  rows = list(rows.items()) if isinstance(rows, Mapping) else list(rows)
  columns = []
  for i, values in enumerate(zip(*rows, strict=True)):
    texts = [*header[i : i + 1], *map(_format, values)]
    is_number = all(not isinstance(value, str) or not value for value in values)
    justify = str.rjust if is_number else str.ljust
    width = max(map(len, texts))
    columns.append([justify(text, width) for text in texts])
  lines = zip(*columns, strict=True)
  return '\n'.join('  '.join(line).rstrip() for line in lines)


def parameter_table(params: Any) -> str:
  """Path, shape, count, mean and standard deviation of every parameter array.

  Args:
    params: nested dict of arrays.

  Returns:
    Aligned text that ends with the total count.
  """
  rows = []
  for name, leaf in flatten_dict(params, sep='/').items():
    values = np.asarray(leaf, np.float64)
    shape = ' x '.join(map(str, values.shape)) or 'scalar'
    rows.append(
      (name, shape, values.size, float(values.mean()), float(values.std()))
    )
  rows.append(('total', '', sum(row[2] for row in rows), '', ''))
  return table(rows, header=('parameter', 'shape', 'count', 'mean', 'std'))


def _format(value: Any) -> str:
  if isinstance(value, float | np.floating):
    is_small = value != 0 and abs(value) < 0.001
    return f'{value:.2e}' if is_small else f'{value:.4f}'
  return f'{value:,}' if isinstance(value, int | np.integer) else str(value)
