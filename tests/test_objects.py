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
    '--outlines=geojson,rois',
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
  instances.label_files(maps, whole, outlines=('geojson',))

  class Killed(BaseException):
    pass

  def kill(*_):
    raise Killed

  for name in ('_label_pages', 'write_outlines'):
    with monkeypatch.context() as patch:
      original, calls = getattr(instances, name), []

      def second(*args, original=original, calls=calls):
        calls.append(args)
        return kill() if len(calls) == 2 else original(*args)

      patch.setattr(instances, name, second)
      with pytest.raises(Killed):
        instances.label_files(maps, broken, outlines=('geojson',))
  instances.label_files(maps, broken, outlines=('geojson',))
  names = sorted(file.name for file in whole.iterdir())
  assert names == ['a.geojson', 'a.tif', 'b.geojson', 'b.tif', 'objects.csv']
  assert sorted(file.name for file in broken.iterdir()) == names
  for name in names:
    assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_wrong_arguments_are_refused(maps, tmp_path, monkeypatch):
  for wrong, message in (
    ({'outlines': ('svg',)}, "outlines='svg' is not one of geojson, rois"),
    ({'pixel_size_um': 0.0}, 'pixel_size_um=0.0; expected more than 0'),
  ):
    with pytest.raises(InputError, match=message):
      instances.label_files(maps, tmp_path / 'out', **wrong)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'segjax\[fiji\]'"):
    instances.label_files(maps, tmp_path / 'out', outlines=('rois',))
  (tmp_path / 'a.csv').write_text('mine')
  with pytest.raises(InputError, match='a.csv exists'):
    instances.label_files(maps / 'a.tif', tmp_path / 'a.tif')
  assert sorted(tmp_path.iterdir()) == [tmp_path / 'a.csv', maps]
