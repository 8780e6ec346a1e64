# SPDX-License-Identifier: Apache-2.0
"""The training step: the same on one device and on eight, jit and pmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fcn_nets import NARROW

from segjax import steps
from segjax.data.augment import Augmentation
from segjax.data.pipeline import create_batches
from segjax.devices import parallel
from segjax.errors import InputError
from segjax.losses import REDUCTIONS
from segjax.models.fcn import FCN8s
from segjax.models.unet import UNet
from segjax.optimizers import create_optimizer, create_schedule
from segjax.settings.sections import PreprocessingSettings

MODEL = UNet(base_width=4, depth=1)
SCHEDULE = create_schedule('constant', 0.05, 0, 100)
OPTIMIZER = create_optimizer('sgd', SCHEDULE, 0.9, 1e-4, 0.0)
BATCH = 8
init_state = jax.jit(steps.init_state, static_argnames=('model', 'optimizer'))


def make_step(
  axis_name=None,
  split_rows=lambda x: x,
  reduction='mean',
  accumulate_steps=1,
  loss='cross_entropy',
):
  return steps.make_train_step(
    MODEL,
    OPTIMIZER,
    SCHEDULE,
    tile_size=26,
    augmentation=Augmentation(
      elastic_sigma_px=3.0, rotation_deg=180.0, flip=True, shift_px=4.0
    ),
    preprocessing=PreprocessingSettings(0.5, 0.2, ()),
    ignore_label=255,
    reduction=reduction,
    loss=loss,
    accumulate_steps=accumulate_steps,
    axis_name=axis_name,
    split_rows=split_rows,
  )


@functools.cache
def step_of(reduction, loss='cross_entropy'):
  """Returns the compiled step on one device and the whole batch."""
  return jax.jit(make_step(reduction=reduction, loss=loss))


def examples(count=12):
  rng = np.random.default_rng(0)
  made = []
  for _ in range(count):
    label = rng.integers(0, 2, (32, 32)).astype(np.int32)
    noise = rng.normal(0, 30, (32, 32))
    label[:2] = 255
    made.append(
      {
        'image': np.clip(80 + 90 * (label == 1) + noise, 0, 255).astype(
          np.uint8
        )[..., None],
        'label': label,
        'weight': rng.uniform(1, 2, (32, 32)).astype(np.float32),
      }
    )
  return made


def train(run, num_steps=5):
  batches = create_batches(examples(), BATCH, seed=0, start_step=0)
  state = run.put_state(init_state(MODEL, OPTIMIZER, seed=0))
  for _ in range(num_steps):
    state, metrics = run.step(state, run.put_batch(next(batches)))
  return run.get(state), run.get(metrics)


@functools.cache
def single():
  run = parallel.DataParallel(
    jax.jit(make_step()), range(BATCH), *3 * (lambda tree: tree,)
  )
  return train(run)


# With batch normalisation: see test_norm.
@pytest.mark.parametrize('mode', parallel.MODES)
def test_eight_devices_equal_one(mode):
  assert jax.device_count() == 8
  state, metrics = train(parallel.parallelize(make_step, mode, BATCH))
  assert int(state.step) == 5
  start = init_state(MODEL, OPTIMIZER, seed=0)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, state)
  assert max(jax.tree.leaves(moved.params)) > 1e-2
  for a, b in zip(
    jax.tree.leaves((state, metrics)), jax.tree.leaves(single()), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


# Under jit XLA splits the sums, whichever they are; under pmap the step does.
@pytest.mark.parametrize(
  ('mode', 'reduction'),
  [('jit', 'mean'), *(('pmap', reduction) for reduction in REDUCTIONS)],
)
def test_dice_of_images_adds_up_over_devices_and_parts(mode, reduction):
  batch = next(create_batches(examples(16), 16, seed=0, start_step=0))
  batch['label'][:3, :20] = 255  # So that images differ in their pixels.
  batch['label'][3] = 255
  state = init_state(MODEL, OPTIMIZER, seed=0)
  make = functools.partial(
    make_step, loss='dice_cross_entropy', reduction=reduction
  )
  expected = step_of(reduction, 'dice_cross_entropy')(state, batch)
  run = parallel.parallelize(
    functools.partial(make, accumulate_steps=2), mode, 16
  )
  given = run.get(run.step(run.put_state(state), run.put_batch(batch)))
  for a, b in zip(
    jax.tree.leaves(given), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
  _, without = step_of(reduction)(state, batch)
  added = expected[1]['loss'] - without['loss']
  if reduction == 'sum':
    assert added > 100  # A Dice loss for each pixel.
  else:
    assert 0.2 < added < 1  # The mean of the Dice losses.


@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_parts_of_a_batch_sum_up_to_it_in_less_memory(reduction):
  batch = next(create_batches(examples(), BATCH, seed=0, start_step=0))
  batch['label'][:3, :20] = 255  # So that parts differ in their pixels.
  state = init_state(MODEL, OPTIMIZER, seed=0)
  whole, parts = (
    jax.jit(make_step(reduction=reduction, accumulate_steps=number))
    .lower(state, batch)
    .compile()
    for number in (1, 4)
  )
  results = zip(
    jax.tree.leaves(whole(state, batch)),
    jax.tree.leaves(parts(state, batch)),
    strict=True,
  )
  for a, b in results:
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())
  memory = [
    program.memory_analysis().temp_size_in_bytes for program in (whole, parts)
  ]
  assert memory[1] < 0.5 * memory[0]


def test_parts_must_be_equal():
  batch = next(create_batches(examples(), BATCH, seed=0, start_step=0))
  state = init_state(MODEL, OPTIMIZER, seed=0)
  with pytest.raises(InputError, match='8 images .* accumulate_steps=3'):
    jax.eval_shape(make_step(accumulate_steps=3), state, batch)


@pytest.mark.smoke
def test_a_step_is_pure_and_draws_from_seed_and_step():
  step = step_of('mean')
  batch = next(create_batches(examples(), BATCH, seed=0, start_step=0))
  state = init_state(MODEL, OPTIMIZER, seed=0)
  once, again = step(state, batch), step(state, batch)
  for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)
  later = step(state.replace(step=state.step + 1), batch)
  other = step(
    state.replace(key=init_state(MODEL, OPTIMIZER, seed=1).key), batch
  )
  losses = {float(run[1]['loss']) for run in (once, later, other)}
  assert len(losses) == 3


def test_the_sum_is_the_mean_times_the_pixels():
  batch = next(create_batches(examples(), BATCH, seed=0, start_step=0))
  state = init_state(MODEL, OPTIMIZER, seed=0)
  _, mean = step_of('mean')(state, batch)
  _, total = step_of('sum')(state, batch)
  pixels = float(total['loss'] / mean['loss'])
  everything = BATCH * MODEL.geometry.output_size(26) ** 2
  assert 0.7 * everything < pixels < everything  # Some are ignored.
  assert pixels == pytest.approx(round(pixels), abs=0.05)
  assert total['grad_norm'] / mean['grad_norm'] == pytest.approx(
    pixels, rel=1e-3
  )


@pytest.mark.parametrize('batch_size', [0, 4, 12])
def test_an_indivisible_batch_is_refused(batch_size):
  with pytest.raises(InputError, match='8 devices'):
    parallel.parallelize(make_step, 'jit', batch_size)


def test_an_unknown_mode_is_refused():
  with pytest.raises(InputError, match='threads'):
    parallel.parallelize(make_step, 'threads', 8)


def test_compiler_options_unknown_to_xla_are_left_out(monkeypatch):
  known = {'xla_backend_optimization_level': 0}
  unknown = {'xla_no_such_option': 1}
  assert parallel._known({'cpu': unknown}) is None
  assert parallel._known({'cpu': unknown | known}) == known
  assert parallel._known({'gpu': known}) is None
  for name, function in (('_FAST', parallel.jit), ('_ONCE', parallel.jit_once)):
    monkeypatch.setattr(parallel, name, {'cpu': unknown})
    assert function(lambda x: -x)(2.0) == -2.0


def test_the_option_that_was_measured_is_known_to_this_jaxlib():
  """A jaxlib that drops it needs new tables in benchmarks/README.md."""
  options = parallel._known(parallel._FAST)
  assert options == {'xla_cpu_experimental_ynn_fusion_type': ''}


def test_products_of_many_short_rows_are_right():
  """One of jaxlib 0.10.2, by default, is half a percent off (jax 39103)."""
  rows = np.zeros((2**15 + 1, 3), np.float32)
  rows[:, 0] = np.arange(len(rows))

  def squared_lengths(rows):
    return jax.vmap(
      lambda row: ((np.eye(3, dtype=np.float32) @ row) ** 2).sum()
    )(rows)

  got = parallel.jit(squared_lengths)(rows)
  np.testing.assert_array_equal(got, np.square(rows[:, 0]))


SIZES = [
  *((5, 9), (20, 300), (26, 26), (31, 26), (40, 90), (64, 64)),
  *((90, 40), (101, 102), (150, 60), (160, 170), (1, 1)),
]
AUGMENTATION = Augmentation(
  elastic_sigma_px=3.0, rotation_deg=180.0, flip=True, shift_px=4.0, black=0.1
)


def of_many_sizes(dtype=np.uint8, channels=1, sizes=SIZES):
  rng = np.random.default_rng(1)
  most = 1 if dtype == np.float32 else np.iinfo(dtype).max
  return [
    {
      'image': (most * rng.uniform(size=(*size, channels))).astype(dtype),
      'label': rng.choice([0, 1, 1, 255], size).astype(np.int32),
      'weight': rng.uniform(1, 2, size).astype(np.float32),
    }
    for size in sizes
  ]


def make_tile_step(
  model,
  optimizer,
  axis_name=None,
  split_rows=lambda x: x,
  reduction='mean',
):
  return steps.make_train_step(
    model,
    optimizer,
    SCHEDULE,
    tile_size=26,
    augmentation=AUGMENTATION,
    preprocessing=PreprocessingSettings(0.5, 0.2, ()),
    ignore_label=255,
    reduction=reduction,
    axis_name=axis_name,
    split_rows=split_rows,
  )


def cut_for(state, model):
  return steps.make_cut(
    state.key,
    tile_size=26,
    output_size=model.geometry.output_size(26),
    augmentation=AUGMENTATION,
  )


@pytest.mark.parametrize(
  ('model', 'batch_size'),
  [(MODEL, 1), (FCN8s(padding='same', **NARROW, in_channels=1), 3)],
  ids=['unet', 'fcn'],
)
def test_tiles_of_images_of_many_sizes_take_one_program(model, batch_size):
  step = jax.jit(make_tile_step(model, OPTIMIZER))
  state = init_state(model, OPTIMIZER, seed=0)
  examples = of_many_sizes()
  batches = create_batches(
    examples, batch_size, seed=0, start_step=0, cut=cut_for(state, model)
  )
  seen = set()
  while len(seen) < len(SIZES):
    batch = next(batches)
    seen |= {tuple(size) for size in batch['size'].tolist()}
    state, metrics = step(state, batch)
    assert np.isfinite(metrics['loss']) and np.isfinite(metrics['grad_norm'])
  assert seen == {*SIZES}
  assert step._cache_size() == 1


@pytest.mark.parametrize(
  ('dtype', 'channels'), [(np.uint16, 3), (np.float32, 1)]
)
def test_a_batch_of_unequal_images_is_the_sum_of_each_alone(dtype, channels):
  model = MODEL.clone(in_channels=channels)
  optimizer = create_optimizer('sgd', SCHEDULE, 0.0, 0.0, 0.0)
  state = init_state(model, optimizer, seed=0)
  state = state.replace(step=state.step + 5)
  sizes = [(20, 31), (160, 170)]
  examples = of_many_sizes(dtype, channels, sizes)
  batches = create_batches(
    examples, 2, seed=0, start_step=5, cut=cut_for(state, model)
  )
  batch = next(batches)
  step = jax.jit(make_tile_step(model, optimizer, reduction='sum'))
  moved, metrics = step(state, batch)

  def change(moved):
    return jax.tree.map(jnp.subtract, moved.params, state.params)

  total, changes = 0, []
  for row, size in enumerate(batch['size'].tolist()):
    example = examples[sizes.index(tuple(size))]
    # Whole, in its row, with the other ignored, which changes no sum.
    alone = {name: np.stack(2 * [example[name]]) for name in example}
    alone['label'][1 - row] = 255
    one, its_metrics = step(state, alone)
    changes.append(change(one))
    total += its_metrics['loss']
  np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)
  expected = jax.tree.map(lambda *terms: sum(terms), *changes)
  for a, b in zip(
    jax.tree.leaves(change(moved)), jax.tree.leaves(expected), strict=True
  ):
    assert np.any(b)
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


@functools.cache
def step_of_unequal():
  return jax.jit(make_tile_step(MODEL, OPTIMIZER))


@pytest.mark.parametrize('mode', parallel.MODES)
def test_eight_devices_with_unequal_images_equal_one(mode):
  state = init_state(MODEL, OPTIMIZER, seed=0)
  make = functools.partial(make_tile_step, MODEL, OPTIMIZER)
  run = parallel.parallelize(make, mode, BATCH)
  batch = next(
    create_batches(
      of_many_sizes(),
      BATCH,
      seed=0,
      start_step=0,
      rows=run.rows,
      cut=cut_for(state, MODEL),
    )
  )
  expected = step_of_unequal()(state, batch)
  given = run.get(run.step(run.put_state(state), run.put_batch(batch)))
  for a, b in zip(
    jax.tree.leaves(given), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
