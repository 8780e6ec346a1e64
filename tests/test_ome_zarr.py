# SPDX-License-Identifier: Apache-2.0
"""OME-Zarr outputs: axes, pixel sizes, pyramids, classes, and other readers."""

import json
import types

import numpy as np
import pytest
import tensorstore
from test_image_windows import zarr_by_hand
from tiny_network import tiny_network

from segjax import predict
from segjax.errors import InputError
from segjax.images import files, ome_zarr
from segjax.images.calibration import Calibration
from segjax.predict import predict_files
from segjax.prediction.outputs import check_replaceable

STACK = np.random.default_rng(0).integers(0, 256, (4, 40, 50), np.uint8)
UNITS = {'t': 'hour', 'z': 'nanometer', 'y': 'micrometer', 'x': 'micrometer'}


def write_input(folder):
  """Writes two times of two planes as OME-Zarr 0.4, in the order z, t, y, x."""
  planes = STACK.reshape(2, 2, 40, 50).swapaxes(0, 1)
  zarr_by_hand(folder / 'fine', 2, np.ascontiguousarray(planes), [1, 1, 32, 32])
  scales = {
    'axes': [
      {'name': a, 'type': 'time' if a == 't' else 'space', 'unit': UNITS[a]}
      for a in 'ztyx'
    ],
    'datasets': [
      {
        'path': 'fine',
        'coordinateTransformations': [
          {'type': 'scale', 'scale': [500, 1, 0.5, 0.25]},
          {'type': 'translation', 'translation': [0, 0, 100, 8]},
        ],
      }
    ],
    'coordinateTransformations': [{'type': 'scale', 'scale': [1, 3, 2, 2]}],
  }
  (folder / '.zattrs').write_text(json.dumps({'multiscales': [scales]}))


def metadata(folder):
  return json.loads((folder / 'zarr.json').read_text())['attributes']['ome']


def stored(folder):
  spec = {'driver': 'zarr3', 'kvstore': f'file://{folder}/'}
  return tensorstore.open(spec).result().read().result()


def test_predictions_keep_axes_scale_origin_and_units(tmp_path):
  write_input(tmp_path / 'in.zarr')
  np.save(tmp_path / 'in.npy', STACK)
  network = tiny_network(3)
  predict_files(network, tmp_path / 'in.zarr', tmp_path / 'out.zarr')
  predict_files(network, tmp_path / 'in.npy', tmp_path / 'out.npy')
  ome = metadata(tmp_path / 'out.zarr')
  assert ome['version'] == '0.5'
  [scales] = ome['multiscales']
  kinds = {'t': 'time', 'c': 'channel'}
  assert scales['axes'] == [
    {'name': a, 'type': kinds.get(a, 'space')}
    | ({'unit': UNITS[a]} if a in UNITS else {})
    for a in 'tczyx'
  ]
  transforms = scales['datasets'][0]['coordinateTransformations']
  assert transforms == [
    {'type': 'scale', 'scale': [3, 1, 500, 1, 0.5]},
    {'type': 'translation', 'translation': [0, 0, 0, 200, 16]},
  ]
  # Pages are times, and planes of each.
  expected = np.load(tmp_path / 'out.npy').reshape(2, 2, 40, 50, 3)
  np.testing.assert_array_equal(
    stored(tmp_path / 'out.zarr' / '0'), expected.transpose(0, 4, 1, 2, 3)
  )
  np.testing.assert_array_equal(
    files.read_stack(tmp_path / 'out.zarr'), np.load(tmp_path / 'out.npy')
  )
  calibration = files.read_calibration(tmp_path / 'out.zarr')
  assert calibration == files.read_calibration(tmp_path / 'in.zarr')
  assert calibration.pages == {'t': 2, 'z': 2}
  assert calibration.size('z', 'micrometer') == 0.5
  assert calibration.size('t', 'second') == 3 * 3600


@pytest.mark.parametrize(
  ('shape', 'axes'),
  [((1, 8, 9), 'yx'), ((5, 8, 9), 'zyx'), ((1, 8, 9, 3), 'cyx')],
)
def test_axes_of_images_without_any(tmp_path, shape, axes):
  with files.open_canvas(tmp_path / 'a.zarr', shape, 'uint8'):
    pass
  [scales] = metadata(tmp_path / 'a.zarr')['multiscales']
  assert ''.join(axis['name'] for axis in scales['axes']) == axes
  assert not any('unit' in axis for axis in scales['axes'])
  array = json.loads((tmp_path / 'a.zarr' / '0' / 'zarr.json').read_text())
  assert array['dimension_names'] == [*axes]


def halved(values):
  """The means of 2 x 2 pixels; at odd edges, of what is there of them."""
  height, width = values.shape[-2:]
  rows = [range(i, min(i + 2, height)) for i in range(0, height, 2)]
  columns = [range(j, min(j + 2, width)) for j in range(0, width, 2)]
  return np.stack(
    [
      np.stack([values[..., r, :][..., c].mean((-2, -1)) for c in columns], -1)
      for r in rows
    ],
    -2,
  )


@pytest.mark.parametrize('shape', [(2, 45, 70), (1, 45, 70, 3)])
def test_pyramid_is_of_means_or_of_every_second_pixel(
  tmp_path, shape, monkeypatch
):
  monkeypatch.setattr(ome_zarr, 'CHUNK', 16)
  monkeypatch.setattr(ome_zarr, 'LARGE', 20)
  values = np.random.default_rng(0).random(shape, np.float32)
  steps = Calibration({}, {'y': 0.5, 'x': 0.25}, {'y': 3.0, 'x': 0.0})
  for method in ('mean', 'stride'):
    path = tmp_path / f'{method}.zarr'
    with files.open_canvas(path, shape, 'float32', steps) as canvas:
      for n, page in enumerate(values):
        canvas[n, slice(0, 45), slice(0, 70)] = page
    ome_zarr.add_scales(path, method, {'omero': {'channels': []}})
    assert metadata(path)['omero'] == {'channels': []}
    datasets = metadata(path)['multiscales'][0]['datasets']
    assert [dataset['path'] for dataset in datasets] == ['0', '1', '2']
    assert not (path / '3').exists()
    expected = stored(path / '0')
    for level, dataset in enumerate(datasets):
      written = stored(path / f'{level}')
      np.testing.assert_allclose(written, expected, rtol=1e-6)
      scale, shift = (
        [*transform.values()][1][-2:]
        for transform in dataset['coordinateTransformations']
      )
      assert scale == [0.5 * 2**level, 0.25 * 2**level]
      # The middle of the first pixel is that of those that it stands for.
      middle = (2**level - 1) / 2
      assert shift == [3 + 0.5 * middle, 0.25 * middle]
      expected = (
        halved(expected) if method == 'mean' else expected[..., ::2, ::2]
      )


def test_small_images_have_one_scale_and_large_ones_more(tmp_path):
  for width, levels in ((1024, ['0']), (1025, ['0', '1'])):
    path = tmp_path / f'{width}.zarr'
    with files.open_canvas(path, (1, 2, width), 'uint8'):
      pass
    ome_zarr.add_scales(path, 'stride', {})
    assert sorted(f.name for f in path.iterdir() if f.is_dir()) == levels


def test_kill_in_the_pyramid_is_gone_on_with(tmp_path, monkeypatch):
  monkeypatch.setattr('segjax.prediction.partial.RECORD_EVERY_SECONDS', 0)
  monkeypatch.setattr(ome_zarr, 'CHUNK', 16)
  monkeypatch.setattr(ome_zarr, 'LARGE', 20)
  np.save(tmp_path / 'in.npy', STACK)
  network = tiny_network()
  arguments = network, tmp_path / 'in.npy', tmp_path / 'out.zarr'
  files, count = ome_zarr._files, 0

  def kill(axes):
    nonlocal count
    for window in files(axes):
      count += 1
      if count == 3:
        raise KeyboardInterrupt
      yield window

  with monkeypatch.context() as patch:
    patch.setattr(ome_zarr, '_files', kill)
    with pytest.raises(KeyboardInterrupt):
      predict_files(*arguments)
  unfinished = tmp_path / 'out.zarr.partial' / 'out.zarr'
  assert (unfinished / '1').is_dir() and not (tmp_path / 'out.zarr').exists()
  finest = unfinished / '0' / 'c' / '0' / '0' / '0'
  time = finest.stat().st_mtime_ns
  predict_files(*arguments)
  predict_files(*arguments[:2], tmp_path / 'whole.zarr')
  assert (
    tmp_path / 'out.zarr' / finest.relative_to(unfinished)
  ).stat().st_mtime_ns == time
  for level in '012':
    np.testing.assert_array_equal(
      stored(tmp_path / 'out.zarr' / level),
      stored(tmp_path / 'whole.zarr' / level),
    )
  assert not unfinished.parent.exists()


def predicted(tmp_path, kind, network, **options):
  path = tmp_path / f'{kind}.zarr'
  predict_files(network, tmp_path / 'in.npy', path, kind=kind, **options)
  return metadata(path)


def test_classes_have_names_and_colours(tmp_path):
  np.save(tmp_path / 'in.npy', STACK)
  network = tiny_network(3)
  network.config.data = {
    'name': 'folder',
    'class_names': ('background', 'cell', 'border'),
    'colours': ((0, 0, 0), (255, 0, 16), (0, 128, 0)),
  }
  ome = predicted(tmp_path, 'labels', network)
  assert ome['image-label'] == {
    'colors': [
      {'label-value': 0, 'rgba': [0, 0, 0, 0]},
      {'label-value': 1, 'rgba': [255, 0, 16, 255]},
      {'label-value': 2, 'rgba': [0, 128, 0, 255]},
    ],
    'properties': [
      {'label-value': 0, 'class': 'background'},
      {'label-value': 1, 'class': 'cell'},
      {'label-value': 2, 'class': 'border'},
    ],
  }
  assert 'omero' not in ome
  ome = predicted(tmp_path, 'probabilities', network, dtype='uint8')
  channels = ome['omero']['channels']
  assert [channel['label'] for channel in channels] == [
    'background',
    'cell',
    'border',
  ]
  assert [channel['color'] for channel in channels] == [
    'FFFFFF',
    'FF0010',
    '008000',
  ]
  assert channels[0]['window'] == {'min': 0, 'start': 0, 'max': 255, 'end': 255}
  assert 'image-label' not in ome
  assert not {'omero', 'image-label'} & {
    *predicted(tmp_path, 'logits', network)
  }
  # Of two classes there is one probability.
  (tmp_path / 'two').mkdir()
  np.save(tmp_path / 'two' / 'in.npy', STACK)
  ome = predicted(tmp_path / 'two', 'probabilities', tiny_network())
  [channel] = ome['omero']['channels']
  assert (channel['label'], channel['color']) == ('cell', 'FFFFFF')


def test_labels_of_several_heads_are_channels():
  heads = {'head_names': ('semantic', 'geometric'), 'head_sizes': (33, 3)}
  model = types.SimpleNamespace(**heads, num_classes=36)
  names = tuple(f'class {i}' for i in range(36))
  attributes = predict._attributes('labels', 'float32', model, names, None)
  channels = attributes['omero']['channels']
  assert [channel['label'] for channel in channels] == [*heads['head_names']]
  assert channels[0]['window']['end'] == 32
  attributes = predict._attributes('probabilities', 'uint8', model, names, None)
  channels = attributes['omero']['channels']
  assert [channel['label'] for channel in channels] == [*names]


def test_what_segjax_wrote_before_is_read(tmp_path):
  """A plain array that names its axes."""
  values = np.random.default_rng(0).random((2, 8, 9, 3), np.float32)
  spec = {
    'driver': 'zarr3',
    'kvstore': f'file://{tmp_path}/a.zarr/',
    'metadata': {
      'shape': [2, 8, 9, 3],
      'data_type': 'float32',
      'dimension_names': [*'zyxc'],
    },
    'create': True,
  }
  tensorstore.open(spec).result().write(values).result()
  np.testing.assert_array_equal(files.read_stack(tmp_path / 'a.zarr'), values)
  check_replaceable(tmp_path / 'a.zarr')


def test_only_what_segjax_wrote_is_replaced(tmp_path):
  path = tmp_path / 'a.zarr'

  def write():
    with files.open_canvas(path, (1, 8, 9), 'uint8'):
      pass

  def refused():
    with pytest.raises(InputError, match='OME-Zarr that segjax wrote, so it'):
      check_replaceable(path)

  write()
  check_replaceable(path)
  for extra in ('notes.txt', '0/notes.txt', 'labels/zarr.json', '1/0/0'):
    file = path / extra
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text('{}')
    refused()
    file.unlink()
    if not any(file.parent.iterdir()):
      file.parent.rmdir()
    if extra == '1/0/0':
      (path / '1').rmdir()
  check_replaceable(path)
  # The same from another program.
  group = json.loads((path / 'zarr.json').read_text())
  del group['attributes']['ome']['_creator']
  (path / 'zarr.json').write_text(json.dumps(group))
  refused()
  for text in ('[]', '{"node_type": "group"}', '{"attributes": {"ome": 3}}'):
    (path / 'zarr.json').write_text(text)
    refused()


def test_others_read_what_is_written(tmp_path, monkeypatch):
  """The reader of ome-zarr-py, and the validator of ome-zarr-models."""
  why = "pip install '.[test]' installs it"
  io = pytest.importorskip('ome_zarr.io', reason=why)
  reader = pytest.importorskip('ome_zarr.reader', reason=why)
  models = pytest.importorskip('ome_zarr_models', reason=why)
  group = pytest.importorskip('zarr', reason=why)
  monkeypatch.setattr(ome_zarr, 'LARGE', 30)
  write_input(tmp_path / 'in.zarr')
  network = tiny_network(3)
  network.config.data = {'name': 'folder', 'class_names': ('a', 'b', 'c')}
  for kind, model in (('probabilities', 'Image'), ('labels', 'ImageLabel')):
    path = tmp_path / f'{kind}.zarr'
    predict_files(network, tmp_path / 'in.zarr', path, kind=kind)
    opened = group.open_group(str(path), mode='r')
    assert type(models.open_ome_zarr(opened)).__name__ == model
    [node] = reader.Reader(io.parse_url(str(path)))()
    assert len(node.data) == 2
    for level, array in enumerate(node.data):
      np.testing.assert_array_equal(array, stored(path / f'{level}'))
    assert [axis['name'] for axis in node.metadata['axes']] == (
      [*'tczyx'] if kind == 'probabilities' else [*'tzyx']
    )
    if kind == 'probabilities':
      assert node.metadata['channel_names'] == ['a', 'b', 'c']
    else:
      assert node.metadata['color'][1] == [128 / 255, 0, 0, 1]
