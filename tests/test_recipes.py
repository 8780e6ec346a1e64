# SPDX-License-Identifier: Apache-2.0
"""The cards: their recipes are the published ones; those of FCN train."""

import dataclasses
import json
import runpy
from operator import attrgetter

import numpy as np
import pytest
from commands import REPOSITORY
from small_sets import WRITERS

from segjax import networks, recipes, train
from segjax.data import create_dataset
from segjax.data.label_counts import check_labels
from segjax.errors import InputError
from segjax.models import create_model
from segjax.prediction.predictor import check_prediction
from segjax.settings.sections import PreprocessingSettings, read_prediction

CARDS = {
  file.stem: runpy.run_path(str(file))
  for pattern in ('fcn*.py', 'unet_vgg16*.py')
  for file in sorted((REPOSITORY / 'configs').glob(pattern))
}
ALL = [
  (name, argument)
  for name, card in CARDS.items()
  for argument in card.get('ARGUMENTS', (None,))
]
# One of every kind of network, loss, batch and image that the cards have.
TRAINED = [
  ('fcn32s_voc', ''),
  ('fcn16s_voc', 'light'),
  ('fcn8s_atonce_voc', None),
  ('fcn_alexnet_voc', ''),
  ('fcn_googlenet_voc', None),
  ('fcn_pascal_context', '16s'),
  ('fcn32s_nyudv2', 'color_hha'),
  ('fcn_siftflow', '8s'),
  ('fcn8s_folder', None),
  ('fcn8s_tfds', None),
  ('fcn8s_camvid', 'cpu'),
  ('unet_vgg16_camvid', 'cpu'),
  ('fcn8s_camvid', 'crf'),
]


VGG_UNETS = {'unet_vgg16_camvid', 'unet_vgg16_folder'}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sets')
  return {name: write(folder / name) for name, write in WRITERS.items()}


def config_of(name, argument, data):
  get_config = CARDS[name]['get_config']
  config = get_config() if argument is None else get_config(argument)
  config.data.update(data[config.data.name])
  config.model.width = 1 / 64
  if 'googlenet' not in name and name not in VGG_UNETS:
    config.model.fc_features = 4
  return config


@pytest.mark.parametrize(('name', 'argument'), ALL)
def test_a_card_fits_its_data(name, argument, data):
  config = config_of(name, argument, data)
  dataset = create_dataset(config.data)
  assert len(dataset.train) == 2 and len(dataset.heldout) == 1
  model = create_model(config.model)
  networks.check_fits(model, dataset, read_prediction(config)[0])
  assert '2 to train on, 1 held out' in check_labels(dataset, config.data)
  lacking = [
    example | {'label': np.where(example['label'] == 1, 255, example['label'])}
    for example in dataset.train
  ]
  with pytest.raises(
    InputError, match=f"no pixel is of class '{dataset.class_names[1]}'"
  ):
    check_labels(dataclasses.replace(dataset, train=lacking), config.data)
  check_prediction(model, *read_prediction(config))
  image = dataset.train[0]['image']
  shown = PreprocessingSettings(**config.preprocessing).prepare(image)
  assert shown.shape == (*image.shape[:2], model.in_channels)
  assert not config.init.path  # Nobody trains an empty net unknowingly.


def test_the_caffe_mean_is_subtracted_in_bgr():
  rgb = np.array([[[10, 20, 30]]], np.uint8)
  got = PreprocessingSettings(**recipes.caffe_preprocessing()).prepare(rgb)
  want = np.array([30 - 104.00699, 20 - 116.66877, 10 - 122.67892])
  np.testing.assert_allclose(got[0, 0], want, rtol=1e-5)


# Of the released code: rate, steps, images a step, momentum, loss. Steps are
# counted by the loops in solve.py. For PASCAL-Context, SIFT Flow and NYUDv2 the
# solvers' max_iter is 300,000, which those loops do not read.
HEAVY = (1, 0.99, 'sum')
PUBLISHED = {
  ('fcn32s_voc', ''): (1e-10, 100_000, *HEAVY),
  ('fcn16s_voc', ''): (1e-12, 100_000, *HEAVY),
  ('fcn8s_voc', ''): (1e-14, 100_000, *HEAVY),
  ('fcn8s_atonce_voc', None): (1e-10, 300_000, *HEAVY),
  ('fcn_alexnet_voc', ''): (1e-4, 100_000, 20, 0.9, 'mean_of_images'),
  ('fcn_pascal_context', '32s'): (1e-10, 400_000, *HEAVY),
  ('fcn_pascal_context', '16s'): (1e-12, 400_000, *HEAVY),
  ('fcn_pascal_context', '8s'): (1e-14, 400_000, *HEAVY),
  ('fcn_siftflow', '32s'): (1e-10, 100_000, *HEAVY),
  ('fcn_siftflow', '16s'): (1e-12, 100_000, *HEAVY),
  ('fcn_siftflow', '8s'): (1e-12, 100_000, *HEAVY),
  ('fcn32s_nyudv2', 'color'): (1e-10, 100_000, *HEAVY),
  ('fcn32s_nyudv2', 'hha'): (1e-10, 100_000, *HEAVY),
  ('fcn32s_nyudv2', 'color_d'): (1e-10, 100_000, *HEAVY),
  ('fcn32s_nyudv2', 'color_hha'): (1e-12, 100_000, *HEAVY),
}
# Of the CVPR paper: at least 175 passes over 8498 images, 20 at a time.
LIGHT = (74357, 20, 0.9, 'mean')
PUBLISHED |= {
  ('fcn32s_voc', 'light'): (1e-4, *LIGHT),
  ('fcn16s_voc', 'light'): (1e-6, *LIGHT),
  ('fcn8s_voc', 'light'): (1e-8, *LIGHT),
  ('fcn_alexnet_voc', 'light'): (1e-3, *LIGHT),
}
# B, G, R; then HHA, or the logarithm of the depth.
MEANS = {
  'voc': (104.00699, 116.66877, 122.67892),
  'pascal_context': (104.007, 116.669, 122.679),
  'sift_flow': (114.578, 115.294, 108.353),
  'color': (116.190, 97.203, 92.318),
  'hha': (132.431, 94.076, 118.477),
  'color_d': (116.190, 97.203, 92.318, 7.844),
  'color_hha': (116.190, 97.203, 92.318, 132.431, 94.076, 118.477),
}


@pytest.mark.parametrize(('name', 'argument'), PUBLISHED)
def test_a_recipe_is_the_published_one(name, argument):
  get_config = CARDS[name]['get_config']
  config = get_config() if argument is None else get_config(argument)
  assert PUBLISHED[name, argument] == (
    config.schedule.learning_rate,
    config.num_train_steps,
    config.batch_size,
    config.optimizer.momentum,
    config.loss_reduction,
  )
  optimizer = config.optimizer
  assert (config.schedule.name, config.schedule.warmup_steps) == ('constant', 0)
  assert (optimizer.name, optimizer.weight_decay) == ('sgd', 5e-4)
  assert (optimizer.bias_rate, optimizer.bias_decay) == (2, False)
  only_scores = (name, argument) == ('fcn_alexnet_voc', '')
  assert optimizer.bias_layers == (('score',) if only_scores else ('',))
  order = 'shuffled' if argument == 'light' else 'with_replacement'
  assert config.batching.order == order
  assert not any(
    v for k, v in config.augmentation.items() if k != 'elastic_grid'
  )
  mean = MEANS.get(config.data.name) or MEANS[argument]
  np.testing.assert_allclose(np.multiply(config.preprocessing.mean, 255), mean)
  np.testing.assert_allclose(np.multiply(config.preprocessing.std, 255), 1)


# Of the U-Net paper: section 2, section 3 and its weights, figure 1.
UNET = {
  'model.name': 'unet',
  'model.depth': 4,
  'model.base_width': 64,
  'model.convs_per_block': 2,
  'model.padding': 'VALID',
  'model.num_classes': 2,
  'tile_size_px': 572,
  'batch_size': 1,
  'data.w0': 10,
  'data.sigma_px': 5,
  'data.balance': True,
  'augmentation.elastic_grid': 3,
  'augmentation.elastic_sigma_px': 10,
}
SGD = {
  'optimizer.name': 'sgd',
  'optimizer.momentum': 0.99,
  'schedule.name': 'constant',
}
ADAM = {  # Ours.
  'optimizer.name': 'adamw',
  'optimizer.momentum': 0.9,
  'schedule.name': 'cosine',
  'schedule.learning_rate': 5e-4,
  'num_train_steps': 10_000,
}


@pytest.mark.parametrize(
  ('name', 'argument', 'strategy'),
  [
    ('unet_isbi', '', SGD),
    ('unet_isbi', 'fast', ADAM),
    ('unet_cells', '', ADAM),
    ('unet_cells', 'hela', ADAM),
  ],
)
def test_a_recipe_of_unet_is_the_published_one(name, argument, strategy):
  card = runpy.run_path(str(REPOSITORY / 'configs' / f'{name}.py'))
  config = card['get_config'](argument)
  stated = UNET | strategy
  assert {field: attrgetter(field)(config) for field in stated} == stated
  geometry = create_model(config.model).geometry
  assert geometry.output_size(config.tile_size_px) == 388
  # Dropout ends the contracting path, and nothing else.
  assert config.model.dropout_blocks == (-2, -1)


@pytest.mark.parametrize('name', ['fcn_siftflow', 'fcn_pascal_context'])
def test_without_an_argument_a_card_is_that_of_the_first_stage(name):
  get_config = CARDS[name]['get_config']
  assert get_config().to_dict() == get_config('32s').to_dict()
  assert get_config().init.ignore == ('fc8',)  # It starts from VGG16.


def test_every_card_of_the_paper_is_in_the_table():
  ours = {'fcn8s_camvid', 'fcn8s_folder', 'fcn8s_tfds'} | VGG_UNETS
  rates = {name for name, _ in PUBLISHED} | ours
  # GoogLeNet's rate is printed 5^-5: see its card.
  assert rates | {'fcn_googlenet_voc'} == {*CARDS}


@pytest.mark.parametrize(('name', 'argument'), TRAINED)
def test_a_card_trains(name, argument, data, tmp_path, monkeypatch):
  """In two steps on images of unequal sizes, by one compiled program."""
  config = config_of(name, argument, data)
  compiled = []
  parallelize = train.parallel.parallelize

  def spy(*args, **mesh):
    run = parallelize(*args, **mesh)
    compiled.append(run.step)
    return run

  monkeypatch.setattr(train.parallel, 'parallelize', spy)
  config.batch_size = 8  # A multiple of the devices here.
  config.num_train_steps = 2
  config.log_every_steps = 1
  config.schedule.warmup_steps = 0
  config.batching.bucket_px = min(config.batching.bucket_px, 32)
  if name not in VGG_UNETS:
    config.prediction.bucket_px = config.batching.bucket_px
  config.tile_size_px = min(config.tile_size_px, 16)
  config.init.path = 'random'
  scores = train.train_and_evaluate(config, tmp_path)
  assert compiled[0]._cache_size() == 1
  text = (tmp_path / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  assert [row['step'] for row in rows] == [1, 2, 2]
  assert all(np.isfinite(row['train/loss']) for row in rows[:2])
  # Zero scores: every class is as likely, in every head.
  if config.loss_reduction != 'sum' and name not in VGG_UNETS:
    expected = np.log(config.model.num_classes)
    assert rows[0]['train/loss'] == pytest.approx(expected, rel=1e-3)
  assert 0 <= scores[config.evaluation.best_metric] <= 1
  assert {*(f.name for f in (tmp_path / 'pictures').iterdir())} >= {
    'learning_curve.png'
  }
  assert 'mean_iu' in (tmp_path / 'scores.txt').read_text()
