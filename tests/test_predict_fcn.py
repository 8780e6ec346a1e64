# SPDX-License-Identifier: Apache-2.0
"""Converted weights and trained FCNs on files of any size, by the commands."""

import fcn_nets
import numpy as np
import pytest
from caffemodel import write_caffemodel
from commands import run
from PIL import Image
from small_sets import SIZES, write_voc

from segjax import convert
from segjax.data import voc
from segjax.images.files import read_labels, read_stack
from segjax.images.palettes import voc_palette
from segjax.metrics import confusion
from segjax.models.fcn import FCN8s
from segjax.recipes import CAFFE_MEAN
from segjax.weights import files

CONFIG = (
  '--config=configs/fcn8s_voc.py',
  f'--config.model.width={fcn_nets.NARROW["width"]}',
  f'--config.model.fc_features={fcn_nets.NARROW["fc_features"]}',
)
NARROW = fcn_nets.NARROW | {'num_classes': 21}


@pytest.fixture(scope='module')
def net(tmp_path_factory):
  """Model and parameters, and the .npz converted from their caffemodel."""
  folder = tmp_path_factory.mktemp('net')
  model = FCN8s(**NARROW)
  params = fcn_nets.random_params(model)
  layers = fcn_nets.caffe_layers(model, params)
  write_caffemodel(folder / 'net.caffemodel', layers)
  tensors = convert.read_tensors(folder / 'net.caffemodel')
  converted, _ = convert.convert(tensors, model)
  files.write_params(folder / 'net.npz', converted)
  return model, params, folder / 'net.npz'


@pytest.fixture(scope='module')
def voc_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('voc')
  write_voc(folder)
  return folder


def logits_of(net, rgb):
  """What the network gives for an image, prepared by hand."""
  model, params, _ = net
  bgr = rgb[..., ::-1].astype(np.float32) - np.float32([CAFFE_MEAN])
  return np.asarray(model.apply({'params': params}, bgr[None]))[0]


def test_converted_weights_predict_a_folder(net, voc_dir, tmp_path):
  source = voc_dir / 'VOC2011/JPEGImages'
  for kind, output in (('labels', 'labels'), ('overlay', 'overlay')):
    process = run(
      'predict',
      *CONFIG,
      f'--params={net[2]}',
      f'--input={source}',
      f'--output={tmp_path / output}',
      f'--kind={kind}',
    )
    assert process.returncode == 0, process.stderr
  for name, size in zip('abc', SIZES, strict=True):
    rgb = read_stack(source / f'{name}.jpg')[0]
    want = np.argmax(logits_of(net, rgb), axis=-1)
    with Image.open(tmp_path / 'labels' / f'{name}.png') as picture:
      assert picture.mode == 'P'
      got = np.asarray(picture)
      colours = np.asarray(picture.convert('RGB'))
    assert got.shape == size
    assert np.mean(got == want) > 0.99  # But for ties.
    np.testing.assert_array_equal(colours, voc_palette()[got])
    overlay = read_stack(tmp_path / 'overlay' / f'{name}.png')[0]
    assert overlay.shape[0] > size[0] and overlay.shape[1] > 2 * size[1]


def test_converted_weights_predict_logits(net, voc_dir, tmp_path):
  source = voc_dir / 'VOC2011/JPEGImages/a.jpg'
  process = run(
    'predict',
    *CONFIG,
    f'--params={net[2]}',
    f'--input={source}',
    f'--output={tmp_path / "out.npy"}',
    '--kind=logits',
  )
  assert process.returncode == 0, process.stderr
  want = logits_of(net, read_stack(source)[0])
  got = np.load(tmp_path / 'out.npy')
  assert got.shape == (1, *want.shape)
  np.testing.assert_allclose(got[0], want, atol=1e-4 * np.ptp(want))


def test_converted_weights_are_scored(net, voc_dir):
  process = run(
    'evaluate',
    *CONFIG,
    f'--config.data.dir={voc_dir}',
    f'--params={net[2]}',
    '--split=all',
  )
  assert process.returncode == 0, process.stderr
  title, *lines = process.stdout.splitlines()
  assert title == '3 images (all), one pass'
  printed = dict(line.split() for line in lines)
  dataset = voc.load(str(voc_dir), 2011, '', '', '')
  counts = sum(
    confusion.confusion_matrix(
      example['label'], np.argmax(logits_of(net, example['image']), -1), 21
    )
    for example in (*dataset.train, *dataset.heldout)
  )
  want = confusion.segmentation_scores(counts)
  for name in ('pixel_accuracy', 'mean_iu'):
    assert float(printed[name]) == pytest.approx(want[name], abs=2e-3)
  assert {f'iu/{name}' for name in voc.CLASS_NAMES} <= printed.keys()


def test_a_run_goes_on_to_the_next_stage_and_predicts(voc_dir, tmp_path):
  """FCN-32s is trained, FCN-16s starts from its workdir and is evaluated."""
  tiny = (
    f'--config.data.dir={voc_dir}',
    *CONFIG[1:],
    '--config.num_train_steps=1',
    '--config.batching.bucket_px=32',
    '--config.prediction.bucket_px=32',
  )
  first, second = tmp_path / 'fcn32s', tmp_path / 'fcn16s'
  for name, start, workdir in (
    ('fcn32s', 'random', first),
    ('fcn16s', first, second),
  ):
    process = run(
      'main',
      f'--config=configs/{name}_voc.py',
      *tiny,
      f'--config.init.path={start}',
      f'--workdir={workdir}',
    )
    assert process.returncode == 0, process.stderr
  source = f'parameters from {first}, step 1 of 1 (model fcn32s, '
  assert source in process.stdout
  assert 'score_pool4/kernel: LEFT AT ITS INITIAL VALUE' in process.stdout
  assert 'fc6/kernel <- fc6/kernel' in process.stdout
  table = process.stdout[process.stdout.index('pixel_accuracy') :]
  process = run('evaluate', f'--workdir={second}')
  assert process.returncode == 0, process.stderr
  assert process.stdout.splitlines()[1] in table
  output = tmp_path / 'out.png'
  process = run(
    'predict',
    f'--workdir={second}',
    f'--input={voc_dir / "VOC2011/JPEGImages/c.jpg"}',
    f'--output={output}',
    '--kind=labels',
  )
  assert process.returncode == 0, process.stderr
  assert read_labels(output).shape == (1, *SIZES[2], 1)
