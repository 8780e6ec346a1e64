# SPDX-License-Identifier: Apache-2.0
"""A file that is lost in mid-training, which one of two processes notices."""

import concurrent.futures
import runpy
import sys
import time

from commands import REPOSITORY, launch, run
from small_sets import write_folder

from segjax.data import create_dataset
from segjax.runs.checkpoints import newest_step

CARD = 'configs/fcn8s_folder.py'
# The network with fewest layers, since each process compiles it.
SETTINGS = {
  'model.name': 'fcn_alexnet',
  'model.width': 1 / 64,
  'model.fc_features': 5,
  'init.path': 'random',
  'batch_size': 2,  # An example of each process.
  'batching.bucket_px': 8,
  'schedule.warmup_steps': 0,
  'prediction.bucket_px': 8,
  'checkpoints.every_steps': 2,
}
PATIENCE_SECONDS = 200


def test_one_line_names_the_file_and_the_run_goes_on(tmp_path):
  settings = SETTINGS | {
    f'data.{name}': value
    for name, value in write_folder(tmp_path / 'data').items()
  }
  card = runpy.run_path(str(REPOSITORY / CARD))['get_config']()
  card.update_from_flattened_dict(settings)
  name = create_dataset(card.data).train[0]['name']
  file = tmp_path / 'data' / 'images' / f'{name}.png'
  whole = file.read_bytes()

  checkpoints = tmp_path / 'run' / 'checkpoints'
  flags = [f'--config.{key}={value}' for key, value in settings.items()]
  flags = (f'--config={CARD}', *flags, f'--workdir={tmp_path / "run"}')
  command = (sys.executable, '-m', 'segjax.main', *flags)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    ending = pool.submit(launch, 2, *command, JAX_NUM_CPU_DEVICES='1')
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not newest_step(checkpoints):
      assert not ending.done() and time.monotonic() < deadline
      time.sleep(0.1)
    file.unlink()
    process = ending.result(PATIENCE_SECONDS)
  assert process.returncode == 2
  errors = [
    line for line in process.stderr.splitlines() if line.startswith('error: ')
  ]
  assert len(errors) == 1, process.stderr
  assert str(file) in errors[0]

  file.write_bytes(whole)
  last = newest_step(checkpoints)
  process = run('main', *flags, f'--config.num_train_steps={last + 1}')
  assert process.returncode == 0, process.stderr
  assert f'from step {last} to {last + 1}' in process.stdout
