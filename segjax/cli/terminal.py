# SPDX-License-Identifier: Apache-2.0
"""Robust terminal output (closed pipes, ASCII) and Ctrl-C."""

import contextlib
import errno
import inspect
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator

# The reader of a pipe has ended, or a terminal was closed.
_NOBODY_READS = (errno.EPIPE, errno.EIO)


class _Output(io.FileIO):
  """A stream that drops its output once nobody reads it, as behind `| head`.

  Another error, such as that of a full disk, is raised once.
  """

  _has_raised = False

  def write(self, data):
    try:
      return super().write(data)
    except OSError as error:
      if error.errno not in _NOBODY_READS and not self._has_raised:
        self._has_raised = True
        raise
      return len(data)


def make_streams_robust() -> None:
  """Lets a command go on when nobody reads what it prints.

  Characters that a terminal cannot show, such as umlauts in a file name, are
  printed as escape sequences. Streams that somebody has replaced are left
  alone.
  """
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if stream is None or stream is not getattr(sys, f'__{name}__'):
      continue
    output = _Output(stream.fileno(), 'w', closefd=False)
    robust = io.TextIOWrapper(
      io.BufferedWriter(output),
      stream.encoding,
      'backslashreplace',
      # With `python -u` (write_through), each line appears at once, too.
      line_buffering=stream.line_buffering or stream.write_through,
    )
    setattr(sys, name, robust)


def drop_noise() -> None:
  """Silences the tracebacks of tensorstore after a failed save or read.

  A command tells the error in one line. For each further array, a traceback of
  its own error or of the event loop, which the first error ended, would follow:
  Python shows those of coroutines for which nobody waits any more. No coroutine
  is ours.
  """
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  show = sys.unraisablehook

  def show_others(unraisable):
    closed = str(unraisable.exc_value) == 'Event loop is closed'
    if not closed and not inspect.iscoroutine(unraisable.object):
      show(unraisable)

  sys.unraisablehook = show_others


def end_when_interrupted(message: str) -> None:
  """Makes Ctrl-C end this process at once, with one line and status 130.

  This is for the time of imports, which may swallow an exception. A process
  that ignores Ctrl-C, as one in the background may, goes on ignoring it.
  """

  def end(*unused):
    os.write(2, f'error: {message}\n'.encode())
    os._exit(130)

  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Makes Ctrl-C raise KeyboardInterrupt in the block.

  A second Ctrl-C, or one after the block, ends the process at once.
  """
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    yield
    return

  def interrupt(*unused):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt

  signal.signal(signal.SIGINT, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
