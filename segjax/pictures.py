# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a network was given, what it said, and where it is wrong.

Arrays in, u8[H,W,3] arrays out. Saving them is `data.images.write_stack`.
"""

from collections.abc import Sequence

import numpy as np

from segjax.errors import InputError
from segjax.legend import legend, voc_palette

# Vermilion and blue stay apart for colour-blind readers.
MISSED = (230, 85, 13)
INVENTED = (0, 150, 255)
_IGNORED = (110, 110, 120)
_CLASSES = np.uint8(
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
  ]
)
# Lightness grows steadily from the first to the last.
_RAMP = np.float64(
  [
    (68, 1, 84),
    (70, 50, 127),
    (54, 92, 141),
    (39, 127, 142),
    (31, 161, 135),
    (74, 194, 109),
    (159, 218, 58),
    (253, 231, 37),
  ]
)
_GAP_PX = 6


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
  picture = np.repeat(np.float64(_gray(image))[..., None], 3, axis=-1)
  for given, other, colour in (
    (is_labelled, is_predicted, MISSED),
    (is_predicted, is_labelled, INVENTED),
  ):
    is_wrong = given & ~other & ~is_ignored
    is_far = is_wrong & ~_dilate(other | is_ignored, tolerance_px)
    opacity = np.where(is_far, 0.8, 0.3) * is_wrong
    picture += opacity[..., None] * (np.float64(colour) - picture)
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
  levels = 255 * np.clip(np.float64(probability), 0, 1)
  columns = [
    _rgb(image),
    colour_label(label),
    np.repeat(np.uint8(levels.round())[..., None], 3, axis=-1),
    overlay(image, label, probability),
  ]
  if has_weight:
    columns.insert(2, colour_map(weight / max(float(np.max(weight)), 1e-30)))
  return _joined(columns)


def segmentation_panel(
  image: np.ndarray,
  label: np.ndarray | None,
  prediction: np.ndarray,
  class_names: Sequence[str],
  palette: np.ndarray | None = None,
  *,
  ignore_label: int = 255,
) -> np.ndarray:
  """Image | label | prediction | overlay, above the names of their classes.

  The overlay is the image in gray with the prediction's colours over it. With
  a label, what it agrees with is faint there and what is wrong is strong.

  Args:
    image: [H,W] or [H,W,C], any real dtype; of more than three channels the
      first three are shown if they are u8, else their mean.
    label: i[H,W], or None, which leaves its column out.
    prediction: i[H,W], 0..K-1.
    class_names: K names.
    palette: u8[K,3], RGB; None is VOC's.
    ignore_label: label of pixels that are neither right nor wrong.

  Returns:
    u8[h,w,3].

  Raises:
    InputError: sizes differ, or a class has no name.
  """
  colours = full_palette(palette)
  ignored = voc_palette()[255]
  for name, classes in (('label', label), ('prediction', prediction)):
    if classes is None:
      continue
    if classes.shape != image.shape[:2]:
      raise InputError(
        f'{name} of {classes.shape} px for an image of {image.shape[:2]} px'
      )
    known = (classes >= 0) & (classes < len(class_names))
    if name == 'label':
      known |= classes == ignore_label
    if not known.all():
      raise InputError(
        f'{name} holds class {classes[~known][0]}; there are names for '
        f'{len(class_names)} classes'
      )
  strong = np.full(prediction.shape, 0.55)
  columns = [_rgb(image[..., :3] if image.ndim == 3 else image)]
  seen = {*np.unique(prediction).tolist()}
  if label is not None:
    is_ignored = label == ignore_label
    shown = colours[np.where(is_ignored, 0, label)]
    shown[is_ignored] = ignored
    columns.append(shown)
    seen |= {*np.unique(label[~is_ignored]).tolist()}
    strong = np.where((prediction == label) | is_ignored, 0.25, 0.8)
  columns.append(colours[prediction])
  gray = np.repeat(np.float64(_gray(image[..., :3]))[..., None], 3, axis=-1)
  blended = gray + strong[..., None] * (colours[prediction] - gray)
  columns.append(blended.round().astype(np.uint8))
  row = _joined(columns)

  entries = [(class_names[k], colours[k]) for k in sorted(seen)]
  if label is not None and is_ignored.any():
    entries.append(('ignored', ignored))
  names, swatches = zip(*entries, strict=True)
  strip = legend(names, swatches, row.shape[1])
  width = max(row.shape[1], strip.shape[1])
  parts = [
    np.pad(
      part,
      ((0, 0), (0, width - part.shape[1]), (0, 0)),
      constant_values=255,
    )
    for part in (row, strip)
  ]
  return np.concatenate(parts, axis=0)


def full_palette(palette: np.ndarray | None) -> np.ndarray:
  """Returns u8[256,3]: `palette` u8[K,3], then VOC's colours."""
  colours = voc_palette()
  if palette is not None:
    colours[: len(palette)] = palette
  return colours


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


def _joined(columns: Sequence[np.ndarray]) -> np.ndarray:
  """u8[h,w',3], the columns u8[h,w,3] side by side with white between."""
  gap = np.full((len(columns[0]), _GAP_PX, 3), 255, np.uint8)
  row = [part for column in columns for part in (gap, column)]
  return np.concatenate(row[1:], axis=1)


def _gray(image: np.ndarray) -> np.ndarray:
  """u8[H,W], the mean of the channels, stretched to the full range."""
  plane = np.nan_to_num(np.asarray(image, np.float64))
  plane = plane.mean(axis=-1) if plane.ndim == 3 else plane
  # Outliers, such as dead pixels, would leave the rest in a narrow band.
  low, high = np.percentile(plane, (0.2, 99.8))
  scaled = (plane - low) / max(high - low, 1e-30)
  return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _rgb(image: np.ndarray) -> np.ndarray:
  """u8[H,W,3], unchanged if the image is that, else its stretched gray."""
  if image.dtype == np.uint8 and image.shape[2:] == (3,):
    return image
  return np.repeat(_gray(image)[..., None], 3, axis=-1)


def _dilate(plane: np.ndarray, radius: int) -> np.ndarray:
  """bool[H,W], true within `radius` rows and columns of a true pixel."""
  padded = np.pad(plane, radius)
  windows = np.lib.stride_tricks.sliding_window_view(
    padded, (2 * radius + 1, 2 * radius + 1)
  )
  return windows.any(axis=(-1, -2))


def _crop_to_smallest(*arrays: np.ndarray) -> list[np.ndarray]:
  arrays = [np.asarray(array) for array in arrays]
  rows = min(array.shape[0] for array in arrays)
  columns = min(array.shape[1] for array in arrays)
  cropped = []
  for array in arrays:
    top = (array.shape[0] - rows) // 2
    left = (array.shape[1] - columns) // 2
    cropped.append(array[top : top + rows, left : left + columns])
  return cropped
