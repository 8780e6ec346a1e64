# SPDX-License-Identifier: Apache-2.0
"""Warnings about a run that may fail, each with the setting that helps.

They come from experience and prove nothing, so the run goes on.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from segjax.atomic import write_text
from segjax.data.examples import list_some
from segjax.devices import processes
from segjax.optimizers import shorten_warmup
from segjax.runs.writers import read_rows
from segjax.settings.sections import read_settings

_FILE = 'warnings.txt'
_RARE_PERCENT = 1.0
_LEAST_RANGE = 1 / 16  # Of the maximum of an integer type.
_IMAGES = 16  # Images, spread over the set, whose range is measured.
_PIXELS = 65_536  # Pixels of each of them.
_LEAST_WINDOWS = 6  # Logged means of the loss, before these are compared.
_NOISE = 0.01  # Share by which the loss must fall at least.
_MOST_NAMED = 6  # Classes that a warning names.
_LOSS = 'dice_cross_entropy'  # Counts classes by their overlap.
_ROW = re.compile(r'(.+?) +([\d,]+) +([\d.]+)% +([\d,]+) +([\d,]+) +([\d,]+)')


class RunWarnings:
  """Warnings about one run: each is said once, and kept in `warnings.txt`.

  Of several processes, the first one warns.
  """

  def __init__(self, workdir: Path, config: ConfigDict):
    self._workdir = workdir
    self._config = config
    self._loss_is_checked = not processes.is_first()

  def warn(self, warnings: dict[str, str]) -> None:
    """Says and writes the new ones of `warnings`, name -> text."""
    if not processes.is_first():
      return
    lines = read_warnings(self._workdir)
    for name, text in warnings.items():
      if any(line.startswith(f'{name}: ') for line in lines):
        continue
      lines.append(f'{name}: {text}')
      tqdm.write(f'warning: {lines[-1]}')  # Above the bar, if there is one.
      write_text(self._workdir / _FILE, '\n'.join(lines) + '\n')

  def check_loss(self, step: int) -> None:
    """Warns, once after a tenth of the steps, if the loss has not fallen."""
    config = self._config
    warmup = shorten_warmup(
      config.schedule.warmup_steps, config.num_train_steps
    )
    if self._loss_is_checked or step < warmup + config.num_train_steps / 10:
      return
    rows = read_rows(self._workdir)
    losses = [row['train/loss'] for row in rows if row.get('train/loss')]
    if len(losses) >= _LEAST_WINDOWS:
      self._loss_is_checked = True
      self.warn(check_losses(losses, step))

  def check_predictions(self, step: int, sole_class: str) -> None:
    """Warns if all held-out pixels are predicted as one class.

    Args:
      step: number of the step.
      sole_class: name of the class; '' if there are several.
    """
    if sole_class:
      model, settings = self._config.model, []
      if 'norm' in model and model.norm == 'none':
        settings.append("config.model.norm='batch'")
      settings.append('a smaller config.schedule.learning_rate')
      settings += _balancing(self._config)
      self.warn(
        {
          'one class': f'at step {step} every pixel of the held-out images is '
          f'predicted as {sole_class!r}. If later scores do not change that, '
          f'try {" or ".join(settings)}'
        }
      )


def read_warnings(workdir: Path) -> list[str]:
  """Returns the warnings of a run, `NAME: TEXT`."""
  file = workdir / _FILE
  return file.read_text(encoding='utf-8').splitlines() if file.exists() else []


def check_losses(losses: Sequence[float], step: int) -> dict[str, str]:
  """Returns a warning if the last third of losses is as high as the first.

  Args:
    losses: at least two means over equal numbers of steps.
    step: number of the last step.
  """
  third = max(len(losses) // 3, 1)
  first, last = np.mean(losses[:third]), np.mean(losses[-third:])
  if last < first - _NOISE * abs(first):
    return {}
  return {
    'loss': f'up to step {step} the loss has not fallen: its mean was '
    f'{first:.4g} at first and is {last:.4g} now. Try '
    'config.schedule.learning_rate ten times smaller, or ten times larger, '
    'and check that images and labels belong together'
  }


def check_start(
  config: ConfigDict, examples: Sequence[dict], labels: str
) -> dict[str, str]:
  """Returns warnings before training begins, name -> text.

  Args:
    config: config of the run.
    examples: at least one example to train on; some of the images are read.
    labels: table of labels, see `data.label_counts`.
  """
  warmup, steps = config.schedule.warmup_steps, config.num_train_steps
  warnings = {}
  if (shortened := shorten_warmup(warmup, steps)) != warmup:
    warnings['warm-up'] = (
      f'config.schedule.warmup_steps={warmup} is not less than '
      f'num_train_steps={steps}; {shortened} steps of warm-up are used. Set '
      'config.schedule.warmup_steps to choose another number'
    )
  for line in labels.splitlines():
    if line.startswith('palettes: '):
      warnings['palettes'] = line.removeprefix('palettes: ')
  if not (config.preprocessing.limits or config.preprocessing.per_image):
    warnings |= _check_range(examples)
  return warnings | _check_heldout(labels) | _check_rare(config, labels)


def read_labels_table(text: str) -> list[tuple[str, ...]]:
  """Returns the rows of the table of labels, as they are written.

  Args:
    text: table of `data.label_counts`.

  Returns:
    (class, training pixels, their share in percent, training images, held-out
    pixels, held-out images) of each class.
  """
  matches = [_ROW.fullmatch(line.strip()) for line in text.splitlines()]
  return [match.groups() for match in matches if match]


def _check_range(examples):
  """Returns a warning if images use little of the range of their integers."""
  lows, highs, dtypes = [], [], set()
  for index in {i * len(examples) // _IMAGES for i in range(_IMAGES)}:
    image = examples[index]['image']
    dtypes.add(image.dtype)
    values = image.reshape(-1)
    # Without the ends, since single pixels may be dead or hot.
    ends = np.percentile(values[:: -(-values.size // _PIXELS)], (0.1, 99.9))
    lows.append(ends[0])
    highs.append(ends[1])
  dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
  if dtype.kind not in 'iu':
    return {}
  low, high, full = min(lows), max(highs), np.iinfo(dtype).max
  if high - low >= _LEAST_RANGE * full:
    return {}
  return {
    'range': f'nearly all pixels of the training images are in {low:.0f} to '
    f'{high:.0f}, and {dtype} holds 0 to {full}: to the network they look '
    'alike. Set '
    "config.preprocessing.measured=('limits', 'mean', 'std')"
  }


def _check_heldout(labels):
  """Returns a warning if held-out labels lack a class that is trained on."""
  rows = [row for row in read_labels_table(labels) if row[0] != 'ignored']
  missing = [
    repr(name)
    for name, trained, _, _, held, _ in rows
    if trained != '0' and held == '0'
  ]
  if not missing or all(row[4] == '0' for row in rows):
    return {}
  return {
    'held-out classes': 'no held-out pixel is of '
    f'{list_some(missing, _MOST_NAMED)}, so the scores do not tell whether it '
    'is found. Hold out images that show it, by data.heldout_list or another '
    'data.seed'
  }


def _check_rare(config, labels):
  """Returns a warning if classes are rare and nothing makes them count more."""
  balances = 'balance' in config.data and config.data.balance
  is_balanced = balances or read_settings(config).loss == _LOSS
  rare = sorted(
    (float(percent), name)
    for name, pixels, percent, *_ in read_labels_table(labels)
    if pixels != '0' and name != 'ignored' and float(percent) < _RARE_PERCENT
  )
  if not rare or is_balanced:
    return {}
  named = [f'{name!r} ({percent:.2f} %)' for percent, name in rare]
  return {
    'rare classes': 'each of these classes has under 1 % of all training '
    f'pixels: {list_some(named, _MOST_NAMED)}. If they are not found, set '
    f'{" or ".join(_balancing(config))}'
  }


def _balancing(config):
  """Returns the settings by which rare classes would count more."""
  settings = ['config.data.balance=True'] if 'balance' in config.data else []
  if read_settings(config).loss != _LOSS:
    settings.append(f'config.loss={_LOSS!r}')
  return settings
