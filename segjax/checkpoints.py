# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training state, and the way back to its parameters.

The only file that knows orbax. A state is any pytree of arrays; `load_params`
alone asks for more, a field or key named `params`.

A checkpoint is written in the background and appears under its step number by
one rename, so a process killed at any point leaves those before it untouched.
Contents carry no checksum: a truncated file is noticed, a flipped bit is not.
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from segjax.errors import InputError


class Checkpoints:
  """The checkpoints of one run; a context manager that ends by waiting.

  Keeps the newest `keep_last` and the best `keep_best`. Best is the largest
  (or smallest) `best_metric`, the newer on a tie; a checkpoint saved without
  it, or with NaN or inf, takes no part.

  A directory has one writer. Processes of one multi-process run count as one:
  all of them make every call.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    keep_last: int = 2,
    keep_best: int = 1,
    best_metric: str | None = None,
    best_mode: str = 'max',
  ):
    """Opens `directory` and makes it if missing.

    Args:
      directory: folder of the checkpoints.
      keep_last: how many of the newest to keep, at least 1.
      keep_best: how many of the best to keep, 0 or more.
      best_metric: name, among the metrics given to `save`, that ranks
        checkpoints; None ranks none.
      best_mode: 'max' or 'min', the good end of `best_metric`.

    Raises:
      InputError: a number or mode is out of range, or the folder cannot be
        made or read.
    """
    if keep_last < 1 or keep_best < 0 or best_mode not in ('max', 'min'):
      raise InputError(
        f'keep_last={keep_last}, keep_best={keep_best}, best_mode={best_mode!r}'
        "; give keep_last >= 1, keep_best >= 0 and 'max' or 'min'"
      )
    self._directory = os.path.abspath(directory)
    self._best_metric = best_metric
    self._sign = 1.0 if best_mode == 'max' else -1.0
    self._scores = {}
    self._restored_step = None
    self._manager = _open(
      self._directory,
      ocp.StandardCheckpointHandler,
      cleanup_tmp_directories=True,
      preservation_policy=_KeepLastAndBest(keep_last, keep_best, self._scores),
    )
    self._scores.update(_read_scores(self._manager))

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *unused_exception) -> None:
    self._manager.close()

  def save(
    self, step: int, state: Any, metrics: Mapping[str, float] | None = None
  ) -> None:
    """Copies `state`, which may then be donated, and saves in the background.

    Waits for the save before this one. A step that is there already, or older
    than the newest, is left as it is. The first save after `restore` removes
    checkpoints newer than the restored one: the run does those steps again.

    Args:
      step: number of updates that made `state`.
      state: pytree of arrays.
      metrics: scores of this state; None between two evaluations.

    Raises:
      InputError: `metrics` is given and lacks `best_metric`.
    """
    score = self._score(metrics)
    if self._restored_step is not None:
      for stale in self._manager.all_steps():
        if stale > self._restored_step:
          self._manager.delete(stale)
      self._restored_step = None
    if step in self._manager.all_steps():
      return
    self._scores[step] = score
    args = ocp.args.StandardSave(state)
    self._manager.save(step, args=args, custom_metadata={'score': score})

  def latest_step(self) -> int | None:
    """Step of the newest checkpoint, readable or not; None without any."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Step of the best checkpoint; None if none has a score."""
    return next(iter(_rank(self._manager.all_steps(), self._scores)), None)

  def restore(self, abstract_state: Any, step: int | None = None) -> Any:
    """The saved state, with the structure and placement of `abstract_state`.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct` (`jax.eval_shape`) or
        of arrays, whose values are not used. A leaf without a sharding goes
        to the first local device.
      step: the checkpoint to read; None for the newest that can be read. One
        that cannot is named in a warning.

    Returns:
      Pytree of arrays like `abstract_state`.

    Raises:
      InputError: there is no such checkpoint, none can be read, or its leaves
        differ from `abstract_state` in name, shape or dtype.
    """
    self.wait()
    wanted = jax.tree.map(_abstract, abstract_state)

    def read(step):
      _check_fit(self._manager.item_metadata(step).tree, wanted, step)
      return self._manager.restore(step, args=ocp.args.StandardRestore(wanted))

    self._restored_step, state = _newest_readable(
      self._manager.all_steps(), step, read, self._directory
    )
    return state

  def wait(self) -> None:
    """Returns once every started save is complete on disk."""
    self._manager.wait_until_finished()

  def _score(self, metrics: Mapping[str, float] | None) -> float | None:
    """The rank of a checkpoint, larger is better; None for no rank."""
    if metrics is None or self._best_metric is None:
      return None
    if self._best_metric not in metrics:
      raise InputError(
        f'best_metric {self._best_metric!r} is not among {sorted(metrics)}'
      )
    score = self._sign * float(metrics[self._best_metric])
    return score if math.isfinite(score) else None


def load_params(
  directory: str | os.PathLike, which: str | int = 'best'
) -> dict[str, Any]:
  """The parameters alone, whatever devices and optimizer wrote them.

  Only reads, so it may run beside the training that writes.

  Args:
    directory: folder of the checkpoints.
    which: 'best', 'latest' (the newest that can be read) or a step.

  Returns:
    Nested dict of arrays on JAX's default device.

  Raises:
    InputError: there is no such checkpoint, or it cannot be read.
  """
  directory = os.path.abspath(directory)
  if not os.path.isdir(directory):
    raise _nothing_in(directory)
  handler = ocp.PyTreeCheckpointHandler
  with _open(directory, handler, read_only=True) as manager:
    steps = manager.all_steps()
    step = None if which == 'latest' else which
    if steps and which == 'best':
      step = next(iter(_rank(steps, _read_scores(manager))), None)
      if step is None:
        raise InputError(
          f"no checkpoint in {directory} has a score yet; ask for 'latest'"
        )
    read = functools.partial(_read_params, manager)
    return _newest_readable(steps, step, read, directory)[1]


def _open(
  directory: str, handler: type, **options: Any
) -> ocp.CheckpointManager:
  logger = logging.get_absl_logger()
  if _is_wanted not in logger.filters:
    logger.addFilter(_is_wanted)
  try:
    if not options.get('read_only'):
      os.makedirs(directory, exist_ok=True)
    return ocp.CheckpointManager(
      directory,
      item_handlers=handler(),
      options=ocp.CheckpointManagerOptions(**options),
    )
  except (OSError, ValueError) as error:
    raise InputError(f'cannot open {directory}: {error}') from error


def _is_wanted(record: Any) -> bool:
  """False for orbax below ERROR: forty lines of INFO a save, in absl's log."""
  from_orbax = f'{os.sep}orbax{os.sep}' in record.pathname
  return record.levelname in ('ERROR', 'CRITICAL') or not from_orbax


@dataclasses.dataclass(frozen=True)
class _KeepLastAndBest(checkpoint_managers.PreservationPolicy):
  """Our ranking. Orbax's own does not open where one score is damaged."""

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
  """Those of `steps` that have a score, best first, newer before older."""
  scored = [step for step in steps if scores.get(step) is not None]
  return sorted(scored, key=lambda s: (scores[s], s), reverse=True)


def _read_scores(manager: ocp.CheckpointManager) -> dict[int, float | None]:
  scores = {}
  for step in manager.all_steps():
    with contextlib.suppress(Exception):  # Damaged: no candidate for the best.
      scores[step] = manager.metadata(step).custom_metadata['score']
  return scores


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_fit(saved: Any, wanted: Any, step: int) -> None:
  saved, wanted = _describe(saved), _describe(wanted)
  names = [n for n in {**wanted, **saved} if saved.get(n) != wanted.get(n)]
  if names:
    raise InputError(
      f'checkpoint {step} does not fit this run, {len(names)} leaves differ: '
      + '; '.join(
        f'{n} is {saved.get(n, "absent")} there, {wanted.get(n, "absent")} here'
        for n in names[:3]
      )
    )


def _describe(tree: Any) -> dict[str, str]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): (
      f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _read_params(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  saved = {'params': manager.item_metadata(step).tree['params']}
  # As numpy, because the devices that wrote it need not be here.
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  restored = manager.restore(
    step,
    args=ocp.args.PyTreeRestore(
      item=saved,
      restore_args=jax.tree.map(lambda _: as_numpy, saved),
      partial_restore=True,
    ),
  )
  return jax.tree.map(jnp.asarray, restored['params'])


def _newest_readable(
  steps: Sequence[int],
  step: int | None,
  read: Callable[[int], Any],
  directory: str,
) -> tuple[int, Any]:
  """The newest of `steps` that `read` can read, or `step`; what was read."""
  if not steps:
    raise _nothing_in(directory)
  if step is not None and step not in steps:
    raise InputError(
      f'no checkpoint {step!r} in {directory}; there are {sorted(steps)}'
    )
  for candidate in sorted(steps, reverse=True) if step is None else [step]:
    try:
      return candidate, read(candidate)
    except InputError:
      raise
    except Exception as error:  # Orbax raises bare Exceptions, too.
      reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
      message = f'cannot read checkpoint {candidate} in {directory}: {reason}'
      logging.warning('%s', message)
  raise InputError(message)


def _nothing_in(directory: str) -> InputError:
  return InputError(
    f'no checkpoint in {directory}; train first: python -m segjax.main '
    f'--config=CONFIG --workdir={os.path.dirname(directory)}'
  )
