# SPDX-License-Identifier: Apache-2.0
"""Packages for the BioImage Model Zoo, run by its own library."""

import gc
import sys
import zipfile

import fcn_nets
import numpy as np
import pytest
from commands import tiny_config
from ml_collections import ConfigDict
from scipy.ndimage import gaussian_filter

from segjax.errors import InputError
from segjax.export import export_bioimageio
from segjax.models import create_model
from segjax.models.fcn import FCN8s
from segjax.networks import Network
from segjax.prediction.predictor import predict_stored
from segjax.settings.sections import PreprocessingSettings, read_prediction
from segjax.sharing import zoo

pytest.importorskip('jax2onnx')
core = pytest.importorskip('bioimageio.core')
from random_unets import random_variables  # noqa: E402

SIGNED = dict(authors=('Ada Example',), license_id='CC-BY-4.0')
# Of libraries of the zoo, about themselves and their Python.
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(autouse=True)
def collected():
  """Files that the library leaves open are closed before the next test."""
  yield
  gc.collect()


def unet(depth=2, **changes):
  config = tiny_config()
  config.model.update(depth=depth, **changes)
  model = create_model(config.model)
  geometry = model.geometry
  config.tile_size_px = geometry.tile_size(geometry.period)
  return Network(model, random_variables(model)['params'], config)


def fcn():
  model = FCN8s(padding='same', heads=(('a', 3), ('b', 1)), **fcn_nets.NARROW)
  config = ConfigDict(
    dict(
      data=dict(name='folder', class_names=('a', 'b', 'c', 'd'), colours=()),
      model=dict(name='fcn8s'),
      preprocessing=dict(
        mean=(0.5, 0.4, 0.3), std=0.25, channels=(2, 1, 0), dtype='uint16'
      ),
      prediction=dict(bucket_px=0),
      evaluation=dict(average=False),
      mesh=dict(space=1),
    )
  )
  return Network(model, fcn_nets.random_params(model), config)


def picture(*shape, dtype=np.uint8):
  noise = gaussian_filter(
    np.random.default_rng(0).normal(size=shape), (2, 2, 0)
  )
  ramp = (noise - noise.min()) / np.ptp(noise)
  return (ramp * np.iinfo(dtype).max).astype(dtype)


def predict(package, image, blocks):
  """Returns what the zoo's library predicts by its own tiles, f32[H, W, K]."""
  # Axes have names: of sizes that no single tile has, it guesses none.
  dims = ('batch', 'channel', 'y', 'x')
  tensor = core.Tensor(image.transpose(2, 0, 1)[None], dims=dims)
  output = core.predict(
    model=package, inputs={'image': tensor}, blocksize_parameter=blocks
  )
  return np.asarray(output.members['probabilities'])[0].transpose(1, 2, 0)


def difference(network, image, got):
  """Returns |got - what segjax predicts|, the largest of each pixel."""
  expected = predict_stored(*network[:2], image, *read_prediction(network[2]))
  assert np.ptp(expected) > 0.1
  return np.abs(got - expected).max(-1)


@pytest.mark.parametrize(
  ('padding', 'per_image'), [('VALID', False), ('SAME', False), ('VALID', True)]
)
def test_a_unet(tmp_path, padding, per_image):
  """Its tests pass, and its tiles are those of segjax."""
  network = unet(padding=padding)
  if per_image:
    network.config.preprocessing.update(per_image=True, limits=(-2.0, 2.0))
  package = tmp_path / 'net.zip'
  export_bioimageio(network, package, **SIGNED)
  assert core.test_model(package).status == 'passed'
  image = picture(200, 140, 1)
  assert difference(network, image, predict(package, image, 12)).max() < 1e-4


def test_the_last_tiles_are_off_the_grid_where_the_image_is(tmp_path):
  """The library moves them back into the image: docs/sharing.md says so."""
  network = unet(depth=3)
  export_bioimageio(network, tmp_path / 'net.zip', **SIGNED)
  image = picture(201, 144, 1)  # 1 more than a multiple of 8, and one.
  errors = difference(network, image, predict(tmp_path / 'net.zip', image, 5))
  inner = 8 * (5 + 1)  # What a tile writes.
  assert errors[: 201 - inner].max() < 1e-4
  assert errors[201 - inner :].max() > 1e-3


def test_an_fcn(tmp_path):
  """Equal but near the border, where the library goes on with a mirror image.

  Its pixels, another type and order of channels, are prepared by the package.
  """
  network = fcn()
  margin, period = network.model.geometry.margin, 32
  package = tmp_path / 'net.zip'
  side = 2 * margin + 2 * period
  export_bioimageio(network, package, size_px=side, **SIGNED)
  assert core.test_model(package).status == 'passed'
  image = picture(side + 64, side, 3, dtype=np.uint16)
  errors = difference(network, image, predict(package, image, 1))
  inner = slice(margin, -margin)
  assert errors[inner, inner].max() < 1e-4
  assert errors.max() > 1e-3
  with pytest.raises(
    InputError, match=f'size_px={side + 1} must be a multiple'
  ):
    export_bioimageio(network, tmp_path / 'b.zip', size_px=side + 1, **SIGNED)


def test_what_a_package_says(tmp_path):
  export_bioimageio(unet(), tmp_path / 'net.zip', **SIGNED)
  with zipfile.ZipFile(tmp_path / 'net.zip') as package:
    names = {*package.namelist()}
    text = package.read('documentation.md').decode()
  assert {'weights.onnx', 'cover.png', 'image.npy', 'rdf.yaml'} <= names
  assert 'trained on synthetic' in text
  said = core.load_model(tmp_path / 'net.zip')
  assert [author.name for author in said.authors] == ['Ada Example']
  assert str(said.license) == 'CC-BY-4.0'
  assert said.training_data.name == 'synthetic'
  assert said.outputs[0].axes[1].channel_names == ['membrane', 'cell']


def test_pixels_are_scaled_as_segjax_does():
  settings = PreprocessingSettings(
    mean=(0.1, 0.2, 0.3),
    std=(1.0, 2.0, 3.0),
    channels=(2, 0, 1),
    limits=((0.1, 0.0, 0.2), (0.9, 0.8, 1.0)),
    dtype='uint16',
  )
  image = picture(5, 6, 3, dtype=np.uint16)
  gain, offset = zoo.linear_scaling(settings, 3)
  got = (image * gain + offset)[..., [2, 0, 1]]
  np.testing.assert_allclose(got, settings.prepare(image), atol=1e-5)
  twice = PreprocessingSettings(mean=0.5, std=1.0, channels=(0, 0))
  with pytest.raises(InputError, match='has a channel twice'):
    zoo.linear_scaling(twice, 2)


def test_what_is_missing_or_wrong_is_said(tmp_path, monkeypatch):
  network = unet()
  with pytest.raises(InputError, match='net must end in .zip'):
    export_bioimageio(network, tmp_path / 'net', **SIGNED)
  with pytest.raises(InputError, match='give --authors and --license'):
    export_bioimageio(
      network, tmp_path / 'net.zip', authors=(), license_id='MIT'
    )
  with pytest.raises(InputError, match='refuses the package: .*license'):
    export_bioimageio(
      network, tmp_path / 'net.zip', authors=('Ada',), license_id='mine'
    )
  monkeypatch.setitem(sys.modules, 'bioimageio.spec', None)
  with pytest.raises(InputError, match=r"pip install 'segjax\[bioimageio\]'"):
    export_bioimageio(network, tmp_path / 'net.zip', **SIGNED)
  assert not list(tmp_path.iterdir())
