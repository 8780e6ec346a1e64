# SPDX-License-Identifier: Apache-2.0
"""Packages for the BioImage Model Zoo (bioimage.io), specification 0.5.

The weights are ONNX in the form for programs that cut tiles themselves, see
`onnx_file.tiler_sizes`: they return probabilities as large as the image, whose
halo such programs crop. This is the only file that knows bioimageio.spec.
"""

import datetime
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import scipy.ndimage

from segjax.atomic import check_file
from segjax.contracts import SegmentationModel
from segjax.errors import InputError, shortened
from segjax.images.files import write_stack
from segjax.settings.sections import PreprocessingSettings
from segjax.sharing import onnx_file
from segjax.tiling.programs import softmax_of_heads

_PAPERS = (
  (
    'Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical '
    'Image Segmentation. MICCAI 2015.',
    '10.1007/978-3-319-24574-4_28',
  ),
  (
    'Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic '
    'Segmentation. CVPR 2015.',
    '10.1109/CVPR.2015.7298965',
  ),
)
_PIXELS = 'uint8'  # Of images, where a config does not say their type.


def import_spec() -> tuple[ModuleType, ModuleType]:
  """Returns the modules `bioimageio.spec` and its `model.v0_5`.

  Raises:
    InputError: they are not installed.
  """
  try:
    import bioimageio.spec
    import bioimageio.spec.model.v0_5
  except ImportError as e:
    raise InputError(
      "the BioImage Model Zoo needs packages: pip install 'segjax[bioimageio]' "
      f'({e})'
    ) from e
  return bioimageio.spec, bioimageio.spec.model.v0_5


def check_output(path: str | os.PathLike, overwrite: bool) -> None:
  """Raises InputError if nothing will be written to `path`."""
  path = Path(path)
  if path.suffix.lower() != '.zip':
    raise InputError(f'output {path} must end in .zip')
  check_file(path, overwrite)
  onnx_file.import_onnx()
  import_spec()


def linear_scaling(
  preprocessing: PreprocessingSettings, num_channels: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns gain and offset, f64[C], that prepare the channels as stored.

  Raises:
    InputError: the network takes a channel twice.
  """
  order = list(preprocessing.channels or range(num_channels))
  if len({*order}) < len(order):
    raise InputError(
      f'preprocessing.channels={preprocessing.channels} has a channel twice; '
      'a package cannot express that'
    )
  low, high = preprocessing.limits or (0.0, 1.0)
  # Deviations of an image from its mean are no share of a type.
  full = 1 if preprocessing.per_image else _full(preprocessing.dtype or _PIXELS)
  stored = np.broadcast_to(np.asarray(low, float), num_channels)
  ranges = np.broadcast_to(np.subtract(high, low), num_channels)
  mean, std = np.empty((2, num_channels))
  mean[order], std[order] = preprocessing.mean, preprocessing.std
  return 1 / (full * ranges * std), -(stored / ranges + mean) / std


def write_package(
  path: Path,
  model: SegmentationModel,
  params: Any,
  preprocessing: PreprocessingSettings,
  tile_px: int,
  about: Mapping[str, Any],
  *,
  name: str,
  model_name: str,
  data_name: str,
  authors: Sequence[str],
  license_id: str,
) -> None:
  """Writes a package.

  Args:
    path: .zip, which does not exist.
    model: the network.
    params: parameters of the network.
    preprocessing: settings that turn stored pixels into the network's input.
    tile_px: side of a tile of an FCN; not read for a U-Net.
    about: description of the export, as `artifact.write` takes it.
    name: name of the package.
    model_name: one of `models.SEGMENTERS`.
    data_name: name of the data that the network was trained on.
    authors: names of the authors.
    license_id: SPDX identifier of the licence.

  Raises:
    InputError: see `onnx_file.to_onnx` and `linear_scaling`; or the
      specification refuses a value.
  """
  spec, v0_5 = import_spec()
  channels = model.in_channels
  sizes = onnx_file.tiler_sizes(model.geometry, tile_px)
  side = sizes.least + 2 * sizes.step
  converted = onnx_file.to_onnx(
    model,
    params,
    tile_px,
    onnx_file.network_metadata(model, tile_px or side, about),
    channels=preprocessing.channels,
    for_tilers=True,
  )
  scaling = linear_scaling(preprocessing, channels)
  stored = _sample(side, channels, preprocessing.dtype or _PIXELS)
  prepared = preprocessing.prepare(preprocessing.by_image(stored))
  probabilities = _forward(model, params, np.asarray(prepared)[None], sizes)
  class_names = about['class_names']
  text, doi = _PAPERS[model_name.startswith('fcn')]

  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    (folder / 'weights.onnx').write_bytes(converted.SerializeToString())
    _save_tensor(folder / 'image.npy', stored)
    _save_tensor(folder / 'probabilities.npy', probabilities)
    inner = slice(sizes.halo, side - sizes.halo)
    shown = stored[inner, inner, 0], probabilities[inner, inner, -1]
    cover = np.concatenate([_gray(values) for values in shown], axis=1)
    write_stack(folder / 'cover.png', cover[None])
    (folder / 'documentation.md').write_text(
      _documentation(
        name, model_name, data_name, class_names, model.geometry.period, sizes
      ),
      encoding='utf-8',
    )

    def file(name):
      return v0_5.FileDescr(source=folder / name)

    try:
      steps = _preparation(v0_5, scaling, preprocessing.per_image)
      image = _image(v0_5, file('image.npy'), stored, steps, sizes)
      output = _output(v0_5, file('probabilities.npy'), class_names, sizes)
      description = v0_5.ModelDescr(
        name=name,
        description=f'{model_name}, trained with segjax on {data_name}.',
        authors=[v0_5.Author(name=author) for author in authors],
        license=license_id,
        cite=[v0_5.CiteEntry(text=text, doi=doi)],
        covers=[file('cover.png')],
        documentation=file('documentation.md'),
        inputs=[image],
        outputs=[output],
        tags=['semantic-segmentation', 'jax', model_name],
        timestamp=v0_5.Datetime(datetime.datetime.now(datetime.UTC)),
        training_data=v0_5.DatasetDescr(name=data_name),
        weights=v0_5.WeightsDescr(
          onnx=v0_5.OnnxWeightsDescr(
            source=folder / 'weights.onnx', opset_version=onnx_file.OPSET
          )
        ),
      )
    except ValueError as e:
      said = shortened(' '.join(str(e).split()), 300)  # It has many lines.
      raise InputError(f'bioimageio.spec refuses the package: {said}') from e
    spec.save_bioimageio_package(description, output_path=path)


def _preparation(v0_5, scaling, per_image):
  """Returns the steps that prepare an image, see `linear_scaling`."""
  gain, offset = scaling
  if np.ptp(gain) == np.ptp(offset) == 0:
    scale = v0_5.ScaleLinearKwargs(gain=float(gain[0]), offset=float(offset[0]))
  else:
    scale = v0_5.ScaleLinearAlongAxisKwargs(
      axis='channel', gain=gain.tolist(), offset=offset.tolist()
    )
  floats = v0_5.EnsureDtypeDescr(kwargs=v0_5.EnsureDtypeKwargs(dtype='float32'))
  steps = [floats]
  if per_image:
    z_score = v0_5.ZeroMeanUnitVarianceKwargs(axes=('y', 'x'))
    steps.append(v0_5.ZeroMeanUnitVarianceDescr(kwargs=z_score))
  # Without the last one, readers would bring back the type of the pixels.
  return [*steps, v0_5.ScaleLinearDescr(kwargs=scale), floats]


def _image(v0_5, test_tensor, stored, preparation, sizes):
  """Returns the description of the input."""
  size = sizes.least
  if sizes.step:
    size = v0_5.ParameterizedSize(min=sizes.least, step=sizes.step)
  names = [f'channel{i}' for i in range(stored.shape[-1])]
  return v0_5.InputTensorDescr(
    id='image',
    axes=[
      v0_5.BatchAxis(size=None if sizes.step else 1),
      v0_5.ChannelAxis(channel_names=names),
      *(v0_5.SpaceInputAxis(id=axis, size=size) for axis in 'yx'),
    ],
    data=v0_5.IntervalOrRatioDataDescr(type=stored.dtype.name),
    pad=v0_5.ReflectPadding.model_validate({'mode': 'reflect'}),
    preprocessing=preparation,
    test_tensor=test_tensor,
  )


def _output(v0_5, test_tensor, class_names, sizes):
  """Returns the description of the output, with its halo."""
  sides = [
    v0_5.SpaceOutputAxisWithHalo(
      id=axis,
      halo=sizes.halo,
      size=v0_5.SizeReference(tensor_id='image', axis_id=axis),
    )
    for axis in 'yx'
  ]
  return v0_5.OutputTensorDescr(
    id='probabilities',
    description='Probabilities of the classes, softmax over those of a head.',
    axes=[
      v0_5.BatchAxis(size=None if sizes.step else 1),
      v0_5.ChannelAxis(channel_names=list(class_names)),
      *sides,
    ],
    data=v0_5.IntervalOrRatioDataDescr(type='float32', range=(0.0, 1.0)),
    test_tensor=test_tensor,
  )


def _save_tensor(file, array):
  """Saves an array [H, W, C] as [1, C, H, W]."""
  np.save(file, np.ascontiguousarray(array.transpose(2, 0, 1)[None]))


def _full(dtype):
  """Returns the number by which pixels of a type are divided."""
  dtype = np.dtype(dtype)
  return np.iinfo(dtype).max if dtype.kind in 'iu' else 1


def _sample(side, channels, dtype):
  """Returns a smooth random image [side, side, C] in the range of its type."""
  noise = np.random.default_rng(0).normal(size=(side, side, channels))
  smooth = scipy.ndimage.gaussian_filter(noise, (3, 3, 0))
  ramp = (smooth - smooth.min()) / np.ptp(smooth)
  return (ramp * _full(dtype)).astype(dtype)


def _forward(model, params, prepared, sizes):
  """Returns the probabilities f32[side, side, K] that the package shall give.

  Args:
    prepared: f32[1, side, side, C].
  """
  skip = sizes.skip
  apply = jax.jit(model.apply)
  logits = apply({'params': params}, prepared[:, skip:, skip:])[0]
  output = np.asarray(softmax_of_heads(logits, model.head_sizes))
  valid = (prepared.shape[1] - skip - len(output)) // 2
  return np.pad(output, [(valid + skip, valid)] * 2 + [(0, 0)])


def _gray(values):
  """Returns u8[h, w, 3] of values [h, w], stretched to the full range."""
  low, high = values.min(), values.max()
  levels = 255 * (values - low) / max(high - low, 1e-9)
  return np.repeat(levels.round().astype(np.uint8)[..., None], 3, axis=-1)


def _documentation(name, model_name, data_name, class_names, period, sizes):
  more = f' + {sizes.step} n' if sizes.step else ''
  return f"""# {name}

`{model_name}` of segjax, trained on {data_name}.
Its output has the probabilities of {', '.join(class_names)}.

Tiles have {sizes.least}{more} px and a halo of {sizes.halo} px on each side.
The image is mirrored at its borders (`reflect`). Put together, tiles equal one
pass over the image if its sides are multiples of {period} px. Otherwise
programs may move the last tiles back into the image, and what those write
differs.

Validate it on images of your own before you rely on it: compare labels that you
drew by hand with the class that is likeliest.
"""
