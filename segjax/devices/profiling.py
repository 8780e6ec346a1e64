# SPDX-License-Identifier: Apache-2.0
"""Profiles of some training steps, for XProf and Perfetto."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from segjax.devices import processes


@contextlib.contextmanager
def tracing(
  first: int, last: int, folder: str | os.PathLike
) -> Iterator[Callable[[int, Any], None]]:
  """Yields trace(step, state), to be called before every step.

  The trace has everything from step `first` to `last`, on the devices and on
  the host, so also input and evaluation. One process of a run writes it.

  `state` is the result of the step before. Steps return before they are done,
  so the trace waits until it is computed.

  Args:
    first: first step of the trace; 0 traces nothing.
    last: last step; the trace is written before the next one, or at the end.
    folder: the trace is written to `plugins/profile/` in it.
  """
  is_tracing = False

  def trace(step, state):
    nonlocal is_tracing
    if is_tracing and step > last:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      is_tracing = False
    if not is_tracing and 0 < first <= step <= last and processes.is_first():
      jax.profiler.start_trace(folder)
      is_tracing = True

  try:
    yield trace
  finally:
    if is_tracing:
      jax.profiler.stop_trace()
