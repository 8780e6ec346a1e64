# SPDX-License-Identifier: Apache-2.0
"""The card of the Cell Tracking Challenge trains, and its cells are scored."""

import json
import runpy

import numpy as np
import pytest
from commands import REPOSITORY, TINY_SETTINGS
from scipy import ndimage

from segjax import train
from segjax.data import create_dataset
from segjax.images.files import write_stack
from segjax.metrics import cells
from segjax.models import create_model
from segjax.scoring import evaluation

CARD = runpy.run_path(str(REPOSITORY / 'configs/unet_cells.py'))
SETS = {'': 'PhC-C2DH-U373', 'hela': 'DIC-C2DH-HeLa'}


def touching():
  """Three cells of 100 px in a frame of 40 px; two of them touch."""
  instances = np.zeros((40, 40), np.uint16)
  instances[5:15, 5:15] = 3
  instances[5:15, 15:25] = 9
  instances[25:35, 20:30] = 4
  return instances


def tiny_config(argument, folder):
  config = CARD['get_config'](argument)
  config.update_from_flattened_dict(TINY_SETTINGS)
  config.data.dir = str(folder)
  return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cells')
  for name in SETS.values():
    for sequence in ('01', '02'):
      frames = folder / name / sequence
      truth = folder / name / f'{sequence}_GT/SEG'
      frames.mkdir(parents=True)
      truth.mkdir(parents=True)
      frame = (200 * (touching() > 0)).astype(np.uint8)
      write_stack(frames / 't000.tif', frame[None])
      write_stack(truth / 'man_seg000.tif', touching()[None])
  return folder


@pytest.mark.parametrize('argument', CARD['ARGUMENTS'])
def test_the_card_reads_its_set(folder, argument):
  config = tiny_config(argument, folder)
  assert config.data.dataset == SETS[argument]
  dataset = create_dataset(config.data)
  assert len(dataset.train) == len(dataset.heldout) == 1


def test_the_card_trains(folder, tmp_path):
  config = tiny_config('', folder)
  config.batch_size = 8  # A multiple of the devices here.
  config.num_train_steps = 2
  config.evaluation.average = False
  scores = train.train_and_evaluate(config, tmp_path)
  text = (tmp_path / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  losses = [row['train/loss'] for row in rows if 'train/loss' in row]
  assert len(losses) == 2 and np.isfinite(losses).all()
  assert rows[-1]['heldout/seg'] == scores['seg']
  assert 0 <= scores['seg'] <= 1
  assert '\nseg ' in (tmp_path / 'scores.txt').read_text()


def test_seg_is_of_the_cells_as_marked(folder, monkeypatch):
  """Cells that touch are told apart by a network that leaves a gap."""
  config = tiny_config('', folder)
  dataset = create_dataset(config.data)
  truth = touching()
  probability = np.where(truth > 0, 0.9, 0.2)
  probability[:, 14] = 0.4  # 90 of 100 px are left of the first.
  probability[30:, 20:30] = 0.5  # Not above a half: 50 of 100 px.
  scores = np.stack([1 - probability, probability], axis=-1)
  monkeypatch.setattr(evaluation, 'predict_stored', lambda *_: scores)
  model = create_model(config.model)
  got = evaluation.evaluate(
    model,
    {},
    [*dataset.train, *dataset.heldout],
    config,
    dataset,
    average=False,
  ).scores['seg']
  # Half a cell is no match.
  assert got == pytest.approx((0.9 + 1 + 0) / 3)
  found, _ = ndimage.label(probability > 0.5)
  assert got == pytest.approx(cells.seg([truth, truth], [found, found]))
