# SPDX-License-Identifier: Apache-2.0
"""Checks of settings: their names, and their values against annotations."""

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from segjax.errors import InputError, did_you_mean

# For messages: a description of each type, and an example for tuples of it.
_SIMPLE = {
  bool: ('True or False', 'True'),
  int: ('a whole number, such as 1000', '1'),
  float: ('a finite number, such as 0.5', '0.5'),
  str: ("text, such as 'name'", "'name'"),
  type(None): ('None', 'None'),
}


def check_name(
  section: str,
  name: Any,
  known: Iterable[str],
  elsewhere: Iterable[str] = (),
) -> None:
  """Raises InputError for a setting that a section of a config doesn't have.

  Args:
    section: '' or a dotted name that ends in a dot, such as 'model.'.
    name: name of the setting.
    known: names of the settings that the section has.
    elsewhere: dotted names of settings in other sections; the message suggests
      the nearest if no name in `known` is near.
  """
  known = tuple(known)
  if name not in known:
    raise InputError(
      f'config.{section}{name} is no setting; there are {", ".join(known)}'
      f'{did_you_mean(name, known) or did_you_mean(name, elsewhere)}'
    )


def check_type(name: str, value: Any, annotation: Any) -> None:
  """Raises InputError if a setting does not have the type of its field.

  Args:
    name: dotted name of the setting.
    value: value of the setting. A list counts as a tuple, and an int as a
      float; a bool is no number.
    annotation: type of the field: bool, int (32 bits), float (finite), str,
      None, Mapping, a tuple or sequence of these, or a union.
  """
  if not _is(value, annotation):
    if type(value) is int and _is(0, annotation):
      raise InputError(f'config.{name}={value} must be below 2**31')
    raise InputError(f'config.{name}={value!r} must be {_describe(annotation)}')


def as_tuples(value: Any) -> Any:
  """Returns a value in which lists, also those inside it, are tuples."""
  if isinstance(value, dict):
    return {name: as_tuples(entry) for name, entry in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(map(as_tuples, value))
  return value


def _is(value: Any, annotation: Any) -> bool:
  origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (types.UnionType, typing.Union):
    return any(_is(value, part) for part in parts)
  if origin is not None and issubclass(origin, Mapping):
    return isinstance(value, Mapping)
  if origin is not None:  # A tuple or a sequence.
    if not isinstance(value, (list, tuple)):
      return False
    if origin is tuple and parts[-1] is not ...:
      return len(value) == len(parts) and all(map(_is, value, parts))
    return all(_is(part, parts[0]) for part in value)
  if annotation in (int, float) and isinstance(value, bool):
    return False
  if annotation is int:
    # Steps and sizes are counted in 32 bits.
    return isinstance(value, int) and abs(value) < 2**31
  if annotation is float:
    return isinstance(value, (int, float)) and abs(value) < 2**128
  return isinstance(value, annotation)


def _describe(annotation: Any) -> str:
  if annotation in _SIMPLE:
    return _SIMPLE[annotation][0]
  origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (types.UnionType, typing.Union):
    return ', or '.join(map(_describe, parts))
  if issubclass(origin, Mapping):
    return 'a section, dict(...)'
  return f'a tuple, such as {_example(annotation)}'


def _example(annotation: Any) -> str:
  if annotation in _SIMPLE:
    return _SIMPLE[annotation][1]
  origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is not tuple or parts[-1] is ...:
    parts = (parts[0], parts[0])
  return f'({", ".join(map(_example, parts))})'
