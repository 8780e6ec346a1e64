# SPDX-License-Identifier: Apache-2.0
"""Image files in, predictions out, by a run that was trained."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from commands import DEMO, run, tiny_config
from ml_collections import ConfigDict
from PIL import Image

from segjax import predict
from segjax.contracts import FunctionModel
from segjax.data import synthetic
from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.images import files
from segjax.networks import Network, load_run
from segjax.predict import predict_files
from segjax.prediction.outputs import encode, plan_outputs
from segjax.settings.sections import PreprocessingSettings
from segjax.tiling import windows
from segjax.tiling.settings import TileSettings


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('predict') / 'run'
  process = run('main', *DEMO, f'--workdir={folder}')
  assert process.returncode == 0, process.stderr
  return folder


@pytest.fixture(scope='module')
def stack():
  """Gray values u8[3, 37, 50]."""
  return synthetic.neuron_stack(3, 50, seed=1)[0][:, :37]


def in_process(workdir, image, checkpoint='latest', **options):
  """The prediction f32[H, W, 2] of gray values [H, W] by the tiler alone."""
  options.setdefault('average', True)  # As the demo's evaluation.
  model, params, config = load_run(workdir, checkpoint)
  image = PreprocessingSettings(**config.preprocessing).prepare(
    image[..., None]
  )
  return windows.predict_image(model, params, image, TileSettings(**options))


@pytest.mark.smoke
def test_command_writes_a_stack_of_probabilities(workdir, stack, tmp_path):
  source, output = tmp_path / 'in.tif', tmp_path / 'probabilities.tif'
  files.write_stack(source, stack)
  process = run(
    'predict', f'--workdir={workdir}', f'--input={source}', f'--output={output}'
  )
  assert process.returncode == 0, process.stderr
  assert process.stderr == ''
  assert (
    process.stdout
    == f'{output}: probabilities of 3 images, by tiles of 66 x 66 px\n'
  )
  with tifffile.TiffFile(output) as file:
    assert len(file.pages) == 3
    assert {page.dtype.name for page in file.pages} == {'float32'}
    written = file.asarray()
  assert written.shape == (3, 37, 50)
  assert written.min() >= 0
  assert written.max() <= 1
  expected = [in_process(workdir, image)[..., 1] for image in stack]
  np.testing.assert_allclose(written, expected, atol=1e-5)
  assert np.ptp(written) > 0.01  # Or the comparison would show little.


def test_command_writes_what_its_flags_say(workdir, stack, tmp_path):
  source, output = tmp_path / 'in.png', tmp_path / 'logits.npy'
  files.write_stack(source, stack[:1])
  files.write_stack(output, stack)
  process = run(
    'predict',
    f'--workdir={workdir}',
    f'--input={source}',
    f'--output={output}',
    '--kind=logits',
    '--checkpoint=2',
    '--tile_size_px=34',
    '--notta',
    '--overwrite',
  )
  assert process.returncode == 0, process.stderr
  written = np.load(output)
  assert written.dtype == np.float32
  expected = in_process(
    workdir, stack[0], '2', average=False, tile_size=34, activation='logits'
  )
  np.testing.assert_allclose(written, expected[None], atol=1e-5)
  last = in_process(workdir, stack[0], activation='logits', average=False)
  assert np.abs(written - last).max() > 1e-3


def test_command_computes_in_bfloat16(workdir, stack, tmp_path):
  source, output = tmp_path / 'in.png', tmp_path / 'out.npy'
  files.write_stack(source, stack[:1])
  process = run(
    'predict',
    f'--workdir={workdir}',
    f'--input={source}',
    f'--output={output}',
    '--compute_dtype=bfloat16',
  )
  assert process.returncode == 0, process.stderr
  written = np.load(output)
  assert written.dtype == np.float32
  expected = in_process(workdir, stack[0])[..., 1]
  difference = np.abs(written[0] - expected).max()
  assert 1e-4 < difference < 0.05  # Eight bits, over eight turns.


@pytest.mark.smoke
def test_labels_of_one_image(workdir, stack, tmp_path, capsys):
  files.write_stack(tmp_path / 'in.png', stack[:1])
  output = tmp_path / 'labels.png'
  predict_files(load_run(workdir), tmp_path / 'in.png', output, kind='labels')
  with Image.open(output) as picture:
    assert picture.mode == 'P'
    written = np.asarray(picture)  # Classes; they are shown in their colours.
    shown = np.asarray(picture.convert('RGB'))
  expected = in_process(workdir, stack[0])
  np.testing.assert_array_equal(written, expected[..., 1] > expected[..., 0])
  for channel in range(3):
    np.testing.assert_array_equal(shown[..., channel], 255 * written)
  said = f'{output}: labels of 1 image, by tiles of 66 x 66 px\n'
  assert capsys.readouterr().out == said


@pytest.mark.parametrize(('name', 'index'), [('voc', 15), ('camvid', 3)])
def test_labels_of_many_classes_show_their_colours(
  tmp_path, monkeypatch, name, index
):
  num_classes = {'voc': 21, 'camvid': 11}[name]
  scores = np.zeros((4, 5, num_classes), np.float32)
  scores[1:3, 1:4, index] = 1

  def stream(reader, writer, *arguments, **options):
    writer[slice(0, 4), slice(0, 5)] = scores
    return SimpleNamespace(tile_shape=(4, 5))

  monkeypatch.setattr(predict, 'stream_predict', stream)
  monkeypatch.setattr(predict, 'settle_tiles', lambda *arguments: arguments[2])
  geometry = UNetGeometry()
  model = FunctionModel(None, geometry, 3, (num_classes,))
  config = tiny_config()
  config.data = ConfigDict({'name': name})
  network = Network(model, None, config)
  files.write_stack(tmp_path / 'in.png', np.zeros((1, 4, 5, 3), np.uint8))
  output = tmp_path / 'labels.png'
  predict_files(network, tmp_path / 'in.png', output, kind='labels')
  expected = np.zeros((4, 5), int)
  expected[1:3, 1:4] = index
  np.testing.assert_array_equal(files.read_labels(output)[0, ..., 0], expected)
  with Image.open(output) as picture:
    shown = np.asarray(picture.convert('RGB'))
  colour = {'voc': (192, 128, 128), 'camvid': (128, 64, 128)}[name]
  background = {'voc': (0, 0, 0), 'camvid': (128, 128, 128)}[name]
  assert (shown[1:3, 1:4] == colour).all()
  assert (shown[0] == background).all()


def test_folder_to_folder_and_to_stack(workdir, stack, tmp_path):
  source = tmp_path / 'in'
  source.mkdir()
  for number in (2, 10):  # Not in the order of their names as text.
    files.write_stack(source / f's{number}.png', stack[[number % 3]])
  predict_files(load_run(workdir), source, tmp_path / 'folder')
  predict_files(load_run(workdir), source, tmp_path / 'stack.tif')
  names = sorted(file.name for file in (tmp_path / 'folder').iterdir())
  assert names == ['s10.tif', 's2.tif']
  each = [tifffile.imread(tmp_path / 'folder' / f's{n}.tif') for n in (2, 10)]
  together = tifffile.imread(tmp_path / 'stack.tif')
  np.testing.assert_array_equal(together, each)
  expected = [in_process(workdir, stack[i])[..., 1] for i in (2, 1)]
  np.testing.assert_allclose(together, expected, atol=1e-5)


def test_folder_of_unequal_sizes(workdir, stack, tmp_path):
  source = tmp_path / 'in'
  source.mkdir()
  files.write_stack(source / 'a.tif', stack[:1, :1, :1])
  files.write_stack(source / 'b.tif', stack[:2, :23])
  predict_files(load_run(workdir), source, tmp_path / 'out')
  assert tifffile.imread(tmp_path / 'out' / 'a.tif').shape == (1, 1)
  assert tifffile.imread(tmp_path / 'out' / 'b.tif').shape == (2, 23, 50)


def test_failure_leaves_no_part_of_a_file(workdir, stack, tmp_path):
  source, output = tmp_path / 'in', tmp_path / 'out'
  source.mkdir()
  output.mkdir()
  files.write_stack(source / 'a.png', stack[:1])
  (source / 'b.png').write_bytes((source / 'a.png').read_bytes()[:-9])
  (output / 'b.tif').write_text('old')
  with pytest.raises(InputError, match='b.tif exists; give --overwrite'):
    predict_files(load_run(workdir), source, output)
  assert [file.name for file in output.iterdir()] == ['b.tif']
  with pytest.raises(InputError, match='b.png: truncated'):
    predict_files(load_run(workdir), source, output, overwrite=True)
  names = sorted(file.name for file in output.glob('[!.]*'))
  assert names == ['a.tif', 'b.tif']
  assert tifffile.imread(output / 'a.tif').shape == (37, 50)
  assert (output / 'b.tif').read_text() == 'old'


SCORES = np.array([[[[0.25, 0.75], [1.0, 0.0], [0.4, 0.6]]]], np.float32)


@pytest.mark.parametrize(
  'kind, dtype, expected, stored',
  [
    ('probabilities', 'float32', [[[0.75, 0, 0.6]]], 'float32'),
    ('probabilities', 'float16', [[[0.75, 0, 0.6]]], 'float16'),
    ('probabilities', 'uint8', [[[191, 0, 153]]], 'uint8'),
    ('labels', 'float32', [[[1, 0, 1]]], 'uint8'),
    ('labels', 'uint8', [[[1, 0, 1]]], 'uint8'),
    ('logits', 'float32', SCORES, 'float32'),
    ('logits', 'float16', SCORES, 'float16'),
  ],
)
def test_encode(kind, dtype, expected, stored):
  encoded = encode(SCORES, kind, dtype, (2,))
  assert encoded.dtype == stored
  np.testing.assert_array_equal(encoded, np.asarray(expected, stored))


def test_encode_three_classes():
  scores = np.full((2, 4, 5, 3), 1 / 3, np.float32)
  scores[..., 2] += 0.1
  assert encode(scores, 'probabilities', 'float32', (3,)).shape == (2, 4, 5, 3)
  assert (encode(scores, 'labels', 'float32', (3,)) == 2).all()


def test_encode_two_heads():
  scores = np.zeros((1, 1, 2, 5), np.float32)
  scores[0, 0, :, [1, 4]] = [[1, 0], [0.2, 0.1]]
  # Class 1 of head one, then its tie; class 1 of the second head.
  labels = encode(scores, 'labels', 'float32', (3, 2))
  np.testing.assert_array_equal(labels, [[[[1, 1], [0, 1]]]])


def test_plan_outputs(tmp_path):
  a, b = Path('x/a.png'), Path('y/b.tif')
  out = tmp_path / 'out'
  for kind, ending in (('labels', '.png'), ('logits', '.tif')):
    jobs = plan_outputs([a, b], True, out, kind)
    assert jobs == [([a], out / f'a{ending}'), ([b], out / f'b{ending}')]
  stack = tmp_path / 'out.TIF'
  assert plan_outputs([a, b], True, stack, 'logits') == [([a, b], stack)]
  assert plan_outputs([a], False, stack, 'labels') == [([a], stack)]


def test_plan_outputs_refuses(tmp_path):
  a = Path('x/a.png')
  for inputs, is_folder, name, kind, message in [
    ([a], False, 'out', 'labels', 'none of the endings .tif, .tiff, .png'),
    ([a], True, 'out.jpg', 'labels', 'none of the endings .tif, .tiff, .png'),
    ([a], False, 'out.png', 'logits', 'a .png cannot hold logits; use .tif'),
    ([a], False, 'no/out.tif', 'labels', 'there is no folder .*/no'),
    ([a, Path('a.tif')], True, 'out', 'labels', 'a.png .* would hold two'),
  ]:
    with pytest.raises(InputError, match=message):
      plan_outputs(inputs, is_folder, tmp_path / name, kind)


def test_labels_of_two_heads_are_no_picture(tmp_path):
  image = [tmp_path / 'a.jpg']
  jobs = plan_outputs(image, True, tmp_path / 'out', 'labels', 2)
  assert jobs[0][1].name == 'a.tif'
  with pytest.raises(InputError, match='labels of 2 heads; use .tif'):
    plan_outputs(image, False, tmp_path / 'out.png', 'labels', 2)
