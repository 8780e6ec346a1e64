# SPDX-License-Identifier: Apache-2.0
"""What lies beside a checkpoint: a small JSON file, sealed by its own digest.

It is not kept as orbax's metadata, which cannot be opened if one of its keys
is damaged, and the checkpoints before it cannot then, either.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from segjax.atomic import replacing

_ENDING = '.record.json'


class DamagedError(Exception):
  """What was read is not what was written."""


def write_record(
  directory: str | os.PathLike, step: int, record: Mapping[str, Any]
) -> None:
  """Writes the record, of JSON values, of a checkpoint to be saved."""
  with replacing(_file(directory, step)) as temporary:
    text = json.dumps({**record, 'seal': _seal(record)})
    temporary.write_text(text + '\n', encoding='utf-8')


def read_record(
  directory: str | os.PathLike, step: int
) -> dict[str, Any] | None:
  """Returns what `write_record` was given; None if there is none.

  Raises:
    DamagedError: the file is not what was written.
  """
  try:
    record = json.loads(_file(directory, step).read_bytes())
    seal = record.pop('seal')
  except FileNotFoundError:
    return None
  except (ValueError, AttributeError, KeyError) as error:
    raise DamagedError(f'{_file(directory, step)} is damaged') from error
  if seal != _seal(record):
    raise DamagedError(f'{_file(directory, step)} is damaged')
  return record


def remove_records(directory: str | os.PathLike, keep: Collection[int]) -> None:
  """Removes the records of all other steps."""
  for file in Path(directory).glob(f'*{_ENDING}'):
    if file not in {_file(directory, step) for step in keep}:
      with contextlib.suppress(FileNotFoundError):
        file.unlink()


def _file(directory, step):
  return Path(directory) / f'{step}{_ENDING}'


def _seal(record):
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
