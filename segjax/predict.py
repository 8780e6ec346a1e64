# SPDX-License-Identifier: Apache-2.0
"""Predicts image files with the network of a run.

`python -m segjax.predict --workdir=DIR --input=IMAGES --output=FILE`
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from segjax import tiling, workdir
from segjax.data import images, standardise, to_unit_range
from segjax.errors import InputError, run_command

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


def main(_):
  args = flags.FLAGS
  source, output = Path(args.input), Path(args.output)
  jobs, ending = plan_outputs(
    images.list_images(source), source.is_dir(), output, args.kind
  )
  for _, file in jobs:
    if file.exists() and not args.overwrite:
      raise InputError(f'{file} exists; give --overwrite to replace it')
  model, params, config = workdir.load_run(args.workdir, args.checkpoint)
  options = dict(config.tiling, tile_size=args.tile_size)

  def predict(image):
    return tiling.predict_image(
      model.apply,
      {'params': params},
      standardise(to_unit_range(image), **config.gray),
      model.geometry,
      activation='logits' if args.kind == 'logits' else 'probabilities',
      average=args.average,
      **options,
    )

  for files, file in jobs:
    scores = [predict(image) for image in _read(files)]
    if len({score.shape for score in scores}) > 1:
      raise InputError(
        f'{source} holds images of unequal sizes, which {file} cannot; give a '
        'folder as --output'
      )
    if ending == '.png' and len(scores) > 1:
      raise InputError(
        f'{file} holds one image and {source} has {len(scores)}; use .tif'
      )
    if not output.suffix:
      output.mkdir(exist_ok=True)
    images.write_stack(file, encode(np.stack(scores), args.kind, ending))
    print(f'{file}: {len(scores)} of {args.kind}', flush=True)


def _read(files: list[Path]) -> Iterator[np.ndarray]:
  for file in files:
    yield from images.read_stack(file)


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
    'kind', 'probabilities', KINDS, 'What to write: see `encode`.'
  )
  flags.DEFINE_string(
    'checkpoint', 'latest', "'latest', 'best' or the number of a step."
  )
  flags.DEFINE_bool('average', False, 'Average over the 8 turns and flips.')
  flags.DEFINE_integer(
    'tile_size', None, 'Input side of a tile, in pixels; None wastes least.'
  )
  flags.DEFINE_bool('overwrite', False, 'Replace the output if it exists.')
  run_command(main)
