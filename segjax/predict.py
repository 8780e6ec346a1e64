# SPDX-License-Identifier: Apache-2.0
"""Predict image files with a trained network.

`python -m segjax.predict --workdir=DIR --input=IMAGES --output=FILE` predicts
with the network of a run. Give `--config=CONFIG --params=FILE` instead for
converted weights, or `--artifact=FOLDER` for a folder that `segjax.export`
wrote. Processes that are started together, see `processes.join`, share the
tiles of every image; all of them must see the same files.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.cli.command_line import run

  run('predict')

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from absl import flags

from segjax.atomic import check_absent, remove_leftovers
from segjax.cli import network_flags
from segjax.data import look_of
from segjax.devices import processes
from segjax.devices.compilation_cache import use_compilation_cache
from segjax.errors import InputError, counted
from segjax.images.calibration import common_calibration
from segjax.images.files import (
  digest_of_rasters,
  list_rasters,
  read_calibration,
  write_stack,
)
from segjax.images.ome_zarr import (
  add_scales,
  channel_attributes,
  label_attributes,
)
from segjax.images.palettes import complete_palette
from segjax.images.zarr import is_zarr
from segjax.models import create_model
from segjax.networks import Network
from segjax.prediction import artifact
from segjax.prediction.canvas_writer import (
  finish_picture,
  measure,
  open_pages,
  write_predictions,
)
from segjax.prediction.folder_journal import FolderJournal, describe_skipped
from segjax.prediction.outputs import (
  check_apart,
  check_other_folder,
  check_replaceable,
  encode,
  lock_folder,
  plan_outputs,
)
from segjax.prediction.overlays import draw_overlay, thinning
from segjax.prediction.partial import (
  open_partial,
  remove_leftover,
  unfinished_folder,
)
from segjax.prediction.predictor import of_stored_pixels, settle_tiles
from segjax.prediction.streaming import stream_predict
from segjax.runs.integrity import digest_of_values, digests_of_arrays
from segjax.settings.sections import read_prediction, read_refinement


def predict_files(
  network: Network,
  source: str | os.PathLike,
  output: str | os.PathLike,
  *,
  kind: str = 'probabilities',
  dtype: str = 'float32',
  average: bool | None = None,
  refine: bool | None = None,
  tile_size_px: int | None = None,
  overwrite: bool = False,
  other_inputs: Iterable[Path] = (),
) -> None:
  """Writes the predictions of image files, and prints what it wrote.

  Each output appears whole or not at all. After a kill, the finished part of an
  output stays in OUTPUT.partial, and the same call goes on from there. In a
  folder of outputs, it skips files that it has finished and nobody has changed,
  and replaces no others; a lock keeps other calls out of the folder until this
  one ends. If a file of a folder has damaged pixels, the outputs before it are
  written. All images share one tile shape, see `choose_tile_shape`, and one
  compiled program.

  Args:
    network: network of a run, of an artifact, or with converted weights.
    source: image file, stack, Zarr, or folder of images.
    output: see `plan_outputs`.
    kind: one of `outputs.KINDS`, see `encode`; 'overlay' is the image with the
      classes painted over it, and a legend.
    dtype: one of `outputs.DTYPES`, see `encode`. A .png is always 'uint8'.
    average: whether to use test-time augmentation, the mean over the eight
      turns and flips; None for `evaluation.average` of the config.
    refine: whether to refine the prediction by a CRF, see
      `sections.read_refinement`; None leaves it to the config.
    tile_size_px: input side of a tile, in pixels; None for the shape that
      computes the fewest pixels.
    overwrite: whether to replace an output that exists.
    other_inputs: other files and folders that the command reads. Neither they
      nor the images are ever replaced.

  Raises:
    InputError: a file or an argument is wrong, somebody else made an output
      meanwhile, or another run writes to it.
  """
  with contextlib.ExitStack() as locks:  # Of the folder of outputs.
    source, output = Path(source), Path(output)
    images_read = list_rasters(source)
    is_folder = source.is_dir() and not is_zarr(source)
    jobs, ending = plan_outputs(
      images_read,
      is_folder,
      output,
      kind,
      len(network.model.head_sizes),
    )
    if kind == 'logits' and dtype == 'uint8':
      raise InputError('logits do not fit dtype uint8; use float32 or float16')
    if is_folder:
      check_other_folder(output, source)
    written = [file for _, file in jobs]
    unfinished = [unfinished_folder(file) for file in written]
    check_apart([*written, *unfinished], [*images_read, *other_inputs])
    model, params, config = network
    if average is None:
      average = config.evaluation.average
    colours = None
    class_names, palette = look_of(config.data, model.num_classes)
    if kind == 'labels':
      if palette is None and model.num_classes == 2:
        palette = np.array([(0, 0, 0), (255, 255, 255)], np.uint8)
      colours = complete_palette(palette)
    attributes = _attributes(kind, dtype, model, class_names, palette)
    encoder = functools.partial(
      encode,
      kind=kind,
      dtype='uint8' if ending == '.png' else dtype,
      head_sizes=model.head_sizes,
    )
    params_digest = digest_of_values(digests_of_arrays(params))
    digests = [digest_of_rasters(files) for files, _ in jobs]
    refinement = read_refinement(config, refine)
    described = config.to_dict()
    described.pop('refinement', None)
    if refinement.iterations:
      described['refinement'] = dataclasses.asdict(refinement)
    journal = None
    if written != [output]:
      command = [os.path.realpath(source), kind, dtype, average, params_digest]
      journal = FolderJournal(output, [*command, tile_size_px, described])
      processes.together(
        lambda: (
          processes.is_first() and locks.enter_context(lock_folder(output))
        )
      )
    if processes.is_first():
      remove_leftovers(written[0].parent)
    finished = _find_finished(journal, written, digests, overwrite)
    if any(finished):
      processes.say(describe_skipped(output, finished))
    preprocessing, tiles = read_prediction(
      config,
      average=average,
      activation='logits' if kind == 'logits' else 'probabilities',
      **{} if tile_size_px is None else {'tile_size': tile_size_px},
    )
    preprocessing.check_channels(model.in_channels)
    takes = model.in_channels, preprocessing
    measured = [_measure(*job, *takes) for job in jobs]
    _, sizes, pixels = zip(*measured, strict=True)
    stored = of_stored_pixels(model, preprocessing, refinement)
    settled = settle_tiles(stored, params, tiles, sizes, max(pixels))
    stream = functools.partial(
      stream_predict, model=stored, params=params, settings=settled
    )
    for (files, file), digest, (count, size, _), is_finished in zip(
      jobs, digests, measured, finished, strict=True
    ):
      calibration = processes.together(
        lambda files=files: common_calibration(
          [read_calibration(path) for path in files]
        )
      )
      # `settled` has all that counts of the config's `prediction`.
      settings = repr(
        [
          kind,
          calibration,
          dtype,
          str(max(pixels)),
          settled,
          described | {'prediction': None},
        ]
      )
      identity = {
        'parameters': params_digest,
        'settings': digest_of_values(settings),
        'input': digest,
      }
      if is_finished:
        if processes.is_first():
          remove_leftover(file, identity)
        continue

      def finish(folder, file=file, digest=digest):
        if kind != 'overlay':
          finish_picture(
            folder, file.name, colours if ending == '.png' else None
          )
        if ending == '.zarr':
          method = 'stride' if kind == 'labels' else 'mean'
          add_scales(folder / file.name, method, attributes)
        if journal is not None:
          journal.enter(file, digest, folder / file.name)

      pages = open_pages(files, *takes, max(pixels))
      with open_partial(file, identity, overwrite, finish) as partial:
        if kind == 'overlay':
          if processes.is_first():
            names = class_names[: model.head_sizes[0]]
            [picture] = [draw_overlay(p, stream, names, palette) for p in pages]
            write_stack(partial.folder / file.name, picture[None])
          step = thinning(*size)
          how = f', of {step} x {step} px one' if step > 1 else ''
        else:
          plan = write_predictions(
            partial,
            file.name,
            pages,
            (count, *size),
            stream,
            encoder,
            model.num_classes,
            calibration,
          )
          how = ', by tiles of {} x {} px'.format(*plan.tile_shape)
      if text := refinement.describe():
        how += f', {text}'
      processes.say(f'{file}: {kind} of {counted(count, "image")}{how}')
    if journal is not None and processes.is_first():
      journal.remove()


def _find_finished(journal, outputs, digests, overwrite) -> list[bool]:
  """Returns which outputs are finished; refuses other outputs that exist."""

  def find():
    finished = [False] * len(outputs)
    if processes.is_first():
      if journal is not None:
        finished = journal.find_finished(outputs, digests)
      others = [*itertools.compress(outputs, np.logical_not(finished))]
      if not overwrite:
        check_absent(others)
      for output in others:
        check_replaceable(output)
    return np.array(finished)

  # The first process decides for all: a file may look older to another one.
  return processes.gather(processes.together(find))[0].tolist()


def _attributes(kind, dtype, model, names, palette):
  """Returns the OME-Zarr metadata of the names and colours of classes."""
  colours = complete_palette(palette)
  heads = len(model.head_sizes)
  if kind == 'labels' and heads > 1:
    largest = max(model.head_sizes) - 1
    return channel_attributes(model.head_names, colours[1 : heads + 1], largest)
  if len(names) != model.num_classes or kind not in ('labels', 'probabilities'):
    return {}
  colours = colours[: len(names)]
  if kind == 'labels':
    return label_attributes(names, colours)
  if len(names) == 2:  # Class 1 alone, in shades of gray; see `encode`.
    names, colours = names[1:], np.full((1, 3), 255, np.uint8)
  return channel_attributes(names, colours, 255 if dtype == 'uint8' else 1)


def _measure(files, output, channels, preprocessing):
  """Returns `measure` of a job; fails in all processes if it fails in one."""
  measured = processes.together(
    lambda: measure(files, channels, preprocessing, output)
  )
  if output.suffix.lower() == '.png' and measured[0] > 1:
    raise InputError(
      f'{output} holds one image and the input has {measured[0]}; use .tif'
    )
  return measured


def _load(args) -> Network:
  if args.artifact is None:
    return network_flags.load_from_flags()
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
  network = Network(*artifact.load(args.artifact))
  use_compilation_cache()
  return network


def main(_):
  processes.join()
  args = flags.FLAGS
  network = _load(args)
  if args.compute_dtype is not None:
    with network.config.unlocked():
      network.config.model.dtype = args.compute_dtype
    network = network._replace(model=create_model(network.config.model))
  predict_files(
    network,
    args.input,
    args.output,
    kind=args.kind,
    dtype=args.dtype,
    average=args.tta,
    refine=args.refine,
    tile_size_px=args.tile_size_px,
    overwrite=args.overwrite,
    other_inputs=[
      *network_flags.paths_from_flags(),
      *([] if args.artifact is None else [Path(args.artifact)]),
    ],
  )
