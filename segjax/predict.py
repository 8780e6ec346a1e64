# SPDX-License-Identifier: Apache-2.0
"""Predicts image files with a trained network.

`python -m segjax.predict --workdir=DIR --input=IMAGES --output=FILE`, or with
converted weights `--config=CONFIG --params=FILE` instead of a run, or
`--artifact=FOLDER` that `segjax.export` wrote.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from segjax import artifact, networks, pictures
from segjax.data import images, look_of
from segjax.errors import InputError, run_command
from segjax.networks import Network
from segjax.palettes import complete_palette
from segjax.predictor import create_predictor

KINDS = ('probabilities', 'labels', 'logits', 'overlay')
ENDINGS = ('.tif', '.tiff', '.png', '.npy')


def encode(
  scores: np.ndarray, kind: str, ending: str, head_sizes: Sequence[int]
) -> np.ndarray:
  """Returns what is stored of scores f32[N, H, W, K], probabilities or logits.

  Args:
    scores: probabilities, or logits if `kind` is 'logits'.
    kind: 'labels' gives the class of the largest score, u8[N, H, W], or of
      T heads u8[N, H, W, T]; 'probabilities' that of class 1 alone,
      f32[N, H, W], if K is 2, else all; 'logits' all, f32[N, H, W, K].
    ending: of the file. '.png' scales probabilities to 0..255.
    head_sizes: numbers of classes of the heads.
  """
  if kind == 'labels':
    heads = np.split(scores, np.cumsum(head_sizes)[:-1], axis=-1)
    labels = np.stack([np.argmax(head, axis=-1) for head in heads], axis=-1)
    labels = labels.astype(np.uint8)
    return labels[..., 0] if len(head_sizes) == 1 else labels
  if kind == 'probabilities' and scores.shape[-1] == 2:
    scores = scores[..., 1]
  if ending == '.png':
    return np.round(255 * scores).astype(np.uint8)
  return scores


def plan_outputs(
  inputs: list[Path],
  is_folder: bool,
  output: Path,
  kind: str,
  num_heads: int = 1,
) -> tuple[list[tuple[list[Path], Path]], str]:
  """Returns [(input files, output file), ...] and the outputs' ending.

  An output with an ending is one file for all inputs. One without is a folder
  with a file for each input, named after it: .png for labels and overlays,
  else .tif.

  Raises:
    InputError: the ending doesn't fit the kind, or an output's folder is
      missing.
  """
  ending = output.suffix.lower()
  if ending == '' and is_folder:
    is_picture = kind == 'overlay' or (kind == 'labels' and num_heads == 1)
    ending = '.png' if is_picture else '.tif'
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
  if ending != '.png' and kind == 'overlay':
    raise InputError(f'output {output}: an overlay is a picture; use .png')
  if ending == '.png' and kind == 'labels' and num_heads > 1:
    raise InputError(
      f'output {output}: a .png cannot hold the labels of {num_heads} heads; '
      'use .tif'
    )
  if ending == '.png' and kind == 'logits':
    raise InputError(f'output {output}: a .png cannot hold logits; use .tif')
  if not output.parent.is_dir():
    raise InputError(f'output {output}: there is no folder {output.parent}')
  return jobs, ending


def predict_files(
  network: Network,
  source: str | os.PathLike,
  output: str | os.PathLike,
  *,
  kind: str = 'probabilities',
  average: bool | None = None,
  overwrite: bool = False,
) -> None:
  """Writes the predictions of image files, and prints what it wrote.

  Each output appears whole or not at all. Of a folder, those before a file
  that can't be read are written.

  Args:
    network: of a run, or with converted weights.
    source: image file, stack, or folder of images.
    output: see `plan_outputs`.
    kind: one of `KINDS`: see `encode`; 'overlay' is the image with the classes
      painted over it and their names.
    average: over the eight turns and flips; None as the run evaluated.
    overwrite: whether to replace an output that exists.

  Raises:
    InputError: a file or an argument is wrong.
  """
  source, output = Path(source), Path(output)
  jobs, ending = plan_outputs(
    images.list_images(source),
    source.is_dir(),
    output,
    kind,
    len(network.model.head_sizes),
  )
  for _, file in jobs:
    if file.exists() and not overwrite:
      raise InputError(f'{file} exists; give --overwrite to replace it')
  model, params, config, _ = network
  if average is None:
    average = config.evaluation.average
  activation = 'logits' if kind == 'logits' else 'probabilities'
  predict = functools.partial(
    create_predictor(model, config, average, activation), params
  )
  class_names, palette = look_of(config.data, model.num_classes)

  def draw(page):
    size = model.head_sizes[0]
    prediction = np.argmax(predict(page)[..., :size], axis=-1)
    return pictures.segmentation_panel(
      page, None, prediction, class_names[:size], palette
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
    colours = None
    if kind == 'overlay':
      stack = np.stack([draw(page) for page in pages])
    else:
      scores = np.stack([predict(page) for page in pages])
      stack = encode(scores, kind, ending, model.head_sizes)
      # Two classes without colours of their own stay a gray picture.
      if (
        kind == 'labels'
        and ending == '.png'
        and (palette is not None or model.num_classes > 2)
      ):
        colours = complete_palette(palette)
    if file.parent == output:
      _make_folder(output)
    images.write_stack(file, stack, colours)
    print(f'{file}: {kind} of {len(pages)} images', flush=True)


def _read(file: Path, channels: int) -> np.ndarray:
  stack = images.read_stack(file)
  if stack.shape[-1] != channels:
    raise InputError(
      f'{file} has {stack.shape[-1]} channels; the network takes '
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


def _load(args) -> Network:
  if args.artifact is None:
    return networks.load_from_flags()
  if (args.workdir, args.config, args.params) != (None, None, None):
    raise InputError(
      f'--artifact={args.artifact} is a network by itself; give no --workdir, '
      '--config or --params with it'
    )
  return Network(*artifact.load(args.artifact), data_sha256=None)


def main(_):
  args = flags.FLAGS
  network = _load(args)
  if args.tile_size is not None:
    if 'max_tile_size' not in network.config.prediction:
      raise InputError(
        f'--tile_size={args.tile_size}: this network takes images whole'
      )
    with network.config.unlocked():
      network.config.prediction.tile_size = args.tile_size
  predict_files(
    network,
    args.input,
    args.output,
    kind=args.kind,
    average=args.average,
    overwrite=args.overwrite,
  )


if __name__ == '__main__':
  networks.define_flags()
  flags.DEFINE_string(
    'artifact', None, 'Instead of both: folder of segjax.export.'
  )
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
    'What to write: see `encode`; labels are class indices, an overlay is a '
    'picture.',
  )
  flags.DEFINE_bool(
    'average', None, 'Average over the 8 turns and flips; None as the run did.'
  )
  flags.DEFINE_integer(
    'tile_size', None, 'Input side of a tile, in pixels; None wastes least.'
  )
  flags.DEFINE_bool('overwrite', False, 'Replace the output if it exists.')
  run_command(main)
