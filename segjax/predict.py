# SPDX-License-Identifier: Apache-2.0
"""Predicts image files with a trained network.

`python -m segjax.predict --workdir=DIR --input=IMAGES --output=FILE`, or with
converted weights `--config=CONFIG --params=FILE` instead of a run, or
`--artifact=FOLDER` that `segjax.export` wrote. Processes that are started
together, see `processes.join`, share the tiles of every image; all of them must
see the same files.
"""

import functools
import hashlib
import os
from pathlib import Path

import numpy as np
from absl import flags

from segjax import networks
from segjax.data import look_of
from segjax.devices import processes
from segjax.devices.compilation_cache import use_compilation_cache
from segjax.errors import InputError, run_command
from segjax.images import rasters
from segjax.images.files import write_stack
from segjax.images.palettes import complete_palette
from segjax.models import create_model
from segjax.networks import Network
from segjax.prediction import artifact
from segjax.prediction.outputs import DTYPES, KINDS, encode, plan_outputs
from segjax.prediction.overlays import draw_overlay, thinning
from segjax.prediction.pages import (
  finish_picture,
  measure,
  open_pages,
  write_predictions,
)
from segjax.prediction.partial import open_partial
from segjax.prediction.predictor import of_stored_pixels, settle_tiles
from segjax.prediction.streaming import stream_predict
from segjax.settings import read_prediction
from segjax.weights.files import digest_of_params


def predict_files(
  network: Network,
  source: str | os.PathLike,
  output: str | os.PathLike,
  *,
  kind: str = 'probabilities',
  dtype: str = 'float32',
  average: bool | None = None,
  tile_size_px: int | None = None,
  overwrite: bool = False,
) -> None:
  """Writes the predictions of image files, and prints what it wrote.

  Each output appears whole or not at all. What a killed run has finished stays
  in OUTPUT.partial, and the same call goes on from there. All images share the
  shape of their tiles, see `choose_tile_shape`, and what is compiled. Of a
  folder, the outputs before a file with damaged pixels are written.

  Args:
    network: of a run, or with converted weights.
    source: image file, stack, Zarr, or folder of images.
    output: see `plan_outputs`.
    kind: one of `KINDS`: see `encode`; 'overlay' is the image with the classes
      painted over it and their names.
    dtype: one of `DTYPES`: see `encode`. A .png is 'uint8' whatever it is.
    average: over the eight turns and flips; None as the run evaluated.
    tile_size_px: input side of a tile; None for the shape that computes the
      fewest pixels.
    overwrite: whether to replace an output that exists.

  Raises:
    InputError: a file or an argument is wrong.
  """
  source, output = Path(source), Path(output)
  jobs, ending = plan_outputs(
    rasters.list_rasters(source),
    source.is_dir() and not rasters.is_zarr(source),
    output,
    kind,
    len(network.model.head_sizes),
  )
  if kind == 'logits' and dtype == 'uint8':
    raise InputError('logits do not fit dtype uint8; use float32 or float16')
  for _, file in jobs:
    if file.exists() and not overwrite:
      raise InputError(f'{file} exists; give --overwrite to replace it')
  model, params, config, _ = network
  if average is None:
    average = config.evaluation.average
  colours = None
  class_names, palette = look_of(config.data, model.num_classes)
  # Two classes without colours of their own stay a gray picture.
  if kind == 'labels' and (palette is not None or model.num_classes > 2):
    colours = complete_palette(palette)
  encoder = functools.partial(
    encode,
    kind=kind,
    dtype='uint8' if ending == '.png' else dtype,
    head_sizes=model.head_sizes,
  )
  digest = digest_of_params(params)
  described = config.to_dict() | {'prediction': None}  # Settled below.
  measured = [_measure(*job, model.in_channels) for job in jobs]
  _, sizes, pixels = zip(*measured, strict=True)
  preprocessing, tiles = read_prediction(
    config,
    average=average,
    activation='logits' if kind == 'logits' else 'probabilities',
    **{} if tile_size_px is None else {'tile_size': tile_size_px},
  )
  preprocessing.check_channels(model.in_channels)
  stored = of_stored_pixels(model, preprocessing)
  settled = settle_tiles(stored, params, tiles, sizes, max(pixels))
  stream = functools.partial(
    stream_predict, model=stored, params=params, settings=settled
  )
  for (files, file), (count, size, _) in zip(jobs, measured, strict=True):
    if file.parent == output:
      processes.together(lambda: processes.is_first() and _make_folder(output))
    pages = open_pages(files, model.in_channels, max(pixels))
    if kind == 'overlay':

      def write_overlay(file=file, pages=pages):
        if processes.is_first():
          names = class_names[: model.head_sizes[0]]
          pictures = [draw_overlay(p, stream, names, palette) for p in pages]
          write_stack(file, np.stack(pictures))

      processes.together(write_overlay)
      step = thinning(*size)
      how = f', of {step} x {step} px one' if step > 1 else ''
    else:
      settings = repr([kind, dtype, str(max(pixels)), settled, described])
      identity = {
        'parameters': digest,
        'settings': hashlib.sha256(settings.encode()).hexdigest(),
        'input': rasters.digest_of_rasters(files),
      }
      finish = functools.partial(
        finish_picture,
        name=file.name,
        colours=colours if ending == '.png' else None,
      )
      with open_partial(file, identity, overwrite, finish) as partial:
        plan = write_predictions(
          partial,
          file.name,
          pages,
          (count, *size),
          stream,
          encoder,
          model.num_classes,
        )
      how = ', by tiles of {} x {} px'.format(*plan.tile_shape)
    processes.say(f'{file}: {kind} of {count} images{how}')


def _measure(files, output, channels):
  """Returns `measure` of a job, which all processes can do and store."""
  measured = processes.together(lambda: measure(files, channels, output))
  if output.suffix.lower() == '.png' and measured[0] > 1:
    raise InputError(
      f'{output} holds one image and the input has {measured[0]}; use .tif'
    )
  return measured


def _make_folder(folder: Path) -> None:
  try:
    folder.mkdir(exist_ok=True)
  except OSError as e:
    raise InputError(
      f'output {folder} cannot be made a folder: {e.strerror}'
    ) from e


def _load(args) -> Network:
  if args.artifact is None:
    return networks.load_from_flags()
  if (args.workdir, args.config, args.params) != (None, None, None):
    raise InputError(
      f'--artifact={args.artifact} is a network by itself; give no --workdir, '
      '--config or --params with it'
    )
  if args.compute_dtype is not None:
    raise InputError(
      f'--compute_dtype={args.compute_dtype} cannot change what '
      f'--artifact={args.artifact} was compiled for'
    )
  if args['checkpoint'].present:
    raise InputError(
      f'--checkpoint={args.checkpoint} is of a run; --artifact={args.artifact} '
      'holds one network, give no --checkpoint with it'
    )
  network = Network(*artifact.load(args.artifact), data_sha256=None)
  use_compilation_cache()
  return network


def main(_):
  processes.join()
  args = flags.FLAGS
  network = _load(args)
  with network.config.unlocked():
    if args.compute_dtype is not None:
      network.config.model.dtype = args.compute_dtype
      network = network._replace(model=create_model(network.config.model))
  predict_files(
    network,
    args.input,
    args.output,
    kind=args.kind,
    dtype=args.dtype,
    average=args.average,
    tile_size_px=args.tile_size_px,
    overwrite=args.overwrite,
  )


if __name__ == '__main__':
  networks.define_flags()
  flags.adopt_module_key_flags(networks)
  flags.DEFINE_string(
    'artifact', None, 'Instead of both: folder of segjax.export.'
  )
  flags.DEFINE_string(
    'input', None, 'Image file, stack, or folder of images.', required=True
  )
  flags.DEFINE_string(
    'output',
    None,
    'A .tif, .npy, .zarr or .png; or, for a folder of images, a folder.',
    required=True,
  )
  flags.DEFINE_enum(
    'kind',
    'probabilities',
    KINDS,
    'What to write: see `encode`; labels are class indices, an overlay is a '
    'picture.',
  )
  flags.DEFINE_enum(
    'dtype',
    'float32',
    DTYPES,
    'Of probabilities and logits; uint8 scales probabilities to 0..255.',
  )
  flags.DEFINE_enum(
    'compute_dtype',
    None,
    ('float32', 'bfloat16'),
    'That the network computes in; None as it was trained.',
  )
  flags.DEFINE_bool(
    'average', None, 'Average over the 8 turns and flips; None as the run did.'
  )
  flags.DEFINE_integer(
    'tile_size_px', None, 'Input side of a tile; None wastes least.'
  )
  flags.DEFINE_bool('overwrite', False, 'Replace the output if it exists.')
  run_command(main)
