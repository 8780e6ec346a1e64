# SPDX-License-Identifier: Apache-2.0
"""Networks as ONNX models. This is the only file that knows jax2onnx.

A model takes `image` f32[B, C, H, W], prepared pixels, and returns `logits`
f32[B, K, h, w]. The model of a U-Net takes any batch and every admissible
height and width. The model of an FCN takes a single tile of one size, and
`size` i32[1, 2]: the height and width of the part of the tile, from its top
left corner, that the image fills.

Another form, `for_tilers`, is for programs that cut tiles themselves. It
returns probabilities as large as the image, and zeros where pixels lack
context: see `tiler_sizes`.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import export

from segjax.atomic import check_file
from segjax.contracts import SegmentationModel
from segjax.errors import InputError
from segjax.geometry import Geometry
from segjax.models import Segmenter
from segjax.models.convolution import plain_forms
from segjax.tiling.programs import softmax_of_heads

if TYPE_CHECKING:
  import onnx

# Of 2022: today's runtimes have it.
OPSET = 18

# Protocol buffers end at 2 GiB, of which the graph needs some.
_MOST_BYTES = 2**31 - 2**24
_CELLS = 'cells'  # An input that `_free_cells` takes away again.
_LOGGERS = ('jax2onnx', 'onnx_ir')
_INTS = 7  # onnx.AttributeProto.INTS
_BROADCASTING = ('Add', 'Where')


def import_onnx() -> tuple[ModuleType, ModuleType]:
  """Returns the modules `jax2onnx` and `onnx`.

  Raises:
    InputError: they are not installed, or too old for jax.
  """
  if jax.__version_info__ >= (0, 11):
    raise InputError(
      f'jax {jax.__version__} is too new for the converter to ONNX: pip '
      "install 'segjax[onnx]' in an environment of its own"
    )
  try:
    with _quiet():
      import jax2onnx
      import onnx
  except ImportError as e:
    raise InputError(
      f"ONNX needs packages: pip install 'segjax[onnx]' ({e})"
    ) from e
  return jax2onnx, onnx


def check_output(path: str | os.PathLike, overwrite: bool) -> None:
  """Raises InputError if nothing will be written to `path`."""
  path = Path(path)
  if path.suffix.lower() != '.onnx':
    raise InputError(f'output {path} must end in .onnx')
  check_file(path, overwrite)
  import_onnx()


def describe_sizes(geometry: Geometry, tile_px: int) -> dict[str, Any]:
  """Returns a JSON object that says how tiles cover an image.

  Args:
    geometry: sizes of the network.
    tile_px: side of a tile.
  """
  described = {
    'tile_px': tile_px,
    'period_px': geometry.period,
    'margin_px': geometry.margin,
    'drop_px': geometry.core_offset,
    'output_px': geometry.output_size(tile_px),
  }
  if geometry.takes_any_size:
    return described | {
      'border': 'ends: tiles end where the image does, and size says where'
    }
  return described | {
    'smallest_input_px': geometry.smallest_input,
    'border': 'reflect: mirrored about its outermost pixels, as numpy.pad does',
  }


class TilerSizes(NamedTuple):
  """Sizes of `image` for programs that cut tiles themselves.

  Such programs crop the same number of pixels, the halo, from both sides of the
  output of a tile, and put the rest side by side from the first pixel of an
  image on. The rest is a multiple of the period here, so that all tiles are on
  the grid of the network.

  Attributes:
    least: side of the smallest tile of which something is left, in pixels.
    step: pixels from one side to the next; 0 if there is one size.
    halo: pixels on each side of the output that are not valid.
    skip: first rows and columns of the tile, which the network does not see.
  """

  least: int
  step: int
  halo: int
  skip: int


def tiler_sizes(geometry: Geometry, tile_px: int) -> TilerSizes:
  """Returns the sizes for programs that cut tiles themselves.

  With M the margin, P the period and r = size mod P of what a tile of a valid
  U-Net writes, the network sees the tile without its first r pixels. So the
  halo is M + r on both sides, and it and the tile are multiples of P.

  Raises:
    InputError: an FCN's tile is no multiple of the period, or all margin.
  """
  margin, period = geometry.margin, geometry.period
  if geometry.takes_any_size:
    if tile_px % period or tile_px <= 2 * margin:
      raise InputError(
        f'size_px={tile_px} must be a multiple of {period} and at least '
        f'{2 * margin + period}, for margins of {margin} px on both sides'
      )
    return TilerSizes(tile_px, 0, margin, 0)
  skip = (geometry.smallest_input - 2 * margin) % period
  halo = margin + skip
  return TilerSizes(2 * halo + period, period, halo, skip)


def to_onnx(
  model: SegmentationModel,
  params: Any,
  tile_px: int,
  metadata: Mapping[str, str],
  *,
  channels: Sequence[int] = (),
  for_tilers: bool = False,
) -> 'onnx.ModelProto':
  """Returns a network as an ONNX model, computed in float32.

  Args:
    model: the network.
    params: parameters of the network.
    tile_px: side of the tile of an FCN; not read for a U-Net.
    metadata: texts that the file holds, by name; see `network_metadata`.
    channels: order in which the network takes the channels of `image`; () for
      the order that they have.
    for_tilers: whether to return `probabilities` for programs that cut tiles
      themselves; an FCN then has no input `size`.

  Raises:
    InputError: a package is missing, the model is an artifact, or the
      parameters are more than a file holds.
  """
  jax2onnx, onnx = import_onnx()
  if not isinstance(model, Segmenter):
    raise InputError('an artifact is compiled; export the run that it is of')
  size = sum(x.nbytes for x in jax.tree.leaves(params))
  if size > _MOST_BYTES:
    raise InputError(
      f'the parameters have {size} bytes; a file of ONNX holds {_MOST_BYTES}'
    )
  geometry = model.geometry
  model = model.clone(dtype=jnp.float32)
  any_size = geometry.takes_any_size
  sized = any_size and not for_tilers
  skip = tiler_sizes(geometry, tile_px).skip if for_tilers else 0
  batch, rows, columns = export.symbolic_shape('batch, rows, columns')
  first = geometry.smallest_input - geometry.period + skip
  if any_size:
    batch = 1  # The converter can't pad, or take remainders, by free sizes.
    sides = tile_px, tile_px
    more = [jax.ShapeDtypeStruct((batch, 2), jnp.int32)] if sized else []
  else:
    # Admissible sizes are first + period * n. The converter knows no free
    # numbers but sides of inputs, so another input has the sides n.
    sides = (geometry.period * n + first for n in (rows, columns))
    more = [jax.ShapeDtypeStruct((rows, columns), jnp.float32)]

  def compute(image, *more):
    if channels:
      image = image[..., jnp.asarray(channels)]
    _, height, width, _ = image.shape
    if skip:
      image = jax.lax.slice_in_dim(image, skip, height, axis=1)
      image = jax.lax.slice_in_dim(image, skip, width, axis=2)
    size = {'size': more[0]} if sized else {}
    logits = jnp.asarray(model.apply({'params': params}, image, **size))
    return softmax_of_heads(logits, model.head_sizes) if for_tilers else logits

  shape = (batch, *sides, model.in_channels)
  inputs = [jax.ShapeDtypeStruct(shape, jnp.float32), *more]
  names = ['image', *['size' if any_size else _CELLS] * len(more)]
  output = 'probabilities' if for_tilers else 'logits'
  # Traced before the converter replaces functions of jax and flax by its own.
  with plain_forms():
    traced = jax.make_jaxpr(compute)(*inputs)
  with _quiet():
    converted = jax2onnx.to_onnx(
      jax.extend.core.jaxpr_as_fun(traced),
      inputs,
      model_name='segjax',
      opset=OPSET,
      inputs_as_nchw=[0],
      outputs_as_nchw=[0],
      input_names=names,
      output_names=[output],
    )
  graph = converted.graph
  if not any_size:
    _free_cells(onnx, graph, first, geometry.period)
    _name_sides(graph)
  if for_tilers and not any_size:
    valid = geometry.margin - geometry.core_offset
    _pad_output(onnx, graph, valid + skip, valid)
  _pool_maps(graph)
  _tidy(graph)
  _shrink(onnx, graph)
  if not for_tilers:
    converted.doc_string = ''.join((__doc__ or '').split('\n\n')[1:2])
  converted.producer_name = 'segjax'
  onnx.helper.set_model_props(converted, dict(metadata))
  onnx.checker.check_model(converted)
  return converted


def network_metadata(
  model: SegmentationModel, tile_px: int, about: Mapping[str, Any]
) -> dict[str, str]:
  """Returns the metadata of an ONNX file: texts of JSON, by name.

  Args:
    model: the network.
    tile_px: side of a tile.
    about: description of the export, as `artifact.write` takes it.
  """
  described = {
    'tiles': describe_sizes(model.geometry, tile_px),
    'head_sizes': about['head_sizes'],
    'pixels': about['preprocessing'],
    'class_names': about['class_names'],
    'palette': about['palette'],
  }
  return {name: json.dumps(value) for name, value in described.items()}


def _free_cells(onnx, graph, first, period):
  """Removes the input `cells`, whose sides follow from those of `image`."""
  inputs = {value.name: value for value in graph.input}
  graph.input.remove(inputs[_CELLS])
  helper = onnx.helper
  constants = {'cells_first': first, 'cells_period': period}
  for name, value in constants.items():
    array = np.array([value], np.int64)
    graph.initializer.append(onnx.numpy_helper.from_array(array, name))
  made = []
  for node in [n for n in graph.node if _CELLS in n.input]:
    if node.op_type != 'Shape':
      raise TypeError(f'{node.op_type} of an input that has no values')
    axis = next(a.i for a in node.attribute if a.name == 'start')
    (out,) = node.output
    graph.node.remove(node)
    made += [
      # Axes of the batch and the channels come before.
      helper.make_node(
        'Shape', ['image'], [f'{out}_px'], start=2 + axis, end=3 + axis
      ),
      helper.make_node('Sub', [f'{out}_px', 'cells_first'], [f'{out}_free']),
      helper.make_node('Div', [f'{out}_free', 'cells_period'], [out]),
    ]
  for node in reversed(made):
    graph.node.insert(0, node)


def _pad_output(onnx, graph, before, after):
  """Makes the output as large as the image, with zeros around."""
  (output,) = graph.output
  pads = np.array([0, 0, before, before, 0, 0, after, after], np.int64)
  graph.initializer.append(onnx.numpy_helper.from_array(pads, 'output_pads'))
  for node in graph.node:
    node.output[:] = [
      f'{name}_valid' if name == output.name else name for name in node.output
    ]
  graph.node.append(
    onnx.helper.make_node(
      'Pad', [f'{output.name}_valid', 'output_pads'], [output.name]
    )
  )
  for image, side in ((2, 'H'), (3, 'W')):
    output.type.tensor_type.shape.dim[image].dim_param = side


def _pool_maps(graph):
  """Makes poolings slide over the two axes of a map.

  The converter lets them slide over all of [B, H, W, C], which no runtime does,
  and adds two axes in front.
  """
  made_by = {name: node for node in graph.node for name in node.output}
  used_by = {name: node for node in graph.node for name in node.input}
  for pool in [node for node in graph.node if node.op_type == 'MaxPool']:
    before = made_by[pool.input[0]]
    after = used_by[pool.output[0]]
    map_name = made_by[before.input[0]].input[0]
    for node, name, order in (
      (before, map_name, (0, 3, 1, 2)),
      (after, pool.output[0], (0, 2, 3, 1)),
    ):
      node.op_type = 'Transpose'
      node.input[:] = [name]
      node.attribute.add(name='perm', type=_INTS, ints=order)
    for attribute in pool.attribute:
      values = np.reshape(attribute.ints, (-1, 4))[:, 1:3]
      attribute.ints[:] = values.ravel().tolist()


def _tidy(graph):
  """Removes nodes that runtimes would compute in vain.

  These spread biases over a map, which `Add` does itself, drop values out, or
  have an output that nobody reads.
  """
  users = {}
  for node in graph.node:
    for name in node.input:
      users.setdefault(name, []).append(node)
  renamed = {}
  for node in graph.node:
    is_added = {n.op_type for n in users.get(node.output[0], ())} == {'Add'}
    if node.op_type == 'Dropout' or (node.op_type == 'Expand' and is_added):
      renamed[node.output[0]] = node.input[0]
  for node in graph.node:
    node.input[:] = [_follow(renamed, name) for name in node.input]
  needed = {value.name for value in graph.output}
  kept = []
  for node in reversed(graph.node):
    if needed.intersection(node.output):
      needed.update(node.input)
      kept.append(node)
  kept.reverse()
  initializers = [each for each in graph.initializer if each.name in needed]
  for field, values in (('node', kept), ('initializer', initializers)):
    copies = [
      type(value).FromString(value.SerializeToString()) for value in values
    ]
    graph.ClearField(field)
    getattr(graph, field).extend(copies)
  # The shapes of values in between, which runtimes find themselves.
  graph.ClearField('value_info')


def _shrink(onnx, graph):
  """Stores a constant once that the converter repeats over a whole map.

  It does so with the biases and the zeros of an FCN, whose sizes it knows, and
  the file would grow with the tile.
  """
  computed = {value.name for value in graph.input}
  computed.update(name for node in graph.node for name in node.output)
  fixed = set()  # Inputs of nodes that need their whole shape.
  for node in graph.node:
    # The first input of Where chooses among the others.
    others = node.input[1:] if node.op_type == 'Where' else node.input
    if node.op_type not in _BROADCASTING or computed.isdisjoint(others):
      fixed.update(node.input)
  for tensor in graph.initializer:
    if tensor.name in fixed:
      continue
    array = onnx.numpy_helper.to_array(tensor)
    for axis, size in enumerate(array.shape):
      first = array.take([0], axis) if size else array
      if (array == first).all():
        array = first
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _follow(renamed, name):
  while name in renamed:
    name = renamed[name]
  return name


def _name_sides(graph):
  """Names the free sides of the input and the output."""
  for value, sides in ((graph.input[0], 'HW'), (graph.output[0], 'hw')):
    batch, _, *others = value.type.tensor_type.shape.dim
    for dim, name in zip((batch, *others), ('B', *sides), strict=True):
      dim.dim_param = name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences the converter, which warns of parts that are not used here."""
  loggers = [logging.getLogger(name) for name in _LOGGERS]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.ERROR)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)
