# SPDX-License-Identifier: Apache-2.0
"""Networks from files and runs, and what training starts from."""

import fcn_nets
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax import networks, steps
from segjax.data.examples import Dataset
from segjax.errors import InputError
from segjax.models import create_model
from segjax.models.fcn import FCN8s, FCN16s, FCN32s, FCNAlexNet
from segjax.models.unet import UNet
from segjax.recipes import VOC_DATA, fcn_config, start_from_coarser
from segjax.settings.sections import PreprocessingSettings
from segjax.weights import files

CLASSES = fcn_nets.CLASSES


@pytest.fixture(scope='module')
def coarse(tmp_path_factory):
  """File and parameters of a narrow FCN-32s, all random."""
  params = fcn_nets.random_params(FCN32s(**fcn_nets.NARROW))
  path = tmp_path_factory.mktemp('networks') / 'fcn32s.npz'
  files.write_params(path, params)
  return path, params


def start(model, path, initial, ignore=()):
  """The initial parameters with those of a file, as training starts."""
  init = jax.jit(lambda: steps.init_params(model, jax.random.key(1)))()
  arrays, origin = networks.starting_params(
    model, '0..255', path, initial, ignore
  )
  return unflatten_dict(flatten_dict(init, sep='/') | arrays, sep='/'), origin


def same(a, b):
  return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_16s_starts_from_32s(coarse):
  path, trained = coarse
  model = FCN16s(**fcn_nets.NARROW)
  params, origin = start(model, path, ('score_pool4',), ('fc8',))
  assert not np.any(params['score_pool4']['kernel'])
  assert {*params} == {*trained, 'score_pool4'}
  assert same({name: params[name] for name in trained}, trained)
  assert 'score_pool4/kernel: LEFT AT ITS INITIAL VALUE' in origin
  assert '2 initial' in origin
  assert (
    '(of an unnamed network; DOES NOT SAY what pixels it takes, and gets '
    '0..255)' in origin
  )


def test_16s_from_32s_predicts_the_path_of_32s(coarse):
  """While score_pool4 is zero: fc7 scored, then both bilinear deconvolutions.

  The reference takes 32s's scores before its only deconvolution, and upsamples
  them by definition, twice and then sixteen times.
  """
  path, trained = coarse
  model = FCN16s(**fcn_nets.NARROW)
  params, _ = start(model, path, ('score_pool4',))
  image = fcn_nets.normal(0, 1, 21, 34, 3)
  got = model.apply({'params': params}, image)

  def scores_of_32s(params, image):
    _, state = FCN32s(**fcn_nets.NARROW).apply(
      {'params': params}, image, capture_intermediates=True
    )
    return state['intermediates']['score_fr']['__call__'][0]

  coarse_scores = np.asarray(scores_of_32s(trained, image))[0]
  up2 = deconvolve(coarse_scores, 4, 2)
  want = deconvolve(up2, 32, 16)[27 : 27 + 21, 27 : 27 + 34]
  np.testing.assert_allclose(got[0], want, atol=1e-4 * np.ptp(want))
  assert np.ptp(want) > 0


def deconvolve(scores, kernel, stride):
  """Bilinear deconvolution by its definition: every score spreads a kernel."""
  f = -(-kernel // 2)
  taps = 1 - np.abs(np.arange(kernel) - (kernel - 1) / 2) / f
  spread = np.outer(taps, taps)[..., None]
  h, w, c = scores.shape
  result = np.zeros(((h - 1) * stride + kernel, (w - 1) * stride + kernel, c))
  for i, j in np.ndindex(h, w):
    rows = slice(i * stride, i * stride + kernel)
    columns = slice(j * stride, j * stride + kernel)
    result[rows, columns] += spread * scores[i, j]
  return result


def test_the_start_is_never_partial(coarse):
  path, _ = coarse
  model = FCN8s(**fcn_nets.NARROW)
  with pytest.raises(InputError, match='score_pool3, score_pool4 of the model'):
    networks.starting_params(model, '0..255', path, (), ())
  other = FCN32s(**fcn_nets.NARROW | {'num_classes': 7})
  with pytest.raises(InputError, match='score_fr.*score layers in initial'):
    networks.starting_params(other, '0..255', path, (), ())
  params, _ = start(other, path, ('score_fr',))
  assert params['score_fr']['kernel'].shape[-1] == 7
  assert not np.any(params['score_fr']['kernel'])
  alexnet = FCNAlexNet(**fcn_nets.NARROW)
  with pytest.raises(InputError, match='has no place in the model.*ignore'):
    networks.starting_params(alexnet, '0..255', path, ('conv1',), ())
  with pytest.raises(InputError, match='none.npz'):
    networks.starting_params(
      model, '0..255', path.with_name('none.npz'), (), ()
    )
  with pytest.raises(InputError, match='init.path.* is empty'):
    networks.starting_params(model, '0..255', '', (), ())
  random = networks.starting_params(model, '0..255', 'random', (), ())
  assert random == ({}, '')


def test_recipes_name_what_a_finer_net_adds():
  config = fcn_config('fcn16s', VOC_DATA, 36, 1e-12)
  config.model.heads = (('sem', 33), ('geo', 3))
  start_from_coarser(config, 'pool4')
  assert config.init.initial == ('score_pool4_sem', 'score_pool4_geo')


def test_converted_weights_need_no_training(coarse):
  path, trained = coarse
  config = fcn_config('fcn32s', VOC_DATA, CLASSES, 1e-10)
  config.model.width = fcn_nets.NARROW['width']
  config.model.fc_features = fcn_nets.NARROW['fc_features']
  network = networks.load_converted(config, path)
  assert network.model == create_model(config.model)
  assert network.data_sha256 is None
  assert same(network.params, trained)
  config.model.num_classes = 21
  with pytest.raises(InputError, match='score_fr'):
    networks.load_converted(config, path)


def test_a_file_says_what_its_shapes_do_not(tmp_path):
  """At once, without 100 px, other pixels: the same tree, another network."""
  config = fcn_config('fcn8s', VOC_DATA, CLASSES, 1e-10)
  config.model.width = fcn_nets.NARROW['width']
  config.model.fc_features = fcn_nets.NARROW['fc_features']
  about = networks.metadata(config)
  assert about == {'model': 'fcn8s', 'pixels': '0..255', 'padding': 'pad100'}
  params = fcn_nets.random_params(FCN8s(**fcn_nets.NARROW))
  for ending in files.ENDINGS:
    path = tmp_path / f'net{ending}'
    files.write_params(path, params, metadata=about)
    assert files.read_metadata(path) == about
    assert same(files.read_params(path), params)
    assert same(networks.load_converted(config, path).params, params)
    for name, value in (
      ('model.name', 'fcn8s_atonce'),
      ('model.padding', 'same'),
      ('preprocessing.std', (0.229, 0.224, 0.225)),
    ):
      other = config.copy_and_resolve_references()
      with other.unlocked():
        other.update_from_flattened_dict({name: value})
      with pytest.raises(InputError, match=r'is of a network with \w+='):
        networks.load_converted(other, path)
    model = create_model(config.model)
    with pytest.raises(InputError, match='pixels 0..255.*standardised'):
      networks.starting_params(model, 'standardised', path, (), ())
    _, origin = networks.starting_params(model, '0..255', path, (), ())
    assert origin.startswith(f'{path} (model fcn8s, pixels 0..255, padding ')
    assert 'DOES NOT SAY' not in origin


@pytest.mark.parametrize('split', ['train', 'heldout'])
def test_all_images_of_floats_are_in_the_unit_range(split):
  model = UNet(depth=1, base_width=2)
  label = np.zeros((8, 8), np.int32)
  examples = [
    {
      'image': np.full((8, 8, 1), value, np.float32),
      'label': label,
      'name': 'a',
    }
    for value in (0, 1)
  ]
  strange = [*examples, examples[0] | {'image': -examples[1]['image']}]
  splits = dict(train=examples, heldout=examples)
  pixels = PreprocessingSettings(0.5, 0.2, ())
  networks.check_fits(model, Dataset(('a', 'b'), digest='', **splits), pixels)
  splits[split] = [*strange[:2], strange[2] | {'name': 'third'}]
  dataset = Dataset(('a', 'b'), digest='', **splits)
  with pytest.raises(InputError, match='third: values from -1.0 to -1.0'):
    networks.check_fits(model, dataset, pixels)
  measured = PreprocessingSettings(0.5, 0.2, (), measured=('limits',))
  networks.check_fits(model, dataset, measured)
