# SPDX-License-Identifier: Apache-2.0
"""Train and evaluate: python -m segjax.main --config=configs/unet_isbi.py"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.cli.command_line import run

  run('train')

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from segjax import dry_run, train
from segjax.devices import processes
from segjax.devices.compilation_cache import use_compilation_cache
from segjax.runs.checkpoints import newest_step
from segjax.runs.report import predict_command
from segjax.settings.sections import read_settings


def main(_):
  args = flags.FLAGS
  source = config_flags.get_config_filename(args['config'])
  file, _, argument = source.partition(':')
  name = f'{Path(file).stem}_{argument}' if argument else Path(file).stem
  processes.join()
  if args.dry_run:
    processes.say(dry_run.describe(args.config))
    return
  if read_settings(args.config).compilation_cache:
    use_compilation_cache()
  workdir = args.workdir or Path('runs', name)  # A URL is no path.
  train.train_and_evaluate(args.config, workdir)
  if newest_step(Path(workdir, 'checkpoints')) == args.config.num_train_steps:
    processes.say(f'to predict: {predict_command(workdir)}')
