# SPDX-License-Identifier: Apache-2.0
"""The README's notebook code runs and prints what it says."""

import doctest
from pathlib import Path

from commands import TINY, run

README = Path(__file__).parents[1] / 'README.md'


def test_readme_examples(tmp_path, monkeypatch):
  demo = '--config=configs/unet_isbi.py:demo'
  trained = run('main', demo, f'--workdir={tmp_path}/runs/demo', *TINY)
  assert trained.returncode == 0, trained.stderr
  monkeypatch.chdir(tmp_path)
  result = doctest.testfile(str(README), module_relative=False)
  assert result.attempted > 5
  assert result.failed == 0
