# SPDX-License-Identifier: Apache-2.0
"""A survey of a folder of images and labels: what all of them hold.

`find_layout` finds images and labels by their usual names. `survey` reads every
pair once and keeps counts, and of each image its name and checksums, no pixels.
"""

import collections
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from segjax.data.examples import check_equal_size, list_some, map_in_threads
from segjax.data.folder import Page, pages_of
from segjax.data.label_colours import LabelColours
from segjax.data.pairing import find_pairs, images_in, is_pattern, list_files
from segjax.errors import InputError, counted
from segjax.images.files import read_colours, read_image_page, read_label_page
from segjax.runs.writers import progress_bar

_IMAGE_FOLDERS = ('images', 'imagesTr', 'image', 'imgs', 'img', 'raw', 'train')
_LABEL_FOLDERS = (
  *('labels', 'labelsTr', 'masks', 'annotations', 'label', 'mask'),
  *('groundtruth', 'gt', 'train_labels', 'train_masks'),
)
_SUFFIXES = ('_masks', '_mask', '_labels', '_label', '_segmentation', '_seg')
# Matches of a name without a suffix, and without nnU-Net's channel, too.
_SUFFIX = '|'.join(_SUFFIXES)
_STEMS = tuple(
  rf'([^/]+?)(?i:{endings})?\.[^./]+$'
  for endings in (_SUFFIX, f'_0000|{_SUFFIX}')
)
# Numbers that names may have in common: which number -> match.
_NUMBERS = {
  'last': r'(\d+)[^\d/]*$',
  'first': r'(?:^|/)[^\d/]*(\d+)[^/]*$',
}
_MOST_COLOURS = 256
_MOST_VALUES = 2**16
_LOOKED_AT = 16  # Labels, spread over the set, whose components are counted.


class Layout(NamedTuple):
  """Folders of images and labels, as arguments of `pairing.find_pairs`."""

  root: Path
  images: str
  labels: str
  match: str


class Survey(NamedTuple):
  """Counts of all pairs of a folder.

  Attributes:
    pages: pages of all files, in natural order.
    digests: checksums of the pixels of the image and of the label of each page;
      that of an image is '' if all of its pixels are equal.
    sizes: (height, width) -> number of images.
    kind: dtype and number of channels of the images.
    range: smallest and largest value of the images.
    label_channels: number of channels of the labels.
    values: stored value, or (red, green, blue) -> number of pixels in all
      labels.
    num_masks: largest number of label files of an image; above 1, each is the
      mask of an object.
    single: share of the values above 0 whose pixels are one component, in some
      labels that are spread over the set.
    components: median number of components above the lowest value, in the same
      labels.
    thin: values that fill no block of 2 x 2 px in any label.
    num_mixed: number of labels that hold two values above 0.
    colours: colours of indices in the palettes of labels, without masks.
  """

  pages: tuple[Page, ...]
  digests: tuple[tuple[str, str], ...]
  sizes: Mapping[tuple[int, int], int]
  kind: tuple[np.dtype, int]
  range: tuple[float, float]
  label_channels: int
  values: Mapping
  num_masks: int
  single: float
  components: float
  thin: tuple
  num_mixed: int
  colours: LabelColours


def find_layout(
  images: str | os.PathLike,
  labels: str | os.PathLike | None,
  match: str = '',
  need_all: bool = True,
) -> Layout:
  """Returns the layout of a set.

  Args:
    images: folder or pattern of the images; if `labels` is None, folder of the
      set, in which images and labels are found by their usual names.
    labels: folder or pattern of the labels.
    match: see `find_pairs`; '' takes the first match that pairs the files.
    need_all: see `find_pairs`.

  Raises:
    InputError: images or labels are not found, or no match pairs them.
  """
  if labels is None:
    return _find_in(Path(images).expanduser().absolute(), match, need_all)
  paths = [Path(path).expanduser().absolute() for path in (images, labels)]
  for path, given in zip(paths, (images, labels), strict=True):
    # os.path, unlike Path, takes names that are too long for the file system.
    if os.path.isfile(path) and not is_pattern(str(given)):
      raise InputError(
        f'{given}: a file; expected its folder, or a pattern that finds it, '
        "such as 'FOLDER/*-volume.tif'"
      )
    if not os.path.isdir(path) and not is_pattern(str(given)):
      raise InputError(f'{given}: no such folder')
  parts = [path.parts for path in paths]
  # The root is the deepest folder of both that is no pattern.
  depth = 0
  for own, other in zip(*parts, strict=False):
    if own != other or is_pattern(own):
      break
    depth += 1
  root = Path(*parts[0][:depth])
  below = ['/'.join(part[depth:]) or '.' for part in parts]
  if not match and below[0] == below[1]:
    raise InputError(
      f'{images} is given for the images and for the labels; expected a '
      "pattern for the labels, such as --labels='FOLDER/*_mask.png'"
    )
  images, labels = below
  match = match or _fitting_match(root, images, labels, need_all)
  return Layout(root, images, labels, match)


def _find_in(root: Path, match: str, need_all: bool) -> Layout:
  if not root.is_dir():
    raise InputError(f'{root}: no such folder')
  found = _folders_in(root)
  below = [] if found else sorted(f for f in root.iterdir() if f.is_dir())
  for folder in below:
    pair = _folders_in(folder)
    if pair and len(images_in(folder / pair[0])) > 1:
      raise InputError(
        f'{root}: {folder.name} is a set of its own, with '
        f'{" and ".join(pair)}; give --images={folder}'
      )
  is_of_objects = any(root.glob('*/images/*')) and any(root.glob('*/masks/*'))
  if not found and is_of_objects:
    # Data Science Bowl 2018: a folder for each image, a mask for each nucleus.
    found = '*/images/*', '*/masks/*'
    match = match or '([^/]+)/(?:images|masks)/'
  elif not found:
    names = [file.stem for file in images_in(root)]
    suffixes = [
      name[-len(suffix) :]  # In the case of the file name.
      for suffix in _SUFFIXES
      for name in names
      if name.lower().endswith(suffix)
    ]
    if not suffixes:
      raise InputError(
        f'{root}: found neither folders images and labels (or '
        f'{", ".join(_LABEL_FOLDERS[1:4])}) in it, nor files whose names end '
        f'in {", ".join(_SUFFIXES[:4])}; give --images=FOLDER and '
        '--labels=FOLDER'
      )
    found = '.', f'*{suffixes[0]}.*'
  match = match or _fitting_match(root, *found, need_all)
  return Layout(root, *found, match)


def _folders_in(root: Path) -> tuple[str, str] | None:
  """Returns the folders of images and of labels by their usual names."""
  folders = {f.name.lower(): f.name for f in root.iterdir() if f.is_dir()}
  for images in _IMAGE_FOLDERS:
    for labels in _LABEL_FOLDERS:
      if {images.lower(), labels.lower()} <= folders.keys():
        return folders[images.lower()], folders[labels.lower()]
  return None


def _fitting_match(root: Path, images: str, labels: str, need_all: bool) -> str:
  """Returns the first match that pairs images and labels.

  Raises:
    InputError: no match does; the message proposes one by numbers in the names
      if that would pair them.
  """
  try:
    for where in (images, labels):
      list_files(root, where)
  except InputError as error:
    for volume in root.rglob('*.nii*'):
      raise InputError(
        f'{volume}: NIfTI is not read; save the slices as TIFF or .npy'
      ) from error
    raise
  errors = []
  for match in ('', *_STEMS):
    try:
      find_pairs(root, images, labels, match, need_all)
      return match
    except InputError as error:
      errors.append(error)
  for which, match in _NUMBERS.items():
    try:
      find_pairs(root, images, labels, match, need_all)
    except InputError:
      continue
    raise InputError(
      f"{errors[0]}; --match='{match}' would pair all by the {which} number in "
      'their names'
    ) from errors[0]
  raise InputError(
    f'{errors[0]}. Names that differ by more can be matched by what they have '
    r"in common, such as --match='(\d+)_.*'"
  ) from errors[0]


def survey(layout: Layout, need_all: bool) -> Survey:
  """Returns the counts of all pairs of a folder.

  Args:
    layout: see `find_layout`.
    need_all: see `find_pairs`.

  Raises:
    InputError: a file cannot be read, images are of several kinds or all of
      one value, a label and its image differ in size, or labels are neither
      classes nor objects.
  """
  root, images, labels, match = layout
  pairs = find_pairs(root, images, labels, match, need_all)
  channels = [pair.key for pair in pairs if pair.image.stem.endswith('_0001')]
  if channels and images == 'imagesTr':
    raise InputError(
      f'{root / images}: {channels[0]} is a second channel in a file of its '
      'own; expected one file an image, which has all channels'
    )
  for pair in pairs:
    # Masks of objects lie in a folder for each image.
    if len(pair.labels) > 1 and '*' not in os.path.dirname(labels):
      raise InputError(
        f'{pair.labels[0]} and {pair.labels[1].name} have one name; expected '
        'one of them'
      )
  pages = [page for pair in pairs for page in pages_of(pair)]
  return _survey(
    len(pages), lambda index: _read(pages[index]), str(root / labels), pages
  )


def survey_arrays(
  images: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> Survey:
  """Returns the counts of pairs of arrays; it has no `pages`.

  Args:
    images: arrays [H, W, C].
    labels: integers [H, W].

  Raises:
    InputError: see `survey`.
  """

  def read(index):
    label = labels[index][..., None]
    names = [f'{what} {index}' for what in ('image', 'label')]
    return names, images[index], label, None

  return _survey(len(images), read, 'labels', ())


def _survey(
  num_images: int,
  read: Callable[[int], tuple],
  where: str,
  pages: Sequence[Page],
) -> Survey:
  """Returns the counts of what `read`, see `_read`, returns for each index."""
  step = -(-num_images // _LOOKED_AT)
  sizes: collections.Counter = collections.Counter()
  values: collections.Counter = collections.Counter()
  kinds: dict = {}
  label_kinds: dict = {}
  digests, ranges, single, components = [], [], [], []
  solid = set()
  num_mixed, num_masks, colours = 0, 1, LabelColours()

  def look(index):
    names, image, label, of_indices = read(index)
    found = _look(image, label, names[1], index % step == 0)
    return names, of_indices, found

  with progress_bar(
    num_images, 0, desc='reading', unit='image', disable=None
  ) as bar:
    for names, of_indices, found in map_in_threads(look, range(num_images)):
      digests.append(found.digests)
      sizes[found.size] += 1
      kinds.setdefault(found.kind, []).append(names[0])
      label_kinds.setdefault(found.label_channels, []).append(names[1])
      ranges.append(found.range)
      values.update(found.values)
      num_mixed += len({0, *found.values}) > 2
      num_masks = max(num_masks, len(names) - 1)
      solid |= found.solid
      if len(names) == 2:  # Others are masks of objects.
        colours.add(names[1], of_indices)
      if len(values) > _MOST_VALUES:
        raise InputError(
          f'{where}: labels of more than {_MOST_VALUES} values; '
          'expected classes or numbered objects'
        )
      if found.single is not None:
        single.append(found.single)
        components.append(found.components)
      bar.update()
  for what, found in (('images', kinds), ('labels', label_kinds)):
    if len(found) > 1:
      said = '; '.join(
        f'{len(names)} {what} of {_say_kind(kind)}, such as {names[0]}'
        for kind, names in sorted(found.items(), key=lambda k: -len(k[1]))
      )
      raise InputError(f'{said}; expected one kind, convert the others')
  low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
  if low == high:
    raise InputError(
      f'all pixels of the {counted(num_images, "image")} are {low:g}; expected '
      'images that show something'
    )
  return Survey(
    pages=tuple(pages),
    digests=tuple(digests),
    sizes=sizes,
    kind=next(iter(kinds)),
    range=(low, high),
    label_channels=next(iter(label_kinds)),
    values=values,
    num_masks=num_masks,
    single=float(np.nanmean(single)) if not np.isnan(single).all() else 0.0,
    components=float(np.median(components)),
    thin=tuple(sorted(values.keys() - solid)),
    num_mixed=num_mixed,
    colours=colours,
  )


def _say_kind(kind):
  if isinstance(kind, int):
    return f'{kind} channel(s)'
  return f'{kind[0]} and {kind[1]} channel(s)'


class _Found(NamedTuple):
  """The counts of a pair; see `Survey`."""

  digests: tuple[str, str]
  size: tuple[int, int]
  kind: tuple[np.dtype, int]
  range: tuple[float, float]
  label_channels: int
  values: Mapping
  solid: Set
  # Only of labels whose components are counted.
  single: float | None = None
  components: float | None = None


def _read(page: Page) -> tuple:
  """Returns files, image, label and the colours of the label's indices."""
  image_file, *label_files = page.files
  image = read_image_page(image_file, page.number)
  labels = [read_label_page(file, page.number) for file in label_files]
  for file, label in zip(label_files, labels, strict=True):
    check_equal_size(label, file, image, image_file)
  label = labels[0]
  if len(labels) > 1:  # A mask for each object.
    label = np.zeros_like(label, np.int32)
    # Numbers follow the places of objects, not the names of files.
    places = [np.argmax(mask.ravel() > 0) for mask in labels]
    for number in np.argsort(places, kind='stable').tolist():
      mask = labels[number]
      if len(np.unique(mask[mask > 0])) > 1:
        raise InputError(
          f'{label_files[number]}: values {np.unique(mask).tolist()} in '
          f'one of {len(labels)} masks of {image_file}; expected 0 and one '
          'other value, since a mask shows one object'
        )
      label[mask > 0] = label.max() + 1
  return page.files, image, label, read_colours(label_files[0], page.number)


def _look(
  image: np.ndarray,
  label: np.ndarray,
  name: Path | str,
  counts_components: bool,
) -> _Found:
  """Returns the counts of an image and its label [H, W, C] of that name."""
  channels = label.shape[-1]
  if channels not in (1, 3):
    raise InputError(
      f'{name}: labels of {channels} channels; expected 1, or the '
      'red, green and blue of each class'
    )
  codes, value_of = label[..., 0], int
  if channels == 3:
    codes, value_of = label.astype(np.int64) @ (65536, 256, 1), _colour
  values, counts = np.unique(codes, return_counts=True)
  if channels == 3 and len(values) > _MOST_COLOURS:
    raise InputError(
      f'{name}: {len(values)} colours; expected one a class. Were '
      'the labels resized, or saved as JPEG? Both mix colours.'
    )
  values = [*map(value_of, values.tolist())]
  low, high = float(image.min()), float(image.max())
  found = _Found(
    # Plain images are equal without being copies.
    digests=(
      '' if low == high else _digest(image),
      _digest(label.astype(np.int64)),
    ),
    size=image.shape[:2],
    kind=(image.dtype, image.shape[-1]),
    range=(low, high),
    label_channels=channels,
    values=dict(zip(values, counts.tolist(), strict=True)),
    # Rims are a third value, between those of two classes.
    solid={*map(value_of, _solid(codes).tolist())}
    if len(values) > 2
    else {*values},
  )
  if not counts_components:
    return found
  single, components = _components(codes)
  if channels == 3:  # Colours number no objects.
    single = 0.0
  return found._replace(single=single, components=components)


def _digest(array: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _colour(code):
  return code >> 16, code >> 8 & 255, code & 255


def _solid(codes: np.ndarray) -> np.ndarray:
  """Returns the values that fill a block of 2 x 2 px."""
  if min(codes.shape) == 1:  # Such an image has no block.
    return np.unique(codes)
  corner = codes[1:, 1:]
  same = (corner == codes[:-1, 1:]) & (corner == codes[1:, :-1])
  return np.unique(corner[same & (corner == codes[:-1, :-1])])


def _components(label: np.ndarray) -> tuple[float, float]:
  """Returns the share of values that are one component, and all components.

  If one component has more than half of the pixels, the others are crumbs and
  do not count. Curves a pixel wide, which fall apart where they run diagonally
  for whoever counts 4-connected pieces, as border weights do, count as one.
  """
  numbers = np.unique(label)
  objects = numbers[numbers > 0]
  eight = np.ones((3, 3))
  single = [
    ndimage.label(label == number, eight)[1] == 1 for number in objects[:64]
  ]
  pieces, components = ndimage.label(label > numbers[0], eight)
  areas = np.bincount(pieces.ravel())[1:]
  is_one = components and areas.max() > areas.sum() / 2
  if is_one or ndimage.label(pieces)[1] > 2 * components:
    components = 1
  return float(np.mean(single)) if single else np.nan, float(components)


def say_copies(
  train: Sequence[tuple[str, tuple[str, str]]],
  heldout: Sequence[tuple[str, tuple[str, str]]],
) -> str:
  """Returns which copies of images do harm, in words; '' if there are none.

  These are images held out that are trained on, too, and images trained on with
  two labels.

  Args:
    train: name and checksums, see `Survey`, of each image to train on.
    heldout: those of each image that is held out.
  """
  trained: dict[str, tuple[str, str]] = {}
  contradictions = []
  for name, (image, label) in train:
    if image:
      first, own_label = trained.setdefault(image, (name, label))
      if own_label != label:
        contradictions.append(f'{name} is {first}')
  seen = [
    f'{name} is {trained[image][0]}'
    for name, (image, _) in heldout
    if image in trained
  ]
  said = []
  if seen:
    said.append(
      f'{len(seen)} of the images held out are also trained on, so scores are '
      f'too high: {list_some(seen)}; delete the copies'
    )
  if contradictions:
    said.append(
      f'{len(contradictions)} of the images trained on are copies of others '
      f'with another label: {list_some(contradictions)}; delete one of each two'
    )
  return '. '.join(said)


def say_sizes(sizes: Mapping[tuple[int, int], int]) -> str:
  """Returns the sizes of images in words."""
  if len(sizes) == 1:
    [(height, width)] = sizes
    return f'{height} x {width} px'
  least, most = np.min([*sizes], axis=0), np.max([*sizes], axis=0)
  return (
    f'{len(sizes)} sizes from {least[0]} x {least[1]} to {most[0]} x {most[1]} '
    'px'
  )


def say_values(counts: Mapping) -> str:
  """Returns values with their shares of the pixels, in words.

  Args:
    counts: value or colour -> number of pixels.
  """
  total = sum(counts.values())
  return list_some(f'{v} ({counts[v] / total:.2%})' for v in sorted(counts))
