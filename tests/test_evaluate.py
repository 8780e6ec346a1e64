# SPDX-License-Identifier: Apache-2.0
"""Scores by which checkpoints are ranked."""

import re
import types

import numpy as np
import pytest

from segjax import evaluate
from segjax.data.examples import Dataset
from segjax.errors import InputError
from segjax.models.unet import UNet
from segjax.recipes import unet_folder_config

NAMES = ('background', 'cell')
MODEL = UNet(depth=1, base_width=2)


def dataset(*labels, instances=True):
  """A data set whose images are equal, the last one trained on."""
  examples = [
    {
      'image': np.zeros((8, 8, 1), np.uint8),
      'label': (label > 0).astype(np.int32),
      'name': str(i),
    }
    | ({'instances': label} if instances else {})
    for i, label in enumerate(labels)
  ]
  return Dataset(NAMES, examples[-1:], examples[:-1], '')


CELLS = np.zeros((8, 8), np.int32)
CELLS[:4, :3] = 1
CELLS[:4, 5:] = 2
NO_CELLS = 0 * CELLS


def test_every_score_that_may_rank_is_there(monkeypatch):
  data = dataset(NO_CELLS, CELLS, CELLS)
  probability = np.where(CELLS > 0, 0.9, 0.1)
  scores = np.stack([1 - probability, probability], axis=-1)
  monkeypatch.setattr(evaluate, 'predict_stored', lambda *_: scores)
  got = evaluate.evaluate(
    MODEL, {}, data.heldout, unet_folder_config(NAMES), data, average=False
  ).scores
  for name in got:
    if name.startswith('objects/'):
      with pytest.raises(InputError, match=f"best_metric='{name}' is not"):
        evaluate.check_metric(MODEL, data, name)
    else:
      evaluate.check_metric(MODEL, data, name)
  # 24 of 48 predicted pixels, and 2 of 4 objects, in one image of two, are so.
  assert got['dice/cell'] == pytest.approx(2 * 24 / (24 + 48))
  assert got['iu/cell'] == pytest.approx(24 / 48)
  assert got['mean_ap'] == got['ap/0.95'] == 0.5
  assert (got['objects/true'], got['objects/predicted']) == (2, 4)


@pytest.mark.parametrize(
  ('labels', 'instances', 'name', 'message'),
  [
    ([CELLS, CELLS], False, 'mean_ap', "best_metric='mean_ap' is not one of"),
    ([CELLS, CELLS], True, 'dice/cel', 'of the classes background, cell'),
    ([CELLS, CELLS], True, 'dice', "best_metric='dice' is not one of"),
    ([CELLS, CELLS], True, 'ap/0.5', "'ap/0.50'"),
    ([NO_CELLS, CELLS], True, 'ap/0.50', 'none of 1 labels has one; hold out'),
    ([NO_CELLS, CELLS], False, 'iu/cell', "held-out .* of class 'cell'; hold"),
  ],
)
def test_a_score_that_would_not_be_there_is_refused(
  labels, instances, name, message
):
  with pytest.raises(InputError, match=message):
    evaluate.check_metric(MODEL, dataset(*labels, instances=instances), name)


def test_classes_of_each_head_are_looked_for_in_its_label():
  model = types.SimpleNamespace(
    num_classes=4, head_names=('sem', 'geo'), head_sizes=(2, 2)
  )
  label = np.stack([np.zeros((8, 8), int), np.ones((8, 8), int)], axis=-1)
  example = {'image': np.zeros((8, 8, 1), np.uint8), 'label': label}
  data = Dataset(('sky', 'sea', 'flat', 'steep'), [example], [example], '')
  for name in ('iu/sky', 'dice/steep', 'sem_mean_iu'):
    evaluate.check_metric(model, data, name)
  for name in ('iu/sea', 'iu/flat'):
    with pytest.raises(InputError, match=re.escape(name)):
      evaluate.check_metric(model, data, name)
