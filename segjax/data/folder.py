# SPDX-License-Identifier: Apache-2.0
"""A folder of one's own images and labels as a data set.

`pairing` finds the files that belong together. Each page of a stack (a TIFF or
.npy of several pages) is an example: a-0, a-1, ...
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn
from unicodedata import normalize

import numpy as np

from segjax.data import border_weights
from segjax.data.examples import (
  Dataset,
  Item,
  check_disjoint,
  check_equal_size,
  digest_of_files,
  map_in_threads,
)
from segjax.data.label_coding import LabelCoding
from segjax.data.layout import check_files, read_names
from segjax.data.pairing import Pair, find_key, find_pairs
from segjax.errors import InputError, counted, shortened
from segjax.images.files import (
  count_pages,
  how_to_join,
  open_rasters,
  read_image_page,
  read_label_page,
)
from segjax.images.labels import label_of

KINDS = ('classes', 'instances')
_KEPT_BYTES = 2**31  # Of examples whose weights take long to compute.


def load(
  dir: str,
  images: str,
  labels: str,
  class_names: Sequence[str],
  colours: Sequence[Sequence[int]],
  ignore_value: Sequence[int],
  train_list: str,
  heldout_list: str,
  heldout_fraction: float,
  seed: int,
  label_values: Sequence[int] = (),
  match: str = '',
  group: str = '',
  label_kind: str = 'classes',
  w0: float = 0.0,
  sigma_px: float = 5.0,
  balance: bool = False,
) -> Dataset:
  """Returns the images with labels, split by lists or at random.

  Images are read when they are asked for. With border weights, which take long
  to compute, up to 2 GiB of the examples are kept in memory.

  Args:
    dir: folder that all the others are in.
    images: folder of the images in `dir`, or a pattern; see `find_pairs`.
    labels: folder or pattern of the labels; no JPEG, which changes values.
    class_names: names of classes 0..K-1.
    colours: see `LabelCoding`; pictures have the same colours.
    ignore_value: see `LabelCoding`.
    train_list: file in `dir` with an image on each line: its stem, file name,
      or path below `dir`. For a stack these stand for all pages, and a-0 for
      one page.
    heldout_list: file of the images to hold out. If both are '', the images to
      hold out are drawn.
    heldout_fraction: share of the files to hold out if they are drawn, in
      [0, 1). All pages of a stack are held out together, since neighbours look
      alike; if there is one stack alone, its last pages are held out.
    seed: random seed of the draw, which depends only on the names of files.
    label_values: see `LabelCoding`.
    match: see `find_pairs`.
    group: regular expression whose first group, found in the path of an image
      below `dir`, names images that are held out together, such as those of a
      patient. '' draws files.
    label_kind: 'classes', or 'instances' if labels number objects, or each
      object has a mask. The two classes are then background and object, with
      gaps between objects that touch (`separate_touching`), and examples have
      `instances`, by which they are scored.
    w0: height of the border weights; see `border_weights.border_weights`. 0 for
      none. Every component of the classes above 0 counts as an object.
    sigma_px: width of the border weights, in pixels.
    balance: whether all classes get the same total weight, see `class_balance`;
      reads all training labels.

  Raises:
    InputError: a folder or file is missing, damaged, or without its partner; a
      split is empty; an example is both trained on and held out; a list names
      no image; labels are not as `colours`, `label_values` and `ignore_value`
      say; an image and its label differ in size; or images differ in channels
      or type.
  """
  coding = LabelCoding(len(class_names), colours, ignore_value, label_values)
  if label_kind not in KINDS:
    raise InputError(f'label_kind={label_kind!r} is not one of {KINDS}')
  if label_kind == 'instances' and (colours or len(class_names) != 2):
    raise InputError(
      f"label_kind='instances' with class_names={tuple(class_names)} and "
      f'{len(colours)} colours; expected two classes, the background and the '
      'objects, and colours=()'
    )
  if w0 < 0 or sigma_px <= 0:
    raise InputError(
      f'w0={w0}, sigma_px={sigma_px}; expected w0 >= 0 and sigma_px > 0'
    )
  if bool(train_list) != bool(heldout_list):
    raise InputError(
      f'train_list={train_list!r} and heldout_list={heldout_list!r}; expected '
      "two files, or '' for both to draw heldout_fraction"
    )
  root = Path(dir).expanduser()
  pairs = find_pairs(root, images, labels, match, need_all=not train_list)
  _check_labels(pairs, label_kind)
  files = [pages_of(pair) for pair in pairs]
  if train_list:
    known = _known_names(files, root)
    train, held = (
      _listed(root / file, known, labels) for file in (train_list, heldout_list)
    )
    check_disjoint(train, held)
  else:
    groups: dict[str, list] = {}
    for pages in files:
      image = pages[0].files[0]
      key = find_key(image, root, group) if group else str(image)
      groups.setdefault(key, []).extend(pages)
    train, held = _drawn([*groups.values()], heldout_fraction, seed)

  read_label = functools.partial(
    _read_instances if label_kind == 'instances' else _read_classes,
    coding=coding,
  )
  first = read_image_page(pairs[0].image, 0)
  kind = first.dtype, first.shape[-1], pairs[0].image
  settings: list = [tuple(map(tuple, colours)), tuple(ignore_value)]
  if label_values:  # Older runs, which had none, keep their digest.
    settings.append(tuple(label_values))
  if label_kind != 'classes':
    settings.append(label_kind)
  if w0 or balance:
    settings += [w0, sigma_px, balance]

  def count(item):
    return border_weights.class_counts(read_label(item)[0], len(class_names))

  counts = map_in_threads(count, train)
  weighting = make_weighting(counts, len(class_names), w0, sigma_px, balance)
  examples = functools.partial(
    FolderExamples,
    kind=kind,
    read_label=read_label,
    weighting=weighting,
    kept_bytes=_KEPT_BYTES if w0 else 0,
    holds_indices=label_kind == 'classes' and not colours,
  )
  return Dataset(
    class_names=tuple(class_names),
    train=examples(train),
    heldout=examples(held),
    digest=digest_of_files(train + held, len(train), *settings),
    palette=np.array(colours, np.uint8) if colours else None,
    stored=coding.stored if label_kind == 'classes' else (),
  )


@dataclasses.dataclass(frozen=True)
class Page(Item):
  """An item that is a page of its image and label files.

  Attributes:
    number: index of the page in the files.
    is_of_stack: whether the files have several pages.
  """

  number: int = 0
  is_of_stack: bool = False


@dataclasses.dataclass(frozen=True)
class FolderExamples(Sequence):
  """Examples that are read, and weighted, when they are asked for.

  Attributes:
    items: an item for each example.
    kind: dtype and number of channels of all images, and the first file.
    read_label: page -> label i32[H, W] and `instances` or None.
    weighting: label i32[H, W] -> weight f32[H, W]; None for no weights.
    kept_bytes: most bytes of examples that are kept in memory.
    holds_indices: whether the label files hold indices of classes.
  """

  items: tuple[Page, ...]
  kind: tuple[np.dtype, int, Path]
  read_label: Callable[[Page], tuple[np.ndarray, np.ndarray | None]]
  weighting: Callable[..., np.ndarray] | None
  kept_bytes: int
  holds_indices: bool
  _kept: dict[int, dict] = dataclasses.field(default_factory=dict, repr=False)

  def __len__(self) -> int:
    return len(self.items)

  def size(self, index: int) -> tuple[int, ...]:
    """Returns height and width of an image, without decoding it."""
    item = self.items[index]
    with open_rasters(item.files[0]) as pages:
      return tuple(pages[item.number].shape[:2])

  def label(self, index: int) -> np.ndarray:
    """Returns i32[H, W], the label alone, without decoding its image."""
    item = self.items[index]
    with open_rasters(item.files[0]) as pages:
      image = pages[item.number]
    label, _ = self.read_label(item)
    self._check(item, image, label)
    return label

  def index_page(self, index: int) -> tuple[Path, int] | None:
    """Returns the label file and its page; None if it holds no indices."""
    item = self.items[index]
    return (item.files[1], item.number) if self.holds_indices else None

  def __getitem__(self, index: int) -> dict:
    """Returns an example as `segjax.data.examples` defines it.

    Raises:
      InputError: a file cannot be read, the image differs from the first one in
        dtype or channels, or image and label differ in size.
    """
    if index in self._kept:
      return self._kept[index]
    item = self.items[index]
    image = read_image_page(item.files[0], item.number)
    label, instances = self.read_label(item)
    self._check(item, image, label)
    example = {'image': image, 'label': label, 'name': item.name}
    if self.weighting:
      example['weight'] = self.weighting(label)
    if instances is not None:
      example['instances'] = instances
    size = sum(getattr(value, 'nbytes', 0) for value in example.values())
    if (len(self._kept) + 1) * size <= self.kept_bytes:
      self._kept[index] = example
    return example

  def _check(self, item, image, label):
    dtype, channels, first = self.kind
    if (image.dtype, image.shape[-1]) != (dtype, channels):
      raise InputError(
        f'{item.files[0]}: {image.dtype} of {image.shape[-1]} channel(s); '
        f'expected {dtype} of {channels}, as {first} has'
      )
    check_equal_size(label, item.files[1], image, item.files[0])


def _read_classes(page, coding):
  number = f', page {page.number}' if page.is_of_stack else ''
  stored = read_label_page(page.files[1], page.number)
  return coding.decode(stored, f'{page.files[1]}{number}'), None


def _read_instances(page, coding):
  """Returns the label, with gaps between objects, and the `instances`."""
  masks = [read_label_page(file, page.number) for file in page.files[1:]]
  for file, mask in zip(page.files[1:], masks, strict=True):
    if mask.shape[-1] != 1:
      raise InputError(
        f'{file}: {mask.shape[-1]} channels; expected 1, which numbers the '
        'objects'
      )
    if mask.shape != masks[0].shape:
      raise InputError(
        f'{file}: {mask.shape[0]} x {mask.shape[1]} px; expected '
        f'{masks[0].shape[0]} x {masks[0].shape[1]} as {page.files[1]} has'
      )
  instances = masks[0][..., 0].astype(np.int32)
  if len(masks) > 1:
    instances = np.zeros_like(instances)
    for number, mask in enumerate(masks, start=1):
      instances[mask[..., 0] > 0] = number
  carved = border_weights.separate_touching(instances)
  return (carved > 0).astype(np.int32), instances


def make_weighting(
  counts: Iterable[np.ndarray],
  num_classes: int,
  w0: float,
  sigma_px: float,
  balance: bool,
) -> Callable[[np.ndarray], np.ndarray] | None:
  """Returns label i32[H, W] -> weight f32[H, W]; None if all pixels weigh 1.

  Args:
    counts: number of pixels of each class, int[K], of each training label; read
      only for `balance`.
    num_classes: K.
    w0, sigma_px, balance: see `load`.
  """
  if not (w0 or balance):
    return None
  class_weights = np.ones(num_classes)
  if balance:
    total = np.sum([*counts], axis=0)
    if total.any():  # If not, `label_counts.check_labels` refuses the labels.
      class_weights = border_weights.class_balance(total)
  return functools.partial(
    weigh, class_weights=class_weights, w0=w0, sigma=sigma_px
  )


def weigh(
  label: np.ndarray, class_weights: np.ndarray, w0: float, sigma: float
) -> np.ndarray:
  """Returns f32[H, W], class weights and, on the background, border weights.

  Args:
    label: i32[H, W], class indices; all other values are ignored and weigh 0.
    class_weights: f32[K].
    w0, sigma: see `border_weights.border_weights`.
  """
  ignored = label >= len(class_weights)
  weight = np.where(ignored, 0, class_weights[np.where(ignored, 0, label)])
  if w0:
    objects = ((label > 0) & ~ignored).astype(np.int32)
    border = border_weights.border_weights(
      border_weights.find_instances(objects),
      w0=w0,
      sigma=sigma,
      class_weights=(0, 0),
      ignore=ignored,
    )
    weight = weight + border
  return weight.astype(np.float32)


def _check_labels(pairs: Iterable[Pair], label_kind: str) -> None:
  for pair in pairs:
    if len(pair.labels) > 1 and label_kind != 'instances':
      raise InputError(
        f'{pair.image}: {len(pair.labels)} labels have its name, '
        f'{pair.labels[0]} and {pair.labels[1].name}; expected one, or '
        "label_kind='instances' for a mask of each object"
      )


def pages_of(pair: Pair) -> list[Page]:
  """Returns an item for each page of an image and its labels."""
  files = (pair.image, *pair.labels)
  num_pages = count_pages(pair.image)
  for file in pair.labels:
    if count_pages(file, label_of) != num_pages:
      _refuse_pages(pair.image, file)
  if num_pages == 1:
    return [Page(pair.key, files)]
  return [Page(f'{pair.key}-{i}', files, i, True) for i in range(num_pages)]


def _refuse_pages(image: Path, label: Path) -> NoReturn:
  """Raises InputError for unequal numbers of pages, with the likely cure."""
  with open_rasters(image) as pages:
    count, (height, width) = len(pages), pages[0].shape[:2]
  with open_rasters(label, label_of) as pages:
    label_count, size = len(pages), pages[0].shape[:2]
  message = (
    f'{image} is read as {counted(count, "page")} of {height} x {width} px, '
    f'its label {label} as {counted(label_count, "page")} of '
    f'{size[0]} x {size[1]} px; expected equal numbers of pages'
  )
  if count == 1:
    message += (
      '. If the pages of the label are masks of classes or objects, save one '
      'page of class indices or object numbers'
    )
  elif label_count == 1 and size == (height, width):
    message += how_to_join(image, count)
  elif label_count == 1 and size == (count, height):
    message += how_to_join(image, width, are_last=True)
  raise InputError(message)


def _known_names(
  files: Iterable[Sequence[Page]], root: Path
) -> dict[str, Sequence[Page]]:
  """Returns the pages for each name that a list may have for an image."""
  known: dict[str, Sequence[Page]] = {}
  for pages in files:
    file = pages[0].files[0]
    path = file.relative_to(root).as_posix()
    names = {file.stem: pages, file.name: pages, path: pages}
    names |= {page.name: [page] for page in pages}
    names = {normalize('NFC', name): named for name, named in names.items()}
    for name in names.keys() & known.keys():
      raise InputError(
        f'{name} names two images, one in {file}; expected other file names'
      )
    known |= names
  return known


def _listed(file, known, labels):
  items = []
  for name in read_names(file):
    # The same accent has two encodings, and macOS uses the other one.
    name = normalize('NFC', name)
    if name not in known:
      raise InputError(
        f'{file} lists {shortened(name)}, which is no image with a label in '
        f'{labels}'
      )
    items += known[name]
  return check_files(items, file)


def _drawn(groups, fraction, seed):
  if not 0 <= fraction < 1:
    raise InputError(
      f'heldout_fraction={fraction}; expected at least 0 and less than 1'
    )
  if len(groups) == 1 and len({page.files for page in groups[0]}) == 1:
    [pages] = groups  # The last pages of a stack are furthest from the rest.
    count = len(pages) - round(fraction * len(pages))
    return tuple(pages[:count]), tuple(pages[count:])
  num_heldout = round(fraction * len(groups))
  if fraction > 0 and num_heldout in (0, len(groups)):
    raise InputError(
      f'heldout_fraction={fraction} of {len(groups)} file(s) leaves no example '
      'to train on or to hold out; expected another, 0 to hold out none, or '
      'train_list and heldout_list'
    )
  order = np.random.default_rng(seed).permutation(len(groups))
  held = set(order[:num_heldout].tolist())
  split = [], []
  for i, group in enumerate(groups):
    split[i in held].extend(group)
  return tuple(map(tuple, split))
