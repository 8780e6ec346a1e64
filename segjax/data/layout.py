# SPDX-License-Identifier: Apache-2.0
"""Finding data sets on disk, as their organisers laid them out.

Nothing is downloaded. Names in list files cannot lead out of the folder found;
symbolic links in it are followed wherever they lead.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from segjax.data.examples import Item
from segjax.errors import InputError, shortened

AnyItem = TypeVar('AnyItem', bound=Item)

# Ends the advice to somebody whose data are elsewhere.
HOW_TO_PASS = (
  'pass the folder with --config.data.dir=DIR (evaluate: --data_dir=DIR) or '
  'SEGJAX_DATA_DIR'
)


def find_folder(
  name: str,
  data_dir: str,
  needed: Sequence[str],
  folder: str,
  advice: str,
) -> Path:
  """Returns the folder that holds all of `needed`.

  Args:
    name: of the data set, for the message.
    data_dir: that folder, or the parent of a folder `folder` that is it. ''
      looks in SEGJAX_DATA_DIR where that is set, in ../shared/data, in data.
    needed: files or folders, as relative paths, that must be there.
    folder: usual name of the folder, such as 'camvid'.
    advice: what was expected and what would be right, ends the message.

  Raises:
    InputError: no such folder; says where it looked.
  """
  if data_dir:
    roots = [data_dir]
  else:
    roots = [os.environ.get('SEGJAX_DATA_DIR', ''), '../shared/data', 'data']
  looked = []
  for root in filter(None, roots):
    root = Path(root).expanduser()
    for candidate in (root / folder, root):
      missing = [path for path in needed if not (candidate / path).exists()]
      if not missing:
        return candidate
      partly = len(missing) < len(needed)
      lacks = f' (has no {" or ".join(missing)})' if partly else ''
      looked.append(f'{candidate.resolve()}{lacks}')
  raise InputError(f'{name} not found; looked in {", ".join(looked)}; {advice}')


def read_list(file: Path, tail: int | None = None) -> list[list[str]]:
  """Returns the words of each line of a list file that is not blank.

  Args:
    file: the list file.
    tail: how many components at the end of each path count; the rest, which
      holds where the files lay at their organisers', is dropped.

  Raises:
    InputError: the file cannot be read, holds no line, is no text, or has a
      word that leads out of a folder: absolute, or with '..'.
  """
  lines = [line.split() for line in _lines(file)]
  for words in lines:
    for i, word in enumerate(words):
      if tail:
        word = words[i] = '/'.join(word.split('/')[-tail:])
      _check_inside(word, f'{file}: ')
  return lines


def read_names(file: Path) -> list[str]:
  """Returns the lines of a list file that are not blank: a name on each.

  Blanks at the ends of a line are no part of a name, those within are.

  Raises:
    InputError: as `read_list`.
  """
  names = [line.strip() for line in _lines(file)]
  for name in names:
    _check_inside(name, f'{file}: ')
  return names


def _lines(file):
  """Returns the lines of a text file that are not blank; see `read_list`."""
  try:
    # Editors of Windows begin a file with a mark of its encoding.
    text = file.expanduser().read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as e:
    reason = getattr(e, 'strerror', None) or 'it is no UTF-8 text'
    raise InputError(f'cannot read {file}: {reason}') from e
  lines = [line for line in text.splitlines() if line.strip()]
  if not lines:
    raise InputError(f'{file} lists nothing; expected a name on each line')
  return lines


def check_files(
  items: Iterable[AnyItem], source: Path | str
) -> tuple[AnyItem, ...]:
  """Returns the items, of which every file is there.

  Raises:
    InputError: there is no item, a file is missing, or two have one name.
  """
  items = tuple(items)
  if not items:
    raise InputError(f'{source} gives no example; at least one is needed')
  names = set()
  for item in items:
    for file in item.files:
      if not os.path.isfile(file):  # Also of a name that is too long.
        raise InputError(
          f'{shortened(item.name)}: no such file {shortened(str(file), 300)}, '
          f'which {source} asks for'
        )
    if item.name in names:
      raise InputError(f'{source} lists {item.name} twice')
    names.add(item.name)
  return items


def list_items(
  folder: Path, list_files: Sequence[str], patterns: Sequence[str]
) -> tuple[Item, ...]:
  """Returns the items that list files name, a name on each line.

  Args:
    folder: where the list files and all others lie.
    list_files: paths below it, such as 'train.txt'; of none, no item.
    patterns: one path below it for each file of an item, {} for the name.

  Raises:
    InputError: a path or name leads out of the folder, a line has more than a
      name, a list cannot be read, a file is missing, or a name is there twice.
  """
  names = []
  for list_file in list_files:
    _check_inside(list_file, 'list file ')
    for words in read_list(folder / list_file):
      if len(words) != 1:
        raise InputError(
          f'{folder / list_file}: {shortened(" ".join(words))!r} on one line; '
          'expected one name'
        )
      names += words
  if not names:
    return ()
  return check_files(
    (
      Item(name, tuple(folder / pattern.format(name) for pattern in patterns))
      for name in names
    ),
    ', '.join(list_files),
  )


def named_items(
  names: Iterable[str], kinds: Sequence[tuple[Path, str]], source: Path | str
) -> tuple[Item, ...]:
  """Returns the item of each name; see `check_files`.

  Args:
    names: of the examples.
    kinds: folder and ending of each file of an example, which has its name.
    source: where the names come from, for messages.
  """
  items = (
    Item(name, tuple(folder / f'{name}{ending}' for folder, ending in kinds))
    for name in names
  )
  return check_files(items, source)


def _check_inside(word, where):
  parts = word.replace('\\', '/').split('/')
  if not parts[0] or '..' in parts or '\0' in word:
    raise InputError(
      f'{where}{shortened(word)!r} leads out of the data folder; expected '
      'names, or paths below it'
    )
