# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a network was given, what it said, and where it is wrong.

Arrays in, u8[H,W,3] arrays out. Saving them is `images.files.write_stack`, text
in them is `legends`.
"""

from collections.abc import Sequence

import numpy as np

from segjax.data.examples import IGNORE_LABEL
from segjax.errors import InputError
from segjax.images.legends import legend
from segjax.images.palettes import complete_palette

# Vermilion and blue stay apart for colour-blind readers.
MISSED = (230, 85, 13)
INVENTED = (0, 150, 255)
_IGNORED = (110, 110, 120)
_CLASSES = np.array(
  [
    (0, 0, 0),
    (255, 255, 255),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
  ],
  np.uint8,
)
# Lightness grows steadily from the first to the last.
_RAMP = np.array(
  [
    (68, 1, 84),
    (70, 50, 127),
    (54, 92, 141),
    (39, 127, 142),
    (31, 161, 135),
    (74, 194, 109),
    (159, 218, 58),
    (253, 231, 37),
  ],
  np.float64,
)
# What the rows below show, from left to right.
PANEL_COLUMNS = (
  'image, label, weights of the loss (if there are any), probability, errors '
  '(orange: missed, blue: invented)'
)
SEGMENTATION_COLUMNS = 'image, label, prediction, prediction over the image'
_GAP_PX = 6
_OVERLAY_OPACITY = 0.5


def overlay(
  image: np.ndarray,
  label: np.ndarray,
  prediction: np.ndarray,
  *,
  drawn_class: int = 0,
  tolerance_px: int = 2,
  ignore_label: int = 255,
) -> np.ndarray:
  """The image in gray, with the errors in one class painted over it.

  Red is `drawn_class` in the label alone (missed), blue in the prediction
  alone (invented); agreement stays gray. Every wrong pixel is tinted, and
  strongly where the other map has no pixel of the class within `tolerance_px`
  rows and columns: a gap or an extra piece, not a shifted edge.

  Args:
    image: [H,W] or [H,W,C], any real dtype.
    label: i[H,W].
    prediction: i[H,W] class, or f[H,W] probability of class 1 of two.
    drawn_class: the class compared: 0, the membrane, in EM.
    tolerance_px: how far an edge may shift.
    ignore_label: label of pixels that are never painted.

  Returns:
    u8[h,w,3], centre-cropped to the smallest of the three.
  """
  image, label, prediction = _crop_to_smallest(image, label, prediction)
  if np.issubdtype(prediction.dtype, np.floating):
    prediction = (prediction > 0.5).astype(np.int32)
  is_ignored = label == ignore_label
  is_labelled = label == drawn_class
  is_predicted = prediction == drawn_class
  picture = np.repeat(_gray(image).astype(np.float64)[..., None], 3, axis=-1)
  for given, other, colour in (
    (is_labelled, is_predicted, MISSED),
    (is_predicted, is_labelled, INVENTED),
  ):
    is_wrong = given & ~other & ~is_ignored
    is_far = is_wrong & ~_dilate(other | is_ignored, tolerance_px)
    opacity = np.where(is_far, 0.8, 0.3) * is_wrong
    picture += opacity[..., None] * (np.array(colour, np.float64) - picture)
  return picture.round().astype(np.uint8)


def panel(
  image: np.ndarray,
  label: np.ndarray,
  weight: np.ndarray | None,
  probability: np.ndarray,
) -> np.ndarray:
  """One row: image | label | weight map | probability | overlay.

  The image is stretched to the full range, unless it is u8 and RGB. The
  weight map runs from dark violet at 0 to yellow at its largest value, the
  probability from black at 0 to white at 1.

  Args:
    image: [H,W] or [H,W,C], any real dtype.
    label: i[H,W], 255 is drawn as ignored.
    weight: f[H,W], not negative; None leaves its column out.
    probability: f[H,W] in [0, 1], of class 1 of two.

  Returns:
    u8[h,w',3], each column centre-cropped to the smallest of the arrays.
  """
  has_weight = weight is not None
  image, label, weight, probability = _crop_to_smallest(
    image, label, weight if has_weight else label, probability
  )
  levels = 255 * np.clip(np.asarray(probability, np.float64), 0, 1)
  columns = [
    _rgb(image),
    colour_label(label),
    np.repeat(levels.round().astype(np.uint8)[..., None], 3, axis=-1),
    overlay(image, label, probability),
  ]
  if has_weight:
    columns.insert(2, colour_map(weight / max(float(np.max(weight)), 1e-30)))
  return _side_by_side(columns)


def segmentation_panel(
  image: np.ndarray,
  label: np.ndarray | None,
  prediction: np.ndarray,
  class_names: Sequence[str],
  palette: np.ndarray | None = None,
) -> np.ndarray:
  """One row: image | label | prediction | overlay, and a legend below.

  Label and prediction show the colours of their classes, the overlay those of
  the prediction, half transparent, over the image in light gray. The legend
  names the classes that appear in either, and 'ignored' if label 255 does.
  Without a label the row is image | overlay.

  An image of three channels or more shows the first three, as they are if it
  is u8, else stretched to the full range; one of fewer is shown in gray.

  Args:
    image: [H,W] or [H,W,C], any real dtype.
    label: i[H,W], a class or 255; None if it is not known.
    prediction: i[H,W], a class.
    class_names: K names.
    palette: u8[K,3]; what it lacks, or None lacks, is VOC's.

  Returns:
    u8[h,w,3]; w is that of the row, or more where one name alone needs it.

  Raises:
    InputError: the sizes differ, or a value is no class.
  """
  image, prediction = np.asarray(image), np.asarray(prediction)
  named = {'prediction': prediction}
  if label is not None:
    named['label'] = label = np.asarray(label)
  for name, classes in named.items():
    _check_classes(name, classes, image.shape[:2], len(class_names))
  colours = complete_palette(palette)
  shown = _colour_image(image)
  # Lifted, since many class colours are dark themselves.
  gray = 255 - 0.7 * (255 - _gray(shown).astype(np.float64)[..., None])
  blend = gray + _OVERLAY_OPACITY * (colours[prediction] - gray)
  columns = [shown, blend.round().astype(np.uint8)]
  if label is not None:
    columns[1:1] = [colours[label], colours[prediction]]
  row = _side_by_side(columns)
  indices = np.unique(np.concatenate([x.ravel() for x in named.values()]))
  names = dict(enumerate(class_names)) | {IGNORE_LABEL: 'ignored'}
  below = legend([(names[i], colours[i]) for i in indices], row.shape[1])
  missing = below.shape[1] - row.shape[1]
  row = np.pad(row, ((0, 0), (0, missing), (0, 0)), constant_values=255)
  return np.concatenate([row, below])


def colour_label(label: np.ndarray, ignore_label: int = 255) -> np.ndarray:
  """Class 0 black, 1 white, then colours that repeat; ignored pixels gray.

  Args:
    label: i[H,W], not negative.
    ignore_label: label of ignored pixels.

  Returns:
    u8[H,W,3].
  """
  label = np.asarray(label)
  # Black and white belong to the first two classes alone.
  coloured = 2 + (label - 2) % (len(_CLASSES) - 2)
  picture = _CLASSES[np.where(label < 2, label, coloured)]
  picture[label == ignore_label] = _IGNORED
  return picture


def colour_map(values: np.ndarray) -> np.ndarray:
  """Values in [0, 1] as colours from dark violet over green to yellow.

  Args:
    values: f[H,W]; values outside [0, 1] take the end's colour.

  Returns:
    u8[H,W,3].
  """
  anchors = np.linspace(0, 1, len(_RAMP))
  channels = [np.interp(values, anchors, channel) for channel in _RAMP.T]
  return np.stack(channels, axis=-1).round().astype(np.uint8)


def _gray(image: np.ndarray) -> np.ndarray:
  """u8[H,W], the mean of the channels, stretched to the full range."""
  plane = np.nan_to_num(np.asarray(image, np.float64))
  return _stretch(plane.mean(axis=-1) if plane.ndim == 3 else plane)


def _stretch(values: np.ndarray) -> np.ndarray:
  """u8 of the same shape, all channels stretched to the full range at once."""
  # Outliers, such as dead pixels, would leave the rest in a narrow band.
  low, high = np.percentile(values, (0.2, 99.8))
  scaled = (values - low) / max(high - low, 1e-30)
  return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _rgb(image: np.ndarray) -> np.ndarray:
  """u8[H,W,3], unchanged if the image is that, else its stretched gray."""
  if image.dtype == np.uint8 and image.shape[2:] == (3,):
    return image
  return np.repeat(_gray(image)[..., None], 3, axis=-1)


def _colour_image(image: np.ndarray) -> np.ndarray:
  """u8[H,W,3], the first three channels, or gray if there are fewer."""
  if image.ndim == 2 or image.shape[2] < 3:
    return _rgb(image)
  image = image[..., :3]
  return image if image.dtype == np.uint8 else _stretch(image)


def _check_classes(
  name: str, classes: np.ndarray, size: tuple[int, ...], num_classes: int
) -> None:
  """Raises InputError unless `classes` are of the image's size and known."""
  if classes.shape != size:
    raise InputError(
      f'{name} has shape {list(classes.shape)}, the image {list(size)}; they '
      'must be equal'
    )
  is_known = (classes >= 0) & (classes < num_classes)
  if name == 'label':
    is_known |= classes == IGNORE_LABEL
  if not is_known.all():
    also = f' or {IGNORE_LABEL}' if name == 'label' else ''
    raise InputError(
      f'{name} holds {classes[~is_known][0]}; must be in 0..{num_classes - 1}'
      f'{also}'
    )


def _side_by_side(columns: Sequence[np.ndarray]) -> np.ndarray:
  gap = np.full((len(columns[0]), _GAP_PX, 3), 255, np.uint8)
  row = [part for column in columns for part in (gap, column)]
  return np.concatenate(row[1:], axis=1)


def _dilate(plane: np.ndarray, radius: int) -> np.ndarray:
  """bool[H,W], true within `radius` rows and columns of a true pixel."""
  padded = np.pad(plane, radius)
  windows = np.lib.stride_tricks.sliding_window_view(
    padded, (2 * radius + 1, 2 * radius + 1)
  )
  return np.logical_or.reduce(windows, axis=(-1, -2))


def _crop_to_smallest(*arrays: np.ndarray) -> list[np.ndarray]:
  planes = [np.asarray(array) for array in arrays]
  rows = min(plane.shape[0] for plane in planes)
  columns = min(plane.shape[1] for plane in planes)
  cropped = []
  for array in planes:
    top = (array.shape[0] - rows) // 2
    left = (array.shape[1] - columns) // 2
    cropped.append(array[top : top + rows, left : left + columns])
  return cropped
