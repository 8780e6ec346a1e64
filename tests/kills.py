# SPDX-License-Identifier: Apache-2.0
"""A program that is killed just before it does a thing to a file."""

import os
import signal
import sys


def kill_before(event: str, words: str, count: int = 1) -> None:
  """Kills this process, by SIGKILL, before an audited event.

  Args:
    event: as Python names it, such as os.rename.
    words: that its arguments contain.
    count: which of the events that do, from 1.
  """
  left = count

  def look(name, arguments):
    nonlocal left
    if name == event and words in str(arguments):
      left -= 1
      if not left:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(look)
