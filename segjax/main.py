# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates: python -m segjax.main --config=configs/unet_isbi.py"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from segjax.errors import run_command

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, as FILE.py or FILE.py:ARGUMENT.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder for checkpoints, metrics and pictures; a run that is there goes on. '
  'Default: a folder under runs/ named after the config and its argument.',
)
flags.mark_flag_as_required('config')


def main(_):
  from segjax import train  # jax starts after the flags have been checked.

  train.train_and_evaluate(_CONFIG.value, _WORKDIR.value or _default_workdir())


def _default_workdir() -> str:
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  name, _, argument = Path(path).name.partition(':')
  return str(
    Path('runs', '_'.join([name.removesuffix('.py'), argument]).strip('_'))
  )


if __name__ == '__main__':
  run_command(main)
