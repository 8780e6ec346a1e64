# SPDX-License-Identifier: Apache-2.0
"""Command lines that must fail: one line, status 2, nothing written.

A case is (command, words of the message) or (command, words, environment). In
both, {tree} is a folder that nothing may change, {new} a path where nothing is
nor may be, and the caller names other places.
"""

import concurrent.futures
import contextlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from commands import run, snapshot


@contextlib.contextmanager
def running(
  request, cases: Mapping, tree: Path, places: Mapping[str, str]
) -> Iterator[tuple]:
  """Starts the selected cases; yields their processes, and the tree before."""
  items = [i for i in request.session.items if i.path == request.path]
  names = [item.callspec.params['name'] for item in items]
  before = snapshot(tree)

  def run_case(name):
    command, _, *env = cases[name]
    filled = _fill(command, name, cases, tree, places)
    return run(*shlex.split(filled), env=dict(*env))

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    yield {name: pool.submit(run_case, name) for name in names}, before


def check(
  name: str,
  cases: Mapping,
  ended: tuple,
  tree: Path,
  places: Mapping[str, str],
) -> None:
  """Asserts that a case failed as it should."""
  processes, before = ended
  process = processes[name].result()
  message = process.stderr.splitlines()
  assert len(message) == 1, process.stderr
  assert message[0].startswith('error: ')
  for word in cases[name][1]:
    assert _fill(word, name, cases, tree, places) in message[0]
  assert process.returncode == 2
  assert process.stdout == ''
  assert snapshot(tree) == before
  new = _new(name, cases, tree)
  assert not list(new.parent.glob(f'{new.name}*'))


def _fill(text, name, cases, tree, places):
  inside = {'tree': tree, 'new': _new(name, cases, tree)}
  places = {key: value.format(**inside) for key, value in places.items()}
  return text.format(**inside, **places)


def _new(name, cases, tree):
  return tree.parent / f'new{list(cases).index(name):02}'
