# SPDX-License-Identifier: Apache-2.0
"""Output that nobody reads to the end, terminals of ASCII alone, and Ctrl-C."""

import contextlib
import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator

# The reader of a pipe has ended, or a terminal was closed.
_NOBODY_READS = (errno.EPIPE, errno.EIO)


class _Output(io.FileIO):
  """A file whose rest is dropped when nobody reads it, as behind `| head`.

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

  What a terminal cannot show, such as the umlauts of a file name, is printed as
  an escape sequence. Streams that somebody has replaced are left alone.
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
      # Without a buffer, as by `python -u`, lines are to appear at once, too.
      line_buffering=stream.line_buffering or stream.write_through,
    )
    setattr(sys, name, robust)


def drop_noise() -> None:
  """Keeps off the terminal what tensorstore says after a failed save or read.

  A command tells the error in one line; for each array a traceback of the error
  or of the event loop, which it ended, would follow.
  """
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  show = sys.unraisablehook

  def show_others(unraisable):
    # Of orbax's coroutines for the other arrays nobody asks the result.
    code = getattr(unraisable.object, 'cr_code', None)
    is_orbax = code and f'{os.sep}orbax{os.sep}' in code.co_filename
    if not is_orbax and str(unraisable.exc_value) != 'Event loop is closed':
      show(unraisable)

  sys.unraisablehook = show_others


def end_when_interrupted(message: str) -> None:
  """Lets Ctrl-C end this process at once, with a line and status 130.

  For the time of imports, which hold nothing and may swallow an exception. A
  process that ignores Ctrl-C, as one in the background may, goes on doing so.
  """

  def end(*unused):
    os.write(2, f'error: {message}\n'.encode())
    os._exit(130)

  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Raises KeyboardInterrupt in the block at Ctrl-C.

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
