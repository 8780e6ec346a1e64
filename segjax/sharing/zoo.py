# SPDX-License-Identifier: Apache-2.0
"""Packages for the BioImage Model Zoo (bioimage.io), specification 0.5.

The weights are ONNX in the form for programs that cut tiles, see
`onnx_file.tiler_sizes`: probabilities as large as the image, of which the halo
is to be cropped. bioimageio.spec, which writes the package, is known here only.
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

from segjax.atomic import check_absent, check_folder
from segjax.contracts import SegmentationModel
from segjax.errors import InputError
from segjax.images.files import write_stack
from segjax.settings.sections import PreprocessingSettings
from segjax.sharing import onnx_file

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
  check_folder(path)
  if path.is_dir():
    raise InputError(f'output {path} is a folder; give the name of a file')
  if not overwrite:
    check_absent([path])
  onnx_file.import_onnx()
  import_spec()


def linear_scaling(
  preprocessing: PreprocessingSettings, num_channels: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns gain and offset f64[C] of the channels of stored pixels.

  Raises:
    InputError: the network takes a channel twice.
  """
  order = list(preprocessing.channels or range(num_channels))
  if len({*order}) < len(order):
    raise InputError(
      f'preprocessing.channels={preprocessing.channels} has a channel twice, '
      'which a package cannot say'
    )
  low, high = preprocessing.limits or (0.0, 1.0)
  full = _full(preprocessing.dtype or _PIXELS)
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
    params: its parameters.
    preprocessing: of stored pixels.
    tile_px: side of a tile of an FCN.
    about: as `artifact.write` takes it.
    name: of the network.
    model_name: one of `models.SEGMENTERS`.
    data_name: of the data that it was trained on.
    authors: names.
    license_id: SPDX identifier.

  Raises:
    InputError: see `onnx_file`; or the specification refuses a value.
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
  gain, offset = linear_scaling(preprocessing, channels)
  stored = _sample(side, channels, preprocessing.dtype or _PIXELS)
  prepared = np.asarray(preprocessing.prepare(stored))[None]
  probabilities = _forward(model, params, prepared, sizes)
  inner = slice(sizes.halo, side - sizes.halo)

  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)

    def save(file, array):
      np.save(folder / file, np.ascontiguousarray(array))
      return v0_5.FileDescr(source=folder / file)

    (folder / 'weights.onnx').write_bytes(converted.SerializeToString())
    cover = np.concatenate(
      [_gray(stored[inner, inner, 0]), _gray(probabilities[inner, inner, -1])],
      axis=1,
    )
    write_stack(folder / 'cover.png', cover[None])
    (folder / 'documentation.md').write_text(
      _documentation(name, model_name, data_name, about, sizes),
      encoding='utf-8',
    )
    axes = ('y', 'x')
    text, doi = _PAPERS[model_name.startswith('fcn')]
    size = (
      v0_5.ParameterizedSize(min=sizes.least, step=sizes.step)
      if sizes.step
      else sizes.least
    )
    scaling = (
      dict(gain=float(gain[0]), offset=float(offset[0]))
      if np.ptp(gain) == np.ptp(offset) == 0
      else dict(gain=gain.tolist(), offset=offset.tolist(), axis='channel')
    )
    of_axis = len({*scaling} & {'axis'})
    kwargs = (v0_5.ScaleLinearKwargs, v0_5.ScaleLinearAlongAxisKwargs)[of_axis]
    floats = v0_5.EnsureDtypeDescr(
      kwargs=v0_5.EnsureDtypeKwargs(dtype='float32')
    )
    batch = v0_5.BatchAxis(size=None if sizes.step else 1)
    image = v0_5.InputTensorDescr(
      id='image',
      axes=[
        batch,
        v0_5.ChannelAxis(
          channel_names=[f'channel{i}' for i in range(channels)]
        ),
        *(v0_5.SpaceInputAxis(id=a, size=size) for a in axes),
      ],
      data=v0_5.IntervalOrRatioDataDescr(type=stored.dtype.name),
      pad=v0_5.ReflectPadding.model_validate({'mode': 'reflect'}),
      # Without the last one, readers would bring back the type of the pixels.
      preprocessing=[
        floats,
        v0_5.ScaleLinearDescr(kwargs=kwargs(**scaling)),
        floats,
      ],
      test_tensor=save('image.npy', stored.transpose(2, 0, 1)[None]),
    )
    output = v0_5.OutputTensorDescr(
      id='probabilities',
      description='Probabilities of the classes, softmax over those of a head.',
      axes=[
        batch,
        v0_5.ChannelAxis(channel_names=list(about['class_names'])),
        *(
          v0_5.SpaceOutputAxisWithHalo(
            id=a,
            halo=sizes.halo,
            size=v0_5.SizeReference(tensor_id='image', axis_id=a),
          )
          for a in axes
        ),
      ],
      data=v0_5.IntervalOrRatioDataDescr(type='float32', range=(0.0, 1.0)),
      test_tensor=save(
        'probabilities.npy', probabilities.transpose(2, 0, 1)[None]
      ),
    )
    try:
      description = v0_5.ModelDescr(
        name=name,
        description=f'{model_name}, trained with segjax on {data_name}.',
        authors=[v0_5.Author(name=author) for author in authors],
        license=license_id,
        cite=[v0_5.CiteEntry(text=text, doi=doi)],
        covers=[v0_5.FileDescr(source=folder / 'cover.png')],
        documentation=v0_5.FileDescr(source=folder / 'documentation.md'),
        inputs=[image],
        outputs=[output],
        tags=['semantic-segmentation', 'jax', model_name],
        timestamp=v0_5.Datetime(datetime.datetime.now(datetime.UTC)),
        training_data=v0_5.DatasetDescr(
          name=data_name,
          description=f'What segjax calls {data_name}.',
        ),
        weights=v0_5.WeightsDescr(
          onnx=v0_5.OnnxWeightsDescr(
            source=folder / 'weights.onnx', opset_version=onnx_file.OPSET
          )
        ),
      )
    except ValueError as e:
      said = ' '.join(str(e).split())  # It has many lines.
      raise InputError(f'bioimageio.spec refuses the package: {said}') from e
    spec.save_bioimageio_package(description, output_path=path)


def _full(dtype):
  """Returns what pixels stored in a type are divided by."""
  dtype = np.dtype(dtype)
  return np.iinfo(dtype).max if dtype.kind in 'iu' else 1


def _sample(side, channels, dtype):
  """Returns a smooth random image [side, side, C] in the range of its type."""
  noise = np.random.default_rng(0).normal(size=(side, side, channels))
  smooth = scipy.ndimage.gaussian_filter(noise, (3, 3, 0))
  ramp = (smooth - smooth.min()) / np.ptp(smooth)
  return (ramp * _full(dtype)).astype(dtype)


def _forward(model, params, prepared, sizes):
  """Returns what the package shall: f32[side, side, K] of pixels [1, ...]."""
  skip = sizes.skip
  logits = jax.jit(model.apply)({'params': params}, prepared[:, skip:, skip:])[
    0
  ]
  heads = np.split(logits, np.cumsum(model.head_sizes)[:-1], axis=-1)
  output = np.concatenate([jax.nn.softmax(head) for head in heads], axis=-1)
  valid = (prepared.shape[1] - skip - len(output)) // 2
  return np.pad(output, [(valid + skip, valid)] * 2 + [(0, 0)])


def _gray(values):
  """Returns u8[h, w, 3] of values [h, w], stretched to the full range."""
  low, high = values.min(), values.max()
  levels = 255 * (values - low) / max(high - low, 1e-9)
  return np.repeat(levels.round().astype(np.uint8)[..., None], 3, axis=-1)


def _documentation(name, model_name, data_name, about, sizes):
  tiles = (
    f'Tiles have {sizes.least} + {sizes.step} n px'
    if sizes.step
    else f'Tiles have {sizes.least} px'
  )
  classes = ', '.join(about['class_names'])
  return f"""# {name}

`{model_name}` of segjax, trained on {data_name}.
Its output has the probabilities of {classes}.

{tiles} and a halo of {sizes.halo} px on each side. Images go on as their mirror
image (`reflect`). Tiles that begin at multiples of the tile without its halo
put together equal one pass over the image; where a program moves the last ones
back into the image, they do so if the sides of the image are multiples of
{sizes.step or sizes.least - 2 * sizes.halo} px.

Validate it on images of your own before you rely on it: compare labels that you
drew by hand with the class that is likeliest.
"""
