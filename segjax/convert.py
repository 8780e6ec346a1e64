# SPDX-License-Identifier: Apache-2.0
"""Converts weights of Caffe, torchvision and Keras into segjax parameters.

`python -m segjax.convert --input=FILE --model=fcn8s --output=net.npz`

Reads .caffemodel, .pth and .safetensors state dicts, Keras's VGG16 (.h5,
.keras), and .npz and .safetensors that this wrote. None of the frameworks is
needed but PyTorch for .pth. Nothing is left out, and nothing left at its
initial value, that --ignore and --initial don't name.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import flags
from jax.tree_util import keystr

from segjax.errors import InputError, run_command
from segjax.models import fcn
from segjax.models.alexnet import CaffeNet
from segjax.models.backbone import Classifier, FullyConnected
from segjax.models.googlenet import GoogLeNet, caffe_name
from segjax.models.upsampling import bilinear_weights
from segjax.models.vgg import VGG16
from segjax.weights import caffe, files, keras, torchvision
from segjax.weights.matching import Report, Tensor, match

MODELS = {
  'vgg16': VGG16,
  'vgg16_conv': functools.partial(VGG16, convolutional=True),
  'caffenet': CaffeNet,
  'caffenet_conv': functools.partial(CaffeNet, convolutional=True),
  'googlenet': GoogLeNet,
  'googlenet_conv': functools.partial(GoogLeNet, convolutional=True),
  'fcn32s': fcn.FCN32s,
  'fcn16s': fcn.FCN16s,
  'fcn8s': fcn.FCN8s,
  'fcn8s_atonce': fcn.FCN8sAtOnce,
  'fcn_alexnet': fcn.FCNAlexNet,
  'fcn_googlenet': fcn.FCNGoogLeNet,
}


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
  """Returns parameter path, with Caffe's layer names, -> tensor of a file.

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
    '.keras, .npz, .safetensors'
  )


def convert(
  source: Mapping[str, Tensor],
  model: nn.Module,
  *,
  initial: Sequence[str] = (),
  ignore: Sequence[str] = (),
  seed: int = 0,
) -> tuple[dict[str, Any], Report]:
  """Returns the parameters of a model from the tensors of a file.

  Deconvolutions that the model fixes, and the factors on pool3 and pool4, may
  be in the source; they must be those that the model computes with.

  Args:
    source: what `read_tensors` returns.
    model: `Classifier` or `FCN`.
    initial: layers of the model that keep their initial value.
    ignore: layers of the source to leave out.
    seed: of the initial values.

  Returns:
    The parameter tree, f32, and where everything came to lie. Leaves are
    numpy views of the source where the dtype allows; those in `initial` are
    jax arrays.

  Raises:
    InputError: see `match`.
  """
  shapes = jax.eval_shape(functools.partial(_init, model), jax.random.key(seed))
  paths = {
    f'{caffe_name(path[:-1])}/{path[-1]}': '/'.join(path)
    for path in map(_names, jax.tree_util.tree_leaves_with_path(shapes))
  }
  source = {paths.get(path, path): tensor for path, tensor in source.items()}
  is_fcn = isinstance(model, fcn.FCN)
  params, report = match(
    source,
    shapes,
    initial=initial,
    ignore=ignore,
    windows=None if is_fcn else _windows(model),
    fixed=_fixed(model, source) if is_fcn else None,
  )
  params |= _initial_values(model, report.initial, seed)
  return files.nested({path: params[path] for path in paths.values()}), report


def convert_file(
  source: str | os.PathLike,
  model_name: str,
  output: str | os.PathLike,
  *,
  num_classes: int | None = None,
  learned: Sequence[str] = (),
  initial: Sequence[str] = (),
  ignore: Sequence[str] = (),
  overwrite: bool = False,
) -> Report:
  """Converts a file, and returns where everything came to lie.

  Args:
    source: see `read_tensors`.
    model_name: one of `MODELS`.
    output: .npz or .safetensors; appears whole or not at all.
    num_classes: of the model; None for the file's.
    learned: deconvolutions that the FCN learns; the others are bilinear.
    initial: see `convert`.
    ignore: see `convert`.
    overwrite: whether to replace an output that exists.

  Raises:
    InputError: a file or an argument is wrong. Nothing is written then.
  """
  if model_name not in MODELS:
    raise InputError(f'model={model_name!r} is not one of {", ".join(MODELS)}')
  files.check_output(Path(output), overwrite)
  make_model = MODELS[model_name]
  if learned:
    if not model_name.startswith('fcn'):
      raise InputError(f'learned={learned}: {model_name} has no deconvolution')
    make_model = functools.partial(make_model, learned=tuple(learned))
  tensors = read_tensors(source)
  if num_classes is None:
    num_classes = _num_classes(tensors, make_model(), initial)
  if num_classes < 1:
    raise InputError(f'num_classes={num_classes} must be >= 1')
  model = make_model(num_classes=num_classes)
  params, report = convert(tensors, model, initial=initial, ignore=ignore)
  files.write_params(output, params, overwrite)
  return report


def is_bilinear(tensor: Tensor, kernel: int) -> bool:
  """Whether a deconvolution is Caffe's bilinear one of `kernel` x `kernel`.

  Each class onto itself by the bilinear kernel, onto others by zero; or, in
  groups of one class, the diagonal alone.
  """
  values = tensor.values
  if tensor.layout == 'HWIO' and values.ndim == 4:
    values = values.transpose(2, 3, 0, 1)
  classes = len(values)
  if values.shape == (classes, 1, kernel, kernel):
    mixing = np.ones((classes, 1))
  elif values.shape == (classes, classes, kernel, kernel):
    mixing = np.eye(classes)
  else:
    return False
  weights = bilinear_weights(kernel)
  expected = mixing[..., None, None] * np.outer(weights, weights)
  return np.allclose(values, expected, rtol=0, atol=1e-6)


def _fixed(model, source):
  """The layers that `model` computes without parameters, and their checks."""
  fixed = {
    up.name: functools.partial(is_bilinear, kernel=up.layer.kernel)
    for up in model.geometry.decoder
    if up.name not in model.learned
  }
  for pool, scale in (
    ('pool4', model.pool4_scale),
    ('pool3', model.pool3_scale),
  ):
    if scale == 1:
      continue
    # Named so in Caffe; what was converted once no longer holds the factor.
    name, score = f'scale_{pool}', source.get(f'score_{pool}/kernel')
    fixed[name] = functools.partial(_is_constant, value=scale)
    is_foreign = score is not None and score.layout != 'HWIO'
    if is_foreign and f'{name}/kernel' not in source:
      raise InputError(
        f'the file has score_{pool} without {name}: it is no FCN-8s trained '
        'at once; give model=fcn8s'
      )
  return fixed


def _is_constant(tensor, value):
  return np.allclose(tensor.values, value, rtol=1e-6, atol=0)


def _windows(model: Classifier) -> dict[str, tuple[int, int]]:
  return {
    row.name: (row.window.kernel,) * 2
    for row in model.backbone().head
    if isinstance(row, FullyConnected)
  }


def _num_classes(source, model, initial):
  layer = (
    'score_fr'
    if isinstance(model, fcn.FCN)
    else caffe_name((model.backbone().classifier,))
  )
  bias = source.get(f'{layer}/bias')
  if bias is None or layer in initial:
    raise InputError(
      f'the number of classes is that of {layer}, which the file does not '
      'give; give num_classes'
    )
  return bias.values.size


def _init(model, key):
  size = model.backbone().native_size
  channels = getattr(model, 'in_channels', 3)
  image = np.zeros((1, size, size, channels), np.float32)
  return model.init(key, image)['params']


def _initial_values(model, paths, seed):
  """The initial values of the parameters in `paths`, and only those."""

  def init(key):
    leaves = jax.tree_util.tree_leaves_with_path(_init(model, key))
    leaves = {'/'.join(_names(entry)): entry[1] for entry in leaves}
    return {path: leaves[path] for path in paths}

  return jax.jit(init)(jax.random.key(seed)) if paths else {}


def _names(entry):
  path, _ = entry
  return tuple(keystr((key,), simple=True) for key in path)


def main(_):
  args = flags.FLAGS
  report = convert_file(
    args.input,
    args.model,
    args.output,
    num_classes=args.num_classes,
    learned=args.learned,
    initial=args.initial,
    ignore=args.ignore,
    overwrite=args.overwrite,
  )
  print(report)
  print(args.output, flush=True)


if __name__ == '__main__':
  flags.DEFINE_string('input', None, 'File of weights.', required=True)
  flags.DEFINE_string(
    'model', None, f'One of {", ".join(MODELS)}.', required=True
  )
  flags.DEFINE_string(
    'output', None, 'An .npz or .safetensors file.', required=True
  )
  flags.DEFINE_integer(
    'num_classes', None, "Classes of the model; the file's if not given."
  )
  flags.DEFINE_list('learned', [], 'Deconvolutions that the model learns.')
  flags.DEFINE_list(
    'initial', [], 'Layers of the model that keep their initial value.'
  )
  flags.DEFINE_list('ignore', [], 'Layers of the file to leave out.')
  flags.DEFINE_bool('overwrite', False, 'Replace the output if it exists.')
  run_command(main)
