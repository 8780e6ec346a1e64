# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates: python -m segjax.main --config=configs/unet_isbi.py"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from segjax.errors import InputError, run_command

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, as FILE.py or FILE.py:ARGUMENT.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder for checkpoints, metrics and pictures; a run that is there goes on. '
  'Default: a folder under runs/ named after the config and its argument.',
)
_DRY_RUN = flags.DEFINE_boolean(
  'dry_run',
  False,
  'Instead: prints parameters, FLOPs and bytes of a step, and what would fit. '
  'Reads no data and writes nothing.',
)
flags.mark_flag_as_required('config')


def main(_):
  source = config_flags.get_config_filename(flags.FLAGS['config'])
  file, _, argument = source.partition(':')
  if not Path(file).is_file():
    raise InputError(f'--config={source}: there is no file {file}')
  name = f'{Path(file).stem}_{argument}' if argument else Path(file).stem
  # Here, so that a wrong flag fails first.
  from segjax import dry_run, train
  from segjax.devices import processes
  from segjax.devices.compilation_cache import use_compilation_cache

  processes.join()
  if _DRY_RUN.value:
    processes.say(dry_run.describe(_CONFIG.value))
    return
  if _CONFIG.value.compilation_cache:
    use_compilation_cache()
  train.train_and_evaluate(_CONFIG.value, _WORKDIR.value or Path('runs', name))


if __name__ == '__main__':
  run_command(main)
