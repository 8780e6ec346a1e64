# SPDX-License-Identifier: Apache-2.0
"""The training loop: data in, checkpoints, metrics and pictures out.

Read it top to bottom. The math is in `steps`, the devices in `parallel`.
"""

import os
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from segjax import networks, steps
from segjax.atomic import write_text
from segjax.data import Dataset, create_dataset
from segjax.data.label_counts import check_labels
from segjax.data.pipeline import create_batches, have_one_size
from segjax.data.preprocessing import measure_pixels
from segjax.devices import parallel, preemption, processes
from segjax.devices.profiling import tracing
from segjax.errors import InputError
from segjax.experiment import Experiment, create_experiment
from segjax.running_means import make_measure
from segjax.runs import report, writers
from segjax.runs.checkpoints import Checkpoints, newest_step
from segjax.runs.run_warnings import RunWarnings, check_start
from segjax.runs.training_log import TrainingLog
from segjax.runs.workdir import (
  check_claimed,
  check_writable,
  claim_workdir,
  lock_workdir,
  read_config,
)
from segjax.scoring.best_metric import check_metric
from segjax.scoring.evaluation import evaluate, title
from segjax.scoring.results import Evaluation

# Settings that may change when a run is resumed. More steps stretch a schedule
# that ends with them, so the parameters are not those of a run that was as long
# from the start; no other setting here changes the parameters.
MAY_CHANGE = (
  'num_train_steps',
  'log_every_steps',
  'checkpoints',
  'evaluation.every_steps',
  'evaluation.num_pictures',
  'evaluation.average',
  'prediction',
  'refinement',
  'mesh',  # Changes rounding only.
  'model.precision',  # Changes rounding only.
  'model.remat',
  'compilation_cache',
  'profile_steps',
  # The data may move, but not change: see `data_sha256`.
  'data.dir',
  'data.sbd_dir',
  'data.context_dir',
)


def train_and_evaluate(
  config: ConfigDict,
  workdir: str | os.PathLike,
  dataset: Dataset | None = None,
) -> dict[str, float]:
  """Trains for `config.num_train_steps`, evaluates, and returns the scores.

  A run in `workdir` is resumed from its newest checkpoint and ends with the
  parameters of an unbroken run, bit for bit. After SIGTERM, the next step is
  saved and no scores are returned; see `preemption`. A lock keeps other runs
  out of `workdir` until this one ends.

  Args:
    config: config of the experiment, as a card returns it.
    workdir: folder for checkpoints, metrics and pictures.
    dataset: the data; None for those of `config.data`.

  Returns:
    Name of each score on held-out examples -> number.

  Raises:
    InputError: config or data are wrong, `workdir` holds another experiment, or
      another run uses it.
    TrainingDiverged: the loss or the gradient is NaN or infinite; names the
      step.
    SaveFailed: a checkpoint cannot be written; earlier checkpoints are kept.
  """
  check_writable(workdir)
  experiment = create_experiment(config)
  model = experiment.model
  if dataset is None:
    dataset = processes.together(lambda: create_dataset(config.data))
  networks.check_fits(model, dataset, experiment.settings.preprocessing)
  check_metric(model, dataset, config.evaluation.best_metric)
  if config.preprocessing.measured:
    config = _with_measured_pixels(config, dataset, Path(workdir))
    experiment = create_experiment(config)
  with lock_workdir(workdir):
    return _train_in(Path(workdir), config, experiment, dataset)


def _train_in(
  workdir: Path,
  config: ConfigDict,
  experiment: Experiment,
  dataset: Dataset,
) -> dict[str, float]:
  """Trains and evaluates in a locked workdir; resumes the run that is in it."""
  model, init, devices, settings = experiment
  start_params, origin, counted, doubts = {}, '', '', {}
  trained_steps = newest_step(workdir / 'checkpoints')
  if trained_steps is None:
    start_params, origin = processes.together(
      lambda: networks.starting_params(
        model,
        networks.metadata(config)['pixels'],
        settings.init.path,
        settings.init.initial,
        settings.init.ignore,
      )
    )
    # The slowest check is the last one, before anything is written.
    counted = _counted_labels(workdir, dataset, config)
    doubts = processes.together(
      lambda: check_start(config, dataset.train, counted)
    )
  elif trained_steps > config.num_train_steps:
    raise InputError(
      f'{workdir} is at step {trained_steps} already, beyond '
      f'num_train_steps={config.num_train_steps}'
    )
  made_with = config.copy_and_resolve_references()
  with made_with.unlocked():
    made_with.data_sha256 = dataset.digest
  processes.together(
    lambda: (
      processes.is_first() and claim_workdir(workdir, made_with, MAY_CHANGE)
    )
  )
  processes.together(lambda: check_claimed(workdir))
  if counted and processes.is_first():
    write_text(workdir / report.LABELS, f'{dataset.digest}\n{counted}\n')
  warnings = RunWarnings(workdir, config)
  warnings.warn(doubts)

  def evaluate_heldout(params, **how):
    return evaluate(model, params, dataset.heldout, config, dataset, **how)

  with (
    preemption.notice() as is_preempted,
    Checkpoints(
      workdir / 'checkpoints',
      best_metric=config.evaluation.best_metric,
      keep_last=settings.checkpoints.keep.keep_last,
      keep_best=settings.checkpoints.keep.keep_best,
    ) as checkpoints,
  ):
    state = init()
    if trained_steps is not None:
      state = checkpoints.restore(state)
    elif origin:
      processes.say(f'parameters from {origin}')
      params = flatten_dict(state.params, sep='/') | start_params
      state = state.replace(params=unflatten_dict(params, sep='/'))
    start, end = int(state.step), config.num_train_steps

    processes.say(writers.parameter_table(state.params))
    if counted:
      processes.say(counted)
    if settings.preprocessing.measured:
      processes.say(f'pixels: {settings.preprocessing}')
    processes.say(f'{workdir}: from step {start} to {end}')
    tile_size, cut = config.tile_size_px, None
    if tile_size and not have_one_size(dataset.train):
      cut = steps.make_cut(
        state.key,
        tile_size=tile_size,
        output_size=model.geometry.output_size(tile_size),
        augmentation=settings.augmentation,
      )
    measure, frozen_at = None, settings.freeze_norms_at
    if tile_size and getattr(model, 'norm', 'none') == 'batch':
      measure = make_measure(
        model,
        settings.preprocessing,
        tile_size,
        config.batch_size // config.accumulate_steps,
        dataset.train,
      )
    state = devices.put_state(state)
    batches = create_batches(
      dataset.train,
      config.batch_size,
      config.seed,
      start,
      settings.batching.order,
      settings.batching.bucket_px,
      devices.rows,
      cut,
      settings.preprocessing.by_image,
    )

    with (
      writers.MetricWriter(workdir, start) as writer,
      writers.Progress(end, start, config.batch_size) as progress,
      tracing(*settings.profile_steps, workdir / 'profile') as trace,
    ):
      log = TrainingLog(
        writer, progress, config.log_every_steps, warnings.check_loss
      )

      def evaluates(step):
        return step % config.evaluation.every_steps == 0 or step == end

      def score_saved(step, params):
        if not len(dataset.heldout):
          return
        evaluation = evaluate_heldout(
          parallel.to_local(params), average=False, complete=False
        )
        scores = {f'heldout/{k}': v for k, v in evaluation.scores.items()}
        writer.write_scalars(step, scores)
        checkpoints.enter_scores(step, evaluation.scores)
        for panel in evaluation.panels[:1]:
          writer.write_images(step, {'heldout': panel.picture})
        warnings.check_predictions(step, evaluation.sole_class)

      if start and evaluates(start) and not checkpoints.has_scores(start):
        score_saved(start, devices.get(state).params)  # It stopped there.
      for step in range(start + 1, end + 1):
        trace(step, state)
        with progress.waiting_for_data():
          batch = devices.put_batch(next(batches))
        state, metrics = devices.step(state, batch)
        log.add(step, devices.get(metrics))

        stops = is_preempted(step) and step < end
        saves = stops or step % config.checkpoints.every_steps == 0
        saves |= evaluates(step)
        # Frozen norms keep the means that were measured when they froze.
        moves = frozen_at is None or step < frozen_at
        is_due = step == frozen_at or (saves and moves)
        if saves or is_due:
          log.flush()  # What is saved or measured has a finite loss, gradient.
          writer.flush()  # A kill would leave a gap before what is saved.
        if measure and is_due:
          saved = parallel.to_local(devices.get(state))
          params = measure(saved.params)
          state = devices.put_state(saved.replace(params=params))
        if saves:
          saved = devices.get(state)
          checkpoints.save(step, saved)  # Before an evaluation, which may fail.
          if evaluates(step) and not stops:
            score_saved(step, saved.params)
        if stops:
          checkpoints.wait()
          processes.say(f'SIGTERM: saved step {step}; run again to go on')
          return {}
      checkpoints.wait()
    params = parallel.to_local(devices.get(state).params)

  said = 'no example is held out: no scores, no pictures of predictions'
  evaluation = Evaluation({}, [])
  if count := len(dataset.heldout):
    average = config.evaluation.average
    said = title(count, 'heldout', average, settings.refinement)
    said = f'{said}, step {end}'
    evaluation = evaluate_heldout(params, average=average)
  if processes.is_first():
    report.finish_run(
      workdir,
      config,
      said,
      evaluation.scores,
      evaluation.panels,
      evaluation.extremes,
      evaluation.columns,
    )
  return evaluation.scores


def _counted_labels(workdir: Path, dataset: Dataset, config: ConfigDict) -> str:
  """Returns the table of label counts; reads all labels unless it is kept."""
  counted = ''
  if (workdir / report.LABELS).is_file():
    counted = (workdir / report.LABELS).read_text(encoding='utf-8')
  digest, _, text = counted.partition('\n')
  # Either all processes read them or none.
  is_known = processes.gather(np.array(digest == dataset.digest)).all()
  return text.strip() if is_known else check_labels(dataset, config.data)


def _with_measured_pixels(
  config: ConfigDict, dataset: Dataset, workdir: Path
) -> ConfigDict:
  """Returns the config with pixel statistics of the run, or of its images."""
  if (workdir / 'config.json').is_file():
    found = read_config(workdir).preprocessing
  else:
    found = processes.together(lambda: measure_pixels(dataset.train))
  config = config.copy_and_resolve_references()
  taken = [*config.preprocessing.measured]
  taken += ['dtype'] if 'limits' in taken else []
  with config.ignore_type():
    for name in taken:
      config.preprocessing[name] = found[name]
  return config
