# SPDX-License-Identifier: Apache-2.0
"""Timings that load on the machine bends alike, and their tables.

A case runs some number of calls and returns when they are done. Cases are timed
in interleaved rounds and compared by the ratios within the rounds; seconds of
different runs on a shared machine are not comparable. Where others take the
cores by fits and starts, the ratio of the CPU time is steadier, but blind to
cores that wait.
"""

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter, process_time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

Case = Callable[[int], None]

LEGEND = 'Medians of interleaved rounds; ratios with their least and largest.'

_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'scipy', 'torch', 'monai')


def interleave(
  cases: Mapping[str, Case], rounds: int, calls: int = 1
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Returns seconds, and CPU seconds of all threads, of a call of each case.

  Both are f64[rounds] by the names of the cases.

  Every case runs once untimed, which compiles it, and then once in each round.
  A round begins one case later than the round before.
  """
  for case in cases.values():
    case(1)
  names = list(cases)
  seconds = {name: np.zeros(rounds) for name in names}
  cpu_seconds = {name: np.zeros(rounds) for name in names}
  for i in range(rounds):
    first = i % len(names)
    for name in names[first:] + names[:first]:
      start, cpu_start = perf_counter(), process_time()
      cases[name](calls)
      seconds[name][i] = (perf_counter() - start) / calls
      cpu_seconds[name][i] = (process_time() - cpu_start) / calls
  return seconds, cpu_seconds


def ratio(ours: np.ndarray, theirs: np.ndarray, digits: int = 2) -> str:
  """Returns median, least and largest of the rounds' ours / theirs, as text.

  With so many digits after the point.

  >>> ratio(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))
  '1.00 (0.50-1.50)'
  """
  ratios = ours / theirs
  median, least, largest = (
    f'{value:.{digits}f}'
    for value in (np.median(ratios), ratios.min(), ratios.max())
  )
  return f'{median} ({least}-{largest})'


def matmul(dtype: jnp.dtype, size: int) -> tuple[Case, int]:
  """Returns jax's product of two matrices, size x size, and its operations."""
  x = jnp.ones((size, size), dtype)
  multiply = jax.jit(jnp.matmul)

  def case(calls):
    for _ in range(calls):
      product = multiply(x, x)
    product.block_until_ready()

  return case, 2 * size**3


def flops(function: Callable, *args) -> float:
  """Returns the operations of a function as XLA counts them, unoptimised.

  Convolutions count as plain ones, as a GPU would compute them: on a CPU
  segjax and others compute some with fewer multiplications.
  """
  with mock.patch.object(jax, 'default_backend', return_value='gpu'):
    traced = jax.jit(lambda *args: function(*args)).trace(*args)  # Anew.
  return traced.lower(lowering_platforms=('cuda',)).cost_analysis()['flops']


def peak_mib() -> float:
  """Returns the most that this program has held in memory, in MiB; Linux only.

  Not `getrusage`: its peak begins with that of the process before the exec.
  """
  status = Path('/proc/self/status').read_text()
  (line,) = (row for row in status.splitlines() if row.startswith('VmHWM:'))
  return int(line.split()[1]) / 2**10


def machine() -> str:
  """Returns accelerator, processor, cores and load, as far as known."""
  name = platform.processor() or platform.machine()
  cpuinfo = Path('/proc/cpuinfo')
  if cpuinfo.is_file():
    lines = (line.partition(':') for line in cpuinfo.read_text().split('\n'))
    facts = {key.strip(): value.strip() for key, _, value in lines}
    name = facts.get('model name', name)
    if 'cpu family' in facts:
      name += f' (family {facts["cpu family"]}, model {facts["model"]})'
  parts = [f'{len(os.sched_getaffinity(0))} cores of an {name}']
  device = jax.devices()[0]
  if device.platform != 'cpu':
    parts.insert(0, f'{jax.device_count()} x {device.device_kind}')
  return f'{", ".join(parts)}, load {os.getloadavg()[0]:.1f} at the end'


def versions() -> str:
  """Returns the versions of Python and of the packages that are installed."""
  found = {d.metadata['Name'] for d in importlib.metadata.distributions()}
  return ', '.join(
    [f'Python {platform.python_version()}']
    + [f'{p} {importlib.metadata.version(p)}' for p in _PACKAGES if p in found]
  )


def print_report(
  title: str,
  header: Sequence[str],
  rows: Iterable[Sequence[str]],
  note: str,
) -> None:
  """Prints a section of Markdown: what ran, when, where, and the table."""
  module = sys.modules['__main__'].__spec__
  command = f'python -m {module.name}' if module else sys.argv[0]
  command = ' '.join([command, *map(shlex.quote, sys.argv[1:])])
  print(f'### {title}\n')
  print(f'    {command}\n')
  print(f'{datetime.date.today()}, {machine()}; {versions()}.\n')
  print('|', ' | '.join(header), '|')
  print('|' + '---|' * len(header))
  for row in rows:
    print('|', ' | '.join(row), '|')
  print(f'\n{note}\n', flush=True)
