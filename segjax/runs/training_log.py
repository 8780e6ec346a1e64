# SPDX-License-Identifier: Apache-2.0
"""The log of training steps, which also ends a run that diverges."""

import math
from collections.abc import Callable

import jax
import numpy as np

from segjax.errors import TrainingDiverged


class TrainingLog:
  """Reports training metrics one step late, so that no device waits.

  Their names are `train/NAME`. The loop writes scores of held-out images as
  `heldout/NAME`, so that no curve mixes the two.
  """

  def __init__(
    self, writer, progress, every_steps, check: Callable[[int], None]
  ):
    """Starts a log.

    Args:
      writer: `MetricWriter` that gets the means of the metrics.
      progress: `Progress` that shows the loss.
      every_steps: number of steps from one report to the next.
      check: (step) -> None, called after each report is on the disk.
    """
    self._writer = writer
    self._progress = progress
    self._every_steps = every_steps
    self._check = check
    self._pending = None
    self._since_report = []

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    self._pull()
    self._pending = step, metrics

  def flush(self) -> None:
    self._pull()
    self._since_report = []  # A run that is resumed here begins with none.

  def _pull(self):
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    metrics = {name: float(value) for name, value in metrics.items()}
    for name in ('loss', 'grad_norm'):
      if not math.isfinite(metrics[name]):
        raise TrainingDiverged(
          f'{name} is {metrics[name]} at step {step}; earlier checkpoints are '
          'kept; in another --workdir, try a smaller '
          'config.schedule.learning_rate, or config.optimizer.clip_norm'
        )
    self._since_report.append(metrics)
    if step % self._every_steps == 0:
      means = {
        f'train/{name}': float(
          np.mean([row[name] for row in self._since_report])
        )
        for name in metrics
      }
      self._since_report = []
      self._writer.write_scalars(step, means)
      self._progress.update(step, loss=means['train/loss'])
      self._check(step)
