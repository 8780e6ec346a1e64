# SPDX-License-Identifier: Apache-2.0
"""Measurements and outlines of objects, against scikit-image and by hand."""

import csv
import json

import numpy as np
import pytest
import roifile
import tifffile
from commands import run
from scipy import ndimage
from skimage import draw, measure, segmentation
from test_components import drawn_map

from segjax import instances
from segjax.errors import InputError
from segjax.images import files
from segjax.prediction.components import fill_holes, label_instances
from segjax.prediction.objects import count_areas, measure_objects
from segjax.prediction.outlines import trace_outlines

PROPERTIES = {
  'label': 'label',
  'area_px': 'area',
  'centroid_row': 'centroid-0',
  'centroid_column': 'centroid-1',
  'top': 'bbox-0',
  'left': 'bbox-1',
  'bottom': 'bbox-2',
  'right': 'bbox-3',
  'perimeter_px': 'perimeter',
  'mean_probability': 'intensity_mean',
  'max_probability': 'intensity_max',
}


def touching_objects(seed, shape=(60, 75)):
  """Numbered objects of which many touch, and a map of values."""
  rng = np.random.default_rng(seed)
  values = ndimage.gaussian_filter(rng.normal(size=shape), 2)
  values = (values - values.min()) / np.ptp(values)
  numbers = label_instances(values, 0.4, 0.6)
  assert numbers.max() > 10
  return numbers, values


@pytest.mark.parametrize('block_px', [7, 20, 100])
@pytest.mark.parametrize('seed', [0, 1])
def test_measurements_are_those_of_scikit_image(seed, block_px):
  numbers, values = touching_objects(seed)
  got = measure_objects(numbers, values, numbers.max(), block_px)
  names = [name.partition('-')[0] for name in PROPERTIES.values()]
  expected = measure.regionprops_table(
    numbers, values, properties=[*dict.fromkeys(names)]
  )
  for name, theirs in PROPERTIES.items():
    np.testing.assert_allclose(got[name], expected[theirs], rtol=1e-12)
  edge = np.concatenate([numbers[[0, -1]].ravel(), numbers[:, [0, -1]].ravel()])
  touching = [int(label in edge) for label in got['label']]
  np.testing.assert_array_equal(got['touches_border'], touching)
  areas = count_areas(numbers, numbers.max(), block_px)
  np.testing.assert_array_equal(areas, np.bincount(numbers.ravel()))


@pytest.mark.parametrize('block_px', [5, 16, 100])
def test_holes_of_one_object_are_filled(block_px):
  rng = np.random.default_rng(0)
  numbers = label_instances(
    ndimage.gaussian_filter(rng.normal(size=(50, 64)), 1) > -0.15
  )
  numbers[5:12, 5:12] = 0
  numbers[5:12, 5:12][1:-1, 1:-1] = numbers.max() + 1
  numbers[8, 8] = 0  # A hole in an object in a hole.
  expected = numbers.copy()
  background, count = ndimage.label(numbers == 0)
  for piece in range(1, count + 1):
    mask = background == piece
    grown = ndimage.binary_dilation(mask) & ~mask
    around = np.unique(numbers[grown])
    at_edge = np.pad(mask[1:-1, 1:-1], 1) != mask
    if len(around) == 1 and not at_edge.any():
      expected[mask] = around[0]
  assert (expected != numbers).sum() > 5
  fill_holes(numbers, np.zeros_like(numbers), block_px)
  np.testing.assert_array_equal(numbers, expected)


def test_outlines_enclose_the_centres_of_their_pixels_and_no_others():
  numbers, values = touching_objects(2)
  numbers[30:40, 30:40] = numbers.max() + 1
  numbers[33:36, 33:36] = 0
  numbers, _, _ = segmentation.relabel_sequential(numbers)
  measured = measure_objects(numbers, values, numbers.max())
  with_holes = 0
  for label, rings in trace_outlines(numbers, measured):
    inside = np.zeros(numbers.shape, int)
    for ring in rings:
      assert (ring[0] == ring[-1]).all()
      # Centres of pixels are whole numbers there.
      rows, columns = ring[:, 1] - 0.5, ring[:, 0] - 0.5
      polygon = np.stack([rows, columns], -1)
      inside += draw.polygon2mask(numbers.shape, polygon)
    with_holes += len(rings) > 1
    np.testing.assert_array_equal(inside % 2, numbers == label)
  assert with_holes


@pytest.fixture
def maps(tmp_path):
  source = tmp_path / 'maps'
  source.mkdir()
  pages = np.stack([drawn_map(i, (40, 50)) for i in range(2)])
  files.write_stack(source / 'a.tif', pages.astype(np.float32))
  files.write_stack(source / 'b.tif', pages[:1].astype(np.float32))
  return source


def read_table(file):
  with open(file, newline='') as lines:
    return [*csv.DictReader(lines)]


def test_command_writes_a_table_and_outlines(maps, tmp_path):
  output = tmp_path / 'out'
  process = run(
    'instances',
    f'--input={maps}',
    f'--output={output}',
    '--min_area_px=4',
    '--fill_holes',
    '--rois',
    '--geojson',
    '--pixel_size_um=0.5',
  )
  assert process.returncode == 0, process.stderr
  rows = read_table(output / 'objects.csv')
  for name in 'ab':
    labels = tifffile.imread(output / f'{name}.tif')
    labels = labels.reshape(-1, 40, 50)
    of_file = [row for row in rows if row['image'] == name]
    assert len(of_file) == sum(page.max() for page in labels)
    for page, numbers in enumerate(labels):
      assert np.bincount(numbers.ravel())[1:].min() >= 4
      expected = measure.regionprops_table(
        numbers, properties=('area', 'centroid')
      )
      of_page = [row for row in of_file if row['page'] == str(page)]
      areas = [int(row['area_px']) for row in of_page]
      np.testing.assert_array_equal(areas, expected['area'])
      areas_um = [float(row['area_um2']) for row in of_page]
      np.testing.assert_allclose(areas_um, expected['area'] / 4)
      centroids = [float(row['centroid_row_um']) for row in of_page]
      np.testing.assert_allclose(centroids, expected['centroid-0'] / 2, 1e-5)
    features = json.loads((output / f'{name}.geojson').read_text())['features']
    rois = roifile.roiread(output / f'{name}.rois.zip')
    assert len(features) == len(rois) == len(of_file)
    planes = [feature['geometry']['plane']['z'] for feature in features]
    assert planes == [int(row['page']) for row in of_file]
    if name == 'a':
      assert [roi.position for roi in rois] == [z + 1 for z in planes]


def test_a_killed_command_goes_on_and_ends_with_the_same_files(
  maps, tmp_path, monkeypatch
):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  instances.label_files(maps, whole, geojson=True)

  class Killed(BaseException):
    pass

  def kill(*_):
    raise Killed

  for name in ('_label_pages', 'write_geojson'):
    with monkeypatch.context() as patch:
      original, calls = getattr(instances, name), []

      def second(*args, original=original, calls=calls):
        calls.append(args)
        return kill() if len(calls) == 2 else original(*args)

      patch.setattr(instances, name, second)
      with pytest.raises(Killed):
        instances.label_files(maps, broken, geojson=True)
  instances.label_files(maps, broken, geojson=True)
  names = sorted(file.name for file in whole.iterdir())
  assert names == ['a.geojson', 'a.tif', 'b.geojson', 'b.tif', 'objects.csv']
  assert sorted(file.name for file in broken.iterdir()) == names
  for name in names:
    assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_pixel_sizes_are_those_that_maps_state(tmp_path, capsys):
  maps = tmp_path / 'maps'
  maps.mkdir()
  # A cell of 3 x 4 pixels, its first in row 2 and column 1.
  cell = np.zeros((1, 10, 12), np.float32)
  cell[0, 2:5, 1:5] = 1
  for name, unit, size in (
    ('a.tif', 'um', (0.5, 0.5)),
    ('b.tif', 'nm', (400, 300)),
    ('c.tif', 'pixel', (1, 1)),
  ):
    tifffile.imwrite(
      maps / name,
      cell,
      imagej=True,
      resolution=(1 / size[1], 1 / size[0]),
      metadata={'axes': 'ZYX', 'unit': unit},
    )
  instances.label_files(maps, tmp_path / 'out')
  said = capsys.readouterr().out
  assert 'maps state pixels of 0.4 x 0.3 micrometres\n' in said
  assert 'maps state pixels of 0.5 x 0.5 micrometres\n' in said
  columns = 'area_um2', 'centroid_row_um', 'centroid_column_um', 'perimeter_um'
  rows = read_table(tmp_path / 'out' / 'objects.csv')
  a, b, c = ([row[column] for column in columns] for row in rows)
  perimeter = measure.perimeter(cell[0] > 0)
  assert a == ['3', '1.5', '1.25', f'{perimeter / 2:.6g}']
  # Nobody knows how much of a perimeter runs along rows.
  assert b == ['1.44', '1.2', '0.75', '']
  assert c == [''] * 4
  # What is written states them, too, unless the command says otherwise.
  instances.label_files(maps, tmp_path / 'other', pixel_size_um=2.0)
  for folder, sizes in (('out', (0.4, 0.3)), ('other', (2, 2))):
    found = files.read_calibration(tmp_path / folder / 'b.tif')
    assert (found.steps['y'], found.steps['x']) == sizes
  rows = read_table(tmp_path / 'other' / 'objects.csv')
  assert [row['area_um2'] for row in rows] == ['48'] * 3
  # Nothing is known of arrays, and no column says it is.
  np.save(tmp_path / 'd.npy', cell)
  instances.label_files(tmp_path / 'd.npy', tmp_path / 'd.tif')
  [row] = read_table(tmp_path / 'd.csv')
  assert not {*columns} & {*row}


def test_large_numbers_keep_a_tenth():
  """Of a pixel, in a row that is far down; six digits would not."""
  for value, text in ((12.3456789, '12.3457'), (123456.78, '123456.8')):
    assert instances._shorten(value) == text


def test_wrong_arguments_are_refused(maps, tmp_path, monkeypatch):
  with pytest.raises(InputError, match='pixel_size_um=0.0; expected more'):
    instances.label_files(maps, tmp_path / 'out', pixel_size_um=0.0)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'segjax\[fiji\]'"):
    instances.label_files(maps, tmp_path / 'out', rois=True)
  (tmp_path / 'a.csv').write_text('mine')
  with pytest.raises(InputError, match='a.csv exists'):
    instances.label_files(maps / 'a.tif', tmp_path / 'a.tif')
  assert sorted(tmp_path.iterdir()) == [tmp_path / 'a.csv', maps]
