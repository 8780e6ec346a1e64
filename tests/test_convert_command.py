# SPDX-License-Identifier: Apache-2.0
"""Test of `python -m segjax.convert`, on a network of full width."""

import subprocess
import sys

from caffemodel import write_caffemodel
from narrow_nets import (
  assert_equal,
  caffe_layers,
  dense_bilinear,
  random_params,
)

from segjax.models import fcn
from segjax.weights import files


def run(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'segjax.convert', *arguments],
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_command_line(tmp_path):
  model = fcn.FCNGoogLeNet(
    num_classes=3,
    heads=(('sem', 2), ('geo', 1)),
    in_channels=4,
    first_conv='conv1_bgrd',
  )
  params = random_params(model)
  layers = caffe_layers(params)
  for name in ('conv2/3x3_reduce', 'conv2/3x3'):
    layers[name] = layers.pop(name.replace('/', '_'))
  layers['upscore_sem'] = [dense_bilinear(63, 2)]
  layers['upscore_geo'] = [dense_bilinear(63, 1)]
  write_caffemodel(tmp_path / 'net.caffemodel', layers)
  arguments = (
    f'--input={tmp_path}/net.caffemodel',
    '--model=fcn_googlenet',
    '--heads=sem:2,geo:1',
    '--in_channels=4',
    '--first_conv=conv1_bgrd',
    f'--output={tmp_path}/net.npz',
  )
  done = run(*arguments)
  assert (done.returncode, done.stderr) == (0, '')
  assert 'conv2_3x3/kernel <- conv2/3x3[0]' in done.stdout
  assert 'upscore_geo[0]: as the model computes it' in done.stdout
  assert '118 matched, 2 fixed, 0 not used, 0 initial' in done.stdout
  assert_equal(files.read_arrays(tmp_path / 'net.npz'), params)
  assert files.read_metadata(tmp_path / 'net.npz') == {
    'model': 'fcn_googlenet',
    'pixels': '0..255',
    'padding': 'pad100',
  }
  wrong = (*arguments, '--heads=sem')
  for again, expected in (
    (run(*arguments), 'net.npz exists'),
    (run(*wrong), 'heads=sem must be NAME:CLASSES'),
  ):
    assert (again.returncode, again.stdout) == (2, '')
    assert again.stderr.startswith('error: ')
    assert expected in again.stderr
    assert again.stderr.count('\n') == 1
