# SPDX-License-Identifier: Apache-2.0
"""Pictures of images, labels and predictions, with the errors in colour.

Arrays in, u8[H,W,3] arrays out. `images.files.write_stack` saves them,
`images.legends` draws the text in them.
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
# Colours of weights: lightness grows steadily from the first to the last.
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
# The columns of `panel` and of `segmentation_panel`, from left to right.
PANEL_COLUMNS = (
  'image, label, weights of the loss (if there are any), probability, errors '
  '(orange: missed, blue: invented)'
)
SEGMENTATION_COLUMNS = 'image, label, prediction, prediction over the image'
_GAP_PX = 6
_OVERLAY_OPACITY = 0.5
_TOLERANCE_PX = 2  # How far an edge may shift.


def overlay(
  image: np.ndarray, label: np.ndarray, probability: np.ndarray
) -> np.ndarray:
  """Returns the image in gray, with the errors of class 0 painted over it.

  Class 0 is the membrane in a micrograph of cells. Pixels of class 0 in the
  label alone (missed) are orange, those in the prediction alone (invented) are
  blue, ignored pixels and agreement stay gray. The tint is strong where the
  other map has no pixel of class 0 within 2 rows and columns: at a gap or an
  extra piece, not at a shifted edge.

  Args:
    image: [H,W] or [H,W,C], any real dtype.
    label: i[H,W], 255 for ignored pixels.
    probability: f[H,W], probability of class 1 of two.

  Returns:
    u8[H,W,3].
  """
  is_ignored = label == IGNORE_LABEL
  is_labelled = label == 0
  is_predicted = probability <= 0.5
  picture = np.repeat(_gray(image).astype(np.float64)[..., None], 3, axis=-1)
  for given, other, colour in (
    (is_labelled, is_predicted, MISSED),
    (is_predicted, is_labelled, INVENTED),
  ):
    is_wrong = given & ~other & ~is_ignored
    is_far = is_wrong & ~_dilate(other | is_ignored, _TOLERANCE_PX)
    opacity = np.where(is_far, 0.8, 0.3) * is_wrong
    picture += opacity[..., None] * (np.array(colour, np.float64) - picture)
  return picture.round().astype(np.uint8)


def panel(
  image: np.ndarray,
  label: np.ndarray,
  weight: np.ndarray | None,
  probability: np.ndarray,
) -> np.ndarray:
  """Returns one row: image | label | weight map | probability | overlay.

  The image is stretched to the full range, unless it is u8 and RGB. In the
  label, class 0 is black, class 1 white and ignored pixels gray. The weight map
  runs from dark violet at 0 to yellow at its largest value, the probability
  from black at 0 to white at 1.

  Args:
    image: [H,W] or [H,W,C], any real dtype.
    label: i[H,W], 0, 1 or 255.
    weight: f[H,W], not negative; None leaves its column out.
    probability: f[H,W] in [0, 1], probability of class 1 of two.

  Returns:
    u8[h,w',3], each column centre-cropped to the smallest of the arrays.
  """
  has_weight = weight is not None
  image, label, weight, probability = _crop_to_smallest(
    image, label, weight if has_weight else label, probability
  )
  levels = 255 * np.clip(np.asarray(probability, np.float64), 0, 1)
  classes = np.repeat(255 * (label[..., None] > 0).astype(np.uint8), 3, axis=-1)
  classes[label == IGNORE_LABEL] = _IGNORED
  columns = [
    _rgb(image),
    classes,
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
  """Returns one row, image | label | prediction | overlay, above a legend.

  Label and prediction have the colours of their classes. The overlay is the
  prediction, half transparent, over the image in light gray. The legend names
  the classes that appear in either, and 'ignored' if label 255 appears. Without
  a label the row is image | overlay.

  An image of three channels or more shows the first three, unchanged if it is
  u8, otherwise stretched to the full range. An image of fewer channels is gray.

  Args:
    image: [H,W] or [H,W,C], any real dtype.
    label: i[H,W], a class or 255; None if it is not known.
    prediction: i[H,W], a class.
    class_names: K names.
    palette: u8[K,3]; None, or missing rows, for the colours of VOC.

  Returns:
    u8[h,w,3]; w is the width of the row, or more if a name needs it.

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


def colour_map(values: np.ndarray) -> np.ndarray:
  """Returns values in [0, 1] as colours from dark violet to green to yellow.

  Args:
    values: f[H,W]; values outside [0, 1] take the end's colour.

  Returns:
    u8[H,W,3].
  """
  anchors = np.linspace(0, 1, len(_RAMP))
  channels = [np.interp(values, anchors, channel) for channel in _RAMP.T]
  return np.stack(channels, axis=-1).round().astype(np.uint8)


def _gray(image: np.ndarray) -> np.ndarray:
  """Returns u8[H,W], the mean of the channels, stretched to the full range."""
  plane = np.nan_to_num(np.asarray(image, np.float64))
  return _stretch(plane.mean(axis=-1) if plane.ndim == 3 else plane)


def _stretch(values: np.ndarray) -> np.ndarray:
  """Returns u8 of the same shape; one stretch for all channels."""
  # Outliers, such as dead pixels, would leave the rest in a narrow band.
  low, high = np.percentile(values, (0.2, 99.8))
  scaled = (values - low) / max(high - low, 1e-30)
  return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _rgb(image: np.ndarray) -> np.ndarray:
  """Returns u8[H,W,3]: the image if it is that, otherwise stretched gray."""
  if image.dtype == np.uint8 and image.shape[2:] == (3,):
    return image
  return np.repeat(_gray(image)[..., None], 3, axis=-1)


def _colour_image(image: np.ndarray) -> np.ndarray:
  """Returns u8[H,W,3]: the first three channels, or gray if there are fewer."""
  if image.ndim == 2 or image.shape[2] < 3:
    return _rgb(image)
  image = image[..., :3]
  return image if image.dtype == np.uint8 else _stretch(image)


def _check_classes(
  name: str, classes: np.ndarray, size: tuple[int, ...], num_classes: int
) -> None:
  """Raises InputError unless `classes` have the image's size and are known."""
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
  """Returns bool[H,W]: within `radius` rows and columns of a true pixel."""
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
