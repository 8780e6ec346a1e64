# SPDX-License-Identifier: Apache-2.0
"""What a run would take, against counts by hand; nothing read or written."""

import math
import re
import runpy
import sys

import jax
import numpy as np
import pytest
from commands import (
  CONFIG,
  DEMO,
  REPOSITORY,
  TINY_NET,
  launch,
  run,
  tiny_config,
)

from segjax import dry_run
from segjax.errors import InputError
from segjax.tiling.memory import largest_that_fits

LIMIT = 24_000_000


def unet_config():
  config = tiny_config()
  config.model.base_width = 16
  config.batch_size = 8  # One a device.
  return config


def fcn_config():
  card = runpy.run_path(str(REPOSITORY / 'configs/fcn8s_folder.py'))
  config = card['get_config']()
  config.model.name = 'fcn_alexnet'  # Which has fewest layers to compile.
  config.model.width = 1 / 64
  config.model.fc_features = 4
  config.batch_size = 16
  return config


@pytest.fixture
def limit(monkeypatch):
  monkeypatch.setattr(dry_run, '_bytes_per_device', lambda: (LIMIT, 'a test'))


def described(config):
  lines = dry_run.describe(config).splitlines()
  return dict(line.split('  ', 1) for line in lines), lines[-1].split()


def number(text):
  return float(text.replace(',', ''))


def test_figures_of_a_unet(limit):
  config = unet_config()
  rows, last = described(config)
  # Blocks of 16, 32 and 16 channels; (taps x inputs + 1) x outputs.
  layers = [
    (9, 1, 16, 32),  # down0, of tiles of 34 px
    (9, 16, 16, 30),
    (9, 16, 32, 13),  # bottleneck
    (9, 32, 32, 11),
    (9, 32, 16, 20),  # up0
    (9, 16, 16, 18),
    (1, 16, 2, 18),  # head
  ]
  upconv = (4 * 32 + 1) * 16
  parameters = upconv + sum((k * i + 1) * o for k, i, o, _ in layers)
  assert number(rows['parameters']) == parameters
  # Twice as many for the gradient, but for that of the image.
  macs = [k * i * o * side**2 for k, i, o, side in layers] + [32 * 16 * 22**2]
  flops = 2 * 8 * (3 * sum(macs) - macs[0])
  assert flops < number(rows['FLOPs per step']) < 1.15 * flops
  # A device has a whole state: parameters and the two moments of Adam.
  assert 12 * parameters < number(rows['bytes per device']) < LIMIT
  assert rows['images'].strip() == '8 x 34 x 34 px'
  assert last[:-1] == 'largest tile_size_px that fits'.split()
  largest = int(last[-1])
  assert largest > 100
  taken = [
    dry_run._bytes_with(config, 'tile_size_px', side)
    for side in (largest, largest + 2 * config.model.depth)
  ]
  assert taken[0] <= LIMIT < taken[1]


def test_parts_take_the_flops_of_the_batch_and_fewer_bytes(limit, monkeypatch):
  monkeypatch.setattr(dry_run, '_ASSUMED_SIDE', 50)
  config = fcn_config()
  *_, whole = dry_run._lower(config)
  bytes_taken = dry_run._compiled_bytes(whole)
  config.accumulate_steps = 2
  parts, last = described(config)
  flops = whole.cost_analysis()['flops']
  assert number(parts['FLOPs per step']) == pytest.approx(flops, rel=1e-3)
  assert number(parts['bytes per device']) < 0.8 * bytes_taken
  assert parts['images'].strip() == '16 x 64 x 64 px, which is assumed'
  assert last[:-1] == 'largest batch_size that fits'.split()
  assert int(last[-1]) > 16
  assert int(last[-1]) % 16 == 0


@pytest.mark.parametrize('make', [unet_config, fcn_config])
def test_what_fits_is_kept_and_less_is_chosen_where_it_does_not(
  make, monkeypatch
):
  config = make()
  config.tile_size_px = config.tile_size_px or 64
  config.batching.bucket_px = 0
  field = 'tile_size_px' if make is unet_config else 'batch_size'
  # Enough by far, so nothing is compiled.
  monkeypatch.setattr(dry_run, '_bytes_per_device', lambda: (10**12, 'a test'))
  with monkeypatch.context() as patch:
    patch.setattr(dry_run, '_compiled_bytes', None)
    kept = dry_run.fit_to_memory(config)
  assert kept[:2] == (field, config[field])
  assert kept[2] == dry_run._lower(config)[-1].cost_analysis()['flops']
  taken = dry_run._bytes_with(config, field, config[field])
  limit = int(taken) - 1
  monkeypatch.setattr(dry_run, '_bytes_per_device', lambda: (limit, 'a test'))
  config[field] *= 2
  if make is unet_config:
    config[field] = 70
  _, size, flops = dry_run.fit_to_memory(config)
  assert dry_run._bytes_with(config, field, size) <= limit
  assert 0 < size < config[field] and flops < 2 * kept[2]
  monkeypatch.setattr(dry_run, '_bytes_per_device', lambda: (10, 'a test'))
  with pytest.raises(InputError, match=f'no {field} fits: .* narrower network'):
    dry_run.fit_to_memory(config)


@pytest.mark.parametrize('start', [10, 100, 130, 3000])
@pytest.mark.parametrize('power', [1, 2])
def test_the_largest_is_found(start, power):
  calls = []

  def bytes_with(size):
    calls.append(size)
    assert size % 10 == 0 and size > 0
    # The compiler of a TPU doesn't say how many are too many.
    return 500 + 3 * size**power if size < 2000 else math.inf

  found = largest_that_fits(
    bytes_with,
    range(10, 2**31, 10),
    limit=500 + 3 * 135**power,
    amount=lambda size: size**power,
    start=start,
  )
  assert found == 130
  assert len(calls) <= 6


def test_none_fits():
  found = largest_that_fits(
    lambda size: 100 * size,
    range(2, 100, 2),
    limit=150,
    amount=lambda size: size,
    start=8,
  )
  assert found is None


def test_the_limit_is_the_devices_or_the_hosts(monkeypatch):
  share, source = dry_run._bytes_per_device()
  assert source == "this host's available memory"
  assert 2**20 < share * jax.local_device_count() < 2**50

  class Device:
    def memory_stats(self):
      return {'bytes_limit': 123}

  monkeypatch.setattr(jax, 'local_devices', lambda: [Device()])
  assert dry_run._bytes_per_device() == (123, 'their own memory')


def test_too_large_for_the_compiler():
  class Lowered:
    def __init__(self, message):
      self.message = message

    def compile(self):
      raise jax.errors.JaxRuntimeError(self.message)

  out_of_memory = Lowered('RESOURCE_EXHAUSTED: Ran out of memory in hbm.')
  assert dry_run._compiled_bytes(out_of_memory) == np.inf
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    dry_run._compiled_bytes(Lowered('INTERNAL: a bug'))


def test_a_command_reads_and_writes_nothing(tmp_path):
  flags = (
    f'--config={REPOSITORY / CONFIG}',
    *TINY_NET,
    f'--config.data.dir={tmp_path}/none',
    '--dry_run',
  )
  env = {'PYTHONPATH': str(REPOSITORY)}
  process = run('main', *flags, cwd=tmp_path, env=env)
  assert process.returncode == 0, process.stderr
  assert process.stderr == ''
  assert 'FLOPs per step' in process.stdout
  assert list(tmp_path.iterdir()) == []


# The command, with one compilation instead of the search for what fits.
ONE_COMPILATION = """
import runpy
import jax
from segjax import dry_run
from segjax.tiling import memory
memory._MOST_COMPILATIONS = 1
try:
  runpy.run_module('segjax.main', run_name='__main__', alter_sys=True)
except SystemExit as end:
  assert not end.code, end.code
print(f'<{dry_run._devices_of_host()} of {jax.device_count()}>', flush=True)
"""


def test_two_processes_print_once_what_one_does(tmp_path):
  workdir = tmp_path / 'run'
  flags = (*DEMO, '--config.batch_size=8', f'--workdir={workdir}', '--dry_run')
  tables = {}
  for count in (1, 2):
    process = launch(count, sys.executable, '-c', ONE_COMPILATION, *flags)
    assert process.returncode == 0, process.stderr
    # Gloo writes its own lines on several processes.
    assert process.stdout.count('<8 of 8>') == count
    tables[count] = dict(
      re.findall(
        '^(devices|images|parameters|FLOPs per step|bytes per device)  +(.*)$',
        process.stdout,
        re.MULTILINE,
      )
    )
    assert process.stdout.count('bytes per device') == 1
  assert tables[1] == tables[2]
  assert tables[2]['devices'].startswith('8 x cpu')
  assert len(tables[2]) == 5
  assert not workdir.exists()


def test_a_wrong_setting_is_refused():
  config = unet_config()
  config.tile_size_px = 35
  with pytest.raises(InputError, match='nearest: 34 and 36'):
    dry_run.describe(config)


def test_a_compiler_that_says_no_bytes_is_named():
  class Silent:
    def compile(self):
      return self

    def memory_analysis(self):
      return None

  with pytest.raises(InputError, match='cpu does not say how much memory'):
    dry_run._compiled_bytes(Silent())
