# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic, and that unequal networks are not timed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import QUICKLY, REPOSITORY
from flax import traverse_util

from benchmarks import formulations, sides, timing, whole_passes
from segjax.models.layers import Conv
from segjax.models.unet import UNet
from segjax.tiling import plans
from segjax.tiling.settings import TileSettings

MODEL = UNet(depth=1, base_width=3, dropout_rate=0.0)


def test_rounds_are_interleaved_and_timed():
  order = []

  def case(name, seconds):
    def run(calls):
      order.append((name, calls))
      time.sleep(calls * seconds)

    return run

  cases = {'a': case('a', 0.02), 'b': case('b', 0.0), 'c': case('c', 0.0)}
  seconds, cpu_seconds = timing.interleave(cases, rounds=3, calls=2)
  assert order[:3] == [('a', 1), ('b', 1), ('c', 1)]
  assert [name for name, _ in order[3:]] == [*'abc', *'bca', *'cab']
  assert {calls for _, calls in order[3:]} == {2}
  # Of one call, not of two; sleep takes no CPU time.
  assert seconds['a'].shape == (3,) and 0.02 <= seconds['a'].min() < 0.04
  assert cpu_seconds['a'].min() < 0.01


def test_ratio_is_of_rounds_not_of_medians():
  ours, theirs = np.array([1.0, 2.0, 9.0]), np.array([4.0, 2.0, 3.0])
  assert timing.ratio(ours, theirs) == '1.00 (0.25-3.00)'
  assert timing.ratio(ours, theirs, digits=1) == '1.0 (0.2-3.0)'


@pytest.mark.parametrize(
  ('h', 'w', 'c', 'features'), [(9, 8, 2, 5), (40, 40, 128, 128)]
)
def test_flops_by_hand(h, w, c, features):
  conv, image = Conv(features), jnp.zeros((1, h, w, c))
  params = jax.eval_shape(conv.init, jax.random.key(0), image)
  outputs = (h - 2) * (w - 2) * features
  products, bias = outputs * 9 * c, outputs
  assert timing.flops(conv.apply, params, image) == 2 * products + bias


def test_difference_by_hand():
  want = {'a': np.array([3.0, 0.0]), 'b': np.array([[4.0]])}
  got = {'a': np.array([3.0, 0.3]), 'b': np.array([[4.4]])}
  assert sides.difference(got, want) == pytest.approx(0.5 / 5)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_training_by_hand(reduction):
  params = sides.random_params(MODEL)
  batch = sides.random_batch(MODEL, 8, 28)  # One for each device.

  def loss(params):
    logits = MODEL.apply({'params': params}, batch['image'])
    chosen = jnp.take_along_axis(
      jax.nn.log_softmax(logits), batch['label'][..., None], axis=-1
    )
    return -getattr(chosen, reduction)()

  gradient = jax.jit(jax.grad(loss))
  first = gradient(params)
  # None is zero, so that none can differ unseen.
  assert all(np.any(leaf) for leaf in jax.tree.leaves(first))
  momentum = sides.MOMENTUM
  rate = 1e-3 / (batch['label'].size if reduction == 'sum' else 1)
  second = gradient(jax.tree.map(lambda p, g: p - rate * g, params, first))
  want = jax.tree.map(
    lambda g, h: np.asarray(-rate * ((1 + momentum) * g + h)), first, second
  )
  want = traverse_util.flatten_dict(want, sep='/')
  got = sides.train(MODEL, params, batch, reduction).result()
  assert sides.STEPS == 2
  assert sides.difference(got, want) < 1e-4


@pytest.mark.parametrize('name', formulations.VARIANTS)
def test_formulations_are_the_same_network(name):
  image = sides.random_batch(MODEL, 1, 28)['image']
  params = sides.random_params(MODEL)

  def forward_and_back():
    def apply(params):
      return MODEL.apply({'params': params}, image)

    logits, pull = jax.vjp(apply, params)
    return logits, pull(logits)[0]

  want = forward_and_back()
  with formulations.replaced(name):
    got = forward_and_back()
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def run(module, *flags, **env):
  return subprocess.run(
    [sys.executable, '-m', f'benchmarks.{module}', *flags],
    cwd=REPOSITORY,
    env=os.environ | QUICKLY | env,
    capture_output=True,
    text=True,
  )


QUICK = ('--rounds=1', '--peak_size=64', '--variants=channels_last')


@pytest.mark.parametrize(
  'command',
  [
    ('unet', '--width=2', '--size=188', *QUICK),
    ('fcn', '--width=2', '--size=33', *QUICK),
  ],
)
def test_twins_are_equal_and_timed(command):
  pytest.importorskip('torch', reason='PyTorch is not installed')
  process = run(*command)
  assert process.returncode == 0, process.stderr
  for mode in ('forward', 'train'):
    assert f'px, {mode}, batch 1, float32\n' in process.stdout
  assert process.stdout.count('| **channels_last** |') == 2
  assert 'python -m benchmarks.' + ' '.join(command) in process.stdout


def test_unequal_networks_are_not_timed():
  pytest.importorskip('torch', reason='PyTorch is not installed')
  code = (
    'from absl.flags import FLAGS\n'
    'from benchmarks import compare, torch_nets\n'
    'from segjax.models.unet import UNet\n'
    "FLAGS(['', '--modes=forward', '--variants=eager', '--peak_size=64'])\n"
    'model = UNet(base_width=2, dropout_rate=0.0, upconv_relu=True)\n'
    "compare.compare('', model, lambda: torch_nets.UNet(2), 188)\n"
  )
  process = subprocess.run(
    [sys.executable, '-c', code],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert 'ArithmeticError: forward: eager differs' in process.stderr
  assert process.stdout == ''


def test_what_cannot_be_compiled_stays_in_the_table(tmp_path):
  pytest.importorskip('torch', reason='PyTorch is not installed')
  process = run(
    'unet',
    *('--width=2', '--size=188', '--rounds=1', '--peak_size=64'),
    *('--modes=forward', '--variants=eager,compile'),
    CXX='/no/compiler',
    TORCHINDUCTOR_CACHE_DIR=str(tmp_path),
  )
  assert process.returncode == 0, process.stderr
  rows = table_of(process.stdout)
  assert [*rows] == ['segjax', '**eager**', 'compile']
  assert {*rows['compile'].values()} == {'compile', 'failed', ''}
  assert 'compile failed: ' in process.stdout.splitlines()[-2]


def test_a_wrong_flag_is_one_line():
  pytest.importorskip('torch', reason='PyTorch is not installed')
  process = run('unet', '--variants=fastest')
  assert process.returncode == 2
  assert process.stderr.count('\n') == 1 and 'fastest' in process.stderr


def test_bands_equal_one_pass_and_seams_are_found():
  model = MODEL.clone(padding='SAME')
  params = sides.random_params(model)
  image = np.random.default_rng(0).normal(size=(45, 37, 1)).astype(np.float32)
  bands = whole_passes.predict_rows(model, params, image, 16)
  margin = model.geometry.margin
  widths = [(margin, 64 - n) for n in image.shape[:2]]  # At least a margin.
  whole = np.pad(image, [*widths, (0, 0)], mode='reflect')
  logits = model.apply({'params': params}, whole[None])[0]
  want = jax.nn.softmax(logits[margin:, margin:][:45, :37])
  np.testing.assert_allclose(bands, want, atol=1e-5)

  plan = plans.plan_tiles(
    45, 37, model.geometry, TileSettings(tile_size=2 * margin + 16)
  )
  assert (plan.rows[1].start, plan.period) == (16, 2)
  got = bands.copy()
  got[0, 0] += 3  # Far from any seam.
  got[17, 0] -= 2
  got = whole_passes.largest_differences(got, bands, plan)
  assert got == pytest.approx((3, 2))


def test_every_command_of_the_gpus_script(tmp_path):
  for module in ('torch', 'monai', 'xdist'):
    pytest.importorskip(module, reason=f'{module} is not installed')
  # torch.compile, which takes minutes here, is left to a run by hand.
  process = subprocess.run(
    [
      REPOSITORY / 'benchmarks' / 'gpu.sh',
      tmp_path / 'tables',
      *('--width=2', '--size=188', '--rounds=1'),
    ],
    env=os.environ
    | QUICKLY
    | {
      'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
      'NETWORKS': '--peak_size=64 --variants=channels_last',
      'TESTS': 'tests/test_layers.py::test_crop_takes_all_four_sides',
      'SLOWER': '5',
    },
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stdout
  tables = {file.name: file for file in (tmp_path / 'tables').iterdir()}
  networks = ['segjax', '**channels_last**'] * 2  # Forward and training.
  rows = {
    'unet_bf16_batch8.md': networks,
    'fcn_bf16.md': networks,
    'unet_bf16.md': networks,
    'unet_tf32.md': networks,
    'augment.md': [
      'segjax',
      'scipy, field by matrices',
      'scipy, field by splines',
      'training step, U-Net 2, bfloat16',
    ],
    'tiling_bf16.md': ['segjax', 'JAX, loop', 'PyTorch, loop', 'MONAI'],
    'startup.md': ['no cache', 'cache, empty', 'cache, filled'],
  }
  assert tables.keys() == {*rows, 'tests.md'}
  for name, want in rows.items():
    cells = [
      line.split('|')[1].strip()
      for line in tables[name].read_text().splitlines()
      if line.startswith('| ')
    ]
    headers = {'', 'seconds'}
    assert [cell for cell in cells if cell not in headers] == want, name


def test_augmentation_agrees_with_scipy_before_it_is_timed():
  process = run('augment', '--size=188', '--width=2', '--rounds=1')
  assert process.returncode == 0, process.stderr
  rows = table_of(process.stdout)
  assert [*rows] == [
    'segjax',
    'scipy, field by matrices',
    'scipy, field by splines',
    'training step, U-Net 2, float32',
  ]
  # The share of a step, printed twice: rounded to three and four digits.
  ours, step = rows['segjax'], rows['training step, U-Net 2, float32']
  share = float(step['segjax / this'].split()[0])
  assert share == pytest.approx(float(ours['ms']) / float(step['ms']), rel=0.01)


def table_of(text):
  """Returns {first column: {header: cell}} of a table in Markdown."""
  lines = [line for line in text.splitlines() if line.startswith('|')]
  header, _, *rows = [[c.strip() for c in x.split('|')[1:-1]] for x in lines]
  return {row[0]: dict(zip(header, row, strict=True)) for row in rows}
