# SPDX-License-Identifier: Apache-2.0
"""Checksums of checkpoints, in a JSON record beside each one, and its checks.

A record holds the score of a checkpoint and the checksums of its arrays, and is
itself checksummed. The file format of checkpoints notices a file that is cut
short; checksums of the arrays also notice a flipped bit.

The record is no part of orbax's metadata: if one key of these is damaged, orbax
opens neither this checkpoint nor those before it.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr

from segjax.atomic import write_text
from segjax.errors import InputError

_ENDING = '.record.json'


class DamagedError(Exception):
  """Data that were read differ from the data that were written."""


def write_record(
  directory: str | os.PathLike, step: int, record: Mapping[str, Any]
) -> None:
  """Writes or replaces the record of a checkpoint: name -> JSON value."""
  text = json.dumps({**record, 'seal': digest_of_values(record)})
  write_text(_file(directory, step), text + '\n')


def read_record(
  directory: str | os.PathLike, step: int
) -> dict[str, Any] | None:
  """Returns the record of a checkpoint; None if there is none.

  Raises:
    DamagedError: the file differs from the one that was written.
  """
  try:
    record = json.loads(_file(directory, step).read_bytes())
    seal = record.pop('seal')
    if seal != digest_of_values(record):
      raise ValueError('its checksum is another')
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
  return record


def remove_records(directory: str | os.PathLike, keep: Collection[int]) -> None:
  """Removes the records of all steps that are not in `keep`."""
  kept = {_file(directory, step) for step in keep}
  for file in Path(directory).glob(f'*{_ENDING}'):
    if file not in kept:
      file.unlink(missing_ok=True)


def named(tree: Any) -> dict[str, Any]:
  """Returns name, such as 'params.head.bias', -> leaf of a tree."""
  return {
    keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """Returns the shape, sharding and dtype with which jax would hold a leaf.

  A leaf without a sharding gets the first local device.
  """
  sharding = getattr(leaf, 'sharding', None)
  # The sharding of a saved leaf names devices that need not exist here.
  if not isinstance(sharding, jax.sharding.Sharding):
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
  return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)


def check_fit(saved: Any, wanted: Any, step: int) -> None:
  """Raises InputError unless the leaves of two trees agree.

  They must have the same names, shapes and dtypes in the tree of the checkpoint
  `step`, which was saved, and in that of this run.
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

  Arrays of jax must be replicated, or lie wholly on devices of this process.
  """
  return {name: _digest(leaf) for name, leaf in named(tree).items()}


def digest_of_values(values: Any) -> str:
  """Returns the SHA-256 of JSON values, in hexadecimal."""
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_digests(tree: Any, expected: Mapping[str, str]) -> None:
  """Raises DamagedError if a leaf has another digest than expected."""
  for name, digest in digests_of_arrays(tree).items():
    if digest != expected.get(name):
      raise DamagedError(f'{name} has changed since it was written')


def _file(directory, step):
  return Path(directory) / f'{step}{_ENDING}'


def _kinds(tree):
  return {
    name: f'{leaf.dtype}{list(leaf.shape)}'
    for name, leaf in named(tree).items()
  }


def _digest(leaf):
  array = np.ascontiguousarray(leaf)  # A scalar gets an axis.
  digest = hashlib.sha256(f'{leaf.dtype}{list(leaf.shape)}'.encode())
  digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def is_digest_of(known: str, digest: str) -> bool:
  """Returns whether the digest that a run knows is a `Dataset.digest`.

  Early versions of segjax wrote only the first half of a digest.
  """
  return known in (digest, digest.partition('+')[0])
