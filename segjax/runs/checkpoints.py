# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training state: saved, restored, or read for parameters.

This is the only file that knows orbax. A state is any pytree of arrays; only
`load_params` needs a field or key named `params`.

A checkpoint is written in the background and appears under its step number by
one rename. So a process killed at any point leaves earlier checkpoints
untouched. A record beside a checkpoint, see `integrity`, holds its score and
the checksums of its arrays. If a checkpoint was cut short or changed, the one
before it is read instead.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from segjax.errors import DISK_IS_FULL, InputError, SaveFailed
from segjax.runs import integrity


class Checkpoints:
  """The checkpoints of one run; a context manager that ends by waiting.

  It keeps the newest `keep_last` and the best `keep_best`. The best has the
  largest `best_metric`, and is the newer one on a tie. A checkpoint without a
  score, or with NaN or inf, is never the best.

  A directory has one writer, which `workdir.lock_workdir` ensures. All
  processes of a run must make every call.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    keep_last: int = 2,
    keep_best: int = 1,
    best_metric: str | None = None,
  ):
    """Opens `directory`, and makes it if it is missing.

    Args:
      directory: folder of the checkpoints.
      keep_last: number of the newest checkpoints to keep, at least 1.
      keep_best: number of the best checkpoints to keep, 0 or more.
      best_metric: name of the metric that ranks checkpoints, one of those given
        to `enter_scores`; None for no ranking.

    Raises:
      InputError: the folder cannot be made.
    """
    self._best_metric = best_metric
    self._scores = {}
    self._restored_step = math.inf
    self._manager = _open(
      directory,
      cleanup_tmp_directories=True,
      preservation_policy=_KeepLastAndBest(keep_last, keep_best, self._scores),
    )
    self._scores.update(_read_scores(self._manager))

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *unused_exception) -> None:
    with self._writing():
      self._manager.close()

  def save(self, step: int, state: Any) -> None:
    """Copies `state`, which may then be donated, and saves in the background.

    The call waits for the save before this one. A step that exists, or is older
    than the newest, is left as it is. The first save after `restore` removes
    checkpoints newer than the restored one: the run does those steps again.

    Args:
      step: number of updates that made `state`.
      state: pytree of arrays.

    Raises:
      SaveFailed: this save, or the one before it, cannot be written. Complete
        checkpoints stay complete.
    """
    for stale in self._manager.all_steps():
      if stale > self._restored_step:
        self._manager.delete(stale)
    self._restored_step = math.inf
    if step in self._manager.all_steps():
      return
    record = {'sha256': integrity.digests_of_arrays(state)}
    self._scores[step] = None
    is_first = jax.process_index() == 0
    with self._writing():
      if is_first:
        integrity.write_record(self._manager.directory, step, record)
      self._manager.save(step, args=ocp.args.PyTreeSave(state))
      if is_first:
        kept = {step, *self._manager.all_steps()}
        integrity.remove_records(self._manager.directory, kept)

  def enter_scores(self, step: int, metrics: Mapping[str, float]) -> None:
    """Gives a saved step the scores that were computed after the save.

    If there is then one checkpoint too many, the next save removes it.

    Raises:
      KeyError: `metrics` lacks `best_metric`.
      SaveFailed: the record of the step cannot be written.
    """
    score = None
    if self._best_metric is not None:
      score = float(metrics[self._best_metric])
      score = score if math.isfinite(score) else None
    self._scores[step] = score
    if jax.process_index() == 0:
      record = {**_read_record(self._manager, step), 'score': score}
      with self._writing():
        integrity.write_record(self._manager.directory, step, record)

  def has_scores(self, step: int) -> bool:
    """Returns whether a saved step was given scores, of whatever value."""
    return 'score' in _read_record(self._manager, step)

  def restore(self, abstract_state: Any) -> Any:
    """Returns the newest readable state, with the sharding of another one.

    A warning names each newer checkpoint, which cannot be read.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct` (`jax.eval_shape`) or
        of arrays, whose values are not used. A leaf without a sharding goes
        to the first local device.

    Raises:
      InputError: there is no checkpoint, none can be read, or its leaves differ
        from `abstract_state` in name, shape or dtype.
    """
    self.wait()
    wanted = jax.tree.map(integrity.abstract, abstract_state)

    def read(step):
      integrity.check_fit(self._manager.item_metadata(step).tree, wanted, step)
      return _read(self._manager, step, wanted)

    self._restored_step, state = _newest_readable(self._manager, None, read)
    return state

  def wait(self) -> None:
    """Returns when every save that was started is complete on the disk.

    Raises:
      SaveFailed: a save cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Orbax raises bare Exceptions, too.
      known = [text for text in DISK_IS_FULL.values() if text in str(error)]
      raise SaveFailed(
        f'cannot save a checkpoint in {self._manager.directory}: '
        f'{known[0] if known else _reason(error)}; earlier checkpoints are kept'
      ) from error


def newest_step(directory: str | os.PathLike) -> int | None:
  """Returns the newest step, readable or not; None if there is none."""
  files = os.listdir(directory) if os.path.isdir(directory) else ()
  return max((int(name) for name in files if name.isdecimal()), default=None)


def load_params(
  directory: str | os.PathLike, which: str | int = 'best'
) -> dict[str, Any]:
  """Returns the parameters alone, whatever devices and optimizer wrote them.

  It writes nothing, so it may run beside the training.

  Args:
    directory: folder of the checkpoints.
    which: 'best', 'latest' (the newest that can be read) or a step.

  Returns:
    Nested dict of arrays on the first local device.

  Raises:
    InputError: there is no such checkpoint, or it cannot be read.
  """
  with _open(directory, read_only=True) as manager:
    steps = manager.all_steps()
    step = None if which == 'latest' else which
    if steps and which == 'best':
      step = next(iter(_rank(steps, _read_scores(manager))), None)
      if step is None:
        raise InputError(
          f"no checkpoint in {directory} has a score; ask for 'latest'"
        )

    def read(step):
      saved = manager.item_metadata(step).tree['params']
      wanted = {'params': jax.tree.map(integrity.abstract, saved)}
      # A training in a notebook may have float64, which jax by default lacks.
      integrity.check_fit({'params': saved}, wanted, step)
      return _read(manager, step, wanted)['params']

    return _newest_readable(manager, step, read)[1]


@dataclasses.dataclass(frozen=True)
class _KeepLastAndBest(checkpoint_managers.PreservationPolicy):
  """The rule by which orbax keeps checkpoints, with a ranking of our own.

  Orbax's own ranking opens no checkpoint if one score is damaged.

  Attributes:
    keep_last: number of the newest checkpoints that are kept.
    keep_best: number of the best checkpoints that are kept.
    scores: step -> score, None for no rank; read when a save ends.
  """

  keep_last: int
  keep_best: int
  scores: Mapping[int, float | None]

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    steps = sorted(checkpoint.step for checkpoint in checkpoints)
    best = _rank(steps, self.scores)[: self.keep_best]
    kept = {*steps[-self.keep_last :], *best}
    return [checkpoint.step in kept for checkpoint in checkpoints]


def _rank(
  steps: Sequence[int], scores: Mapping[int, float | None]
) -> list[int]:
  """Returns the steps that have a score: best first, newer before older."""
  scored = [step for step in steps if scores.get(step) is not None]
  return sorted(scored, key=lambda s: (scores[s], s), reverse=True)


def _open(
  directory: str | os.PathLike, **options: Any
) -> ocp.CheckpointManager:
  logging.get_absl_logger().addFilter(_is_ours)
  try:
    if not options.get('read_only'):
      os.makedirs(directory, exist_ok=True)
    return ocp.CheckpointManager(
      os.path.abspath(directory),
      item_handlers=ocp.PyTreeCheckpointHandler(),
      options=ocp.CheckpointManagerOptions(**options),
    )
  except (OSError, ValueError) as error:
    raise InputError(f'cannot open {directory}: {error}') from error


def _is_ours(record: Any) -> bool:
  """Returns whether a log record is not orbax's.

  Orbax logs forty lines for a save, and the errors that it raises.
  """
  return f'{os.sep}orbax{os.sep}' not in record.pathname


def _read_scores(manager: ocp.CheckpointManager) -> dict[int, float | None]:
  scores = {}
  for step in manager.all_steps():
    # A checkpoint with a damaged record has no score.
    with contextlib.suppress(Exception):
      scores[step] = _read_record(manager, step).get('score')
  return scores


def _read_record(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """Returns the record of a checkpoint: its score, if any, and its digests."""
  record = integrity.read_record(manager.directory, step)
  if record is None:
    metadata = manager.metadata(step).custom_metadata or {}
    if 'score' not in metadata:  # Early versions of segjax had no records.
      logging.log_first_n(
        logging.WARNING,
        'checkpoint %d in %s has lost its record: its contents are not '
        'checked, and it is not called best',
        1,
        step,
        manager.directory,
      )
    record = {'score': metadata.get('score'), 'sha256': None}
  return record


def _read(manager: ocp.CheckpointManager, step: int, wanted: Any) -> Any:
  """Returns the leaves of a checkpoint that `wanted` names, on its devices."""
  args = ocp.args.PyTreeRestore(
    item=wanted,
    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
    partial_restore=True,
  )
  expected = _read_record(manager, step)['sha256']
  tree = manager.restore(step, args=args)
  if expected is not None:
    integrity.check_digests(tree, expected)
  return tree


def _newest_readable(
  manager: ocp.CheckpointManager,
  step: int | str | None,
  read: Callable[[int], Any],
) -> tuple[int, Any]:
  """Returns the newest step that can be read, or `step`; and its contents."""
  steps, directory = manager.all_steps(), manager.directory
  if not steps:
    raise InputError(
      f'no checkpoint in {directory}; train first: python -m segjax.main '
      f'--config=CONFIG --workdir={directory.parent}'
    )
  if step not in (None, *steps):
    raise InputError(
      f'no checkpoint {step!r} in {directory}; there are {sorted(steps)}'
    )
  candidates = sorted(steps, reverse=True) if step is None else [step]
  for candidate in candidates:
    try:
      return candidate, read(candidate)
    except InputError:
      raise
    except Exception as error:  # Orbax raises bare Exceptions, too.
      message = (
        f'cannot read checkpoint {candidate} in {directory}: {_reason(error)}'
      )
      if candidate != candidates[-1]:
        logging.warning('%s', message)
  raise InputError(message)


def _reason(error: Exception) -> str:
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
