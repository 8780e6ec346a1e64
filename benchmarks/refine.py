# SPDX-License-Identifier: Apache-2.0
"""A CRF's refinement beside FCN-8s and pydensecrf2: python -m benchmarks.refine

pydensecrf2 (`pip install pydensecrf2`) is the code of Krähenbühl and Koltun for
all pairs of pixels, whose kernels a lattice approximates; segjax computes those
of a window exactly. So the two are timed at as many iterations, and how often
they choose the same class is printed.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy import ndimage

from benchmarks import sides, timing
from segjax.cli.command_line import run_command
from segjax.crf import Refinement, refine
from segjax.devices import parallel
from segjax.models.fcn import FCN8s

_HEIGHT = flags.DEFINE_integer('height', 360, 'Of the image, in pixels.', 1)
_WIDTH = flags.DEFINE_integer('width', 480, 'Of the image, in pixels.', 1)
_CLASSES = flags.DEFINE_integer('classes', 11, 'Number of classes.', 2)
_ITERATIONS = flags.DEFINE_integer('iterations', 5, 'Of the mean field.', 1)
_RADII = flags.DEFINE_list('radii', '3,5', 'Of the window, in pixels.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Interleaved rounds.', 1)
_FORWARD = flags.DEFINE_bool('forward', True, 'Whether to time FCN-8s, too.')


def smooth(rng, *shape):
  """Returns a map of normal noise that varies over some pixels."""
  return ndimage.gaussian_filter(rng.normal(size=shape), (6, 6, 0)) * 20


def segjax_case(scores, image, settings):
  """Returns what is timed, and the classes that it chooses."""
  compiled = parallel.jit(refine)
  args = jax.device_put((scores, image, settings))

  def case(calls):
    for _ in range(calls):
      refined = compiled(*args)
    refined.block_until_ready()

  return case, np.asarray(compiled(*args)).argmax(axis=-1)


def densecrf_case(scores, image, settings):
  """Returns the same of pydensecrf2; an image has kernels of its own."""
  from pydensecrf import densecrf

  height, width, num_classes = scores.shape
  unary = np.ascontiguousarray(
    -np.asarray(jax.nn.log_softmax(scores)).reshape(-1, num_classes).T
  )
  pixels = np.ascontiguousarray(np.round(255 * image).astype(np.uint8))

  def infer():
    crf = densecrf.DenseCRF2D(width, height, num_classes)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseBilateral(
      settings.appearance_width_px,
      255 * settings.intensity_width,
      pixels,
      settings.appearance_weight,
      normalization=densecrf.NormalizationType.NORMALIZE_AFTER,
    )
    crf.addPairwiseGaussian(
      settings.smoothness_width_px,
      settings.smoothness_weight,
      normalization=densecrf.NormalizationType.NORMALIZE_AFTER,
    )
    return np.asarray(crf.inference(settings.iterations))

  def case(calls):
    for _ in range(calls):
      infer()

  return case, infer().argmax(axis=0).reshape(height, width)


def main(_):
  height, width = _HEIGHT.value, _WIDTH.value
  rng = np.random.default_rng(0)
  scores = smooth(rng, height, width, _CLASSES.value).astype(np.float32)
  image = np.clip(0.5 + smooth(rng, height, width, 3) / 10, 0, 1)
  image = image.astype(np.float32)
  cases, chosen = {}, {'no refinement': scores.argmax(axis=-1)}
  for radius in map(int, _RADII.value):
    settings = Refinement(iterations=_ITERATIONS.value, radius_px=radius)
    name = f'segjax, window of {2 * radius + 1} px'
    cases[name], chosen[name] = segjax_case(scores, image, settings)
  first = next(iter(cases))
  if importlib.util.find_spec('pydensecrf') is not None:
    name = 'pydensecrf2, all pairs'
    cases[name], chosen[name] = densecrf_case(scores, image, settings)
  if _FORWARD.value:
    model = FCN8s(num_classes=_CLASSES.value, dropout_rate=0.0)
    batch = {'image': jnp.zeros((1, height, width, 3))}
    params = sides.random_params(model)
    cases['FCN-8s, forward'] = sides.forward(model, params, batch).case
  seconds, cpu_seconds = timing.interleave(cases, _ROUNDS.value)
  timing.print_report(
    f'CRF, {height} x {width} px, {_CLASSES.value} classes, '
    f'{_ITERATIONS.value} iterations',
    ('', 'ms', 'CPU ms', f'{first} / this', 'CPU time', 'other classes'),
    (
      (
        name,
        f'{1e3 * np.median(seconds[name]):.4g}',
        f'{1e3 * np.median(cpu_seconds[name]):.4g}',
        timing.ratio(seconds[first], seconds[name]),
        timing.ratio(cpu_seconds[first], cpu_seconds[name]),
        f'{np.mean(chosen[name] != chosen[first]):.2%}'
        if name in chosen
        else '',
      )
      for name in cases
    ),
    f'{timing.LEGEND} Other classes: the pixels for which a class other than '
    f'that of the first row is chosen; without refinement these are '
    f'{np.mean(chosen["no refinement"] != chosen[first]):.2%}.',
  )


if __name__ == '__main__':
  run_command(main)
