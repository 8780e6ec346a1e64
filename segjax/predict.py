# SPDX-License-Identifier: Apache-2.0
"""Predicts image files with the network of a run.

`python -m segjax.predict --workdir=DIR --input=IMAGES --output=FILE`
"""

import os
from pathlib import Path

import numpy as np
from absl import flags

from segjax import tiling
from segjax.data import images, standardise, to_unit_range
from segjax.errors import InputError, run_command
from segjax.workdir import load_run

KINDS = ('probabilities', 'labels', 'logits')
ENDINGS = ('.tif', '.tiff', '.png', '.npy')


def encode(scores: np.ndarray, kind: str, ending: str) -> np.ndarray:
  """Returns what is stored of scores f32[N, H, W, K], probabilities or logits.

  Args:
    scores: probabilities, or logits if `kind` is 'logits'.
    kind: 'labels' gives the class of the largest score, u8[N, H, W];
      'probabilities' that of class 1 alone, f32[N, H, W], if K is 2, else all;
      'logits' all, f32[N, H, W, K].
    ending: of the file. '.png' scales probabilities to 0..255.
  """
  if kind == 'labels':
    return np.argmax(scores, axis=-1).astype(np.uint8)
  if kind == 'probabilities' and scores.shape[-1] == 2:
    scores = scores[..., 1]
  if ending == '.png':
    return np.round(255 * scores).astype(np.uint8)
  return scores


def plan_outputs(
  inputs: list[Path], is_folder: bool, output: Path, kind: str
) -> tuple[list[tuple[list[Path], Path]], str]:
  """Returns [(input files, output file), ...] and the outputs' ending.

  An output with an ending is one file for all inputs. One without is a folder
  with a file for each input, named after it: .png for labels, else .tif.

  Raises:
    InputError: the ending doesn't fit the kind, or an output's folder is
      missing.
  """
  ending = output.suffix.lower()
  if ending == '' and is_folder:
    ending = '.png' if kind == 'labels' else '.tif'
    names = [f'{path.stem}{ending}' for path in inputs]
    for name in names:
      if names.count(name) > 1:
        raise InputError(
          f'{name} in {output} would hold two inputs; rename one of them'
        )
    jobs = [
      ([path], output / name) for path, name in zip(inputs, names, strict=True)
    ]
  else:
    jobs = [(inputs, output)]
  if ending not in ENDINGS:
    raise InputError(
      f'output {output} has none of the endings {", ".join(ENDINGS)}'
    )
  if ending == '.png' and kind == 'logits':
    raise InputError(f'output {output}: a .png cannot hold logits; use .tif')
  if not output.parent.is_dir():
    raise InputError(f'output {output}: there is no folder {output.parent}')
  return jobs, ending


def predict_files(
  workdir: str | os.PathLike,
  source: str | os.PathLike,
  output: str | os.PathLike,
  *,
  kind: str = 'probabilities',
  checkpoint: str = 'latest',
  average: bool | None = None,
  tile_size: int | None = None,
  overwrite: bool = False,
) -> None:
  """Writes the predictions of image files, and prints what it wrote.

  Each output appears whole or not at all. Of a folder, those before a file
  that can't be read are written.

  Args:
    workdir: folder of a run.
    source: image file, stack, or folder of images.
    output: see `plan_outputs`.
    kind: one of `KINDS`, see `encode`.
    checkpoint: 'latest', 'best' or the number of a step.
    average: over the eight turns and flips; None as the run evaluated.
    tile_size: input side of a tile, in pixels; None wastes least.
    overwrite: whether to replace an output that exists.

  Raises:
    InputError: a file or an argument is wrong.
  """
  source, output = Path(source), Path(output)
  jobs, ending = plan_outputs(
    images.list_images(source), source.is_dir(), output, kind
  )
  for _, file in jobs:
    if file.exists() and not overwrite:
      raise InputError(f'{file} exists; give --overwrite to replace it')
  model, params, config = load_run(workdir, checkpoint)
  if average is None:
    average = config.evaluation.average

  def predict(page):
    return tiling.predict_image(
      model.apply,
      {'params': params},
      standardise(to_unit_range(page), **config.gray),
      model.geometry,
      activation='logits' if kind == 'logits' else 'probabilities',
      average=average,
      tile_size=tile_size,
      **config.tiling,
    )

  for files, file in jobs:
    pages = [page for path in files for page in _read(path, model.in_channels)]
    sizes = sorted({page.shape[:2] for page in pages})
    if len(sizes) > 1:
      raise InputError(
        f'{source} holds images of {sizes} pixels, which {file} cannot hold '
        'together; give a folder as --output'
      )
    if ending == '.png' and len(pages) > 1:
      raise InputError(
        f'{file} holds one image and {source} has {len(pages)}; use .tif'
      )
    scores = np.stack([predict(page) for page in pages])
    if file.parent == output:
      _make_folder(output)
    images.write_stack(file, encode(scores, kind, ending))
    print(f'{file}: {kind} of {len(scores)} images', flush=True)


def _read(file: Path, channels: int) -> np.ndarray:
  stack = images.read_stack(file)
  if stack.shape[-1] != channels:
    raise InputError(
      f'{file} has {stack.shape[-1]} channels; the run was trained with '
      f'model.in_channels={channels}'
    )
  if stack.dtype == np.float32 and not 0 <= stack.min() <= stack.max() <= 1:
    raise InputError(
      f'{file} has float pixels from {stack.min():g} to {stack.max():g}; they '
      'must be in [0, 1] (integers are divided by the maximum of their type)'
    )
  return stack


def _make_folder(folder: Path) -> None:
  try:
    folder.mkdir(exist_ok=True)
  except OSError as e:
    raise InputError(
      f'output {folder} cannot be made a folder: {e.strerror}'
    ) from e


def main(_):
  args = flags.FLAGS
  predict_files(
    args.workdir,
    args.input,
    args.output,
    kind=args.kind,
    checkpoint=args.checkpoint,
    average=args.average,
    tile_size=args.tile_size,
    overwrite=args.overwrite,
  )


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'Folder of a run.', required=True)
  flags.DEFINE_string(
    'input', None, 'Image file, stack, or folder of images.', required=True
  )
  flags.DEFINE_string(
    'output',
    None,
    'A .tif, .png or .npy file; or, for a folder of images, a folder.',
    required=True,
  )
  flags.DEFINE_enum(
    'kind',
    'probabilities',
    KINDS,
    'What to write: see `encode`; labels are class indices.',
  )
  flags.DEFINE_string(
    'checkpoint',
    'latest',
    "'latest', 'best' (by the held-out score) or the number of a step.",
  )
  flags.DEFINE_bool(
    'average', None, 'Average over the 8 turns and flips; None as the run did.'
  )
  flags.DEFINE_integer(
    'tile_size', None, 'Input side of a tile, in pixels; None wastes least.'
  )
  flags.DEFINE_bool('overwrite', False, 'Replace the output if it exists.')
  run_command(main)
