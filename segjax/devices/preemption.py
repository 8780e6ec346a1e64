# SPDX-License-Identifier: Apache-2.0
"""Preemption: SIGTERM, the notice that this machine will be taken away.

Clouds and Slurm send it some seconds before they kill. With several processes,
one may get it first; JAX's preemption service then agrees on a step that all of
them still reach.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def notice() -> Iterator[Callable[[int], bool]]:
  """Yields is_preempted(step), to be asked after every step.

  It is True at the first step after a SIGTERM: time to save and to end. A
  second SIGTERM ends the process at once. Several processes must all ask at the
  same steps, and get True at the same step; a second signal ends them at once
  only after that step.

  With one process, outside the main thread, it is never True, since only the
  main thread can handle signals.
  """
  if jax.process_count() > 1:
    # Since `jax.distributed.initialize`, the service handles the signal.
    def is_agreed(step):
      reached = multihost_utils.reached_preemption_sync_point(step)
      if reached:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
      return reached

    yield is_agreed
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False
    return
  told = threading.Event()

  def on_signal(number, unused_frame):
    told.set()
    signal.signal(number, signal.SIG_DFL)

  before = signal.signal(signal.SIGTERM, on_signal)
  try:
    yield lambda step: told.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)
