# SPDX-License-Identifier: Apache-2.0
"""The names of `import segjax`: found late, and each with an example."""

import doctest
import functools
import subprocess
import sys

import numpy as np
import pytest
from caffemodel import write_caffemodel
from small_runs import make_run

import segjax

HEAVY = ('jax', 'flax', 'orbax', 'grain', 'tifffile', 'numpy')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with what the examples read."""
  folder = tmp_path_factory.mktemp('examples')
  (folder / 'runs').mkdir()
  make_run(folder / 'runs' / 'demo')
  blobs = [np.zeros((2, 36), np.float32), np.zeros(2, np.float32)]
  write_caffemodel(folder / 'fc.caffemodel', {'fc6': blobs})
  return folder


def test_import_imports_nothing_heavy():
  code = f"""
import sys
import segjax
assert 'UNet' in dir(segjax) and 'UNet' in segjax.__all__
print([name for name in {HEAVY} if name in sys.modules])
segjax.confusion_matrix
print('numpy' in sys.modules)
"""
  process = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert process.stdout.split('\n') == ['[]', 'True', ''], process.stderr


@pytest.mark.parametrize('name', segjax.__all__)
def test_each_name_has_an_example_that_runs(name, folder, monkeypatch):
  value = getattr(segjax, name)
  while isinstance(value, functools.partial):
    value = value.func
  monkeypatch.chdir(folder)
  tests = [
    test
    for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={})
    if test.examples
  ]
  assert tests, f'{name} has no example'
  for test in tests:
    assert f'segjax.{name}' in test.docstring
    result = doctest.DocTestRunner().run(test)
    assert result.attempted and not result.failed
