# SPDX-License-Identifier: Apache-2.0
"""Axes and pixel sizes of TIFF files, as tifffile reads and writes them."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny_network import tiny_network

from segjax.errors import InputError
from segjax.images import files, tiff
from segjax.images.calibration import Calibration
from segjax.predict import predict_files

STACK = np.random.default_rng(0).integers(0, 256, (6, 30, 40), np.uint8)
MICROMETERS = {'z': 'micrometer', 'y': 'micrometer', 'x': 'micrometer'}
KNOWN = Calibration(
  {'t': 2, 'z': 3},
  {'t': 1.5, 'z': 2.0, 'y': 0.65, 'x': 0.325},
  {},
  {'t': 'second', **MICROMETERS},
)


def write_imagej(path, unit='um', factor=1.0):
  tifffile.imwrite(
    path,
    STACK.reshape(2, 3, 30, 40),
    imagej=True,
    resolution=(factor / 0.325, factor / 0.65),
    metadata={
      'axes': 'TZYX',
      'unit': unit,
      'spacing': 2 / factor,
      'finterval': 1.5,
    },
  )


def test_imagej_and_ome_state_axes_and_sizes(tmp_path):
  for unit, factor in (
    ('um', 1),
    ('micron', 1),
    ('\\u00B5m', 1),
    ('nm', 1e-3),
    ('mm', 1e3),
  ):
    write_imagej(tmp_path / 'a.tif', unit, factor)
    assert files.read_calibration(tmp_path / 'a.tif') == KNOWN, unit
  write_imagej(tmp_path / 'a.tif', 'pixel')
  calibration = files.read_calibration(tmp_path / 'a.tif')
  assert calibration.steps == {'t': 1.5} and calibration.pages == KNOWN.pages
  tifffile.imwrite(
    tmp_path / 'a.ome.tif',
    STACK.reshape(2, 3, 30, 40),
    metadata={
      'axes': 'TZYX',
      'PhysicalSizeX': 325,
      'PhysicalSizeXUnit': 'nm',
      'PhysicalSizeY': 0.65,
      'PhysicalSizeZ': 0.002,
      'PhysicalSizeZUnit': 'mm',
      'TimeIncrement': 1500,
      'TimeIncrementUnit': 'ms',
    },
  )
  assert files.read_calibration(tmp_path / 'a.ome.tif') == KNOWN


def test_resolutions_for_prints_are_no_pixel_sizes(tmp_path):
  for unit, per, expected in (
    ('CENTIMETER', 1e4 / 0.65, 0.65),
    ('INCH', 25400 / 0.65, 0.65),
    ('INCH', 300, None),
    ('INCH', 1200, None),
    ('CENTIMETER', 28.35, None),
    ('NONE', 1e4, None),
  ):
    tifffile.imwrite(
      tmp_path / 'a.tif',
      STACK[0],
      resolution=(per, per),
      resolutionunit=unit,
      metadata=None,
    )
    calibration = files.read_calibration(tmp_path / 'a.tif')
    assert calibration.size('x', 'micrometer') == expected, (unit, per)
    assert calibration.size('y', 'micrometer') == expected
  Image.fromarray(STACK[0]).save(tmp_path / 'b.tif', dpi=(72, 72))
  Image.fromarray(STACK[0]).save(tmp_path / 'b.png', dpi=(72, 72))
  for name in ('b.tif', 'b.png'):
    assert files.read_calibration(tmp_path / name) == Calibration()


@pytest.mark.parametrize('channels', [None, 1, 3, 5])
@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float32', 'float16'])
def test_others_find_axes_and_sizes_in_what_is_written(
  tmp_path, dtype, channels
):
  shape = (6, 30, 40) + (() if channels is None else (channels,))
  stack = (200 * np.random.default_rng(0).random(shape)).astype(dtype)
  path = tmp_path / 'a.tif'
  with files.open_canvas(path, shape, dtype, KNOWN) as canvas:
    for n, page in enumerate(stack):
      canvas[n, slice(0, 30), slice(0, 40)] = page
  expected = stack.reshape(2, 3, 30, 40, channels or 1)
  expected = np.moveaxis(expected, -1, 2)
  with tifffile.TiffFile(path) as tif:
    [series] = tif.series
    sizes = dict(zip(series.axes, series.shape, strict=True))
    assert sizes.pop('C', 1) == (channels or 1)
    assert sizes == {'T': 2, 'Z': 3, 'Y': 30, 'X': 40}
    np.testing.assert_array_equal(
      series.asarray().reshape(expected.shape), expected
    )
    resolution = tif.pages.first.resolution
    if dtype == 'float16':  # Which ImageJ doesn't read.
      assert tif.pages.first.resolutionunit == tifffile.RESUNIT.CENTIMETER
      np.testing.assert_allclose(resolution, (1e4 / 0.325, 1e4 / 0.65))
    else:
      np.testing.assert_allclose(resolution, (1 / 0.325, 1 / 0.65))
      found = tif.imagej_metadata
      assert found['unit'] == 'um' and found['spacing'] == 2
      assert found['finterval'] == 1.5
      assert found['frames'] == 2 and found['slices'] == 3
      # ImageJ takes pages as they lie behind the first.
      first = tif.pages.first.dataoffsets[0]
  if dtype != 'float16':
    planes = np.fromfile(path, dtype, expected.size, offset=first)
    np.testing.assert_array_equal(planes, expected.ravel())
  calibration = files.read_calibration(path)
  assert calibration.pages == KNOWN.pages
  for axis in 'yx':
    assert calibration.steps[axis] == KNOWN.steps[axis]
  assert dtype == 'float16' or calibration == KNOWN


def test_a_bigtiff_has_ome_metadata(tmp_path):
  path, shape = tmp_path / 'a.tif', (6, 20000, 20000, 2)
  with files.open_canvas(path, shape, 'uint8', KNOWN) as canvas:
    canvas[5, slice(19999, 20000), slice(0, 2)] = np.uint8([[[1, 2], [3, 4]]])
  assert path.stat().st_blocks * 512 < 2**20
  with tifffile.TiffFile(path) as tif:
    assert tif.is_bigtiff and not tif.is_imagej
    [series] = tif.series
    assert series.axes == 'TZCYX' and series.shape[:3] == (2, 3, 2)
    found = tifffile.xml2dict(tif.ome_metadata)['OME']['Image']['Pixels']
  assert found['PhysicalSizeX'] == 0.325 and found['PhysicalSizeXUnit'] == 'µm'
  assert files.read_calibration(path) == KNOWN
  with files.open_rasters(path) as pages:
    assert len(pages) == 6
    window = pages[5][slice(19999, 20000), slice(0, 3)]
  assert window.tolist() == [[[1, 2], [3, 4], [0, 0]]]


def test_predictions_keep_axes_and_sizes(tmp_path):
  write_imagej(tmp_path / 'in.tif')
  network = tiny_network(3)
  for output, kind in (
    ('out.zarr', 'probabilities'),
    ('labels.tif', 'labels'),
    ('out.tif', 'probabilities'),
  ):
    predict_files(network, tmp_path / 'in.tif', tmp_path / output, kind=kind)
    found = files.read_calibration(tmp_path / output)
    assert (found.pages, found.steps) == (KNOWN.pages, KNOWN.steps)
    assert found.units == KNOWN.units
  with tifffile.TiffFile(tmp_path / 'out.tif') as tif:
    assert tif.series[0].axes == 'TZCYX'


def test_several_files_share_what_they_agree_on(tmp_path):
  folder = tmp_path / 'in'
  folder.mkdir()
  for name in 'ab':
    write_imagej(folder / f'{name}.tif')
  predict_files(tiny_network(), folder, tmp_path / 'same.tif')
  found = files.read_calibration(tmp_path / 'same.tif')
  assert found.pages == {'z': 12} and found.steps == {'y': 0.65, 'x': 0.325}
  write_imagej(folder / 'b.tif', factor=2)
  predict_files(tiny_network(), folder, tmp_path / 'other.tif')
  assert not files.read_calibration(tmp_path / 'other.tif').steps


def test_damaged_metadata_are_passed_over(tmp_path):
  for description in (
    'ImageJ=1.11a\nunit=um\nspacing=wide\nfinterval=no\nframes=2\n',
    '<?xml version="1.0"?><OME><Image><Pixels PhysicalSizeX="wide"/></OME>',
    '<OME xmlns="x"></OME>',
  ):
    tifffile.imwrite(
      tmp_path / 'a.tif', STACK[0], description=description, metadata=None
    )
    np.testing.assert_array_equal(
      files.read_stack(tmp_path / 'a.tif')[0, ..., 0], STACK[0]
    )
    found = files.read_calibration(tmp_path / 'a.tif')
    assert not {'z', 't'} & {*found.steps}


def test_pages_are_found_where_they_lie(tmp_path):
  tiff.create(tmp_path / 'a.tif', (2, 3, 4, 2), np.dtype(np.uint8))
  offsets = tiff.page_offsets(tmp_path / 'a.tif')
  assert np.diff(offsets).tolist() == [12, 12, 12]


@pytest.mark.parametrize('kind', ['ome', 'imagej', 'shaped'])
@pytest.mark.parametrize('axes', ['ZTYX', 'ZCTYX', 'CZTYX', 'ZTYXS', 'TZYX'])
def test_pages_lie_along_t_then_z(tmp_path, kind, axes):
  lengths = {'T': 2, 'Z': 3, 'C': 4, 'S': 3, 'Y': 30, 'X': 40}
  shape = [lengths[axis] for axis in axes]
  values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  path = tmp_path / 'in.tif'
  photometric = 'rgb' if 'S' in axes else 'minisblack'
  options = {'metadata': {'axes': axes}, 'ome': kind == 'ome'}
  if kind == 'imagej':
    # Planes in file order, whose order ImageJ's description states.
    order = {'ZTYX': 'ctz', 'ZCTYX': 'tcz', 'CZTYX': 'tzc', 'TZYX': 'czt'}
    if axes not in order:
      pytest.skip('ImageJ has RGB in its own order only')
    counts = f'images={values.size // 1200}\nframes=2\nslices=3\n'
    counts += 'channels=4\n' * ('C' in axes)
    text = f'ImageJ=1.54f\n{counts}hyperstack=true\norder={order[axes]}\n'
    options = {'metadata': None, 'description': text}
    values = values.reshape(-1, 30, 40)
  tifffile.imwrite(path, values, photometric=photometric, **options)
  names = axes.lower().replace('s', 'c')
  values = values.reshape(shape)
  wanted = [names.index(a) for a in 'tzyxc' if a in names]
  expected = values.transpose(wanted).reshape(6, 30, 40, -1)
  np.testing.assert_array_equal(files.read_stack(path), expected)
  assert files.read_calibration(path).pages == {'t': 2, 'z': 3}
  with files.open_rasters(path) as pages:
    window = pages[4][slice(3, 9), slice(5, 20)]
  np.testing.assert_array_equal(window, expected[4, 3:9, 5:20])
  if expected.shape[-1] > 1:
    return
  network = tiny_network(3)
  np.save(tmp_path / 'in.npy', expected)
  for name in ('in.tif', 'in.npy'):
    output = tmp_path / f'{name}.out.tif'
    predict_files(network, tmp_path / name, output, kind='labels')
  np.testing.assert_array_equal(
    files.read_stack(tmp_path / 'in.tif.out.tif'),
    files.read_stack(tmp_path / 'in.npy.out.tif'),
  )


@pytest.mark.parametrize('scale', [None, 0, -1, float('nan'), float('inf')])
def test_a_unit_without_a_step_is_no_size(tmp_path, scale):
  path = tmp_path / 'in.zarr'
  with files.open_canvas(path, (1, 30, 40), 'uint8') as canvas:
    canvas[0, slice(0, 30), slice(0, 40)] = STACK[0]
  group = json.loads((path / 'zarr.json').read_text())
  [scales] = group['attributes']['ome']['multiscales']
  for axis in scales['axes']:
    axis['unit'] = 'micrometer'
  [dataset] = scales['datasets']
  if scale is None:
    del dataset['coordinateTransformations']
  else:
    dataset['coordinateTransformations'][0]['scale'] = [scale, 0.5]
    one = {'type': 'scale', 'scale': [1, 1]}
    scales['coordinateTransformations'] = [one]
  (path / 'zarr.json').write_text(json.dumps(group))
  found = files.read_calibration(path)
  known = {} if scale is None else {'x': 0.5}
  assert found.steps == known and found.units.keys() == known.keys()
  assert found.size('y', 'micrometer') is None
  predict_files(tiny_network(), path, tmp_path / 'out.tif')
  assert not files.read_calibration(tmp_path / 'out.tif').steps
  with pytest.raises(ValueError, match='units'):
    Calibration(units={'y': 'micrometer'})


def test_a_negative_spacing_of_imagej_is_a_distance(tmp_path):
  tifffile.imwrite(
    tmp_path / 'a.tif',
    STACK,
    imagej=True,
    resolution=(2, 2),
    metadata={'axes': 'ZYX', 'unit': 'um', 'spacing': -1.5},
  )
  assert files.read_calibration(tmp_path / 'a.tif').steps['z'] == 1.5


def test_a_missing_input_may_be_a_zarr(tmp_path):
  with pytest.raises(InputError, match='no such file or .* .zarr'):
    files.list_images(tmp_path / 'none')
