# SPDX-License-Identifier: Apache-2.0
"""Profiles of some steps of a run, which XProf and Perfetto show."""

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

  What happens from step `first` to `last` goes to a trace: on the devices and
  on the host, so input and evaluation, too. One process of a run writes it.

  Args:
    first: 0 traces none.
    last: the trace is written before the next step, or at the end.
    folder: to write to, below `plugins/profile/`.

  The `state` is what the step before gave: the trace lasts until it is there,
  since steps return before they are done.
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
