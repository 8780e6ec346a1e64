# SPDX-License-Identifier: Apache-2.0
"""Checksums of checkpoints: a JSON record beside each one, and its checks.

A record holds the score of a checkpoint and the checksums of its arrays, and is
itself checksummed. The file format of checkpoints notices a file that is cut
short, but not a flipped bit; checksums of the arrays do.

The record is not kept as orbax's metadata: if one key of that is damaged, orbax
opens neither this checkpoint nor those before it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr

from segjax.atomic import replacing
from segjax.errors import InputError

_ENDING = '.record.json'


class DamagedError(Exception):
  """What was read is not what was written."""


def write_record(
  directory: str | os.PathLike, step: int, record: Mapping[str, Any]
) -> None:
  """Writes the record of a checkpoint, in place of an earlier one.

  Args:
    directory: folder of the checkpoints.
    step: the checkpoint.
    record: name -> JSON value.
  """
  with replacing(_file(directory, step)) as temporary:
    text = json.dumps({**record, 'seal': digest_of_values(record)})
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
  except (
    ValueError,
    AttributeError,
    KeyError,
    RecursionError,
    TypeError,
  ) as error:
    raise DamagedError(f'{_file(directory, step)} is damaged') from error
  if seal != digest_of_values(record):
    raise DamagedError(f'{_file(directory, step)} is damaged')
  return record


def remove_records(directory: str | os.PathLike, keep: Collection[int]) -> None:
  """Removes the records of all steps but those in `keep`."""
  for file in Path(directory).glob(f'*{_ENDING}'):
    if file not in {_file(directory, step) for step in keep}:
      with contextlib.suppress(FileNotFoundError):
        file.unlink()


def named(tree: Any) -> dict[str, Any]:
  """Returns name, such as 'params.head.bias', -> leaf of a tree."""
  return {
    keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """Returns shape, sharding and dtype of a leaf, as jax would hold it.

  A leaf without a sharding gets the first local device.
  """
  sharding = getattr(leaf, 'sharding', None)
  # A saved leaf describes devices that need not be here.
  if not isinstance(sharding, jax.sharding.Sharding):
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
  return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)


def check_fit(saved: Any, wanted: Any, step: int) -> None:
  """Raises InputError unless leaves have the same names, shapes and dtypes.

  Args:
    saved: tree of a checkpoint.
    wanted: tree of this run.
    step: the checkpoint, for the message.
  """
  saved, wanted = _kinds(saved), _kinds(wanted)
  for name in {**wanted, **saved}:
    there, here = saved.get(name, 'absent'), wanted.get(name, 'absent')
    if there != here:
      raise InputError(
        f'checkpoint {step} does not fit this run: {name} is {there} there, '
        f'{here} here'
      )


def digests_of_arrays(tree: Any) -> dict[str, str]:
  """Returns name -> SHA-256, in hexadecimal, of dtype, shape and elements.

  Args:
    tree: arrays of numpy or jax. Those of jax must be replicated, or lie wholly
      on devices of this process.
  """
  return {name: _digest(leaf) for name, leaf in named(tree).items()}


def digest_of_values(values: Any) -> str:
  """Returns the SHA-256 of JSON values, in hexadecimal."""
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_digests(tree: Any, expected: Mapping[str, str]) -> None:
  """Raises DamagedError if a leaf has another digest than expected."""
  for name, digest in digests_of_arrays(tree).items():
    if digest != expected.get(name):
      raise DamagedError(f'the contents of {name} changed since it was written')


def _file(directory, step):
  return Path(directory) / f'{step}{_ENDING}'


def _kinds(tree):
  return {
    name: f'{leaf.dtype}{list(leaf.shape)}'
    for name, leaf in named(tree).items()
  }


def _digest(leaf):
  array = np.ascontiguousarray(leaf)  # Which gives a scalar an axis.
  digest = hashlib.sha256(f'{leaf.dtype}{list(leaf.shape)}'.encode())
  digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def is_digest_of(known: str, digest: str) -> bool:
  """Returns whether a run's digest is that of a data set.

  Args:
    known: of the run, which may be older than the second half of digests.
    digest: `Dataset.digest`.
  """
  return known in (digest, digest.partition('+')[0])
