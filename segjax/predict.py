# SPDX-License-Identifier: Apache-2.0
"""Predict image files with a trained network.

`python -m segjax.predict --workdir=DIR --input=IMAGES --output=FILE` predicts
with the network of a run. Give `--config=CONFIG --params=FILE` instead for
converted weights, or `--artifact=FOLDER` for a folder that `segjax.export`
wrote. Several processes, see `processes.join`, share the tiles of every image;
all of them must see the same files.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.cli.command_line import run

  run('predict')

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

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
  count_pages,
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
  checked_pages,
  finish_picture,
  measure_pages,
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
from segjax.prediction.predictor import (
  of_stored_pixels,
  page_by_image,
  settle_tiles,
)
from segjax.prediction.streaming import stream_predict
from segjax.runs.integrity import digest_of_values, digests_of_arrays
from segjax.settings.sections import read_prediction, read_refinement


class _Job(NamedTuple):
  """An output, the image files that it is predicted from, and their digest."""

  files: list[Path]
  output: Path
  digest: str


class _Form(NamedTuple):
  """The form of all outputs: their values, and the look of their classes.

  Attributes:
    kind: one of `outputs.KINDS`.
    encode: prediction f32[h, w, K] -> stored values.
    num_classes: K.
    class_names: names of the classes of the first head.
    palette: u8[K, 3], colours of the classes; None for VOC's.
    colours: u8[256, 3], the palette of a .png of labels; None for other kinds.
    attributes: metadata of an OME-Zarr.
  """

  kind: str
  encode: Callable[[np.ndarray], np.ndarray]
  num_classes: int
  class_names: Sequence[str]
  palette: np.ndarray | None
  colours: np.ndarray | None
  attributes: Mapping


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
  folder of outputs, the call skips files that it has finished and nobody has
  changed, and replaces no others; a lock keeps other calls out of the folder
  until this one ends. If a file of a folder has damaged pixels, the outputs
  before it are written. All images share one tile shape, see
  `choose_tile_shape`, and one compiled program.

  Args:
    network: network of a run, of an artifact, or with converted weights.
    source: image file, stack, Zarr, or folder of images.
    output: file or folder to write; see `plan_outputs`.
    kind: one of `outputs.KINDS`, see `encode`; 'overlay' is the image with the
      classes painted over it, and a legend.
    dtype: one of `outputs.DTYPES`, see `encode`. A .png is always 'uint8'.
    average: whether to use test-time augmentation, the mean over the eight
      turns and flips; None for `evaluation.average` of the config.
    refine: whether to refine the prediction by a CRF, see
      `sections.read_refinement`; None for the setting of the config.
    tile_size_px: input side of a tile, in pixels; None for the shape that
      computes the fewest pixels.
    overwrite: whether to replace an output that exists.
    other_inputs: other files and folders that the command reads. Neither they
      nor the images are ever replaced.

  Raises:
    InputError: a file or an argument is wrong, somebody else made an output
      meanwhile, or another run writes to it.
  """
  source, output = Path(source), Path(output)
  model, params, config = network
  jobs = processes.together(
    lambda: _plan_jobs(source, output, kind, dtype, model, other_inputs)
  )
  form = _form_of(network, kind, dtype, jobs[0].output.suffix.lower())
  if average is None:
    average = config.evaluation.average
  refinement = read_refinement(config, refine)
  preprocessing, tiles = read_prediction(
    config,
    average=average,
    activation='logits' if kind == 'logits' else 'probabilities',
    **{} if tile_size_px is None else {'tile_size': tile_size_px},
  )
  preprocessing.check_channels(model.in_channels)
  params_digest = digest_of_values(digests_of_arrays(params))
  described = config.to_dict()
  described.pop('refinement', None)
  if refinement.iterations:
    described['refinement'] = dataclasses.asdict(refinement)
  with contextlib.ExitStack() as locks:
    journal = None
    if jobs[0].output != output:
      command = [os.path.realpath(source), kind, dtype, average, params_digest]
      journal = FolderJournal(output, [*command, tile_size_px, described])
      locks.enter_context(_locked(output))
    if processes.is_first():
      remove_leftovers(jobs[0].output.parent)
    finished = _find_finished(journal, jobs, overwrite)
    if any(finished):
      processes.say(describe_skipped(output, finished))
    takes = model.in_channels, preprocessing
    measured = processes.together(
      lambda: [
        measure_pages(job.files, *takes, job.output, kind) for job in jobs
      ]
    )
    _, sizes, dtypes = zip(*measured, strict=True)
    widest = max(dtypes)
    stored = of_stored_pixels(model, preprocessing, refinement)
    taken = np.dtype(np.float32) if preprocessing.per_image else widest
    settled = settle_tiles(stored, params, tiles, sizes, taken)

    def stream(page, writer, **how):
      page = page_by_image(page, preprocessing)
      return stream_predict(page, writer, stored, params, settled, **how)

    # `settled` has all settings of the config's `prediction` that count.
    settings = [str(widest), settled, described | {'prediction': None}]
    for job, is_finished, (count, size, _) in zip(
      jobs, finished, measured, strict=True
    ):
      calibration = _calibration(job.files)
      identity = {
        'parameters': params_digest,
        'settings': digest_of_values(
          repr([kind, calibration, dtype, *settings])
        ),
        'input': job.digest,
      }
      if is_finished:
        if processes.is_first():
          remove_leftover(job.output, identity)
        continue
      finish = functools.partial(_finish, job=job, form=form, journal=journal)
      pages = checked_pages(job.files, *takes, widest)
      with open_partial(job.output, identity, overwrite, finish) as partial:
        shape = (count, *size)
        how = _write(partial, job, pages, shape, stream, form, calibration)
      if text := refinement.describe():
        how += f', {text}'
      processes.say(f'{job.output}: {kind} of {counted(count, "image")}{how}')
    if journal is not None and processes.is_first():
      journal.remove()


def _plan_jobs(source, output, kind, dtype, model, other_inputs) -> list[_Job]:
  """Returns the outputs with their images; refuses impossible outputs."""
  images = list_rasters(source)
  is_folder = source.is_dir() and not is_zarr(source)
  stacks = []
  if is_folder and kind == 'labels':
    stacks = [file for file in images if count_pages(file) > 1]
  planned = plan_outputs(
    images, is_folder, output, kind, len(model.head_sizes), stacks
  )
  if kind == 'logits' and dtype == 'uint8':
    raise InputError('logits do not fit dtype uint8; use float32 or float16')
  if is_folder:
    check_other_folder(output, source)
  written = [file for _, file in planned]
  unfinished = [unfinished_folder(file) for file in written]
  check_apart([*written, *unfinished], [*images, *other_inputs])
  return [
    _Job(files, file, digest_of_rasters(files)) for files, file in planned
  ]


def _form_of(network, kind, dtype, ending) -> _Form:
  """Returns the form of outputs that have this ending."""
  model, _, config = network
  class_names, palette = look_of(config.data, model.num_classes)
  if kind == 'labels' and palette is None and model.num_classes == 2:
    palette = np.array([(0, 0, 0), (255, 255, 255)], np.uint8)
  return _Form(
    kind,
    functools.partial(
      encode,
      kind=kind,
      dtype='uint8' if ending == '.png' else dtype,
      head_sizes=model.head_sizes,
    ),
    model.num_classes,
    class_names[: model.head_sizes[0]],
    palette,
    complete_palette(palette) if kind == 'labels' else None,
    _attributes(kind, dtype, model, class_names, palette),
  )


@contextlib.contextmanager
def _locked(folder) -> Iterator[None]:
  """Locks a folder of outputs; the first process does so for all of them."""
  with contextlib.ExitStack() as stack:
    processes.together(
      lambda: processes.is_first() and stack.enter_context(lock_folder(folder))
    )
    yield


def _find_finished(journal, jobs, overwrite) -> list[bool]:
  """Returns which outputs are finished; refuses other outputs that exist."""
  outputs = [job.output for job in jobs]

  def find():
    finished = [False] * len(outputs)
    if processes.is_first():
      if journal is not None:
        finished = journal.find_finished(outputs, [job.digest for job in jobs])
      others = [*itertools.compress(outputs, np.logical_not(finished))]
      if not overwrite:
        check_absent(others)
      for output in others:
        check_replaceable(output)
    return np.array(finished)

  # The first process decides for all: others may see an older state of a file.
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
  if len(names) == 2:  # `encode` keeps class 1 alone; it gets shades of gray.
    names, colours = names[1:], np.full((1, 3), 255, np.uint8)
  return channel_attributes(names, colours, 255 if dtype == 'uint8' else 1)


def _calibration(files):
  """Returns the calibration of an output; all processes read it together."""
  return processes.together(
    lambda: common_calibration([read_calibration(file) for file in files])
  )


def _write(partial, job, pages, shape, stream, form, calibration) -> str:
  """Writes an output into its folder, and returns how, for a message."""
  name = job.output.name
  if form.kind != 'overlay':
    plan = write_predictions(
      partial,
      name,
      pages,
      shape,
      stream,
      form.encode,
      form.num_classes,
      calibration,
    )
    return ', by tiles of {} x {} px'.format(*plan.tile_shape)
  if processes.is_first():
    # The file of the page is open only while `pages` is at it.
    [picture] = [
      draw_overlay(page, stream, form.class_names, form.palette)
      for page in pages
    ]
    write_stack(partial.folder / name, picture[None])
  step = thinning(*shape[1:])
  return f', of {step} x {step} px one' if step > 1 else ''


def _finish(folder, job, form, journal):
  """Completes an output that is written, before it gets its name."""
  file = folder / job.output.name
  if form.kind != 'overlay':
    finish_picture(folder, file.name, form.colours)
  if file.suffix.lower() == '.zarr':
    method = 'stride' if form.kind == 'labels' else 'mean'
    add_scales(file, method, form.attributes)
  if journal is not None:
    journal.enter(job.output, job.digest, file)


def _load(args) -> Network:
  if args.artifact is None:
    return network_flags.load_from_flags()
  if (args.workdir, args.config, args.params) != (None, None, None):
    raise InputError(
      f'--artifact={args.artifact} is a whole network; give no --workdir, '
      '--config or --params with it'
    )
  if args.compute_dtype is not None:
    raise InputError(
      f'--compute_dtype={args.compute_dtype} cannot change '
      f'--artifact={args.artifact}, which is compiled; give no --compute_dtype'
    )
  if args['checkpoint'].present:
    raise InputError(
      f'--checkpoint={args.checkpoint} names a checkpoint of a run, but '
      f'--artifact={args.artifact} holds one network; give no --checkpoint'
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
