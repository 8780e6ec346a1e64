# SPDX-License-Identifier: Apache-2.0
"""The help of the commands that take a network."""

import re

import pytest
from commands import run

NETWORK = {'workdir', 'checkpoint', 'config', 'params'}


@pytest.mark.parametrize(
  'module, own',
  [
    ('predict', {'input', 'output', 'kind', 'artifact'}),
    ('evaluate', {'split', 'data_dir', '[no]average'}),
    ('export', {'output', 'size_px'}),
  ],
)
def test_help_shows_the_flags_of_the_network_and_its_own(module, own):
  shown = re.findall(
    r'^  --([\w\[\]]+):', run(module, '--help').stdout, flags=re.MULTILINE
  )
  assert NETWORK | own <= {*shown}
