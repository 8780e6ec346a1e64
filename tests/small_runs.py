# SPDX-License-Identifier: Apache-2.0
"""A run of a tiny U-Net that was never trained, and files of its data set."""

import json

import jax
from commands import tiny_config

from segjax import steps
from segjax.data import create_dataset
from segjax.images.files import write_stack
from segjax.models import create_model
from segjax.optimizers import create_optimizer, create_schedule
from segjax.runs.checkpoints import Checkpoints
from segjax.runs.workdir import read_config


def make_run(folder):
  config = tiny_config()
  config.data_sha256 = create_dataset(config.data).digest
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(config.to_dict()))
  config = read_config(folder)
  schedule = create_schedule(**config.schedule, num_steps=4)
  state = jax.jit(
    lambda: steps.init_state(
      create_model(config.model),
      create_optimizer(schedule=schedule, **config.optimizer),
      config.seed,
    )
  )()
  with Checkpoints(folder / 'checkpoints') as checkpoints:
    checkpoints.save(2, state)
    checkpoints.save(4, state)


def write_isbi(folder, images, labels):
  folder.mkdir()
  write_stack(folder / 'train-volume.tif', images)
  write_stack(folder / 'train-labels.tif', labels)
  write_stack(folder / 'test-volume.tif', images)
