# SPDX-License-Identifier: Apache-2.0
"""The arrays of a state by name: their kinds, and what they hold.

The file format of checkpoints notices a file that is cut short, but not a
flipped bit. Digests of the arrays do.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr

from segjax.errors import InputError
from segjax.runs.integrity import DamagedError


def named(tree: Any) -> dict[str, Any]:
  """Returns name, such as 'params.head.bias', -> leaf of a tree."""
  return {
    keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """Returns kind and placement, or else the first local device, of a leaf."""
  sharding = getattr(leaf, 'sharding', None)
  # A saved leaf describes devices that need not be here.
  if not isinstance(sharding, jax.sharding.Sharding):
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def check_fit(saved: Any, wanted: Any, step: int) -> None:
  """Raises InputError unless two trees have leaves of equal name and kind."""
  saved, wanted = _kinds(saved), _kinds(wanted)
  for name in {**wanted, **saved}:
    there, here = saved.get(name, 'absent'), wanted.get(name, 'absent')
    if there != here:
      raise InputError(
        f'checkpoint {step} does not fit this run: {name} is {there} there, '
        f'{here} here'
      )


def digests(tree: Any) -> dict[str, str]:
  """Returns name -> SHA-256 of dtype, shape and elements of each leaf.

  Args:
    tree: arrays of numpy or jax; those of jax wholly on this process's
      devices, or replicated.
  """
  return {name: _digest(leaf) for name, leaf in named(tree).items()}


def check_digests(tree: Any, expected: Mapping[str, str]) -> None:
  """Raises DamagedError if a leaf is not that of the digests."""
  for name, digest in digests(tree).items():
    if digest != expected.get(name):
      raise DamagedError(f'the contents of {name} changed since it was written')


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
