# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints of a run are kept, and which of them is the best."""

import dataclasses
from collections.abc import Mapping, Sequence

from orbax.checkpoint import checkpoint_managers


def rank(steps: Sequence[int], scores: Mapping[int, float | None]) -> list[int]:
  """Those of `steps` that have a score, best first, newer before older."""
  scored = [step for step in steps if scores.get(step) is not None]
  return sorted(scored, key=lambda s: (scores[s], s), reverse=True)


@dataclasses.dataclass(frozen=True)
class KeepLastAndBest(checkpoint_managers.PreservationPolicy):
  """Our ranking. Orbax's own does not open where one score is damaged.

  Attributes:
    keep_last: number of the newest that are kept.
    keep_best: number of the best that are kept.
    scores: step -> score, None for no rank; looked up when a save ends.
  """

  keep_last: int
  keep_best: int
  scores: Mapping[int, float | None]

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    steps = sorted(checkpoint.step for checkpoint in checkpoints)
    best = rank(steps, self.scores)[: self.keep_best]
    kept = {*steps[-self.keep_last :], *best}
    return [checkpoint.step in kept for checkpoint in checkpoints]
