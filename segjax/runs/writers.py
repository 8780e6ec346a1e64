# SPDX-License-Identifier: Apache-2.0
"""Metric writers, the progress line and text tables.

This is the only file that knows tensorboardX. The methods of `MetricWriter`
have the names of those in clu, whose writers need TensorFlow.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

import numpy as np
from flax.traverse_util import flatten_dict
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter

# These names are made at import, which pyright does not see.
from tensorboardX.proto.event_pb2 import (
  Event,  # pyright: ignore[reportAttributeAccessIssue]
  SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.proto.summary_pb2 import (
  Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from tqdm import tqdm

from segjax.atomic import write_text
from segjax.devices import processes

_COMPILING = 'compiling (about a minute the first time)'


class MetricWriter:
  """Writes scalars to `metrics.jsonl`, and also pictures to `tensorboard/`.

  It is a context manager. Of several processes, the first one writes. Each line
  of the JSONL file is one object, first the `step` and then the scalars; NaN
  and inf, which JSON lacks, are null there.
  """

  def __init__(
    self, workdir: str | os.PathLike, resume_step: int | None = None
  ):
    """Opens both records in `workdir`, at their end.

    Args:
      workdir: folder of the run.
      resume_step: step of the restored checkpoint. Rows of later steps, which a
        killed run wrote, and incomplete rows are dropped. None keeps all
        complete rows.
    """
    self._file = self._events = None
    if not processes.is_first():
      return
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / 'metrics.jsonl'
    last_step = math.inf if resume_step is None else resume_step
    if path.exists():
      write_text(path, _rows_until(path.read_bytes(), last_step))
    self._file = path.open('a', encoding='utf-8')
    (workdir / 'tensorboard').mkdir(exist_ok=True)
    # The thread of tensorboardX.SummaryWriter would end on a full disk, flush
    # too early, and let the training wait for ever.
    self._events = EventsWriter(
      str(workdir / 'tensorboard' / 'events'),
      f'.{time.time_ns()}',  # Names of EventsWriter differ only by the second.
    )
    if resume_step is not None:
      start = SessionLog(status=SessionLog.START)
      self._add_event(resume_step + 1, session_log=start)

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds one row, which is on the disk at the end; 0-d arrays are scalars."""
    if self._file is None:
      return
    values = {name: float(value) for name, value in scalars.items()}
    row: dict[str, float | None] = {'step': int(step)}
    for name, value in values.items():
      row[name] = value if math.isfinite(value) else None
      # `summary.scalar` would warn of NaN, the score of an absent class.
      scalar = Summary.Value(tag=name, simple_value=value)
      self._add_event(step, summary=Summary(value=[scalar]))
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Adds pictures, name -> u8[H,W,3], to TensorBoard only."""
    if self._events is None:
      return
    for name, image in images.items():
      picture = summary.image(name, image, dataformats='HWC')
      self._add_event(step, summary=picture)

  def flush(self) -> None:
    """Puts everything that was written on the disk."""
    for record in (self._file, self._events):
      if record is not None:
        record.flush()

  def close(self) -> None:
    """Flushes and closes both records."""
    for record in (self._file, self._events):
      if record is not None:
        record.close()

  def _add_event(self, step: int, **content: Any) -> None:
    if self._events is not None:
      event = Event(wall_time=time.time(), step=int(step), **content)
      self._events.write_event(event)


def read_rows(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the complete rows of `metrics.jsonl`; [] if there is no file."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  text = _rows_until(path.read_bytes(), math.inf) if path.exists() else ''
  return [json.loads(line) for line in text.splitlines()]


def _rows_until(text: bytes, last_step: float) -> str:
  """Returns the complete rows of `text`, until `last_step` inclusive."""
  rows = []
  for line in text.split(b'\n'):
    try:
      row = json.loads(line)
      if row['step'] <= last_step:
        rows.append(line.decode() + '\n')
    except (ValueError, TypeError, KeyError):
      continue  # The process was killed while it wrote this row.
  return ''.join(rows)


class Progress:
  """A tqdm bar on a terminal; elsewhere, one line for each call.

  Of several processes, the first one shows it.

  `step 1200/4000  loss 0.1873  12.3 images/s  data wait 0.2%  eta 03:40`

  The rate, and the share of time that was spent waiting for data, are those
  since the last call, evaluation and saving included. The estimated time of
  arrival (eta) follows from the mean rate since the first call. The time before
  that call includes the compilation, which is announced when the block begins.
  """

  def __init__(
    self,
    total_steps: int,
    start_step: int = 0,
    batch_size: int = 1,
    stream: TextIO | None = None,
  ):
    """Starts the clock.

    Args:
      total_steps: number of the last step.
      start_step: number of steps that are done already.
      batch_size: number of images of a step.
      stream: stream that shows the progress; None for standard error.
    """
    self._total_steps = total_steps
    self._batch_size = batch_size
    self._stream = stream or sys.stderr
    self._bar = None
    self._first = None  # Step and time of the first call.
    self._last = start_step, time.monotonic()
    self._waited = 0.0  # Seconds since the last call.

  def __enter__(self) -> 'Progress':
    if self._is_compiling():
      # On a terminal, the bar replaces this text.
      end = '' if self._stream.isatty() else '\n'
      print(_COMPILING, end=end, file=self._stream, flush=True)
    return self

  def __exit__(self, *unused_exception) -> None:
    if self._bar is not None:
      self._bar.close()
    elif self._is_compiling() and self._stream.isatty():
      print(file=self._stream)

  def _is_compiling(self) -> bool:
    """Returns whether there are steps to do and none has been shown yet."""
    has_steps = self._last[0] < self._total_steps
    return processes.is_first() and self._first is None and has_steps

  @contextlib.contextmanager
  def waiting_for_data(self) -> Iterator[None]:
    """Counts the time of the block as waiting for data.

    A device may work on earlier steps meanwhile. So the share that is shown is
    an upper bound of the time for which the device has nothing to do.
    """
    start = time.monotonic()
    yield
    self._waited += time.monotonic() - start

  def update(self, step: int, **scalars: float) -> None:
    """Shows that `step` is done, and each of `scalars` as `name value`."""
    if not processes.is_first():
      return
    now = time.monotonic()
    last_step, last_time = self._last
    seconds = max(now - last_time, 1e-9)
    rate = (step - last_step) * self._batch_size / seconds
    shown = [f'{name} {float(value):.4g}' for name, value in scalars.items()]
    shown.append(f'{rate:{".0f" if rate >= 100 else ".3g"}} images/s')
    shown.append(f'data wait {self._waited / seconds:.1%}')
    first_step, first_time = self._first or self._last
    self._first = self._first or (step, now)
    self._last, self._waited = (step, now), 0.0
    if self._stream.isatty():
      self._draw(step, ', '.join(shown))
      return
    pace = (now - first_time) / max(step - first_step, 1)
    eta = tqdm.format_interval(pace * (self._total_steps - step))
    parts = [f'step {step}/{self._total_steps}', *shown, f'eta {eta}']
    print('  '.join(parts), file=self._stream, flush=True)

  def _draw(self, step: int, text: str) -> None:
    if self._bar is None:  # An earlier bar would count the compilation.
      self._bar = progress_bar(
        self._total_steps, step, unit='step', file=self._stream
      )
    self._bar.set_postfix_str(text, refresh=False)
    self._bar.update(step - self._bar.n)
    self._bar.refresh()


def progress_bar(total: int, done: int, **options: Any) -> tqdm:
  """Returns a bar that begins at `done` of `total`; `options` are tqdm's."""
  # By default, tqdm shows nothing on a terminal that says it has 0 rows.
  ncols, nrows = shutil.get_terminal_size()
  return tqdm(total=total, initial=done, ncols=ncols, nrows=nrows, **options)


def table(
  rows: Mapping[str, Any] | Iterable[tuple[Any, ...]], header: tuple = ()
) -> str:
  """Returns aligned text; floats get four decimals, numbers align at the right.

  >>> print(table({'v_rand': 0.95551, 'slices': 30}))
  v_rand  0.9555
  slices      30
  """
  rows = list(rows.items()) if isinstance(rows, Mapping) else list(rows)
  columns = []
  for i, values in enumerate(zip(*rows, strict=True)):
    texts = [*header[i : i + 1], *map(format_value, values)]
    is_number = all(not isinstance(value, str) or not value for value in values)
    justify = str.rjust if is_number else str.ljust
    width = max(map(len, texts))
    columns.append([justify(text, width) for text in texts])
  lines = zip(*columns, strict=True)
  return '\n'.join('  '.join(line).rstrip() for line in lines)


def parameter_table(params: Any) -> str:
  """Returns a table of the blocks of a network and their parameters.

  Args:
    params: nested dict of arrays; each of its keys names a block.

  Returns:
    Aligned text. The line of a block has the number of its parameters, their
    mean and their standard deviation. The last line has the total number.
  """
  rows = []
  for name, block in params.items():
    leaves = flatten_dict(block).values()
    values = np.concatenate(
      [np.ravel(np.asarray(x, np.float64)) for x in leaves]
    )
    rows.append((name, values.size, float(values.mean()), float(values.std())))
  rows.append(('total', sum(row[1] for row in rows), '', ''))
  return table(rows, header=('block', 'parameters', 'mean', 'std'))


def format_value(value: Any) -> str:
  """Returns a value as tables show it."""
  if isinstance(value, float | np.floating):
    is_small = value != 0 and abs(value) < 0.001
    return f'{value:.2e}' if is_small else f'{value:.4f}'
  return f'{value:,}' if isinstance(value, int | np.integer) else str(value)
