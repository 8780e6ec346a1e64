# SPDX-License-Identifier: Apache-2.0
"""Folders for a model hub: parameters, the config, and a model card.

`networks.load_run` reads one as it reads a run. Users upload it themselves:
docs/sharing.md has the commands.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

import segjax
from segjax.atomic import check_absent, check_folder
from segjax.errors import InputError
from segjax.networks import PARAMS

CONFIG = 'config.json'
CARD = 'README.md'
_PICTURE = '.png'


def check_output(path: str | os.PathLike, overwrite: bool) -> None:
  """Raises InputError if nothing will be written to `path`."""
  path = Path(path)
  check_folder(path)
  if not overwrite:
    check_absent([path])
  if os.path.lexists(path) and not (
    path.is_dir()
    and all(
      file.name in (PARAMS, CONFIG, CARD) or file.suffix == _PICTURE
      for file in path.iterdir()
    )
  ):
    raise InputError(
      f'{path} holds something else than parameters, config and model card, '
      'which is not replaced; give another --output'
    )


def read_scores(workdir: Path) -> str:
  """Returns the table of scores with which a run ended; '' without one."""
  file = workdir / 'scores.txt'
  return file.read_text(encoding='utf-8').strip() if file.is_file() else ''


def copy_pictures(workdir: Path, folder: Path) -> list[str]:
  """Copies the pictures of a run, and returns their names."""
  found = sorted((workdir / 'pictures').glob(f'*{_PICTURE}'))
  for file in found:
    shutil.copyfile(file, folder / file.name)
  return [file.name for file in found]


def model_card(
  *,
  name: str,
  config: ConfigDict,
  data_name: str,
  num_params: int,
  class_names: Sequence[str],
  scores: str,
  checkpoint: str,
  pictures: Sequence[str],
  authors: Sequence[str],
  license_id: str,
) -> str:
  """Returns the README.md of a network, with the header that hubs read.

  Args:
    name: name of the folder.
    config: config of the network.
    data_name: name of the data that the network was trained on.
    num_params: number of parameters.
    class_names: names of the classes.
    scores: table of scores; '' for none.
    checkpoint: checkpoint that holds the parameters, as in `load_run`.
    pictures: names of the picture files beside the card.
    authors: names of the authors.
    license_id: SPDX identifier; '' for none.
  """
  header = {
    'library_name': 'segjax',
    'pipeline_tag': 'image-segmentation',
    'tags': ['jax', 'flax', 'image-segmentation', str(config.model.name)],
  }
  if license_id:
    header['license'] = license_id.lower()
  said = [
    f'Network: `{config.model.name}`, {num_params:,} parameters',
    f'Data: `{data_name}`, with the classes {", ".join(class_names)}',
    *([f'Authors: {", ".join(authors)}'] if authors else []),
    *([f'Licence: {license_id}'] if license_id else []),
    f'Written by segjax {segjax.__version__}',
  ]
  if digest := config.get('data_sha256'):
    said.insert(2, f'SHA-256 of the data: `{digest}`')
  lines = [f'{key}: {json.dumps(value)}' for key, value in header.items()]
  parts = [
    '\n'.join(['---', *lines, '---', f'# {name}']),
    '\n'.join(f'- {line}' for line in said),
    f'## Use\n\n    pip install segjax\n    segjax predict --workdir={name} '
    '--input=IMAGES --output=PREDICTIONS\n\n```python\nimport segjax\n\n'
    f"model, params, config = segjax.load_run('{name}')\n```",
  ]
  if scores:
    parts.append(
      '## Scores\n\nThese are of the end of the run; the parameters are of its '
      f'checkpoint `{checkpoint}`.\n\n```text\n{scores}\n```'
    )
  if pictures:
    shown = '\n\n'.join(f'![{Path(file).stem}](<{file}>)' for file in pictures)
    parts.append(f'## Pictures\n\n{shown}')
  return '\n\n'.join(parts) + '\n'
