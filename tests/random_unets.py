# SPDX-License-Identifier: Apache-2.0
"""Narrow U-Nets with random parameters, and what they say of whole images."""

import functools

import jax
import numpy as np

from segjax.models.unet import UNet
from segjax.prediction.streaming import stream_predict
from segjax.tiling.settings import TileSettings
from segjax.tiling.windows import predict_image


@functools.cache
def random_unet(
  depth=1, convs_per_block=1, padding='VALID', in_channels=1, norm='none'
):
  """Returns a narrow U-Net and random variables with live biases."""
  model = UNet(
    depth=depth,
    convs_per_block=convs_per_block,
    base_width=4,
    num_classes=3,
    padding=padding,
    in_channels=in_channels,
    norm=norm,
  )
  return model, random_variables(model)


def random_variables(model):
  """Returns random variables of a model, with live biases and statistics."""
  side = model.geometry.input_size(1)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), np.zeros((1, side, side, model.in_channels))
  )
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key in ('scale', 'var'):
      return np.exp(rng.normal(size=leaf.shape)).astype(np.float32)
    fan_in = np.prod(leaf.shape[:-1])
    scale = np.sqrt(2 / fan_in) if len(leaf.shape) > 1 else 0.1
    return rng.normal(scale=scale, size=leaf.shape).astype(np.float32)

  return jax.tree.map_with_path(draw, shapes)


def image_of(height, width, channels=1):
  rng = np.random.default_rng([height, width])
  return rng.normal(size=(height, width, channels)).astype(np.float32)


def whole_pass(model, variables, image):
  """One apply to the image padded with np.pad, cropped to the image."""
  geometry = model.geometry
  margin = geometry.margin
  pads = [
    (margin, geometry.input_size(size) - margin - size)
    for size in image.shape[:2]
  ]
  padded = np.pad(image, [*pads, (0, 0)], mode='reflect')
  logits = np.asarray(jax.jit(model.apply)(variables, padded[None])[0])
  offset = geometry.core_offset
  height, width = image.shape[:2]
  return logits[offset : offset + height, offset : offset + width]


def predicted(image, model, variables, **settings):
  """Returns the prediction of an image at once, f32[H, W, K]."""
  return predict_image(
    model, variables['params'], image, TileSettings(**settings)
  )


def streamed(
  reader, model, variables, *, finished=(), on_written=None, **settings
):
  """Returns what is streamed, f32[H, W, K]; NaN where nothing is."""
  shape = (*reader.shape[:2], model.num_classes)
  written = np.full(shape, np.nan, np.float32)
  stream_predict(
    reader,
    written,
    model,
    variables['params'],
    TileSettings(**settings),
    finished=finished,
    on_written=on_written,
  )
  return written


def assert_close(actual, expected):
  scale = max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)
