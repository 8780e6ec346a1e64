# SPDX-License-Identifier: Apache-2.0
"""The notebooks run, and they hold the pictures of an earlier run."""

import pytest
from commands import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / 'notebooks').glob('*.ipynb'))
MOST_BYTES = 500_000  # Of a notebook: every clone has all versions of it.


def count_pictures(cell):
  return sum('image/png' in output.get('data', {}) for output in cell.outputs)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_its_pictures_and_runs(path, monkeypatch, tmp_path):
  why = "needs pip install -e '.[notebook]'"
  for package in ('ipykernel', 'matplotlib', 'nbclient'):
    pytest.importorskip(package, reason=why)
  import nbclient
  import nbformat

  notebook = nbformat.read(path, as_version=4)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  shown = [cell.source.count('plt.show()') for cell in code]
  assert sum(shown) >= 2
  assert [count_pictures(cell) for cell in code] == shown
  said = [o.get('text', '') for cell in code for o in cell.outputs]
  assert not [text for text in said if 'warning' in text.lower()]
  assert path.stat().st_size < MOST_BYTES

  # As readers have it: one device. Compiled quickly, training is slow.
  monkeypatch.setenv('XLA_FLAGS', '')
  for cell in code:
    cell.outputs = []
  resources = {'metadata': {'path': str(tmp_path)}}
  client = nbclient.NotebookClient(notebook, timeout=600, resources=resources)
  client.execute()
  assert [count_pictures(cell) for cell in code] == shown
