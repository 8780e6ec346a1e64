# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from segjax import pictures
from segjax.errors import InputError

NAMES = ('background', 'cell', 'wall', 'never there')
OWN = np.uint8([[0, 0, 200], [200, 0, 0], [0, 200, 0], [90, 0, 90]])
VOC = np.uint8([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]])
IGNORED = (224, 224, 192)
# Pixels of a swatch of a legend with letters of 11 px, without its frame.
SWATCH_PX = 14 * 9


def is_reddish(picture):
  picture = picture.astype(int)
  return picture[..., 0] - picture[..., 2] > 20


def is_bluish(picture):
  picture = picture.astype(int)
  return picture[..., 2] - picture[..., 0] > 20


def is_gray(picture):
  return (picture == picture[..., :1]).all(axis=-1)


@pytest.fixture
def label():
  label = np.ones((40, 60), np.int32)
  label[:, 10:14] = 0
  label[:, 30:34] = 0
  return label


def test_overlay_of_a_perfect_prediction_is_the_gray_image(label):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, 60, 1), np.uint8)
  image[0, :30], image[0, 30:] = 0, 255  # 1 percent at both ends, and more.
  picture = pictures.overlay(image, label, label * 0.1 + 0.45)
  np.testing.assert_array_equal(picture, np.repeat(image, 3, axis=-1))


def test_overlay_colours_errors(label):
  prediction = label.copy()
  prediction[:, 10:14] = 1  # Missed.
  prediction[:, 50:54] = 0  # Invented.
  image = np.random.default_rng(0).normal(size=(40, 60))
  picture = pictures.overlay(image, label, prediction)
  missed, invented = np.zeros((2, 40, 60), bool)
  missed[:, 10:14] = True
  invented[:, 50:54] = True
  np.testing.assert_array_equal(is_reddish(picture), missed)
  np.testing.assert_array_equal(is_bluish(picture), invented)
  np.testing.assert_array_equal(is_gray(picture), ~missed & ~invented)


def test_overlay_stresses_what_is_beyond_the_tolerance(label):
  prediction = np.roll(label, 3, axis=1)
  image = np.full((40, 60), 7.0)  # Without contrast: black.
  picture = pictures.overlay(image, label, prediction)
  red = picture[20, :, 0].astype(int)
  expected = np.zeros(60)
  # Label 10..13, prediction 13..16: column 10 is 3 px away, 11 and 12 nearer.
  expected[[10, 30]] = 0.8 * pictures.MISSED[0]
  expected[[11, 12, 31, 32]] = 0.3 * pictures.MISSED[0]
  np.testing.assert_allclose(red, expected, atol=1)
  near = pictures.overlay(image, label, np.roll(label, 2, axis=1))
  np.testing.assert_allclose(near[20, 10, 0], 0.3 * pictures.MISSED[0], atol=1)


def test_overlay_leaves_ignored_pixels(label):
  prediction = 1 - label
  ignored = label.copy()
  ignored[5:20] = 255
  picture = pictures.overlay(np.zeros((40, 60)), ignored, prediction)
  assert (picture[5:20] == 0).all()
  assert (picture[25:] != 0).any(axis=-1).all()


@pytest.mark.parametrize('shape', [(40, 60), (40, 60, 1), (40, 60, 4)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.float32])
def test_panel_takes_any_image(label, shape, dtype):
  image = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
  picture = pictures.panel(image, label, None, label.astype(np.float32))
  assert picture.dtype == np.uint8
  assert picture.shape == (40, 4 * 60 + 3 * 6, 3)
  assert is_gray(picture).all()
  assert picture[:, :60].min() == 0
  assert picture[:, :60].max() == 255


def test_panel_columns(label):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, 60, 3), np.uint8)
  weight = rng.random((40, 60)).astype(np.float32) * 9
  probability = rng.random((40, 60)).astype(np.float32)
  picture = pictures.panel(image, label, weight, probability)
  columns = [picture[:, i : i + 60] for i in range(0, 5 * 66, 66)]
  np.testing.assert_array_equal(columns[0], image)

  np.testing.assert_array_equal(columns[1], 255 * label[..., None] * [1, 1, 1])
  np.testing.assert_array_equal(
    columns[2], pictures.colour_map(weight / weight.max())
  )
  np.testing.assert_allclose(columns[3][..., 1], 255 * probability, atol=0.51)
  np.testing.assert_array_equal(
    columns[4], pictures.overlay(image, label, probability)
  )
  assert picture.shape[1] == 5 * 60 + 4 * 6


def test_panel_shows_ignored_pixels_in_their_own_colour(label):
  label[:3] = 255
  picture = pictures.panel(np.zeros((40, 60)), label, None, label / 255)
  shown = picture[:, 66:126].reshape(40 * 60, 3)
  colours = [{*map(tuple, shown[label.ravel() == k])} for k in (255, 0, 1)]
  [ignored] = colours[0]
  assert colours[1:] == [{(0, 0, 0)}, {(255, 255, 255)}]
  assert 0 < min(ignored) and max(ignored) < 255


def test_panel_crops_about_the_centre(label):
  label[18] = 0
  image = np.arange(60 * 90, dtype=np.uint16).reshape(60, 90)
  probability = np.full((10, 21), 0.5, np.float32)
  picture = pictures.panel(image, label, None, probability)
  assert picture.shape[0] == 10
  # The label loses (40 - 10) // 2 = 15 rows and (60 - 21) // 2 = 19 columns.
  shown = picture[:, 21 + 6 : 21 + 6 + 21, 0]
  rows, columns = np.mgrid[15:25, 19:40]
  np.testing.assert_array_equal(
    shown == 0, (rows == 18) | (30 <= columns) & (columns < 34)
  )
  # The image loses (60 - 10) // 2 rows and (90 - 21) // 2 columns; its values
  # span 9 rows and 20 columns, less 0.2 percent at either end.
  gray = 255 * (90 * np.mgrid[:10, :21][0] + np.mgrid[:10, :21][1]) / 830
  np.testing.assert_allclose(picture[:, :21, 0], gray, atol=2)


def test_colour_map_grows_lighter():
  colours = pictures.colour_map(np.linspace(0, 1, 256)[None])[0]
  luminance = colours @ [0.2126, 0.7152, 0.0722]
  assert (np.diff(luminance) > -0.5).all()
  assert luminance[-1] - luminance[0] > 180
  np.testing.assert_array_equal(
    pictures.colour_map(np.array([[-1.0, 2.0]]))[0], colours[[0, -1]]
  )


@pytest.fixture
def classes():
  """Label with 0, 1 and ignored pixels, and prediction with 0, 1 and 2."""
  label = np.zeros((40, 60), np.int32)
  label[10:30, 20:40] = 1
  prediction = np.roll(label, 5, axis=1)
  prediction[:5, :7] = 2
  label[35:] = 255
  return label, prediction


def count(picture, colour):
  return (picture == colour).all(axis=-1).sum()


@pytest.mark.parametrize(('palette', 'colours'), [(None, VOC), (OWN, OWN)])
def test_segmentation_panel_columns(classes, palette, colours):
  label, prediction = classes
  image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  picture = pictures.segmentation_panel(
    image, label, prediction, NAMES, palette
  )
  assert picture.dtype == np.uint8
  assert picture.shape[1] == 4 * 60 + 3 * 6
  assert picture.shape[0] > 40
  columns = [picture[:40, i : i + 60] for i in range(0, 4 * 66, 66)]
  np.testing.assert_array_equal(columns[0], image)
  for shown, indices in ((columns[1], label), (columns[2], prediction)):
    for i, colour in enumerate(colours):
      assert (shown[indices == i] == colour).all()
  assert (columns[1][label == 255] == IGNORED).all()
  # Half of each is the colour, and the other half has no hue.
  gray = 2 * columns[3].astype(int) - colours[prediction]
  assert np.ptp(gray, axis=-1).max() <= 2
  luminance = image.mean(axis=-1)
  assert np.corrcoef(gray[..., 0].ravel(), luminance.ravel())[0, 1] > 0.999
  assert gray.min() > 70


def test_segmentation_panel_without_label_is_image_and_overlay(classes):
  label, prediction = classes
  image = np.random.default_rng(0).random((40, 60, 1)).astype(np.float32)
  whole = pictures.segmentation_panel(image, label, prediction, NAMES)
  picture = pictures.segmentation_panel(image, None, prediction, NAMES)
  np.testing.assert_array_equal(picture[:40, :60], whole[:40, :60])
  np.testing.assert_array_equal(picture[:40, 66:126], whole[:40, 198:])
  assert (picture[:40, 126:] == 255).all()


def test_legend_lists_what_appears(classes):
  label, prediction = classes
  image = np.zeros((40, 60), np.uint8)

  def swatches(*arrays):
    panel = pictures.segmentation_panel(image, *arrays, NAMES, OWN)
    colours = (*OWN, IGNORED)
    return [count(panel[40:], colour) // SWATCH_PX for colour in colours]

  assert swatches(label, prediction) == [1, 1, 1, 0, 1]
  assert swatches(None, prediction) == [1, 1, 1, 0, 0]
  assert swatches(label, 0 * label) == [1, 1, 0, 0, 1]
  assert swatches(0 * label + 255, 0 * label + 3) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize('channels', [3, 4, 6])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_segmentation_panel_shows_three_channels(classes, channels, dtype):
  _, prediction = classes
  # The first three run evenly over their range; the others are far from it.
  image = np.linspace(0, 100, 40 * 60 * 3).reshape(40, 60, 3)
  more = np.full((40, 60, channels - 3), 200)
  image = np.concatenate([image, more], axis=-1).astype(dtype)
  panel = pictures.segmentation_panel(image, None, prediction, NAMES)
  shown = panel[:40, :60]
  if dtype == np.uint8:
    np.testing.assert_array_equal(shown, image[..., :3])
  else:
    np.testing.assert_allclose(shown, image[..., :3] * 2.55, atol=3)


@pytest.mark.parametrize('shape', [(40, 60), (40, 60, 1), (40, 60, 2)])
def test_segmentation_panel_shows_fewer_channels_in_gray(classes, shape):
  image = np.random.default_rng(0).random(shape)
  panel = pictures.segmentation_panel(image, None, classes[1], NAMES)
  shown = panel[:40, :60]
  assert is_gray(shown).all()
  assert shown.min() == 0
  assert shown.max() == 255


def test_segmentation_panel_of_a_tiny_image_grows_for_a_name():
  zeros = np.zeros((32, 40), np.int32)
  panel = pictures.segmentation_panel(zeros, None, zeros, ['x' * 40])
  assert panel.shape[1] > 200
  assert (panel[:32, 2 * 40 + 6 :] == 255).all()


@pytest.mark.parametrize('value', [4, 254, 255, -1])
def test_segmentation_panel_refuses_unknown_classes(classes, value):
  label, prediction = classes
  wrong = prediction.copy()
  wrong[7, 3] = value
  with pytest.raises(InputError, match=rf'prediction holds {value}; .*0\.\.3$'):
    pictures.segmentation_panel(label, label, wrong, NAMES)
  if value != 255:
    with pytest.raises(InputError, match=f'label holds {value}; .* or 255'):
      pictures.segmentation_panel(label, wrong, prediction, NAMES)


def test_segmentation_panel_refuses_other_sizes(classes):
  label, prediction = classes
  image = np.zeros((40, 60, 3), np.uint8)
  for wrong, arrays in (
    ('label', (image, label[1:], prediction)),
    ('prediction', (image, label, prediction[:, 1:])),
    ('prediction', (image[1:], None, prediction)),
    ('label', (image, label[..., None], prediction)),
  ):
    with pytest.raises(InputError, match=f'{wrong} has shape .*must be equal'):
      pictures.segmentation_panel(*arrays, NAMES)
