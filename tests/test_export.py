# SPDX-License-Identifier: Apache-2.0
"""An exported network predicts what the network does, without its code."""

import ast
import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fcn_nets
import jax
import numpy as np
import pytest
import tifffile
from commands import REPOSITORY, run, tiny_config
from ml_collections import ConfigDict

from segjax import export
from segjax.errors import InputError
from segjax.export import export_network
from segjax.images.files import write_stack
from segjax.models import create_model
from segjax.models.fcn import FCN8s
from segjax.networks import Network
from segjax.predict import predict_files
from segjax.prediction import artifact
from segjax.prediction.predictor import of_stored_pixels, predict_stored
from segjax.prediction.streaming import stream_predict
from segjax.settings.sections import read_prediction
from segjax.steps import init_params
from segjax.weights import files


def unet():
  config = tiny_config()
  model = create_model(config.model)
  return Network(model, init_params(model, jax.random.key(0)), config)


def fcn(**fields):
  model = FCN8s(padding='same', **fcn_nets.NARROW, **fields)
  config = ConfigDict(
    dict(
      data=dict(name='folder', class_names=('a', 'b', 'c', 'd'), colours=()),
      preprocessing=dict(mean=0.5, std=0.25, channels=(2, 1, 0)),
      prediction=dict(bucket_px=0),
      evaluation=dict(average=False),
      mesh=dict(space=1),
    )
  )
  return Network(model, fcn_nets.random_params(model), config)


def predict(model, params, config, image, **changes):
  """Returns what a config's network predicts of an image, as `evaluate`."""
  preprocessing, tiles = read_prediction(config, **changes)
  return predict_stored(model, params, image, preprocessing, tiles)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A U-Net at tiles of 34 px."""
  folder = tmp_path_factory.mktemp('export') / 'net.segjax'
  export_network(unet(), folder)
  return folder


def picture(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize('average', [False, True])
def test_a_unet_predicts_the_same(folder, average):
  model, params, config = unet()
  image = picture(37, 50, 1)
  options = dict(average=average, tile_size=34)
  expected = predict(model, params, config, image, **options)
  loaded, params, config = artifact.load(folder)
  got = predict(loaded, params, config, image, average=average)
  np.testing.assert_allclose(got, expected, atol=1e-6)
  assert np.ptp(expected[..., 1]) > 0.01  # Or equality would show little.


def test_batches_of_tiles_share_the_program(folder):
  image = picture(37, 50, 1)
  model, params, config = artifact.load(folder)
  one = predict(model, params, config, image)
  four = predict(model, params, config, image, tiles_per_batch=4)
  np.testing.assert_allclose(four, one, atol=1e-6)


def test_an_fcn_predicts_images_up_to_its_size(tmp_path):
  model, params, config = network = fcn()
  export_network(network, tmp_path / 'fcn.segjax', size_px=40)
  loaded, arrays, about = artifact.load(tmp_path / 'fcn.segjax')
  for shape in ((40, 23, 3), (17, 40, 3), (40, 40, 3)):
    image = picture(*shape)
    expected = predict(model, params, config, image)
    got = predict(loaded, arrays, about, image)
    assert got.shape == (*shape[:2], 4)
    np.testing.assert_allclose(got, expected, atol=1e-5)
  with pytest.raises(InputError, match='tile size 40 px .* side of 41 px'):
    predict(loaded, arrays, about, picture(41, 23, 3))


def test_an_fcn_predicts_larger_images_by_tiles(tmp_path):
  model, params, config = network = fcn()
  tile = 2 * model.geometry.margin + 2 * model.geometry.period
  export_network(network, tmp_path / 'fcn.segjax', size_px=tile)
  loaded, arrays, about = artifact.load(tmp_path / 'fcn.segjax')
  image = picture(tile + 40, 20, 3)
  expected = predict(model, params, config, image)
  got = np.zeros_like(expected)
  preprocessing, tiles = read_prediction(about)
  stored = of_stored_pixels(loaded, preprocessing)
  stream_predict(image, got, stored, arrays, tiles)
  np.testing.assert_allclose(got, expected, atol=1e-5)
  assert np.ptp(expected[-40:]) > 0.01


def test_heads_stay_apart(tmp_path):
  model, params, config = network = fcn(heads=(('a', 3), ('b', 1)))
  export_network(network, tmp_path / 'net', size_px=24)
  loaded, arrays, about = artifact.load(tmp_path / 'net')
  image = picture(24, 20, 3)
  expected = predict(model, params, config, image)
  got = predict(loaded, arrays, about, image)
  np.testing.assert_allclose(got, expected, atol=1e-5)
  np.testing.assert_allclose(got[..., 3], 1)  # A head of one class.


def test_files_are_predicted_without_the_model_code(folder, tmp_path):
  """Names and colours of classes come with it, too."""
  shape = (2, 37, 50)
  write_stack(tmp_path / 'in.tif', picture(*shape))
  predict_files(
    unet(), tmp_path / 'in.tif', tmp_path / 'expected.tif', tile_size_px=34
  )
  code = f"""
import sys
sys.modules['segjax.models'] = None  # Importing it fails.
from segjax.prediction import artifact
from segjax.data import look_of
from segjax.images.files import read_stack, write_stack
from segjax.prediction.predictor import predict_stored
from segjax.settings.sections import read_prediction
model, params, config = artifact.load({str(folder)!r})
how = read_prediction(config, average=config.evaluation.average)
stack = read_stack({str(tmp_path / 'in.tif')!r})
probabilities = [
  predict_stored(model, params, image, *how)[..., 1] for image in stack
]
write_stack({str(tmp_path / 'out.npy')!r}, probabilities)
print(look_of(config.data, model.num_classes)[0])
"""
  process = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=REPOSITORY
  )
  assert process.returncode == 0, process.stderr
  assert process.stdout == "('membrane', 'cell')\n"
  expected = tifffile.imread(tmp_path / 'expected.tif')
  assert expected.shape == shape
  got = np.load(tmp_path / 'out.npy')
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_commands(folder, tmp_path):
  network = unet()
  params, net, card = (str(tmp_path / n) for n in ('p.npz', 'net', 'card.py'))
  files.write_params(params, network.params)
  text = json.dumps(network.config.to_dict())
  (tmp_path / 'card.py').write_text(
    'import json, ml_collections\n'
    f'def get_config(): return ml_collections.ConfigDict(json.loads({text!r}))'
  )
  given = (f'--config={card}', f'--params={params}', f'--output={net}')
  process = run('export', *given)
  assert process.returncode == 0, process.stderr
  assert process.stdout == f'{net}: for cpu, cuda, tpu\n'
  again = run('export', *given)
  assert again.returncode == 2
  message = f'error: {net} exists; give --overwrite to replace it\n'
  assert again.stderr == message

  write_stack(tmp_path / 'in.tif', picture(1, 20, 30))
  for output, source in (('a', f'--artifact={net}'), ('b', '')):
    source = (source,) if source else (*given[:2], '--tile_size_px=34')
    paths = f'--input={tmp_path}/in.tif', f'--output={tmp_path}/{output}.tif'
    process = run('predict', *source, *paths)
    assert process.returncode == 0, process.stderr
  a, b = (tifffile.imread(tmp_path / f'{name}.tif') for name in 'ab')
  np.testing.assert_allclose(a, b, atol=1e-6)
  both = run('predict', f'--artifact={net}', *given[:2], *paths)
  assert both.returncode == 2
  assert 'is a whole network' in both.stderr


def test_the_description_is_for_people_and_other_programs(folder):
  described = json.loads((folder / 'artifact.json').read_text())
  assert described['input'] == 'float32[n,34,34,1]'
  assert described['output'] == 'float32[n,18,18,2]'
  assert described['jax'] == jax.__version__
  assert described['platforms'] == ['cpu', 'cuda', 'tpu']
  geometry = {'depth': 1, 'convs_per_block': 2, 'padding': 'VALID'}
  assert described['geometry'] == geometry
  assert described['preprocessing']['mean'] == 0.495
  assert described['class_names'] == ['membrane', 'cell']


def test_sizes_are_the_networks(folder, tmp_path):
  net = tmp_path / 'net'
  with pytest.raises(InputError, match='35 px is not admissible'):
    export_network(unet(), net, size_px=35)
  config = tiny_config()
  config.model.depth = 4
  deep = Network(create_model(config.model), {}, config)
  with pytest.raises(InputError, match='188 px is too small .* use 204'):
    export_network(deep, net, size_px=188)
  deep.config.tile_size_px = 188
  with pytest.raises(InputError, match='^give --size_px=N, .* 188 .* use 204'):
    export_network(deep, net)
  with pytest.raises(InputError, match='size_px=None: .* side of the tiles'):
    export_network(fcn(), net)
  assert not list(tmp_path.iterdir())
  export_network(unet(), net, size_px=50)
  model, params, config = artifact.load(net)
  with pytest.raises(InputError, match='tiles of 34 x 34 x 1 .* 50 x 50 x 1'):
    predict(model, params, config, picture(20, 20, 1), tile_size=34)


def test_only_an_artifact_is_replaced(folder, tmp_path):
  net = shutil.copytree(folder, tmp_path / 'net')
  (net / 'artifact.json').unlink()
  with pytest.raises(InputError, match='net exists; give --overwrite'):
    export_network(unet(), net)
  export_network(unet(), net, overwrite=True)
  artifact.load(net)
  (net / 'mine.txt').write_text('')
  with pytest.raises(InputError, match='something else than an artifact'):
    export_network(unet(), net, overwrite=True)
  with pytest.raises(InputError, match='there is no folder'):
    export_network(unet(), tmp_path / 'no' / 'net')
  assert [file.name for file in tmp_path.iterdir()] == ['net']


def test_a_full_disk_leaves_the_old_artifact(folder, tmp_path, monkeypatch):
  net = shutil.copytree(folder, tmp_path / 'net')

  def fill(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(Path, 'write_bytes', fill)
  with pytest.raises(InputError, match='net: cannot be written; No space left'):
    export_network(unet(), net, overwrite=True)
  artifact.load(net)
  assert [file.name for file in tmp_path.iterdir()] == ['net']


def cut(file):
  file.write_bytes(file.read_bytes()[:-20])


def edited(**changed):
  def edit(file):
    described = json.loads(file.read_text()) | changed
    kept = {k: v for k, v in described.items() if v != 'remove'}
    file.write_text(json.dumps(kept))

  return edit


@pytest.mark.parametrize(
  ('name', 'damage', 'message'),
  [
    ('program.bin', cut, 'program.bin is cut short or changed'),
    ('params.safetensors', cut, 'safetensors is cut short or changed'),
    ('artifact.json', cut, 'artifact.json is not whole'),
    ('program.bin', lambda f: f.unlink(), 'cannot read .*program.bin: No such'),
    ('artifact.json', lambda f: f.unlink(), 'no artifact at .*net: cannot'),
    ('artifact.json', lambda f: f.write_text('[]'), 'describes no artifact'),
    ('artifact.json', edited(format=3), 'format 3; known are 1 to 2'),
    ('artifact.json', edited(palette='remove'), "it lacks 'palette'"),
    ('artifact.json', edited(sha256={}), "it lacks 'program.bin'"),
    ('artifact.json', edited(head_sizes=[3]), r'2 logits, heads of \(3,\)'),
    ('artifact.json', edited(geometry={'deep': 1}), "argument 'deep'"),
    ('artifact.json', edited(prediction={}), 'lacks the tile_size'),
    ('artifact.json', edited(palette=[[0, 0]]), 'expected 2 colours'),
    ('artifact.json', edited(palette='red'), "palette='red'"),
    ('artifact.json', edited(palette=[[0, 0, 0], [0, 0, 999]]), '0..255'),
    (
      'artifact.json',
      edited(palette=[[0, 0, 0], [0, 0]]),
      'expected 2 colours',
    ),
    ('artifact.json', edited(class_names=['a']), 'expected 2 names'),
    ('artifact.json', edited(class_names=7), 'describes no artifact'),
  ],
)
def test_damage_is_refused(folder, tmp_path, name, damage, message):
  net = shutil.copytree(folder, tmp_path / 'net')
  damage(net / name)
  with pytest.raises(InputError, match=message):
    artifact.load(net)


def sealed(net):
  """Makes the digests those of the files that are there."""
  names = ('program.bin', 'params.safetensors')
  digests = {name: artifact._digest(net / name) for name in names}
  edited(sha256=digests)(net / 'artifact.json')


def test_a_program_that_jax_cannot_read(folder, tmp_path):
  """Its digest is right: another version of jax wrote it."""
  net = shutil.copytree(folder, tmp_path / 'net')
  cut(net / 'program.bin')
  sealed(net)
  edited(jax='99.0')(net / 'artifact.json')
  message = (
    f'jax {jax.__version__} cannot read .*, written by jax 99.0; install'
  )
  with pytest.raises(InputError, match=message) as raised:
    artifact.load(net)
  assert '\n' not in str(raised.value)


def test_flipped_bits_are_refused_in_one_line(folder, tmp_path):
  """Before jax sees them, whose parser may end the process."""
  net = shutil.copytree(folder, tmp_path / 'net')
  program = net / 'program.bin'
  whole = program.read_bytes()
  for place in np.random.default_rng(0).integers(8 * len(whole), size=40):
    data = bytearray(whole)
    data[place // 8] ^= 1 << (place % 8)
    program.write_bytes(data)
    with pytest.raises(InputError, match='program.bin is cut short or') as e:
      artifact.load(net)
    assert '\n' not in str(e.value)


def test_parameters_are_those_of_the_program(folder, tmp_path):
  net = shutil.copytree(folder, tmp_path / 'net')
  file = net / 'params.safetensors'
  params = files.read_params(file)
  bottleneck = params.pop('bottleneck')
  files.write_params(file, params, overwrite=True)
  sealed(net)
  with pytest.raises(
    InputError, match='has no bottleneck/conv0/bias; the program has bottle'
  ):
    artifact.load(net)
  params['bottleneck'] = bottleneck
  params['head']['bias'] = np.zeros(3, np.float32)
  files.write_params(file, params, overwrite=True)
  sealed(net)
  with pytest.raises(InputError, match=r'head/bias \[3\]; the .*bias \[2\]'):
    artifact.load(net)


def test_batches_that_no_memory_holds(folder, tmp_path):
  net = shutil.copytree(folder, tmp_path / 'net')
  described = json.loads((net / 'artifact.json').read_text())
  described['prediction']['tiles_per_batch'] = 10**9
  (net / 'artifact.json').write_text(json.dumps(described))
  loaded = artifact.load(net)
  with pytest.raises(InputError, match='tiles_per_batch=1000000000 tiles of'):
    predict(*loaded, picture(20, 20, 1))


def test_an_older_artifact_loads(folder, tmp_path):
  """One of format 1: params.npz, and no version of jax."""
  net = shutil.copytree(folder, tmp_path / 'net')
  params = files.read_params(net / 'params.safetensors')
  (net / 'params.safetensors').unlink()
  files.write_params(net / 'params.npz', params)
  names = ('program.bin', 'params.npz')
  digests = {name: artifact._digest(net / name) for name in names}
  edited(format=1, jax='remove', sha256=digests)(net / 'artifact.json')
  image = picture(20, 30, 1)
  got = predict(*artifact.load(net), image)
  np.testing.assert_array_equal(got, predict(*artifact.load(folder), image))
  export_network(unet(), net, overwrite=True)
  assert not (net / 'params.npz').exists()


# All that jax.export needs, and Python's own.
ALONE = ('jax', 'jaxlib', 'numpy', 'scipy', 'ml_dtypes', 'flatbuffers')
ALONE += ('opt_einsum',)
BLOCKER = f"""
import sys
class Only:
  def __init__(self, finder):
    self.finder = finder
  def find_spec(self, name, *rest):
    top = name.partition('.')[0]
    # A private module of the standard library is named after the platform.
    is_own = top in sys.stdlib_module_names or top.startswith('_sysconfigdata')
    if is_own or top in {ALONE}:
      return self.finder.find_spec(name, *rest)
sys.meta_path[:] = map(Only, sys.meta_path)
"""


@pytest.mark.parametrize('per_image', [False, True])
@pytest.mark.parametrize('network', [unet, fcn])
def test_the_page_runs_an_artifact_with_jax_alone(network, per_image, tmp_path):
  """Executes the lines of docs/sharing.md where nothing else can be loaded."""
  page = (Path(REPOSITORY) / 'docs' / 'sharing.md').read_text()
  (lines,) = re.findall(r'```python\n(.*?jax.*?program.bin.*?)```', page, re.S)
  assert len(ast.parse(lines).body) <= 15
  model, params, config = network()
  pixels = config.preprocessing
  pixels.limits = ((0.1,), (0.8,))
  if per_image:
    pixels.update(limits=((-2.0,), (2.0,)), per_image=True, dtype='')
  sizes = {}
  if model.geometry.takes_any_size:
    sizes = {'size': np.int32([[20, 30]])}
    lines = lines.rstrip()[:-1] + ', np.int32([[20, 30]]))\n'
  net = Network(model, params, config)
  export_network(net, tmp_path / 'net.segjax', size_px=34)
  process = subprocess.run(
    [sys.executable, '-c', BLOCKER + lines + "np.save('logits.npy', logits)"],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert process.returncode == 0, process.stderr
  shape = 1, 34, 34, model.in_channels
  tile = np.random.default_rng(0).integers(0, 256, shape)
  if per_image:
    unit = ((tile - tile.mean((1, 2))) / tile.std((1, 2)) + 2) / 4
  else:
    unit = (tile / 255 - 0.1) / 0.7
  unit = unit[..., list(pixels.channels) or slice(None)]
  prepared = np.float32((unit - pixels.mean) / pixels.std)
  expected = model.apply({'params': params}, prepared, **sizes)
  got = np.load(tmp_path / 'logits.npy')
  scale = np.ptp(expected)
  assert scale > 0.01
  np.testing.assert_allclose(got / scale, expected / scale, atol=1e-5)


def test_a_program_for_other_platforms(tmp_path, monkeypatch):
  monkeypatch.setattr(export, 'PLATFORMS', ('tpu', 'cuda'))
  export_network(unet(), tmp_path / 'net')
  with pytest.raises(InputError, match='for tpu, cuda, and this is cpu'):
    artifact.load(tmp_path / 'net')
