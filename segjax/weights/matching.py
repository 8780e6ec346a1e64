# SPDX-License-Identifier: Apache-2.0
"""Matching of the tensors of a file with the parameters of a model.

The readers give each tensor the name of its parameter, `layer/kernel` or
`layer/bias` with Caffe's names of layers, and the order of its axes. Nothing is
matched by order, and nothing is left out unless the caller names it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from flax.traverse_util import flatten_dict

from segjax.data.examples import list_some
from segjax.errors import InputError
from segjax.weights.surgery import fc_to_conv

_MOST_NAMED = 8  # Names in one message.


@dataclasses.dataclass(frozen=True)
class Tensor:
  """An array of a file.

  Attributes:
    name: name of the array in the file.
    values: the array, of any float dtype.
    layout: order of a kernel's axes. 'OIHW': convolutions of Caffe and PyTorch,
      whose fully connected layers are [O, I H W], in old Caffe files
      [1, 1, O, I H W]. 'IOHW': deconvolutions of Caffe and PyTorch. 'HWIO':
      kernels of Keras and segjax, whose fully connected layers are [H W I, O].
  """

  name: str
  values: np.ndarray
  layout: str


@dataclasses.dataclass(frozen=True)
class Report:
  """Report of a match: what became of each tensor and of each parameter.

  Attributes:
    matched: (name of the parameter, name of its tensor) for each pair.
    fixed: tensors that equal what the model computes without parameters.
    ignored: tensors that were left out on request.
    initial: parameters that keep their initial value on request.
  """

  matched: tuple[tuple[str, str], ...]
  fixed: tuple[str, ...]
  ignored: tuple[str, ...]
  initial: tuple[str, ...]

  def __str__(self) -> str:
    rows = [f'{path} <- {name}' for path, name in self.matched]
    rows += [f'{name}: as the model computes it' for name in self.fixed]
    rows += [f'{name}: NOT USED' for name in self.ignored]
    rows += [f'{path}: LEFT AT ITS INITIAL VALUE' for path in self.initial]
    return '\n'.join(
      [
        *rows,
        f'{len(self.matched)} matched, {len(self.fixed)} fixed, '
        f'{len(self.ignored)} not used, {len(self.initial)} initial',
      ]
    )


def match(
  source: Mapping[str, Tensor],
  target: Any,
  *,
  initial: Sequence[str] | None = None,
  ignore: Sequence[str] | None = None,
  windows: Mapping[str, tuple[int, int]] | None = None,
  fixed: Mapping[str, Callable[[Tensor], bool]] | None = None,
) -> tuple[dict[str, np.ndarray], Report]:
  """Returns arrays for the parameters of a model, and a report of the match.

  Args:
    source: parameter path, such as 'conv1_1/kernel', -> tensor.
    target: tree of arrays or of `jax.ShapeDtypeStruct` (`jax.eval_shape`).
    initial: layers of the target, or blocks of layers, that keep their initial
      value, whether the source has them or not. None for none; then no
      message advises to name some.
    ignore: layers of the source to leave out; None as for `initial`.
    windows: layer -> (H, W) of the feature map that a fully connected layer of
      the target takes; a layer that isn't there takes one pixel.
    fixed: layer without parameters -> check whether a tensor for it holds what
      the model computes; see `fixed.fixed_layers`.

  Returns:
    Parameter path -> f32 of the target's shape, without those in `initial`.
    Where no conversion is needed they are views of the source.

  Raises:
    InputError: a tensor has no parameter, a parameter has no tensor, shapes
      differ, a value is NaN or infinite, a fixed layer has other weights, or
      `initial` or `ignore` names a layer that does not exist.
  """
  target = flatten_dict(target, sep='/')
  fixed = fixed or {}
  own, left = {*(initial or ())}, {*(ignore or ())}
  _check_known('initial', own, target)
  _check_known('ignore', left, source)
  ignored = [p for p in source if {*_enclosing(p)} & (left | own)]
  kept = [p for p in target if {*_enclosing(p)} & own]
  unused = [
    path
    for path in source
    if path not in target and path not in ignored and _layer(path) not in fixed
  ]
  _refuse(unused, 'in the file has no place in the model', 'ignore', ignore)
  missing = [path for path in target if path not in source and path not in kept]
  _refuse(missing, 'of the model is not in the file', 'initial', initial)
  params, matched, verified = {}, [], []
  for path, tensor in source.items():
    if path in ignored:
      continue
    if path in target:
      params[path] = arrange(
        tensor, path, target[path].shape, (windows or {}).get(_layer(path))
      )
      matched.append((path, tensor.name))
    elif fixed[_layer(path)](tensor):
      verified.append(tensor.name)
    else:
      raise InputError(
        f'{tensor.name} holds other weights than the fixed ones that the '
        f'model computes {_layer(path)} with; give a model that learns them'
      )
  names = tuple(source[path].name for path in ignored)
  return params, Report(tuple(matched), tuple(verified), names, tuple(kept))


def arrange(
  tensor: Tensor,
  path: str,
  shape: Sequence[int],
  window: tuple[int, int] | None = None,
) -> np.ndarray:
  """Returns the tensor as a parameter f32 of this shape.

  Args:
    tensor: kernel or bias.
    path: name of the parameter, for messages.
    shape: [H, W, I, O] of a convolution or deconvolution, [H W I, O] of a
      fully connected layer, or [O] of a bias.
    window: (H, W) of the feature map that a fully connected layer takes; None
      for one pixel.

  Raises:
    InputError: the tensor does not fit, or a value is NaN or infinite.
  """
  values, shape = tensor.values, tuple(shape)
  if len(shape) == 1:
    fitted = (
      values if values.shape in {(1,) * n + shape for n in range(4)} else None
    )
  else:
    h, w = shape[:2] if len(shape) == 4 else window or (1, 1)
    fitted = _convolution(
      tensor, (h, w, math.prod(shape[:-1]) // (h * w), shape[-1])
    )
  if fitted is None:
    _refuse_shape(tensor, path, shape)
  # NaN or infinity shows in the extremes. np.isfinite(values) takes memory.
  if not np.isfinite([values.min(), values.max()]).all():
    raise InputError(f'{tensor.name} holds NaN or infinite values')
  return fitted.reshape(shape).astype(np.float32, copy=False)


def _convolution(tensor, shape):
  """Returns a kernel [H, W, I, O] of this shape; None if it doesn't fit."""
  values, layout = tensor.values, tensor.layout
  sizes = dict(zip('HWIO', shape, strict=True))
  if values.shape == tuple(sizes[axis] for axis in layout):
    return values.transpose([layout.index(axis) for axis in 'HWIO'])
  h, w, i, o = shape
  if layout == 'OIHW' and values.shape in {
    (o, i * h * w),
    (1, 1, o, i * h * w),
  }:
    matrix, order = values.reshape(o, -1).T, 'CHW'
  elif layout == 'HWIO' and values.shape == (h * w * i, o):
    matrix, order = values, 'HWC'
  else:
    return None
  layers = {tensor.name: {'kernel': matrix}}
  layers = fc_to_conv(layers, {tensor.name: (h, w)}, order)
  return layers[tensor.name]['kernel']


def _refuse_shape(tensor, path, shape) -> NoReturn:
  message = (
    f'{tensor.name} has shape {list(tensor.values.shape)}, which does not fit '
    f'{path} {list(shape)}'
  )
  layer = _layer(path)
  if layer.startswith(('score', 'upscore', 'fc8')):
    message += (
      '; if the classes are others, give num_classes of the file, or name the '
      'score layers in initial to start them at zero'
    )
  raise InputError(message)


def _check_known(argument, layers, paths):
  known = sorted({_layer(path) for path in paths})
  blocks = {name for path in paths for name in _enclosing(path)}
  for layer in layers:
    if layer not in blocks:
      raise InputError(
        f'{argument}={layer} is no layer among {list_some(known, _MOST_NAMED)}'
      )


def _refuse(paths, what, argument, named):
  if paths:
    layers = list(dict.fromkeys(map(_layer, paths)))
    advice = 'give another model'
    if named is not None:
      advice += f', or {argument}={",".join(layers)} if that is meant'
    raise InputError(f'{list_some(layers, _MOST_NAMED)} {what}; {advice}')


def _layer(path):
  return path.rpartition('/')[0]


def _enclosing(path):
  """Yields the layer of a parameter and the blocks that enclose it."""
  while path := _layer(path):
    yield path
