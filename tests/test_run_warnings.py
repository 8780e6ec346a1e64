# SPDX-License-Identifier: Apache-2.0
"""Warnings on runs that are made not to work, and none on those that do."""

import dataclasses
import json

import numpy as np
import pytest
from commands import tiny_config

from segjax.data.examples import Dataset
from segjax.data.label_counts import check_labels
from segjax.runs import run_warnings
from segjax.runs.run_warnings import (
  RunWarnings,
  check_losses,
  check_start,
  read_labels_table,
  read_warnings,
)

pytestmark = pytest.mark.smoke

# 12 bits in 16, as microscopes save them.
TWELVE_BITS = np.uint16


def dataset(rare_px=200, names=('back ground', 'cell 1'), dtype=np.uint8):
  """Twenty images of 100 x 100 px; class 1 has `rare_px` of each, 5 ignored."""
  rng = np.random.default_rng(0)
  top = 2**12 if dtype == TWELVE_BITS else 256
  examples = []
  for _ in range(20):
    label = np.zeros((100, 100), np.int32)
    label.reshape(-1)[:rare_px] = 1
    label[-1, -5:] = 255
    image = rng.integers(0, top, (100, 100, 1), dtype)
    examples.append({'image': image, 'label': label})
  return Dataset(names, examples[:16], examples[16:], 64 * '0')


def plain_config():
  config = tiny_config()
  config.data.balance = False
  return config


def warnings_at_start(data, **changes):
  config = plain_config()
  config.update_from_flattened_dict(changes)
  labels = check_labels(data, config.data)
  return check_start(config, data.train, labels)


def test_nothing_is_said_of_a_usual_start():
  assert warnings_at_start(dataset()) == {}


def test_images_that_use_little_of_their_type():
  said = warnings_at_start(dataset(dtype=TWELVE_BITS))
  assert [*said] == ['range']
  assert 'uint16 holds 0 to 65535' in said['range']
  assert (
    "config.preprocessing.measured=('limits', 'mean', 'std')" in (said['range'])
  )
  config = tiny_config()
  with config.ignore_type():
    config.preprocessing.limits = ((0.0,), (0.0625,))
  data = dataset(dtype=TWELVE_BITS)
  labels = check_labels(data, config.data)
  assert check_start(config, data.train, labels) == {}


def test_one_hot_pixel_hides_no_narrow_range():
  data = dataset(dtype=TWELVE_BITS)
  data.train[0]['image'][0, 0] = 65535
  assert [*warnings_at_start(data)] == ['range']


def test_float_images_have_no_range_to_use():
  data = dataset()
  for example in data.train:
    example['image'] = example['image'] / np.float32(2**14)
  assert warnings_at_start(data) == {}


def test_rare_classes():
  data = dataset(rare_px=99)  # Of 10,000.
  said = warnings_at_start(data)
  assert [*said] == ['rare classes']
  assert "'cell 1' (0.99 %)" in said['rare classes']
  assert 'config.data.balance=True' in said['rare classes']
  assert 'back ground' not in said['rare classes']
  assert warnings_at_start(dataset(rare_px=101)) == {}
  assert warnings_at_start(data, **{'data.balance': True}) == {}


def test_rare_classes_with_a_loss_that_counts_them():
  data, config = dataset(rare_px=99), plain_config()
  labels = check_labels(data, config.data)
  with config.unlocked():
    config.loss = 'dice_cross_entropy'
    assert check_start(config, data.train, labels) == {}
    config.loss = 'cross_entropy'
    [said] = check_start(config, data.train, labels).values()
    assert "config.loss='dice_cross_entropy'" in said


def test_a_class_that_no_held_out_image_shows():
  data = dataset()
  for example in data.heldout:
    example['label'][example['label'] == 1] = 0
  said = warnings_at_start(data)
  assert [*said] == ['held-out classes']
  assert "no held-out pixel is of 'cell 1'" in said['held-out classes']
  nothing = dataclasses.replace(data, heldout=())
  assert warnings_at_start(nothing) == {}


def test_a_long_warmup_is_said():
  said = warnings_at_start(
    dataset(), **{'num_train_steps': 60, 'schedule.warmup_steps': 100}
  )
  assert [*said] == ['warm-up']
  for part in ('warmup_steps=100', 'num_train_steps=60', '6 steps'):
    assert part in said['warm-up']


def test_table_of_labels_is_read_as_it_was_written():
  table = read_labels_table(check_labels(dataset(rare_px=99), {'name': 'x'}))
  assert table == [
    ('back ground', '158,336', '98.96', '16', '39,584', '4'),
    ('cell 1', '1,584', '0.99', '16', '396', '4'),
    ('ignored', '80', '0.05', '16', '20', '4'),
  ]


@pytest.mark.parametrize(
  ('losses', 'warns'),
  [
    (np.linspace(1, 0.5, 30), False),
    (np.linspace(1, 1.1, 30), True),
    (np.ones(9), True),
    ([1.0, 0.4] * 9, True),  # Noise alone.
    ([3.0, *[0.7] * 20], False),
  ],
)
def test_losses_that_fall(losses, warns):
  assert bool(check_losses(losses, 100)) == warns


def test_loss_is_checked_once_after_a_tenth(tmp_path, capsys):
  config = plain_config()
  config.num_train_steps, config.schedule.warmup_steps = 1000, 20
  file = tmp_path / 'metrics.jsonl'
  warnings = RunWarnings(tmp_path, config)
  said_at = []
  for step in range(10, 1001, 10):
    with file.open('a') as rows:
      rows.write(json.dumps({'step': step, 'train/loss': 0.7}) + '\n')
      rows.write(json.dumps({'step': step, 'heldout/loss': step}) + '\n')
    warnings.check_loss(step)
    if 'config.schedule.learning_rate' in capsys.readouterr().out:
      said_at.append(step)
  assert said_at == [120]
  assert [w.split(':')[0] for w in read_warnings(tmp_path)] == ['loss']


def test_a_warning_is_said_once_a_run(tmp_path, capsys):
  config = plain_config()
  for _ in range(2):  # The second one goes on with the run.
    warnings = RunWarnings(tmp_path, config)
    warnings.check_predictions(10, '')
    warnings.check_predictions(20, 'membrane')
    warnings.check_predictions(30, 'membrane')
  [said] = read_warnings(tmp_path)
  assert capsys.readouterr().out == f'warning: {said}\n'
  for part in (
    "'membrane'",
    "model.norm='batch'",
    'step 20',
    'schedule.learning_rate',
    'balance',
  ):
    assert part in said


def test_other_processes_say_and_write_nothing(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(run_warnings.processes, 'is_first', lambda: False)
  warnings = RunWarnings(tmp_path, tiny_config())
  warnings.check_predictions(20, 'membrane')
  warnings.check_loss(10**9)
  assert capsys.readouterr().out == '' and not [*tmp_path.iterdir()]
