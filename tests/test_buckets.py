# SPDX-License-Identifier: Apache-2.0
"""Images padded to a common size have the logits that they have alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fcn_nets import CLASSES, NARROW, normal, random_params

from segjax.errors import InputError
from segjax.geometry import Footprint
from segjax.models.fcn import FCN, FCN8s, FCNAlexNet, FCNGoogLeNet
from segjax.models.layers import zero_beyond

BUCKET = (45, 70)
GoogLeNet = functools.partial(FCNGoogLeNet, num_classes=CLASSES, width=1 / 16)
NETS = {
  'vgg16 32s': functools.partial(FCN, stride=32, **NARROW),
  'vgg16 16s': functools.partial(FCN, stride=16, **NARROW),
  'vgg16 8s': functools.partial(FCN8s, learned=('upscore2',), **NARROW),
  'caffenet': functools.partial(FCNAlexNet, **NARROW),
  'googlenet': GoogLeNet,
}
ODD_SIZES = {
  'vgg16 32s': [(31, 70)],
  'vgg16 16s': [(44, 33)],
  'vgg16 8s': [(37, 53), (17, 64)],
  'caffenet': [(37, 53), (45, 32)],
  'googlenet': [(31, 65)],
}


def bucket(sizes, fill=np.nan):
  """Images, and the same in the corner of arrays that are `fill` elsewhere."""
  images = [50 * normal(i, 1, *size, 3) for i, size in enumerate(sizes)]
  padded = np.full((len(sizes), *BUCKET, 3), fill, np.float32)
  for out, image, (h, w) in zip(padded, images, sizes, strict=True):
    out[:h, :w] = image[0]
  return images, padded, np.array(sizes, np.int32)


@pytest.mark.parametrize('padding', ['pad100', 'same'])
@pytest.mark.parametrize('name', NETS)
def test_padding_changes_nothing(name, padding):
  model = NETS[name](padding=padding)
  params = {'params': random_params(model)}
  sizes = [(1, 1), *ODD_SIZES[name], BUCKET]
  images, padded, size = bucket(sizes)
  got = jax.jit(lambda p, x, n: model.apply(p, x, size=n))(params, padded, size)
  native = jax.jit(model.apply)
  for logits, image, (h, w) in zip(got, images, sizes, strict=True):
    want = native(params, image)[0]
    difference = np.abs(logits[:h, :w] - want).max()
    assert difference < 1e-5 * np.ptp(want), (h, w, difference)
    assert not np.any(logits[h:]) and not np.any(logits[:, w:])


def test_plain_padding_changes_the_borders():
  # What `size` is for: zeros alone reach into the image by way of the biases.
  model = NETS['caffenet'](padding='same')
  params = {'params': random_params(model)}
  (image,), padded, _ = bucket([(37, 53)], fill=0)
  want = jax.jit(model.apply)(params, image)[0]
  got = jax.jit(model.apply)(params, padded)[0, :37, :53]
  assert np.abs(got - want).max() > 1e-3 * np.ptp(want)


def test_gradients_are_those_of_the_images_alone():
  model = NETS['caffenet'](padding='same')
  params = random_params(model)
  sizes = [(37, 53), (12, 70)]
  images, padded, size = bucket(sizes)
  factors = normal(9, 2, *BUCKET, CLASSES)

  def alone(params, image, factors):
    return jnp.sum(model.apply({'params': params}, image)[0] * factors)

  def one_of_many(params, image, size, factors):
    logits = model.apply({'params': params}, image[None], size=size[None])
    return jnp.sum(logits[0] * factors)

  def together(params, padded):
    losses = jax.vmap(one_of_many, (None, 0, 0, 0))
    return losses(params, padded, size, factors).sum()

  got, got_image = jax.jit(jax.grad(together, (0, 1)))(params, padded)
  gradient = jax.jit(jax.grad(alone, (0, 1)))
  want = jax.tree.map(jnp.zeros_like, params)
  for i, (h, w) in enumerate(sizes):
    one, want_image = gradient(params, images[i], factors[i, :h, :w])
    want = jax.tree.map(jnp.add, want, one)
    atol = 1e-5 * np.ptp(want_image)
    np.testing.assert_allclose(got_image[i, :h, :w], want_image[0], atol=atol)
    assert not np.any(got_image[i, h:]) and not np.any(got_image[i, :, w:])
  for path, leaf in jax.tree.leaves_with_path(want):
    value = functools.reduce(lambda tree, key: tree[key.key], path, got)
    assert np.any(leaf != 0), jax.tree_util.keystr(path)
    np.testing.assert_allclose(value, leaf, atol=1e-5 * np.ptp(leaf))


@pytest.mark.parametrize(
  'footprint',
  [
    Footprint(3, pad=100),
    Footprint(2, 2, ceil=True),
    Footprint(3, 2, ceil=True),
    Footprint(11, 4, 100),
    Footprint(5, 3, 2, ceil=True),
  ],
)
def test_sizes_of_traced_integers(footprint):
  sizes = np.arange(3, 200, dtype=np.int32)
  want = [footprint.output_size(int(n)) for n in sizes]
  np.testing.assert_array_equal(jax.jit(footprint.output_extent)(sizes), want)


def test_zero_beyond():
  x = np.full((2, 3, 4, 1), np.nan)
  x[0, :2, :3], x[1, :3, :1] = 1, 1
  got = zero_beyond(x, jnp.array([[2, 3], [9, 1]]))
  np.testing.assert_array_equal(got, np.nan_to_num(x))
  assert zero_beyond(x, None) is x


def test_sizes_of_another_shape_are_refused():
  model = NETS['caffenet']()
  image = jnp.zeros((1, 5, 6, 3))
  with pytest.raises(InputError, match=r'shape \[2\]; .* \[1, 2\]'):
    model.init(jax.random.key(0), image, size=jnp.array([5, 6]))
