# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from segjax import pictures
from segjax.errors import InputError
from segjax.legend import legend, voc_palette


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
  for prediction in (label, label.astype(np.float32) * 0.1 + 0.45):
    picture = pictures.overlay(image, label, prediction)
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
  swapped = pictures.overlay(image, label, prediction, drawn_class=1)
  np.testing.assert_array_equal(is_reddish(swapped), invented)


def test_overlay_stresses_what_is_beyond_the_tolerance(label):
  prediction = np.roll(label, 3, axis=1)
  image = np.full((40, 60), 7.0)  # Without contrast: black.
  picture = pictures.overlay(image, label, prediction, tolerance_px=2)
  red = picture[20, :, 0].astype(int)
  expected = np.zeros(60)
  # Label 10..13, prediction 13..16: column 10 is 3 px away, 11 and 12 nearer.
  expected[[10, 30]] = 0.8 * pictures.MISSED[0]
  expected[[11, 12, 31, 32]] = 0.3 * pictures.MISSED[0]
  np.testing.assert_allclose(red, expected, atol=1)
  far = pictures.overlay(image, label, prediction, tolerance_px=3)
  np.testing.assert_allclose(far[20, 10, 0], 0.3 * pictures.MISSED[0], atol=1)


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


def test_colour_label_tells_classes_apart():
  label = np.arange(9)[None]
  colours = pictures.colour_label(np.append(label, [[255]], axis=1))[0]
  assert len({tuple(colour) for colour in colours}) == 10
  # Twenty classes, as in VOC: colours repeat, but never the background's.
  many = pictures.colour_label(np.arange(2, 60)[None])[0]
  assert (many != 0).any(axis=-1).all()
  assert (many != 255).any(axis=-1).all()


NAMES = ('road', 'tree', 'a very long name of a class')
PALETTE = np.uint8([(10, 20, 30), (200, 100, 0), (0, 0, 250)])


def _scene(height=40, width=60):
  """Image, label with an ignored row, and a prediction wrong in one block."""
  image = np.random.default_rng(0).integers(
    0, 256, (height, width, 3), dtype=np.uint8
  )
  label = np.zeros((height, width), np.int32)
  label[:, 30:] = 1
  label[0] = 255
  prediction = np.where(label == 1, 1, 0)
  prediction[10:20, 40:50] = 2
  return image, label, prediction


def test_segmentation_panel_has_four_columns_above_a_legend():
  image, label, prediction = _scene()
  panel = pictures.segmentation_panel(image, label, prediction, NAMES, PALETTE)
  gap = pictures._GAP_PX
  columns = [panel[:40, i * (60 + gap) :][:, :60] for i in range(4)]
  np.testing.assert_array_equal(columns[0], image)
  expected = PALETTE[np.where(label == 255, 0, label)]
  expected[0] = (224, 224, 192)
  np.testing.assert_array_equal(columns[1], expected)
  np.testing.assert_array_equal(columns[2], PALETTE[prediction])
  # Wrong pixels take more of their colour than right ones.
  gray = pictures._rgb(image[..., :1]).astype(float)
  far = np.abs(columns[3].astype(float) - PALETTE[prediction]).mean(-1)
  start = np.abs(pictures._gray(image)[..., None] - PALETTE[prediction]).mean(
    -1
  )
  ratio = far / np.maximum(start, 1)
  assert gray.shape == columns[3].shape
  assert np.median(ratio[10:20, 40:50]) < 0.3 < np.median(ratio[25:, 35:])
  strip = panel[40:].reshape(-1, 3)
  for colour in (*PALETTE, (224, 224, 192)):
    assert (strip == colour).all(axis=-1).sum() > 50
  assert len(panel) > 40 + 20


def test_the_legend_names_what_appears_alone():
  image, label, _ = _scene()
  panel = pictures.segmentation_panel(
    image, None, np.zeros_like(label), NAMES, PALETTE
  )
  strip = panel[40:].reshape(-1, 3)
  counts = [(strip == colour).all(axis=-1).sum() for colour in PALETTE]
  assert counts[0] > 50 and counts[1:] == [0, 0]
  gap = pictures._GAP_PX
  assert panel.shape[1] == 3 * 60 + 2 * gap  # No label: no column for it.


def test_the_legend_wraps_and_never_cuts_a_name():
  one = legend(('road',), PALETTE[:1], 400)
  wide = legend(NAMES, PALETTE, 400)
  narrow = legend(NAMES, PALETTE, 90)
  assert wide.shape[:2] == (len(one), 400)
  assert len(narrow) > len(wide)
  assert narrow.shape[1] > 90  # The long name alone.
  dark = (narrow < 100).all(axis=-1)
  assert dark.any() and not dark[:, -4:].any()


def test_voc_colours():
  colours = voc_palette()
  known = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    2: (0, 128, 0),
    3: (128, 128, 0),
    4: (0, 0, 128),
    15: (192, 128, 128),
    20: (0, 64, 128),
    255: (224, 224, 192),
  }
  for index, colour in known.items():
    assert tuple(colours[index]) == colour
  assert len({*map(tuple, colours)}) == 256
  mixed = pictures.full_palette(PALETTE)
  np.testing.assert_array_equal(mixed[:3], PALETTE)
  np.testing.assert_array_equal(mixed[3:], colours[3:])


@pytest.mark.parametrize('channels', [1, 3, 4, 6])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_images_of_any_channels_are_shown(channels, dtype):
  image = np.ones((5, 7, channels), dtype)
  zeros = np.zeros((5, 7), np.int32)
  panel = pictures.segmentation_panel(image, zeros, zeros, ('only',))
  assert panel.dtype == np.uint8 and panel.shape[0] > 5


@pytest.mark.parametrize(
  ('label', 'prediction', 'message'),
  [
    (0, 3, 'prediction holds class 3; there are names for 3'),
    (3, 0, 'label holds class 3'),
    (0, 255, 'prediction holds class 255'),
  ],
)
def test_classes_without_a_name_are_refused(label, prediction, message):
  image = np.zeros((2, 3, 3), np.uint8)
  maps = [np.full((2, 3), k, np.int32) for k in (label, prediction)]
  with pytest.raises(InputError, match=message):
    pictures.segmentation_panel(image, *maps, NAMES, PALETTE)
  with pytest.raises(InputError, match=r'prediction of \(2, 2\) px'):
    pictures.segmentation_panel(image, None, maps[0][:, :2], NAMES)
