# SPDX-License-Identifier: Apache-2.0
"""Scores that rank checkpoints, and scores of a folder."""

import json
import math
import re
import shutil
import types

import jax
import numpy as np
import pytest
import tifffile
from commands import run
from small_runs import make_run
from trees import write_picture

import segjax
from segjax import evaluate, losses
from segjax.data import create_dataset, label_counts
from segjax.data.examples import Dataset
from segjax.errors import InputError
from segjax.metrics import boundaries
from segjax.models.unet import UNet
from segjax.networks import Network
from segjax.recipes import unet_folder_config
from segjax.scoring import best_metric, detail, evaluation

RNG = np.random.default_rng(0)
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


@pytest.mark.parametrize('best_metric', ['mean_iu', 'v_rand'])
def test_scores_of_detail_are_counted_over_all_images(monkeypatch, best_metric):
  data = dataset(NO_CELLS, CELLS, CELLS, instances=False)
  probability = np.roll(np.where(CELLS > 0, 0.9, 0.1), 1, axis=0)
  scores = np.stack([1 - probability, probability], axis=-1)
  monkeypatch.setattr(evaluation, 'predict_stored', lambda *_: scores)
  config = unet_folder_config(NAMES)
  config.evaluation.best_metric = best_metric
  plain, got = (
    evaluation.evaluate(
      MODEL, {}, data.heldout, config, data, average=False, detail=wanted
    ).scores
    for wanted in (False, True)
  )
  prediction = scores.argmax(-1)
  counts = sum(
    boundaries.boundary_counts(example['label'], prediction, 2)
    for example in data.heldout
  )
  matrices = sum(
    boundaries.trimap_counts(example['label'], prediction, 2)
    for example in data.heldout
  )
  ious = boundaries.boundary_iou(counts)
  curve = boundaries.trimap_curve(matrices)
  assert {name: got[name] for name in {*got} - {*plain}} == {
    'boundary_iou': ious.mean(),
    'boundary_iou/background': ious[0],
    'boundary_iou/cell': ious[1],
    **{
      f'trimap_mean_iu/{radius}': iu
      for radius, iu in zip(boundaries.RADII_PX, curve, strict=True)
    },
  }
  assert 0 < curve[0] < curve[-1] < 1


def test_a_class_that_is_predicted_but_absent_has_no_score_of_detail():
  label, prediction = np.zeros((2, 9, 9), np.int32)
  prediction[2:5, 2:5] = 1
  totals = detail.no_detail(2)
  detail.add_detail(totals, label, np.eye(2)[prediction])
  absent, counted = (
    detail.detail_scores(totals, NAMES, present_only)
    for present_only in (True, False)
  )
  assert math.isnan(absent['boundary_iou/cell'])
  assert counted['boundary_iou/cell'] == 0
  background = absent['boundary_iou/background']
  assert absent['boundary_iou'] == background == 2 * counted['boundary_iou']


CELLS = np.zeros((8, 8), np.int32)
CELLS[:4, :3] = 1
CELLS[:4, 5:] = 2
NO_CELLS = 0 * CELLS


def test_every_score_that_may_rank_is_there(monkeypatch):
  data = dataset(NO_CELLS, CELLS, CELLS)
  probability = np.where(CELLS > 0, 0.9, 0.1)
  scores = np.stack([1 - probability, probability], axis=-1)
  monkeypatch.setattr(evaluation, 'predict_stored', lambda *_: scores)
  got = evaluation.evaluate(
    MODEL, {}, data.heldout, unet_folder_config(NAMES), data, average=False
  ).scores
  for name in got:
    if name == 'loss' or name.startswith('objects/'):
      with pytest.raises(InputError, match=f"best_metric='{name}' is not"):
        best_metric.check_metric(MODEL, data, name)
    else:
      best_metric.check_metric(MODEL, data, name)
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
    best_metric.check_metric(MODEL, dataset(*labels, instances=instances), name)


def test_classes_of_each_head_are_looked_for_in_its_label():
  model = types.SimpleNamespace(
    num_classes=4, head_names=('sem', 'geo'), head_sizes=(2, 2)
  )
  label = np.stack([np.zeros((8, 8), int), np.ones((8, 8), int)], axis=-1)
  example = {'image': np.zeros((8, 8, 1), np.uint8), 'label': label}
  data = Dataset(('sky', 'sea', 'flat', 'steep'), [example], [example], '')
  for name in ('iu/sky', 'dice/steep', 'sem_mean_iu'):
    best_metric.check_metric(model, data, name)
  for name in ('iu/sea', 'iu/flat'):
    with pytest.raises(InputError, match=re.escape(name)):
      best_metric.check_metric(model, data, name)


def network(config):
  return Network(MODEL, {}, config)


def write_pairs(root, labels, masks='masks'):
  for i, label in enumerate(labels):
    write_picture(root / 'images' / f'{i}.png', np.zeros((8, 8), np.uint8))
    write_picture(root / masks / f'{i}.png', label)


def test_a_folder_is_read_as_the_run_read_its_own(tmp_path):
  write_pairs(tmp_path, [np.where(CELLS == 1, 7, np.where(CELLS, 9, 3))])
  config = unet_folder_config(NAMES)
  config.data.update(label_values=(3, 7), ignore_value=(9,))
  [example] = evaluate._open_folder(network(config), tmp_path, None, '').heldout
  np.testing.assert_array_equal(
    example['label'], np.where(CELLS == 2, 255, CELLS)
  )
  config.data = dict(name='arrays', class_names=NAMES)
  with pytest.raises(InputError, match='give segjax.evaluate --images=DIR and'):
    create_dataset(config.data)
  with pytest.raises(InputError, match=r'masks/0.png: label 7 in row 0'):
    evaluate._open_folder(network(config), tmp_path, None, '')
  write_pairs(tmp_path, [np.where(CELLS == 2, 255, CELLS)], 'other')
  data = evaluate._open_folder(
    network(config), tmp_path / 'images', tmp_path / 'other', ''
  )
  np.testing.assert_array_equal(data.heldout[0]['label'], example['label'])
  assert data.class_names == NAMES and not len(data.train)


def test_objects_of_a_folder_are_scored(tmp_path, monkeypatch, capsys):
  write_pairs(tmp_path, [CELLS, NO_CELLS])
  config = unet_folder_config(NAMES)
  config.data.label_kind = 'instances'
  data = evaluate._open_folder(network(config), tmp_path, None, '')
  gaps = 'pixels count with gaps of background between objects that touch'
  assert gaps in capsys.readouterr().out
  assert gaps in label_counts.check_labels(data, config.data)
  probability = np.where(CELLS == 1, 0.9, 0.1)
  scores = np.stack([1 - probability, probability], axis=-1)
  monkeypatch.setattr(evaluation, 'predict_stored', lambda *_: scores)
  got = evaluation.evaluate(
    MODEL, {}, data.heldout, config, data, average=False
  ).scores
  assert got['seg'] == 0.5
  assert got['mean_ap'] == (1 / 2 + 0) / 2


def test_what_a_folder_lacks_is_said(tmp_path, capsys):
  write_pairs(tmp_path, [CELLS[:4] > 0, CELLS > 0])
  write_picture(tmp_path / 'images' / '0.png', np.zeros((4, 8), np.uint8))
  config = unet_folder_config((*NAMES, 'debris'))
  config.evaluation.best_metric = 'v_rand'
  net = Network(MODEL.clone(num_classes=3), {}, config)
  evaluate._open_folder(net, tmp_path, None, '')
  out = capsys.readouterr().out
  assert "no label has a pixel of class 'debris'" in out
  assert 'v_rand needs images of one size' in out
  assert config.evaluation.best_metric == 'mean_iu'


def test_images_that_the_run_was_trained_on_are_named(tmp_path, capsys):
  images = np.random.default_rng(0).integers(0, 255, (5, 8, 8), np.uint8)
  for folder, numbers in (('own', range(4)), ('other', (4, 1))):
    for i in numbers:
      write_picture(tmp_path / folder / 'images' / f'{i}.png', images[i])
      write_picture(tmp_path / folder / 'masks' / f'{i}.png', CELLS > 0)
  (tmp_path / 'own/train').write_text('0\n1\n2\n')
  (tmp_path / 'own/held').write_text('3\n')
  config = unet_folder_config(NAMES)
  config.data.update(
    dir=str(tmp_path / 'own'),
    labels='masks',
    train_list='train',
    heldout_list='held',
  )
  said = ' of the images are copies of files that the run was trained on, so'
  names = ' scores are too high: '

  def printed(folder):
    config.data_sha256 = digest
    evaluate._open_folder(network(config), tmp_path / folder, None, '')
    return capsys.readouterr().out

  digest = create_dataset(config.data).digest
  assert f'1{said}{names}1\n' in printed('other')
  assert f'3{said}{names}0, 1, 2\n' in printed('own')
  # A run on other data may have drawn another split.
  digest = 'another+digest'
  assert said not in printed('own')
  shutil.rmtree(tmp_path / 'own')
  assert said not in printed('other')


def test_pages_that_the_run_was_trained_on_are_named(tmp_path, capsys):
  stack = np.random.default_rng(0).integers(0, 255, (5, 8, 8), np.uint8)
  for folder, array in (('images', stack), ('masks', 5 * [CELLS > 0])):
    (tmp_path / folder).mkdir()
    tifffile.imwrite(tmp_path / folder / 'a.tif', np.uint8(array))
  config = unet_folder_config(NAMES)
  config.data.update(dir=str(tmp_path), labels='masks')
  dataset = create_dataset(config.data)
  config.data_sha256 = dataset.digest
  evaluate._open_folder(network(config), tmp_path, None, '')
  assert ': a-0, a-1, a-2, a-3\n' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (np.zeros((8, 8), np.uint16), 'pixels of uint16; the network was trained'),
    (np.zeros((8, 8, 3), np.uint8), ' has 3 channel'),
    (np.full((8, 8), 5, np.float32), 'pixels of float32'),
    (np.zeros((8, 9), np.uint8), ' px for an image of 8 x 9 px'),
    (b'no image', 'truncated, corrupt or misnamed'),
  ],
)
@pytest.mark.parametrize('number', [0, 1])
def test_an_error_about_an_image_names_its_file(
  tmp_path, image, message, number
):
  write_pairs(tmp_path, [CELLS > 0, CELLS > 0])
  file = tmp_path / 'images' / f'{number}.png'
  file.unlink()
  file = file.with_suffix('.tif')
  if isinstance(image, bytes):
    file.write_bytes(image)
  else:
    tifffile.imwrite(file, image)
  config = unet_folder_config(NAMES)
  config.preprocessing.update(per_image=False, dtype='uint8', limits=(0, 1))
  with pytest.raises(InputError) as refused:
    evaluate._open_folder(network(config), tmp_path, None, '')
  said = str(refused.value)
  assert str(file) in said
  # If the first image is another kind, the second is unlike it.
  assert message in said or (number and 'expected uint8 of 1, as ' in said)


def test_evaluate_prints_the_scores_of_a_folder(tmp_path):
  """They are those of the network's predictions, counted by NumPy.

  The run says what that of `segjax.fit` on arrays does.
  """
  make_run(tmp_path / 'run')
  file = tmp_path / 'run' / 'config.json'
  settings = json.loads(file.read_text())
  settings['data'] = {'name': 'arrays', 'class_names': NAMES}
  settings['evaluation']['best_metric'] = 'mean_iu'
  file.write_text(json.dumps(settings))
  net = segjax.load_run(tmp_path / 'run')
  new = tmp_path / 'new'
  images = RNG.integers(0, 255, (2, 40, 50), np.uint8)
  labels = (images > 99).astype(np.uint8)
  labels[:, :9] = 255
  hits, sizes = np.zeros((2, 2))
  for i in range(2):
    write_picture(new / 'images' / f'{i}.png', images[i])
    write_picture(new / 'labels' / f'{i}.png', labels[i])
    probabilities = segjax.predict_image(
      net.model, net.params, net.prepare(images[i, ..., None])
    )
    predicted = np.argmax(probabilities, axis=-1)[9:]
    for k in range(2):
      hits[k] += np.sum((predicted == k) & (labels[i, 9:] == k))
      sizes[k] += np.sum(predicted == k) + np.sum(labels[i, 9:] == k)
  process = run(
    'evaluate', f'--workdir={tmp_path / "run"}', f'--images={new}', '--notta'
  )
  assert process.returncode == 0, process.stderr
  title, *table = process.stdout.splitlines()
  assert title == f'2 images ({new}), one pass'
  dice = dict(line.rsplit(maxsplit=1) for line in table if 'dice' in line)
  for k in range(2):
    assert float(dice[f'dice/{NAMES[k]}']) == pytest.approx(
      2 * hits[k] / sizes[k], abs=1e-3
    )


@pytest.mark.parametrize('loss', losses.LOSSES)
@pytest.mark.parametrize('reduction', losses.REDUCTIONS)
def test_loss_of_heldout_images_is_that_of_training(
  monkeypatch, loss, reduction
):
  logits = RNG.normal(0, 3, (3, 7, 9, 2)).astype(np.float32)
  label = RNG.choice([0, 1, 255], (3, 7, 9)).astype(np.int32)
  weight = RNG.uniform(0, 4, (3, 7, 9)).astype(np.float32)
  examples = [
    {
      'image': np.full((7, 9, 1), i, np.uint8),
      'label': label[i],
      'weight': weight[i],
      'name': str(i),
    }
    for i in range(3)
  ]
  config = unet_folder_config(NAMES)
  config.update(loss=loss, loss_reduction=reduction, batch_size=3)
  monkeypatch.setattr(
    evaluation,
    'predict_stored',
    lambda model, params, image, *_: np.asarray(
      jax.nn.softmax(logits[image[0, 0, 0]])
    ),
  )
  data = Dataset(NAMES, examples, examples, '')
  scores = evaluation.evaluate(
    MODEL, {}, data.heldout, config, data, average=False
  ).scores
  sums = [
    losses.reduce_image(
      *losses.image_loss(logits[i], label[i], weight[i], 255, loss), reduction
    )
    for i in range(3)
  ]
  total, divisor = np.sum(sums, axis=0)
  want = total / max(divisor, 1)
  assert scores['loss'] == pytest.approx(want, rel=1e-5)
