# SPDX-License-Identifier: Apache-2.0
"""Folders of unequal images: one compiled program for all of them."""

import fcn_nets
import numpy as np
import pytest
import tifffile
from ml_collections import ConfigDict
from tiny_network import tiny_network

from segjax import predict
from segjax.errors import InputError
from segjax.images import files
from segjax.models.fcn import FCN32s
from segjax.networks import Network
from segjax.tiling import programs

SIZES = [(5, 90), (70, 83), (16, 16), (41, 7)]


def write_folder(folder, channels):
  folder.mkdir()
  rng = np.random.default_rng(0)
  for number, size in enumerate(SIZES):
    pixels = rng.integers(0, 256, (1, *size, channels), np.uint8)
    files.write_stack(folder / f'{number}.png', pixels)


@pytest.mark.parametrize('average', [False, True])
def test_unet_compiles_once_and_predicts_as_of_each_image(tmp_path, average):
  write_folder(tmp_path / 'in', 1)
  network = tiny_network()
  compiled = programs.compiled_forward()
  before = compiled._cache_size()
  predict.predict_files(
    network, tmp_path / 'in', tmp_path / 'out', average=average
  )
  assert compiled._cache_size() == before + 1
  for number in range(len(SIZES)):
    alone = tmp_path / 'alone.npy'
    predict.predict_files(
      network,
      tmp_path / 'in' / f'{number}.png',
      alone,
      average=average,
      overwrite=True,
    )
    written = files.read_stack(tmp_path / 'out' / f'{number}.tif')
    np.testing.assert_allclose(written[..., 0], np.load(alone), atol=1e-5)
    assert np.ptp(written) > 0.01


def test_a_budget_settles_one_tile_for_all(tmp_path, capsys):
  write_folder(tmp_path / 'in', 1)
  network = tiny_network()
  network.config.prediction.tile_memory_mib = 1
  predict.predict_files(network, tmp_path / 'in', tmp_path / 'out')
  said = capsys.readouterr().out.splitlines()
  assert len(said) == len(SIZES)
  assert len({line.partition(', by tiles of ')[2] for line in said}) == 1


def test_fcn_compiles_once_and_predicts_the_whole_images(tmp_path):
  """Also for those that are smaller than the tile, and the larger ones."""
  write_folder(tmp_path / 'in', 3)
  model = FCN32s(**fcn_nets.NARROW, padding='same')
  params = fcn_nets.random_params(model)
  config = {
    'data': {'name': 'folder', 'num_classes': fcn_nets.CLASSES},
    'evaluation': {'average': False},
    'mesh': {'space': 1},
    'preprocessing': {'mean': 0.5, 'std': 0.5, 'channels': ()},
    'prediction': {'bucket_px': 0},
  }
  network = Network(model, params, ConfigDict(config))
  compiled = programs.compiled_forward()
  before = compiled._cache_size()
  predict.predict_files(
    network, tmp_path / 'in', tmp_path / 'out', kind='logits'
  )
  assert compiled._cache_size() == before + 1
  for number in range(len(SIZES)):
    [image] = files.read_stack(tmp_path / 'in' / f'{number}.png')
    image = 2 * np.float32(image) / 255 - 1
    whole = np.asarray(model.apply({'params': params}, image[None]))
    written = files.read_stack(tmp_path / 'out' / f'{number}.tif')
    assert np.abs(written - whole).max() < 1e-5 * np.abs(whole).max()


def test_images_of_other_types_are_widened_and_compile_once(tmp_path):
  """A pixel is the same share of its range in all of them."""
  folder = tmp_path / 'in'
  folder.mkdir()
  [pixels] = np.random.default_rng(0).integers(0, 256, (1, 30, 20), np.uint8)
  np.save(folder / 'a.npy', pixels)
  files.write_stack(folder / 'b.png', pixels[None])
  tifffile.imwrite(folder / 'c.tif', np.uint16(pixels) * 257)
  compiled = programs.compiled_forward()
  for name, count in (('two', 1), ('three', 2)):
    if name == 'three':
      np.save(folder / 'd.npy', np.float32(pixels) / 255)
    before = compiled._cache_size()
    predict.predict_files(tiny_network(), folder, tmp_path / name)
    assert compiled._cache_size() == before + 1
    written = [
      files.read_stack(file) for file in sorted((tmp_path / name).iterdir())
    ]
    assert len(written) == 2 + count
    for other in written[1:]:
      np.testing.assert_array_equal(other, written[0])
    assert np.ptp(written[0]) > 0.01


@pytest.fixture
def mixed(tmp_path):
  """Returns a folder of two pictures with a stack of three pages in between."""
  folder = tmp_path / 'in'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name, count in (('a.png', 1), ('b.tif', 3), ('c.png', 1)):
    pages = rng.integers(0, 256, (count, 20, 24), np.uint8)
    files.write_stack(folder / name, pages)
  return folder


def test_a_stack_among_pictures_gets_a_stack_of_labels(mixed, tmp_path):
  network, out = tiny_network(), tmp_path / 'out'
  predict.predict_files(network, mixed, out, kind='labels')
  names = ['a.png', 'b.tif', 'c.png']
  assert sorted(file.name for file in out.iterdir()) == names
  alone = tmp_path / 'alone.tif'
  predict.predict_files(network, mixed / 'b.tif', alone, kind='labels')
  written = files.read_labels(out / 'b.tif')
  assert written.shape == (3, 20, 24, 1)
  np.testing.assert_array_equal(written, files.read_labels(alone))


def test_a_stack_has_no_overlay_and_nothing_is_begun(mixed, tmp_path):
  out = tmp_path / 'out'
  with pytest.raises(InputError) as refused:
    predict.predict_files(tiny_network(), mixed, out, kind='overlay')
  said = str(refused.value)
  assert str(mixed / 'b.tif') in said and 'has 3; ' in said
  assert '--kind=labels' in said and '.tif' in said
  assert not out.exists()
