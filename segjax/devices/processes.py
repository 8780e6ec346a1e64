# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: joining them, and exchanging arrays and errors.

On a TPU slice, on GPU nodes and under `launch/local_processes.sh` the same
command runs in several processes: one for each host or for each device. Each
trains on its share of every batch. Every process must make every call below, in
the same order, except `is_first` and `say`. With one process, `gather` returns
its argument with a leading axis of 1.
"""

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from segjax.errors import InputError, SharedInputError

Value = TypeVar('Value')

# jax reads the two addresses itself, but neither the count nor the index.
_ADDRESS = 'JAX_COORDINATOR_ADDRESS'
_BOUND = 'JAX_COORDINATOR_BIND_ADDRESS'
_COUNT = 'JAX_NUM_PROCESSES'
_INDEX = 'JAX_PROCESS_ID'
_MESSAGE_BYTES = 2000


def join() -> None:
  """Joins the other processes of this run, if there are any.

  jax finds them on a TPU slice and under Slurm, Open MPI and Kubernetes.
  Elsewhere three environment variables name them: JAX_COORDINATOR_ADDRESS
  (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0).
  JAX_NUM_PROCESSES=1 runs alone. Call this before anything uses a device.

  Raises:
    InputError: a variable has a wrong value, or no process 0 answers.
  """
  given = {name: os.environ.get(name) for name in (_COUNT, _INDEX)}
  for name, value in given.items():
    if value is not None and not value.isdecimal():
      raise InputError(f'{name}={value!r} is not a whole number')
  count, index = (
    None if value is None else int(value) for value in given.values()
  )
  if count == 1:
    return
  try:
    jax.distributed.initialize(
      num_processes=count,
      process_id=index,
      coordinator_bind_address=_loopback(os.environ.get(_ADDRESS, '')),
    )
  except (ValueError, RuntimeError) as error:
    explicit = count is not None or index is not None or _ADDRESS in os.environ
    if not explicit and 'coordinator_address' in str(error):
      return  # No cluster was found.
    raise InputError(
      f'cannot join the other processes of this run: {error} Give '
      f'{_ADDRESS}, {_COUNT} and {_INDEX}, or {_COUNT}=1 to run alone'
    ) from error


def _loopback(address: str) -> str | None:
  """Returns an address that only this host reaches; None for other addresses.

  Process 0 listens there. By default jax listens on all interfaces, as it must
  for an address that other hosts reach.
  """
  host = address.rpartition(':')[0]
  is_local = re.fullmatch(r'localhost|\[::1\]|127(\.[0-9]+){3}', host)
  return address if is_local and _BOUND not in os.environ else None


def is_first() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints a text once, whatever the number of processes."""
  if is_first():
    print(text, flush=True)


def share(count: int) -> range:
  """Returns the indices that process p of P works on: p, p + P, p + 2 P, ...

  Every process gets equally many, so the last index may be `count` or more.
  """
  size, index = jax.process_count(), jax.process_index()
  return range(index, -(-count // size) * size, size)


def gather(array: np.ndarray) -> np.ndarray:
  """Returns the arrays of all processes, stacked in the order of processes.

  Args:
    array: numpy array, of the same shape and dtype in every process.

  Returns:
    [P, *array.shape] for P processes, the same bits in every process.
  """
  array = np.asarray(array)
  if jax.process_count() == 1:
    return array[None]
  # As bytes, since jax would make int32 of int64.
  sent = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
  received = np.asarray(multihost_utils.process_allgather(sent))
  shape = (jax.process_count(), *array.shape)  # There may be no elements.
  return received.view(array.dtype).reshape(shape)


def gather_rows(array: np.ndarray) -> np.ndarray:
  """Returns the rows of all processes' arrays, one process after another.

  Args:
    array: [N, ...]; N may differ between processes, other sizes and the dtype
      may not.
  """
  lengths = gather(np.array(len(array)))
  padded = np.zeros((lengths.max(), *array.shape[1:]), array.dtype)
  padded[: len(array)] = array
  parts = zip(gather(padded), lengths, strict=True)
  return np.concatenate([part[:length] for part, length in parts])


def together(action: Callable[[], Value]) -> Value:
  """Returns `action()`, or fails everywhere where it fails anywhere.

  Otherwise the processes without an error would wait for the one that ended.

  Raises:
    InputError: the error of the first process that has one. Of several
      processes it is a SharedInputError, which a command prints once.
    OSError: raised in the process whose action raised it; the other processes
      raise an InputError with its message.
  """
  value: Any = None  # If no process fails, `action` sets it.
  failed, message = None, b''
  try:
    value = action()
  except (InputError, OSError) as error:
    if jax.process_count() == 1:
      raise
    failed = error
    message = str(error).encode(errors='replace')[:_MESSAGE_BYTES]
  sent = np.frombuffer(message.ljust(_MESSAGE_BYTES, b'\0'), np.uint8)
  for received in gather(sent):
    if received.any():
      if isinstance(failed, OSError):
        raise failed
      text = received.tobytes().rstrip(b'\0')
      raise SharedInputError(text.decode(errors='replace'))
  return value
