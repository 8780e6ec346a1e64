# SPDX-License-Identifier: Apache-2.0
"""The mean field of a CRF against loops over pairs of pixels, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import crf
from segjax.crf import Refinement, refine
from segjax.errors import InputError

# Of widths that leave no kernel at 0 or 1, in which each setting shows.
SETTINGS = Refinement(
  iterations=3,
  radius_px=2,
  appearance_weight=1.5,
  appearance_width_px=2.5,
  intensity_width=0.4,
  smoothness_weight=0.7,
  smoothness_width_px=1.2,
)


compiled = jax.jit(refine)


def softmax(scores):
  powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
  return powers / powers.sum(axis=-1, keepdims=True)


def mean_field(scores, image, settings, present=None):
  """Q f64[H, W, K], as the docstring of `refine` defines it, pair by pair."""
  height, width, num_classes = scores.shape
  pixels = [(y, x) for y in range(height) for x in range(width)]
  if present is not None:
    pixels = [pixel for pixel in pixels if present[pixel]]
  penalties = 1 - np.eye(num_classes)
  if len(settings.compatibility):
    penalties = np.asarray(settings.compatibility, np.float64)
  scores, image = scores.astype(np.float64), image.astype(np.float64)
  field = softmax(scores)
  for _ in range(settings.iterations):
    updated = np.zeros_like(field)
    for y, x in pixels:
      sums = np.zeros((2, num_classes))
      kernels = np.zeros((2, 1))
      for v, u in pixels:
        if max(abs(y - v), abs(x - u)) > settings.radius_px or (y, x) == (v, u):
          continue
        distance = (y - v) ** 2 + (x - u) ** 2
        difference = np.sum((image[y, x] - image[v, u]) ** 2)
        pair = np.exp(
          [
            -distance / (2 * settings.appearance_width_px**2)
            - difference / (2 * settings.intensity_width**2),
            -distance / (2 * settings.smoothness_width_px**2),
          ]
        )[:, None]
        sums += pair * field[v, u]
        kernels += pair
      means = np.divide(sums, kernels, where=kernels > 0, out=sums)
      message = settings.appearance_weight * means[0]
      message += settings.smoothness_weight * means[1]
      updated[y, x] = softmax(scores[y, x] - penalties @ message)
    field = updated
  return field


def drawn(height, width, num_classes, channels, seed=0):
  rng = np.random.default_rng(seed)
  scores = rng.normal(size=(height, width, num_classes))
  image = rng.uniform(size=(height, width, channels))
  return scores.astype(np.float32), image.astype(np.float32)


def of(settings, **changes):
  return dataclasses.replace(settings, **changes)


@pytest.mark.parametrize(('num_classes', 'channels'), [(2, 1), (5, 3)])
@pytest.mark.parametrize('potts', [True, False])
@pytest.mark.parametrize('radius', [2, 8])
def test_it_is_the_mean_field_of_all_pairs(
  num_classes, channels, potts, radius
):
  scores, image = drawn(7, 9, num_classes, channels)
  rng = np.random.default_rng(1)
  matrix = () if potts else rng.normal(size=(num_classes, num_classes)).tolist()
  # 8 px are all pairs of the image.
  settings = of(SETTINGS, radius_px=radius, compatibility=matrix)
  actual = jax.nn.softmax(compiled(scores, image, settings))
  expected = mean_field(scores, image, settings)
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  assert np.abs(softmax(scores) - expected).max() > 0.1


def test_a_window_changes_the_mean_field():
  scores, image = drawn(7, 9, 3, 1)
  windowed, whole = (
    mean_field(scores, image, of(SETTINGS, radius_px=r)) for r in (2, 8)
  )
  assert 1e-4 < np.abs(windowed - whole).max() < 0.1


@pytest.mark.parametrize('radius', [15, 400])
def test_a_wide_window_is_the_whole_image(radius):
  # Of more neighbours than a program has written out, and gradients of them.
  scores, image = drawn(14, 17, 3, 1)
  settings = of(SETTINGS, radius_px=radius)
  actual = compiled(scores, image, settings)
  expected = mean_field(scores, image, settings)
  np.testing.assert_allclose(jax.nn.softmax(actual), expected, atol=1e-5)
  slopes = []
  for form in (crf._WRITTEN_OUT, 10**6):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(crf, '_WRITTEN_OUT', form)
      slope = jax.grad(lambda x, y: refine(x, y, settings).var(), (0, 1))
      slopes.append(jax.jit(slope)(scores, image))
  for one, other in zip(*slopes, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_pixels_that_are_not_there_are_neighbours_of_none():
  scores, image = drawn(8, 9, 3, 2)
  present = np.zeros((8, 9), bool)
  present[1:6, 2:] = True
  scores[~present], image[~present] = 50, 9
  actual = compiled(scores, image, SETTINGS, present)[1:6, 2:]
  expected = mean_field(scores, image, SETTINGS, present)[1:6, 2:]
  np.testing.assert_allclose(jax.nn.softmax(actual), expected, atol=1e-5)
  cut = compiled(scores[1:6, 2:], image[1:6, 2:], SETTINGS)
  np.testing.assert_allclose(actual, cut, atol=1e-5)


def test_potts_is_a_compatibility_of_zeros_and_ones():
  scores, image = drawn(6, 6, 4, 1)
  matrix = of(SETTINGS, compatibility=1 - np.eye(4))
  potts, other = (compiled(scores, image, s) for s in (SETTINGS, matrix))
  np.testing.assert_allclose(
    jax.nn.softmax(potts), jax.nn.softmax(other), atol=1e-6
  )


def test_no_iteration_changes_nothing():
  scores, image = drawn(6, 6, 4, 1)
  refined = refine(scores, image, of(SETTINGS, iterations=0))
  np.testing.assert_array_equal(refined, scores)


def test_a_pixel_is_decided_within_its_reach():
  settings = of(SETTINGS, iterations=2, radius_px=2)
  scores, image = drawn(1, 30, 3, 1)

  def middle(scores, image):
    return refine(scores, image, settings)[0, 15].var()

  by_scores, by_image = jax.jit(jax.grad(middle, (0, 1)))(scores, image)
  for slope in (by_scores, by_image):
    found = np.flatnonzero(np.abs(slope[0]).sum(-1))
    assert found[[0, -1]].tolist() == [15 - settings.reach_px, 15 + 4]


def test_gradients_are_finite_differences():
  scores, image = drawn(5, 6, 3, 2)
  settings = of(
    SETTINGS, compatibility=jnp.array([[0.1, 1, 2], [0.5, 0, 1], [1, 1, 0.3]])
  )
  mixed = np.random.default_rng(2).normal(size=scores.shape)

  def loss(scores, image, settings):
    return jnp.sum(mixed * jax.nn.softmax(refine(scores, image, settings)))

  arguments = scores, image, jax.tree.map(jnp.float32, settings)
  gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
  slopes, tree = jax.tree.flatten(gradient(*arguments))
  values = [np.asarray(x, np.float64) for x in jax.tree.leaves(arguments)]
  assert len(values) == 8

  def exact(values):
    return np.sum(mixed * mean_field(*jax.tree.unflatten(tree, values)))

  rng = np.random.default_rng(3)
  for i, slope in enumerate(slopes):
    direction = rng.normal(size=values[i].shape)
    moved = [
      exact([*values[:i], values[i] + h * direction, *values[i + 1 :]])
      for h in (1e-4, -1e-4)
    ]
    expected = (moved[0] - moved[1]) / 2e-4
    actual = np.sum(np.asarray(slope) * direction)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_pixels_unlike_all_others_have_finite_gradients():
  scores, image = drawn(5, 6, 3, 2)
  image[2, 3] = 1.7  # exp(-500) is no number of float32.
  settings = of(SETTINGS, intensity_width=0.05)

  def loss(settings):
    return jnp.sum(jax.nn.softmax(refine(scores, image, settings))[..., 0] ** 2)

  slopes = jax.jit(jax.grad(loss))(jax.tree.map(jnp.float32, settings))
  assert np.isfinite(jax.tree.leaves(slopes)).all()
  # As the formula says, however small the kernels are.
  refined = compiled(scores, image, settings)
  exact = mean_field(scores, image, settings)
  np.testing.assert_allclose(jax.nn.softmax(refined), exact, atol=1e-3)


def test_batches_and_settings_are_mapped():
  pairs = [drawn(5, 6, 3, 1, seed) for seed in range(2)]
  scores, images = map(np.stack, zip(*pairs, strict=True))
  widths = jnp.array([0.2, 0.6])

  def refined(scores, image, width):
    return refine(scores, image, of(SETTINGS, intensity_width=width))

  mapped = jax.jit(jax.vmap(refined))(scores, images, widths)
  for i, pair in enumerate(pairs):
    alone = refine(*pair, of(SETTINGS, intensity_width=float(widths[i])))
    np.testing.assert_allclose(mapped[i], alone, atol=1e-5)


def test_a_pixel_alone_keeps_its_scores():
  scores, image = drawn(1, 1, 3, 1)
  np.testing.assert_array_equal(refine(scores, image, SETTINGS), scores)


SCORES, IMAGE = drawn(4, 5, 2, 1)


@pytest.mark.parametrize(
  ('scores', 'image', 'words'),
  [
    (SCORES, IMAGE[:3], ['4 x 5 px', '3 x 5 px', 'equal']),
    (SCORES, IMAGE[..., 0], ['image', '(4, 5)', '[H, W, 1]']),
    (SCORES[None], IMAGE, ['scores', '(1, 4, 5, 2)', 'jax.vmap']),
    (SCORES, np.zeros((4, 5, 3), np.uint8), ['uint8', 'to_unit_range']),
    (SCORES.argmax(-1)[..., None], IMAGE, ['scores', 'int64', 'floating']),
  ],
)
def test_scores_and_images_that_do_not_fit_are_refused(scores, image, words):
  with pytest.raises(InputError) as refused:
    refine(scores, image)
  assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize(
  'matrix', [[[0, 1]], [[0, 1, 1]] * 3, [[[0]]], [[0], []]]
)
def test_a_matrix_of_other_classes_is_refused(matrix):
  with pytest.raises(InputError, match=r'compatibility.* 2 x 2 numbers, or'):
    refine(SCORES, IMAGE, Refinement(compatibility=matrix))


@pytest.mark.parametrize(
  ('name', 'value', 'rule'),
  [
    ('iterations', -1, 'at least 0'),
    ('radius_px', 0, 'at least 1'),
    ('appearance_width_px', 0, '> 0'),
    ('intensity_width', -0.1, '> 0'),
    ('smoothness_width_px', float('nan'), '> 0'),
    ('appearance_weight', -1.0, '>= 0'),
    ('smoothness_weight', float('nan'), '>= 0'),
    ('appearance_weight', float('inf'), '>= 0 and finite'),
    ('intensity_width', np.float32(-1), '> 0'),
    ('smoothness_weight', np.float32(-1), '>= 0'),
    ('intensity_width', 1e-30, '> 0, at least 1e-09'),
    ('iterations', 2.5, 'a whole number'),
    ('compatibility', 1.0, 'rows of numbers'),
  ],
)
def test_settings_out_of_range_are_refused(name, value, rule):
  with pytest.raises(InputError, match=f'{name}={value} must be {rule}'):
    Refinement(**{name: value})


@pytest.mark.parametrize('make', [np.array, jnp.array])
def test_arrays_out_of_range_are_refused_when_they_are_used(make):
  settings = of(SETTINGS, intensity_width=make(-1.0))  # As a gradient may be.
  with pytest.raises(InputError, match='intensity_width=-1.0 must be > 0'):
    refine(SCORES, IMAGE, settings)


def test_a_matrix_that_is_not_finite_is_refused():
  with pytest.raises(InputError, match='compatibility has nan; it must be fin'):
    Refinement(compatibility=[[0, 1], [float('nan'), 0]])


@pytest.mark.parametrize('shape', [(3, 3), (1, 3), ()])
def test_another_shape_of_present_is_refused(shape):
  with pytest.raises(InputError, match='present has shape .*; expected'):
    refine(SCORES, IMAGE, present=np.ones(shape, bool))


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_a_mask_of_255_is_no_weight(dtype):
  message = 'present is .*; expected bool'
  with pytest.raises(InputError, match=message):
    refine(SCORES, IMAGE, present=np.full(IMAGE.shape[:2], 255, dtype))


def test_what_absent_pixels_hold_does_not_count():
  present = np.ones(IMAGE.shape[:2], bool)
  present[1, 2] = present[0] = False
  results = []
  for held in (0, np.nan, np.inf):
    scores, image = SCORES.copy(), IMAGE.copy()
    scores[~present] = image[~present] = held

    def loss(scores, image):
      return jnp.sum(refine(scores, image, SETTINGS, present)[present] ** 2)

    slopes = jax.grad(loss, argnums=(0, 1))(scores, image)
    results.append([refine(scores, image, SETTINGS, present), *slopes])
    assert all(np.isfinite(result).all() for result in results[-1])
  for others in results[1:]:
    for result, other in zip(results[0], others, strict=True):
      np.testing.assert_array_equal(result, other)


@pytest.mark.parametrize(
  'value, rule',
  [('4', "='4' must be a number"), (np.ones(2), 'must be one number')],
)
def test_settings_that_are_no_number_are_refused(value, rule):
  with pytest.raises(InputError, match=f'appearance_weight.*{rule}'):
    refine(SCORES, IMAGE, of(SETTINGS, appearance_weight=value))


def test_an_array_of_penalties_that_is_not_finite_is_refused():
  matrix = np.full((SCORES.shape[-1],) * 2, np.nan)
  with pytest.raises(InputError, match='compatibility has NaN or inf'):
    refine(SCORES, IMAGE, of(SETTINGS, compatibility=matrix))


def test_settings_of_another_kind_are_refused():
  with pytest.raises(InputError, match=r'expected segjax.Refinement\(...\)'):
    refine(SCORES, IMAGE, {'iterations': 5})


def test_lists_are_arrays():
  np.testing.assert_array_equal(
    refine(SCORES.tolist(), IMAGE.tolist()), refine(SCORES, IMAGE)
  )
