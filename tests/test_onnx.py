# SPDX-License-Identifier: Apache-2.0
"""ONNX files give onnxruntime the logits that the networks give."""

import functools
import json
import re
import sys
from pathlib import Path

import fcn_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import REPOSITORY, tiny_config
from random_unets import image_of, random_variables

from segjax.errors import InputError
from segjax.export import export_onnx
from segjax.models import create_model
from segjax.models.fcn import (
  FCN8s,
  FCN8sAtOnce,
  FCN16s,
  FCN32s,
  FCNAlexNet,
  FCNGoogLeNet,
)
from segjax.models.unet import UNet, UNet2015
from segjax.models.unet_vgg16 import UNetVGG16
from segjax.networks import Network
from segjax.prediction.predictor import predict_stored
from segjax.settings.sections import read_prediction
from segjax.steps import init_params
from segjax.tiling.plans import plan_tiles
from segjax.tiling.settings import TileSettings
from segjax.tiling.windows import predict_image

pytest.importorskip('jax2onnx')
import onnx  # noqa: E402
import onnxruntime  # noqa: E402

from segjax.sharing import onnx_file  # noqa: E402

NARROW_UNET = dict(depth=2, base_width=4, num_classes=3)
UNETS = {
  'paper': UNet(**NARROW_UNET),
  '2015': UNet2015(**NARROW_UNET),
  'same': UNet(padding='SAME', in_channels=3, **NARROW_UNET),
  'trained in bfloat16': UNet(dtype=jnp.bfloat16, **NARROW_UNET),
}
UNETS['norm'] = UNet(norm='batch', **NARROW_UNET)
UNETS['on vgg16'] = UNetVGG16(width=1 / 32)
HEADS = dict(heads=(('a', 3), ('b', 1)), learned=('upscore2',))
FCNS = {
  '32s': FCN32s(padding='pad100', **fcn_nets.NARROW),
  '16s': FCN16s(padding='same', **fcn_nets.NARROW),
  '8s': FCN8s(padding='same', **fcn_nets.NARROW),
  'at once': FCN8sAtOnce(padding='pad100', **fcn_nets.NARROW),
  'two heads': FCN8s(padding='same', **HEADS, **fcn_nets.NARROW),
  'alexnet': FCNAlexNet(padding='same', **fcn_nets.NARROW),
  'googlenet': FCNGoogLeNet(padding='same', num_classes=4, width=1 / 16),
}


def session(converted):
  return onnxruntime.InferenceSession(converted.SerializeToString())


def run(session, image, **more):
  """Returns the logits [B, h, w, K] of images [B, H, W, C]."""
  (logits,) = session.run(None, {'image': image.transpose(0, 3, 1, 2), **more})
  return logits.transpose(0, 2, 3, 1)


def assert_close(got, expected):
  """Within 1e-5 of the range."""
  assert got.shape == expected.shape
  scale = np.ptp(expected)
  assert scale > 1e-3
  np.testing.assert_allclose(got / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', UNETS)
def test_a_unet_of_any_batch_and_size(name):
  model = UNETS[name]
  params = random_variables(model)['params']
  converted = session(onnx_file.to_onnx(model, params, 0, {}))
  first, period = model.geometry.smallest_input, model.geometry.period
  apply = jax.jit(model.clone(dtype=jnp.float32).apply)
  for batch, height, width in ((1, 1, 4), (2, 3, 2)):
    height, width = first + height * period, first + width * period
    image = np.stack([image_of(height, width, model.in_channels)] * batch)
    image[-1] *= 0.5
    expected = apply({'params': params}, image)
    assert_close(run(converted, image), np.asarray(expected))


@pytest.mark.parametrize('name', FCNS)
def test_an_fcn_of_one_size(name):
  model = FCNS[name]
  params = fcn_nets.random_params(model)
  converted = session(onnx_file.to_onnx(model, params, 56, {}))
  image = 50 * image_of(56, 56, 3)[None]
  apply = jax.jit(model.apply)
  for size in ([[56, 56]], [[33, 50]]):
    size = np.int32(size)
    expected = apply({'params': params}, image, size=size)
    assert_close(run(converted, image, size=size), np.asarray(expected))


def test_a_file_of_an_fcn_does_not_grow_with_the_tile():
  model = FCNS['8s']
  params = fcn_nets.random_params(model)
  small, large = (
    onnx_file.to_onnx(model, params, side, {}).ByteSize() for side in (64, 160)
  )
  num_bytes = sum(x.nbytes for x in jax.tree.leaves(params))
  assert small - num_bytes < 1.2e5  # The graph.
  assert large - small < 5e4


def test_the_form_for_tilers_of_an_fcn():
  """With another order of channels, each head on its own, and no `size`."""
  model = FCNS['two heads']
  params = fcn_nets.random_params(model)
  tile = 2 * model.geometry.margin + model.geometry.period
  converted = onnx_file.to_onnx(
    model, params, tile, {}, channels=(2, 1, 0), for_tilers=True
  )
  assert [value.name for value in converted.graph.input] == ['image']
  image = image_of(tile, tile, 3)[None]
  logits = jax.jit(model.apply)({'params': params}, image[..., ::-1])
  expected = [jax.nn.softmax(logits[..., :3]), np.ones_like(logits[..., 3:])]
  assert_close(run(session(converted), image), np.concatenate(expected, -1))
  with pytest.raises(InputError, match=f'size_px={tile - 1} must be a multip'):
    onnx_file.tiler_sizes(model.geometry, tile - 1)


@pytest.mark.parametrize('name', ['paper', 'same'])
def test_the_form_for_tilers_of_a_unet(name):
  """As large as the image, on the grid of segjax's own tiles, zero around."""
  model = UNETS[name]
  params = random_variables(model)['params']
  sizes = onnx_file.tiler_sizes(model.geometry, 0)
  converted = onnx_file.to_onnx(model, params, 0, {}, for_tilers=True)
  side, halo = sizes.least + sizes.step, sizes.halo
  assert (side - 2 * halo) % model.geometry.period == 0
  assert halo % model.geometry.period == 0
  image = image_of(40, 44, model.in_channels)
  padded = np.pad(image, [(halo, side)] * 2 + [(0, 0)], mode='reflect')
  got = run(session(converted), padded[None, :side, :side])[0]
  assert got.shape == (side, side, 3)
  inner = slice(halo, side - halo)
  expected = predict_image(model, params, image)[: side - 2 * halo]
  assert_close(got[inner, inner], expected[:, : side - 2 * halo])


def test_convolutions_are_plain():
  """As many as there are layers: none in parts, as Winograd's form has them."""
  model = UNet(depth=1, base_width=64)  # Wide enough for that form.
  converted = onnx_file.to_onnx(model, random_variables(model)['params'], 0, {})
  types = [node.op_type for node in converted.graph.node]
  assert types.count('Conv') == 4 + 2 + 1 + 1  # Blocks, up, head.
  assert not {'Expand', 'Dropout'} & {*types}


def network():
  config = tiny_config()
  model = create_model(config.model)
  return Network(model, init_params(model, jax.random.key(0)), config)


def test_a_file_says_how_to_predict_images(tmp_path):
  """Prepared, mirrored, cut and put together by what is in the file alone."""
  model, params, config = network()
  image = np.random.default_rng(0).integers(0, 256, (45, 70, 1), np.uint8)
  expected = predict_stored(model, params, image, *read_prediction(config))
  export_onnx(Network(model, params, config), tmp_path / 'net.onnx')
  file = onnx.load(tmp_path / 'net.onnx')
  said = {each.key: json.loads(each.value) for each in file.metadata_props}
  (opset,) = file.opset_import
  assert (opset.domain, opset.version) == ('', onnx_file.OPSET)
  assert [value.name for value in file.graph.input] == ['image']
  assert [value.name for value in file.graph.output] == ['logits']
  assert said['class_names'] == ['membrane', 'cell']
  assert said['tiles']['border'].startswith('reflect')

  pixels, tiles = said['pixels'], said['tiles']
  prepared = (image / 255 - pixels['mean']) / pixels['std']
  tile, margin = tiles['tile_px'], tiles['margin_px']
  step = (tile - 2 * margin) // tiles['period_px'] * tiles['period_px']
  height, width = image.shape[:2]
  pads = [(margin, margin + step), (margin, margin + step), (0, 0)]
  padded = np.float32(np.pad(prepared, pads, mode='reflect'))
  runtime = session(file)
  logits = np.zeros((height + step, width + step, 2), np.float32)
  for y in range(0, height, step):
    for x in range(0, width, step):
      one = run(runtime, padded[None, y : y + tile, x : x + tile])[0]
      logits[y : y + step, x : x + step] = one[:step, :step]
  got = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  assert np.ptp(expected) > 0.01
  np.testing.assert_allclose(got[:height, :width], expected, atol=1e-5)


@pytest.mark.parametrize(
  ('padding', 'per_image'), [('VALID', False), ('SAME', False), ('VALID', True)]
)
def test_the_page_predicts_an_image(padding, per_image, tmp_path, monkeypatch):
  """Executes the lines of docs/sharing.md."""
  page = (Path(REPOSITORY) / 'docs' / 'sharing.md').read_text()
  blocks = re.findall('```python\n(.*?)```', page, re.DOTALL)
  (lines,) = (block for block in blocks if 'net.onnx' in block)
  _, _, config = network()
  config.model.padding = padding
  config.preprocessing.limits = ((0.1,), (0.8,))
  config.preprocessing.per_image = per_image
  model = create_model(config.model)
  params = random_variables(model)['params']
  export_onnx(Network(model, params, config), tmp_path / 'net.onnx')
  monkeypatch.chdir(tmp_path)
  image = np.random.default_rng(0).integers(0, 256, (45, 70, 1), np.uint8)
  names = {'image': image}
  exec(lines, names)
  preprocessing, tiles = read_prediction(config, activation='logits')
  expected = predict_stored(model, params, image, preprocessing, tiles)
  assert_close(names['logits'].transpose(1, 2, 0), expected)


def test_sizes_are_those_of_the_plan():
  """What a file says of tiles is what segjax plans by."""
  for model, tile in ((UNETS['paper'], 60), (FCNS['8s'], 512)):
    said = onnx_file.describe_sizes(model.geometry, tile)
    plan = plan_tiles(999, 999, model.geometry, TileSettings(tile_size=tile))
    assert (said['period_px'], said['margin_px']) == (plan.period, plan.margin)
    assert said['output_px'] == model.geometry.output_size(tile)


def test_what_is_missing_or_wrong_is_said(tmp_path, monkeypatch):
  write = functools.partial(export_onnx, network())
  with pytest.raises(InputError, match='net.pb must end in .onnx'):
    write(tmp_path / 'net.pb')
  (tmp_path / 'old.onnx').write_text('')
  with pytest.raises(InputError, match='old.onnx exists; give --overwrite'):
    write(tmp_path / 'old.onnx')
  with pytest.raises(InputError, match='35 px is not admissible'):
    write(tmp_path / 'net.onnx', size_px=35)
  with monkeypatch.context() as patch:
    patch.setattr(jax, '__version_info__', (0, 12, 0))
    with pytest.raises(InputError, match='too new for the converter'):
      write(tmp_path / 'net.onnx')
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(InputError, match=r"pip install 'segjax\[onnx\]'"):
    write(tmp_path / 'net.onnx')
  assert [file.name for file in tmp_path.iterdir()] == ['old.onnx']


def test_parameters_that_no_file_holds(monkeypatch):
  monkeypatch.setattr(onnx_file, '_MOST_BYTES', 100)
  model, params, _ = network()
  with pytest.raises(InputError, match='a file of ONNX holds 100'):
    onnx_file.to_onnx(model, params, 34, {})
