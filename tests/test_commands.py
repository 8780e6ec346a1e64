# SPDX-License-Identifier: Apache-2.0
"""Commands that the suite forks end and print as `python -m` does."""

import pytest
from commands import DEMO, run


@pytest.mark.parametrize(
  ('command', 'status'),
  [
    (('evaluate', '--help'), 0),
    (('predict', '--workdir=none', '--input=x', '--output=y.tif'), 2),
    (('main', *DEMO, '--config.num_train_steps=-1', '--workdir=none'), 2),
    (('main', '--config=configs/unet_isbi.py:none', '--workdir=none'), 2),
  ],
)
def test_a_fork_is_the_command(command, status):
  ended = [run(*command, fork=fork) for fork in (True, False)]
  said = [(end.returncode, end.stdout, end.stderr) for end in ended]
  assert said[0] == said[1]
  assert said[0][0] == status
  assert any(said[0][1:])
