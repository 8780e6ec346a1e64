# SPDX-License-Identifier: Apache-2.0
"""U-Nets with batch normalisation: their names, steps, runs and files."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import tiny_config
from flax.traverse_util import flatten_dict, unflatten_dict
from random_unets import image_of, random_unet

from segjax import export, networks, steps, train
from segjax.data import create_dataset
from segjax.data.augment import Augmentation
from segjax.devices import parallel
from segjax.errors import InputError, TrainingDiverged
from segjax.models.layers import RUNNING
from segjax.models.unet import UNet, UNet2015
from segjax.optimizers import create_optimizer, create_schedule
from segjax.prediction import artifact
from segjax.running_means import make_measure
from segjax.runs.checkpoints import load_params
from segjax.settings.sections import PreprocessingSettings, read_prediction
from segjax.tiling.settings import TileSettings
from segjax.tiling.windows import predict_image
from segjax.weights import files

MODEL = UNet(base_width=4, depth=1, norm='batch', dropout_rate=0.0)
SCHEDULE = create_schedule('constant', 0.05, 0, 100)
OPTIMIZER = create_optimizer('adamw', SCHEDULE, 0.9, 0.1, 1.0)
SIZE = 10  # What comes out of a tile of 26 pixels.
init_state = jax.jit(steps.init_state, static_argnames=('model', 'optimizer'))


def names(model):
  init = functools.partial(steps.init_params, model)
  return {*flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep='/')}


@pytest.mark.parametrize('make', [UNet, UNet2015])
def test_before_a_norm_no_bias_is_left(make):
  plain = names(make(base_width=2, depth=2))
  blocks = ('down0', 'down1', 'bottleneck', 'up1', 'up0')
  expected = plain - {f'{b}/conv{i}/bias' for b in blocks for i in (0, 1)}
  if make is UNet:  # ReLU follows those of the 2015 release.
    expected -= {'up0/upconv/bias', 'up1/upconv/bias'}
  expected |= {
    f'{block}/norm{i}/{name}'
    for block in blocks
    for i in (0, 1)
    for name in ('scale', 'bias', 'mean', 'var')
  }
  assert names(make(base_width=2, depth=2, norm='batch')) == expected


def make_step(axis_name=None, split_rows=lambda x: x, **how):
  return steps.make_train_step(
    MODEL,
    OPTIMIZER,
    SCHEDULE,
    preprocessing=PreprocessingSettings(0.5, 0.2, ()),
    tile_size=26,
    # Tiles are whole images, mirrored around.
    augmentation=Augmentation(
      elastic_sigma_px=0.0, rotation_deg=0.0, flip=False, shift_px=0.0
    ),
    ignore_label=255,
    reduction='mean',
    **how,
    axis_name=axis_name,
    split_rows=split_rows,
  )


def batch_of(size):
  rng = np.random.default_rng(size)
  level = rng.integers(0, 128, (size, 1, 1, 1))  # Images differ.
  image = level + rng.integers(0, 128, (size, SIZE, SIZE, 1))
  label = rng.integers(0, 2, (size, SIZE, SIZE))
  return {'image': image.astype(np.uint8), 'label': label.astype(np.int32)}


def statistics(params):
  return {
    name: value
    for name, value in flatten_dict(params, sep='/').items()
    if name.endswith(('/mean', '/var'))
  }


def test_parts_have_statistics_of_their_own_of_which_the_mean_is_kept():
  """Two parts of four images: by two batches, and one forward pass each."""
  state = init_state(MODEL, OPTIMIZER, seed=0)
  batch = batch_of(8)
  moved, metrics = jax.jit(make_step(accumulate_steps=2))(state, batch)
  losses, kept = [], []
  step = jax.jit(make_step())
  apply = jax.jit(functools.partial(MODEL.apply, train=True, mutable=[RUNNING]))
  for part in range(2):
    half = {name: array[part::2] for name, array in batch.items()}
    one, its_metrics = step(state, half)
    losses.append(its_metrics['loss'])
    kept.append(statistics(one.params))
    image = np.pad(
      half['image'] / 255, [(0, 0), (8, 8), (8, 8), (0, 0)], 'reflect'
    )
    image = (image.astype(np.float32) - 0.5) / 0.2
    _, updated = apply({'params': state.params}, image)
    for name, value in flatten_dict(updated[RUNNING], sep='/').items():
      np.testing.assert_allclose(kept[-1][name], value, atol=1e-5)
  assert metrics['loss'] == pytest.approx(np.mean(losses), rel=1e-5)
  for name, value in statistics(moved.params).items():
    a, b = (each[name] for each in kept)
    assert not np.allclose(a, b, atol=1e-4), name
    np.testing.assert_allclose(value, (a + b) / 2, atol=1e-6)


@pytest.mark.parametrize('accumulate_steps', [1, 2])
def test_frozen_norms_train_as_they_predict(accumulate_steps):
  state = init_state(MODEL, OPTIMIZER, seed=0)
  batch = batch_of(6)
  step = jax.jit(
    make_step(freeze_norms_at=3, accumulate_steps=accumulate_steps)
  )
  for _ in range(3):  # So that the running means are not their first values.
    state, _ = step(state, batch)
  moved, metrics = step(state, batch)
  image = np.pad(
    batch['image'] / 255, [(0, 0), (8, 8), (8, 8), (0, 0)], 'reflect'
  )
  image = (image.astype(np.float32) - 0.5) / 0.2
  logits = jax.jit(MODEL.apply)({'params': state.params}, image)
  log_probability = jnp.take_along_axis(
    jax.nn.log_softmax(logits), batch['label'][..., None], axis=-1
  )
  expected = -log_probability.mean()
  assert metrics['loss'] == pytest.approx(float(expected), rel=1e-5)
  by_batch = jax.jit(make_step())(state, batch)[1]['loss']
  assert abs(by_batch - expected) > 1e-3
  # Weight decay leaves the running means alone, too.
  before = flatten_dict(state.params, sep='/')
  for name, value in flatten_dict(moved.params, sep='/').items():
    is_same = np.array_equal(value, before[name])
    assert is_same == (name in statistics(before)), name


@pytest.mark.parametrize('mode', parallel.MODES)
def test_parts_on_eight_devices_equal_those_on_one(mode):
  state, batch = init_state(MODEL, OPTIMIZER, seed=0), batch_of(16)
  make = functools.partial(make_step, accumulate_steps=2)
  expected = jax.jit(make())(state, batch)
  run = parallel.parallelize(make, mode, 16)
  given = run.get(run.step(run.put_state(state), run.put_batch(batch)))
  for a, b in zip(
    jax.tree.leaves(given), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('batch_size', [1, 2, 16])
def test_measured_means_are_those_of_tiles_as_they_are_stored(batch_size):
  """Of each batch alone, whatever the means were before."""
  params = init_state(MODEL, OPTIMIZER, seed=0).params
  examples = [{'image': image} for image in batch_of(4)['image']]
  measure = make_measure(
    MODEL, PreprocessingSettings(0.5, 0.2, ()), 26, batch_size, examples
  )
  measured = flatten_dict(measure(params), sep='/')
  tiles = []
  for example in examples:
    # An image is as large as what comes out of a tile: there is one crop.
    tile = np.pad(example['image'] / 255, [(8, 8), (8, 8), (0, 0)], 'reflect')
    tile = (tile.astype(np.float32) - 0.5) / 0.2
    kernel = params['down0']['conv0']['kernel']
    windows = np.lib.stride_tricks.sliding_window_view(tile[..., 0], (3, 3))
    tiles.append(np.einsum('hwij,ijc->hwc', windows, kernel[:, :, 0]))
  rows = [row * len(examples) // 48 for row in range(48)]
  batches = np.stack(tiles)[np.reshape(rows, (min(batch_size, 8), -1)).T]
  for name, values in (
    ('mean', batches.mean((1, 2, 3))),
    ('var', batches.var((1, 2, 3))),
  ):
    np.testing.assert_allclose(
      measured[f'down0/norm0/{name}'], np.mean(values, 0), rtol=1e-4, atol=1e-5
    )
  moved = flatten_dict(params, sep='/') | statistics(measured)
  again = measure(unflatten_dict(moved, sep='/'))
  for name, value in flatten_dict(again, sep='/').items():
    np.testing.assert_array_equal(value, measured[name], name)
    if name not in statistics(measured):
      np.testing.assert_array_equal(value, moved[name], name)


class Counted(list):
  """Examples that count how often they are read."""

  num_reads = 0

  def __getitem__(self, index):
    self.num_reads += 1
    return super().__getitem__(index)


def test_each_image_is_read_once_for_all_measurements():
  examples = Counted({'image': image} for image in batch_of(3)['image'])
  preprocessing = PreprocessingSettings(0.5, 0.2, ())
  measure = make_measure(MODEL, preprocessing, 26, 8, examples)
  params = init_state(MODEL, OPTIMIZER, seed=0).params
  measure(measure(params))
  assert examples.num_reads == 3


def test_images_that_cannot_be_measured_are_refused():
  params = init_state(MODEL, OPTIMIZER, seed=0).params
  preprocessing = PreprocessingSettings(0.5, 0.2, ())
  images = [{'image': image} for image in batch_of(2)['image']]
  mixed = [images[0], {'image': images[1]['image'].astype(np.uint16)}]
  with pytest.raises(InputError, match='types and numbers of channels must be'):
    make_measure(MODEL, preprocessing, 26, 8, mixed)
  huge = [{'image': image['image'] * np.float32(1e25)} for image in images]
  measure = make_measure(MODEL, preprocessing, 26, 8, huge)
  with pytest.raises(TrainingDiverged, match='running means .* not finite'):
    measure(params)


def test_evaluation_takes_the_running_statistics():
  """Whatever else is in the batch; and they have no gradient."""
  model, variables = random_unet(norm='batch')
  images = np.stack([image_of(20, 20), 5 + image_of(20, 20)])
  apply = jax.jit(model.apply)
  alone = apply(variables, images[:1])
  np.testing.assert_allclose(apply(variables, images)[:1], alone, atol=1e-5)

  @jax.jit
  def normalised(variables):
    return model.clone(dropout_rate=0.0).apply(variables, images, train=True)

  assert np.abs(normalised(variables)[:1] - alone).max() > 0.1
  gradient = jax.jit(jax.grad(lambda v: jnp.sum(normalised(v) ** 2)))(variables)
  gradient = gradient['params']
  for name, value in flatten_dict(gradient, sep='/').items():
    assert np.any(value) != name.endswith(('/mean', '/var')), name


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  config = tiny_config()
  config.batch_size = 8
  config.model.norm = 'batch'
  config.evaluation.average = False
  config.evaluation.best_metric = 'mean_iu'
  workdir = tmp_path_factory.mktemp('norm') / 'run'
  return config, workdir, train.train_and_evaluate(config, workdir)


@pytest.mark.parametrize('step', [2, 4])
def test_every_checkpoint_has_measured_means(run, step):
  """So has that of step 2, at which the run is not evaluated."""
  config, workdir, _ = run
  params = load_params(workdir / 'checkpoints', step)
  network = networks.load_run(workdir)
  preprocessing, _ = read_prediction(network.config)
  examples = create_dataset(config.data).train
  measure = make_measure(
    network.model, preprocessing, config.tile_size_px, 8, examples
  )
  jax.tree.map(np.testing.assert_array_equal, measure(params), params)


def test_a_run_goes_on_bit_for_bit(run, tmp_path):
  config, workdir, scores = run
  shutil.copytree(workdir, tmp_path / 'run')
  checkpoints = tmp_path / 'run' / 'checkpoints'
  shutil.rmtree(checkpoints / '4')
  assert train.train_and_evaluate(config, tmp_path / 'run') == scores
  first = load_params(checkpoints, 2)
  again, last = (
    load_params(folder, 4) for folder in (checkpoints, workdir / 'checkpoints')
  )
  assert not np.allclose(*(t['up0']['norm1']['var'] for t in (first, last)))
  jax.tree.map(np.testing.assert_array_equal, again, last)


@pytest.fixture(scope='module')
def frozen(run, tmp_path_factory):
  """Run whose last two of four steps have frozen norms."""
  config = run[0].copy_and_resolve_references()
  config.frozen_norm_share = 0.5
  workdir = tmp_path_factory.mktemp('frozen') / 'run'
  return config, workdir, train.train_and_evaluate(config, workdir)


def test_frozen_norms_keep_the_means_with_which_they_froze(run, frozen):
  _, workdir, _ = frozen
  of_plain = load_params(run[1] / 'checkpoints', 2)
  at_2, at_4 = (load_params(workdir / 'checkpoints', n) for n in (2, 4))
  close = functools.partial(np.testing.assert_allclose, atol=1e-5)
  jax.tree.map(close, at_2, of_plain)  # Another program, which may round.
  before, after = (flatten_dict(tree, sep='/') for tree in (at_2, at_4))
  for name, value in after.items():
    is_same = np.array_equal(value, before[name])
    assert is_same == (name in statistics(before)), name


def test_a_run_with_frozen_norms_goes_on_bit_for_bit(frozen, tmp_path):
  config, workdir, scores = frozen
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
  assert train.train_and_evaluate(config, tmp_path / 'run') == scores
  # The norms freeze at a step that is not saved, too.
  config = config.copy_and_resolve_references()
  config.checkpoints.every_steps = 3
  assert train.train_and_evaluate(config, tmp_path / 'other') == scores
  at_3 = load_params(tmp_path / 'other' / 'checkpoints', 3)
  at_2 = load_params(workdir / 'checkpoints', 2)
  for name, value in statistics(at_3).items():
    np.testing.assert_array_equal(value, statistics(at_2)[name], name)


@pytest.mark.parametrize('share', [-0.1, 1.0])
def test_a_share_of_all_steps_is_refused(run, share, tmp_path):
  config = run[0].copy_and_resolve_references()
  config.frozen_norm_share = share
  with pytest.raises(InputError, match=f'frozen_norm_share={share} must be at'):
    train.train_and_evaluate(config, tmp_path / 'run')


def test_a_run_is_not_continued_without_the_norm(run):
  config, workdir, _ = run
  config = config.copy_and_resolve_references()
  config.model.norm = 'none'
  with pytest.raises(InputError, match="made with model.norm='batch'"):
    train.train_and_evaluate(config, workdir)


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_files_of_parameters_and_artifacts_predict_the_same(
  run, suffix, tmp_path
):
  network = networks.load_run(run[1])
  image = image_of(40, 50)
  tiles = TileSettings(tile_size=34)
  expected = predict_image(network.model, network.params, image, tiles)
  # The statistics matter, or equality would show little.
  params = flatten_dict(network.params)
  lost = {k: jnp.ones_like(v) for k, v in params.items() if k[-1] == 'mean'}
  others = unflatten_dict(params | lost)
  other = predict_image(network.model, others, image, tiles)
  assert np.abs(other - expected).max() > 1e-3
  files.write_params(tmp_path / f'net{suffix}', network.params)
  loaded = networks.load_converted(run[0], tmp_path / f'net{suffix}')
  got = predict_image(loaded.model, loaded.params, image, tiles)
  np.testing.assert_array_equal(got, expected)
  export.export_network(network, tmp_path / 'net.segjax')
  model, params, _ = artifact.load(tmp_path / 'net.segjax')
  got = predict_image(model, params, image, tiles)
  np.testing.assert_allclose(got, expected, atol=1e-5)
  pixels = networks.metadata(network.config)['pixels']
  start, _ = networks.starting_params(network.model, pixels, run[1], (), ())
  for name, value in flatten_dict(network.params, sep='/').items():
    np.testing.assert_array_equal(start[name], value)
