# SPDX-License-Identifier: Apache-2.0
"""Convert weights of Caffe, torchvision and Keras into segjax parameters.

`python -m segjax.convert --input=FILE --model=fcn8s --output=net.npz`
`python -m segjax.convert --input=torchvision:vgg16 --output=vgg16.npz`

It reads .caffemodel, state dicts (.pth, .safetensors), Keras's VGG16 (.h5,
.keras), the .npz and .safetensors that it writes, and the weights that
`weights.published` downloads. Only .pth needs its framework, PyTorch. A layer
of the file is left out only if --ignore names it; a layer of the network keeps
its initial values only if --initial names it.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.cli.command_line import run

  run('convert')

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax.atomic import remove_leftovers
from segjax.errors import InputError
from segjax.models import CLASSIFIERS, FCNS, make_model
from segjax.models.backbone import FullyConnected
from segjax.models.fcn import FCN
from segjax.models.googlenet import caffe_name
from segjax.prediction.outputs import check_apart
from segjax.weights import caffe, files, keras, published, surgery, torchvision
from segjax.weights.fixed import fixed_layers
from segjax.weights.matching import Report, Tensor, match

CONVERTIBLE = (*FCNS, *CLASSIFIERS)


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
  """Returns the tensors of a file by path; paths have Caffe's layer names.

  Args:
    path: file with one of the endings that the module lists.

  Raises:
    InputError: the ending is unknown, or the file cannot be read.
  """
  ending = Path(path).suffix.lower()
  if ending == '.caffemodel':
    return caffe.tensors_of(caffe.read_caffemodel(path))
  if ending in ('.h5', '.hdf5', '.keras'):
    return keras.read_vgg16(path)
  if ending in ('.pth', '.pt'):
    return torchvision.tensors_of(torchvision.read_state_dict(path))
  if ending in files.ENDINGS:
    arrays = files.read_arrays(path)
    if not any('/' in name for name in arrays):
      return torchvision.tensors_of(arrays)
    return {name: Tensor(name, a, 'HWIO') for name, a in arrays.items()}
  raise InputError(
    f'{path} has none of the endings .caffemodel, .pth, .pt, .h5, .hdf5, '
    f'.keras, .npz, .safetensors, and is not {" or ".join(published.SOURCES)}'
  )


def convert(
  source: Mapping[str, Tensor],
  model: nn.Module,
  *,
  initial: Sequence[str] = (),
  ignore: Sequence[str] = (),
) -> tuple[dict[str, Any], Report]:
  """Returns the parameters of a model from the tensors of a file.

  The source may have deconvolutions that the model fixes, and factors on pool3
  and pool4; they must equal those of the model. If the first convolution takes
  three channels in the source and another number in the model, its kernel is
  spread; see `surgery.spread_channels`.

  Args:
    source: what `read_tensors` returns.
    model: `Classifier` or `FCN`.
    initial: layers of the model that keep their initial value.
    ignore: layers of the source to leave out.

  Returns:
    The parameter tree, f32, and a report of where every tensor went. Leaves are
    numpy views of the source where the dtype allows; those in `initial` are
    jax arrays.

  Raises:
    InputError: see `match`.
  """
  shapes = jax.eval_shape(functools.partial(_init, model), jax.random.key(0))
  paths = {
    f'{caffe_name(path[:-1])}/{path[-1]}': '/'.join(path)
    for path in flatten_dict(shapes)
  }
  source = {paths.get(path, path): tensor for path, tensor in source.items()}
  wanted: dict[str, Any] = flatten_dict(shapes, sep='/')
  for path in source.keys() & wanted.keys():
    if path.startswith(('conv1_1', 'conv1/')) and path.endswith('/kernel'):
      source[path] = _of_channels(source[path], wanted[path].shape[2])
  is_fcn = isinstance(model, FCN)
  params, report = match(
    source,
    shapes,
    initial=initial,
    ignore=ignore,
    windows=None if is_fcn else _windows(model),
    fixed=fixed_layers(model, source) if is_fcn else None,
  )
  params |= _initial_values(model, report.initial)
  params = {path: params[path] for path in paths.values()}
  return unflatten_dict(params, sep='/'), report


def convert_file(
  source: str | os.PathLike,
  model_name: str,
  output: str | os.PathLike,
  *,
  num_classes: int | None = None,
  fields: Mapping[str, Any] = MappingProxyType({}),
  initial: Sequence[str] = (),
  ignore: Sequence[str] = (),
  pixels: str | None = None,
  overwrite: bool = False,
) -> Report:
  """Converts a file, and returns a report of where every tensor went.

  Args:
    source: see `read_tensors`; or a name in `published.SOURCES`.
    model_name: one of `CONVERTIBLE`.
    output: .npz or .safetensors; appears whole or not at all.
    num_classes: number of classes of the model; None for the number in the
      file, or the sum of the heads.
    fields: other fields of the model, as in a config: for an FCN `learned`,
      `heads`, `streams`, `first_conv`, `in_channels`.
    initial: see `convert`.
    ignore: see `convert`.
    pixels: scale of the pixels that the weights were trained on, one of
      `files.PIXELS`; None for the usual scale of the framework.
    overwrite: whether to replace an output that exists. The source is never
      replaced.

  Raises:
    InputError: a file or an argument is wrong. Nothing is written then.
  """
  if model_name not in CONVERTIBLE:
    raise InputError(
      f'model={model_name!r} is not one of {", ".join(CONVERTIBLE)}'
    )
  check_apart([Path(output)], [Path(source)])
  files.check_output(Path(output), overwrite)
  remove_leftovers(Path(output).parent)
  if published.is_name(os.fspath(source)):
    source = published.fetch(os.fspath(source))
  classes = {} if num_classes is None else {'num_classes': num_classes}
  model = make_model(model_name, **classes, **fields)
  tensors = read_tensors(source)
  if num_classes is None and not fields.get('heads'):
    model = model.clone(num_classes=_num_classes(tensors, model, initial))
  said = _metadata(source, tensors)
  # Their parameters have the same names and shapes.
  if {said.get('model'), model_name} == {'fcn8s', 'fcn8s_atonce'}:
    raise InputError(
      f'{source} is of {said["model"]}, whose skips have other factors than '
      f'those of model={model_name}'
    )
  params, report = convert(tensors, model, initial=initial, ignore=ignore)
  pixels = pixels or said.get('pixels')
  if not pixels and any(t.layout == 'OIHW' for t in tensors.values()):
    pixels = _usual_pixels(source, report)
  metadata = {'model': model_name, 'pixels': pixels}
  if isinstance(model, FCN):
    metadata['padding'] = said.get('padding', model.padding)
  metadata = {name: value for name, value in metadata.items() if value}
  files.write_params(output, params, overwrite, metadata)
  return report


def convert_published(name: str) -> Path:
  """Returns published weights as an .npz, which is kept beside the download.

  Args:
    name: key in `published.SOURCES`.

  Raises:
    InputError: see `published.fetch`.
  """
  source = published.find(name)
  output = source.path.with_suffix('.npz')
  if not output.exists():
    convert_file(published.fetch(name), source.model, output, overwrite=True)
  return output


def _metadata(source, tensors):
  """Returns the metadata of a file, or those that its framework implies."""
  ending = Path(source).suffix.lower()
  metadata = files.read_metadata(source) if ending in files.ENDINGS else {}
  if not metadata and ending in ('.caffemodel', '.h5', '.hdf5', '.keras'):
    metadata['pixels'] = files.PIXELS[0]
  return metadata


def _usual_pixels(source, report):
  """Returns the scale of pixels that layer names of a state dict imply."""
  modules = {name.rpartition('.')[0] for _, name in report.matched}
  if not modules:
    raise InputError(
      f'{source} has no layer names of torchvision or Caffe, which would say '
      f'the pixels that it was trained on; give --pixels={files.PIXELS[0]} or '
      f'--pixels={files.PIXELS[1]}'
    )
  # Networks with Caffe's names, which the others here have, came from Caffe.
  return files.PIXELS[not modules.isdisjoint(torchvision.vgg16_layers())]


def _of_channels(tensor, in_channels):
  """Returns the first kernel of a network, spread if it takes 3 channels."""
  if tensor.values.ndim != 4:
    return tensor
  axes = [tensor.layout.index(axis) for axis in 'HWIO']
  kernel = tensor.values.transpose(axes)
  if kernel.shape[2] != 3 or in_channels == 3:
    return tensor
  name = f'{tensor.name}, of 3 channels, spread over {in_channels}'
  return Tensor(name, surgery.spread_channels(kernel, in_channels), 'HWIO')


def _windows(model: nn.Module) -> dict[str, tuple[int, int]]:
  return {
    row.name: (row.footprint.kernel, row.footprint.kernel)
    for row in model.backbone().head
    if isinstance(row, FullyConnected)
  }


def _num_classes(source, model, initial):
  if isinstance(model, FCN):
    layer = f'score_fr{model.streams[0] if model.streams else ""}'
  else:
    layer = caffe_name((model.backbone().classifier,))
  bias = source.get(f'{layer}/bias')
  if bias is None or layer in initial:
    raise InputError(
      f'the number of classes comes from {layer}, which the file lacks; give '
      'num_classes'
    )
  return bias.values.size


def _init(model, key):
  size = model.backbone().native_size
  image = np.zeros((1, size, size, model.in_channels), np.float32)
  return model.init(key, image)['params']


def _initial_values(model, paths):
  """Returns the initial values of the parameters in `paths` only."""

  def init(key):
    params = flatten_dict(_init(model, key), sep='/')
    return {path: params[path] for path in paths}

  return jax.jit(init)(jax.random.key(0)) if paths else {}


def _head(text):
  name, _, size = text.partition(':')
  if not size.isdecimal():
    raise InputError(f'heads={text} must be NAME:CLASSES, such as sem:33')
  return name, int(size)


def main(_):
  args = flags.FLAGS
  fields = {
    'learned': args.learned,
    'heads': [_head(text) for text in args.heads],
    'streams': args.streams,
    'first_conv': args.first_conv,
    'in_channels': args.in_channels,
  }
  report = convert_file(
    args.input,
    args.model or published.find(args.input).model,
    args.output,
    num_classes=args.num_classes,
    fields={k: v for k, v in fields.items() if v not in (None, '', [])},
    initial=args.initial,
    ignore=args.ignore,
    pixels=args.pixels,
    overwrite=args.overwrite,
  )
  print(report)
  print(args.output, flush=True)
