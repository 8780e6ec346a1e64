# SPDX-License-Identifier: Apache-2.0
"""Folders and list files of data sets, as their organisers distribute them.

Nothing is downloaded. A name in a list file that leads out of the folder of the
set is refused; symbolic links in the folder may lead anywhere.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from segjax.data.examples import Item
from segjax.errors import InputError, shortened

AnyItem = TypeVar('AnyItem', bound=Item)


def find_folder(
  name: str,
  data_dir: str,
  needed: Sequence[str],
  folder: str,
  expected: str,
  field: str = 'dir',
) -> Path:
  """Returns the folder that holds all of `needed`.

  Args:
    name: name of the data set, for the message.
    data_dir: the folder itself, or its parent if the folder has its usual name.
      '' looks in SEGJAX_DATA_DIR if that is set, in ../shared/data, in data.
    needed: relative paths of files or folders that the folder must hold.
    folder: usual name of the folder, such as 'camvid'.
    expected: what the folder should hold, the end of the message.
    field: field of `config.data` that names the folder, for the message.

  Raises:
    InputError: there is no such folder; the message says where it looked.
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
  how = f'--config.data.{field}=DIR'
  if field == 'dir':
    how += ' (evaluate: --data_dir=DIR) or SEGJAX_DATA_DIR'
  raise InputError(
    f'{name} not found; looked in {", ".join(looked)}; pass the folder with '
    f'{how}; expected {expected}'
  )


def read_list(file: Path, tail: int | None = None) -> list[list[str]]:
  """Returns the words of each line of a list file that is not blank.

  Args:
    file: the list file.
    tail: number of components at the end of each path that are kept. Those
      before them name a folder of the organisers. None keeps all.

  Raises:
    InputError: the file cannot be read, is no text or holds no line; or a word
      leads out of the folder: it is absolute, or has '..'.
  """
  lines = [line.split() for line in _lines(file)]
  for words in lines:
    for i, word in enumerate(words):
      if tail:
        word = words[i] = '/'.join(word.split('/')[-tail:])
      _check_inside(word, f'{file}: ')
  return lines


def read_names(file: Path) -> list[str]:
  """Returns the names in a list file: one on each line that is not blank.

  Blanks within a line belong to the name, those at its ends do not. For errors,
  see `read_list`.
  """
  names = [line.strip() for line in _lines(file)]
  for name in names:
    _check_inside(name, f'{file}: ')
  return names


def _lines(file):
  """Returns the lines of a text file that are not blank."""
  try:
    # Editors on Windows put a mark of the encoding (BOM) before the text.
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
  """Returns the items after a check that all their files exist.

  Args:
    items: the items.
    source: what lists the items, for messages.

  Raises:
    InputError: there is no item, a file is missing, or two items have one name.
  """
  items = tuple(items)
  if not items:
    raise InputError(f'{source} gives no example; expected at least one')
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


def listed_items(
  name: str,
  data_dir: str,
  folder: str,
  patterns: Sequence[str],
  train_lists: Sequence[str],
  heldout_lists: Sequence[str],
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
  """Returns the items to train on and those to hold out, as list files say.

  Args:
    name, data_dir, folder: see `find_folder`.
    patterns: path in the folder of each file of an item; see `named_items`.
    train_lists: list files in the folder, with a name on each line.
    heldout_lists: list files of the items to hold out; () for none.

  Raises:
    InputError: `train_lists` is empty; a folder, list file or listed file is
      missing; or a list file or a name leads out of the folder.
  """
  if not train_lists:
    raise InputError(
      'data.train_lists is empty; expected at least one list file'
    )
  folders = [os.path.dirname(pattern) for pattern in patterns]
  expected = ', '.join(patterns).replace('{}', 'NAME')
  root = find_folder(
    name,
    data_dir,
    [*folders, *train_lists, *heldout_lists],
    folder,
    f'{expected} and the list files in one folder',
  )
  paths = [root / pattern for pattern in patterns]

  def items(list_files):
    names = []
    for list_file in list_files:
      _check_inside(list_file, 'list file ')
      names += read_names(root / list_file)
    return named_items(names, paths, ', '.join(list_files)) if names else ()

  return items(train_lists), items(heldout_lists)


def named_items(
  names: Iterable[str], patterns: Sequence[Path], source: Path | str
) -> tuple[Item, ...]:
  """Returns the item of each name; see `check_files`.

  Args:
    names: names of the examples.
    patterns: path of each file of an item; {} in its last component stands for
      the name of the item.
    source: what lists the names, for messages.
  """
  items = (
    Item(name, tuple(p.parent / p.name.replace('{}', name) for p in patterns))
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
