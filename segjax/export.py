# SPDX-License-Identifier: Apache-2.0
"""Export a trained network, to run it without its code or without segjax.

`python -m segjax.export --workdir=DIR --output=NET.segjax` writes an artifact,
which `python -m segjax.predict --artifact=NET.segjax --input=IMAGES
--output=FILE` runs. Give `--config=CONFIG --params=FILE` instead of `--workdir`
for converted weights, and `--format` for other formats.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.cli.command_line import run

  run('export')

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import export

from segjax import networks
from segjax.atomic import refusing_write_errors, remove_leftovers, replacing
from segjax.cli import network_flags
from segjax.data import look_of
from segjax.errors import InputError
from segjax.networks import Network
from segjax.prediction import artifact
from segjax.prediction.outputs import check_apart
from segjax.prediction.predictor import check_prediction
from segjax.runs.workdir import sealed_text
from segjax.settings.sections import read_prediction, read_refinement
from segjax.sharing import hub, onnx_file, zoo
from segjax.tiling.plans import plan_tiles
from segjax.tiling.settings import TileSettings
from segjax.weights import files

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export_network(
  network: Network,
  output: str | os.PathLike,
  *,
  size_px: int | None = None,
  overwrite: bool = False,
) -> None:
  """Writes an artifact of a network for `PLATFORMS`; see `artifact`.

  Its program takes tiles of one size, which cover images of any size.

  Args:
    network: network of a run, or one with converted weights.
    output: folder to write.
    size_px: input side of a tile, in pixels; None for that of training; an
      FCN, which takes any size, needs it.
    overwrite: whether to replace an artifact that exists.

  Raises:
    InputError: the network does not take the size, or an FCN gets none; a
      setting in `prediction` or `preprocessing` is wrong; or see
      `artifact.write`.
  """
  artifact.check_output(output, overwrite)
  model, params, config = network
  geometry = model.geometry
  side, about = _describe(network, size_px)
  if 'refinement' in config:
    about['refinement'] = config.refinement.to_dict()
  (batch,) = export.symbolic_shape('n')
  shape = (batch, side, side, model.in_channels)
  inputs = [jax.ShapeDtypeStruct(shape, jnp.float32)]
  if geometry.takes_any_size:
    inputs.append(jax.ShapeDtypeStruct((batch, 2), jnp.int32))

  @jax.jit
  def logits(params, image, size=None):
    padded = {} if size is None else {'size': size}
    return model.apply({'params': params}, image, **padded)

  params = jax.tree.map(np.asarray, params)
  exported = export.export(logits, platforms=PLATFORMS)(params, *inputs)
  artifact.write(output, exported, params, about, overwrite)


def export_onnx(
  network: Network,
  output: str | os.PathLike,
  *,
  size_px: int | None = None,
  overwrite: bool = False,
) -> None:
  """Writes a network as an ONNX file; see `onnx_file`.

  Its metadata say how pixels are prepared and how tiles cover an image.

  Args:
    network: see `export_network`.
    output: file to write, NAME.onnx.
    size_px: see `export_network`; the file of a U-Net takes other sizes, too.
    overwrite: whether to replace a file that exists.

  Raises:
    InputError: see `export_network`; or a package is missing, or the file
      exists or cannot be written.
  """
  output = Path(output)
  onnx_file.check_output(output, overwrite)
  side, about = _describe(network, size_px)
  _say_unrefined(network.config)
  model, params, _ = network
  metadata = onnx_file.network_metadata(model, side, about)
  content = onnx_file.to_onnx(model, params, side, metadata)
  with refusing_write_errors(output), replacing(output, overwrite) as temporary:
    temporary.write_bytes(content.SerializeToString())


def export_hub(
  network: Network,
  output: str | os.PathLike,
  *,
  workdir: str | os.PathLike | None = None,
  checkpoint: str = 'latest',
  authors: Sequence[str] = (),
  license_id: str = '',
  overwrite: bool = False,
) -> None:
  """Writes a folder for a model hub: parameters, config and a model card.

  `load_run` reads it. The card shows the scores and pictures of the run.

  Args:
    network: network of a run, or one with converted weights.
    output: folder to write.
    workdir: folder of the run; None if there is no run.
    checkpoint: checkpoint that holds the parameters, as in `load_run`.
    authors: names for the card.
    license_id: SPDX identifier of the licence of the parameters; '' for none.
    overwrite: whether to replace such a folder that exists.

  Raises:
    InputError: `output` exists, holds something else, or cannot be written.
  """
  output = Path(output)
  hub.check_output(output, overwrite)
  model, params, config = network
  class_names, _ = look_of(config.data, model.num_classes)
  with refusing_write_errors(output), replacing(output, overwrite) as folder:
    folder.mkdir()
    metadata = networks.metadata(config)
    files.write_params(folder / hub.PARAMS, params, metadata=metadata)
    (folder / hub.CONFIG).write_text(sealed_text(config), encoding='utf-8')
    scores, pictures = '', []
    if workdir is not None:
      scores = hub.read_scores(Path(workdir))
      pictures = hub.copy_pictures(Path(workdir), folder)
    card = hub.model_card(
      name=output.name,
      config=config,
      data_name=_data_name(config.data),
      num_params=sum(np.size(x) for x in jax.tree.leaves(params)),
      class_names=class_names,
      scores=scores,
      checkpoint=checkpoint,
      pictures=pictures,
      authors=authors,
      license_id=license_id,
    )
    (folder / hub.CARD).write_text(card, encoding='utf-8')
    hub.check_output(output, overwrite)  # The path may be taken meanwhile.


def export_bioimageio(
  network: Network,
  output: str | os.PathLike,
  *,
  authors: Sequence[str],
  license_id: str,
  size_px: int | None = None,
  overwrite: bool = False,
) -> None:
  """Writes a package for the BioImage Model Zoo; see `sharing.zoo`.

  Args:
    network: see `export_network`.
    output: file to write, NAME.zip.
    authors: names of the authors of the network.
    license_id: SPDX identifier of the licence of the package.
    size_px: see `export_onnx`.
    overwrite: whether to replace a file that exists.

  Raises:
    InputError: see `export_onnx`; or there is no author or licence.
  """
  output = Path(output)
  zoo.check_output(output, overwrite)
  if not authors or not license_id:
    raise InputError(
      'a package for the BioImage Model Zoo names its authors and licence; '
      'give --authors and --license, such as --authors="Ada Example" '
      '--license=CC-BY-4.0'
    )
  side, about = _describe(network, size_px)
  _say_unrefined(network.config)
  model, params, config = network
  preprocessing, _ = read_prediction(config)
  with refusing_write_errors(output), replacing(output, overwrite) as temporary:
    zoo.write_package(
      temporary,
      model,
      params,
      preprocessing,
      side,
      about,
      name=f'segjax {output.stem}',  # The Zoo asks for five letters at least.
      model_name=config.model.name,
      data_name=_data_name(config.data),
      authors=authors,
      license_id=license_id,
    )


def _data_name(data):
  """Returns the name of a data set; of a general loader, also of its set."""
  fields = {'folder': 'dir', 'cell_tracking': 'dataset', 'tfds': 'set'}
  name = data.get(fields.get(data.name, ''), '')
  return f'{data.name} {Path(name).name}'.strip()


def _say_unrefined(config):
  """Prints a warning if an export leaves out the refinement of a config."""
  if read_refinement(config).iterations:
    print(
      'warning: the file holds the network without config.refinement, the CRF '
      'that refines its scores in segjax'
    )


def _describe(network, size_px):
  """Returns the side of the tiles and the description of an export."""
  model, _, config = network
  preprocessing, settings = read_prediction(config)
  check_prediction(model, preprocessing, settings, read_refinement(config))
  prediction = config.prediction.to_dict()
  geometry = model.geometry
  if not geometry.takes_any_size:
    side: int = config.tile_size_px if size_px is None else size_px
    # This refuses a size that the network does not take, by an image that needs
    # more than one tile.
    try:
      plan_tiles(side + 1, side + 1, geometry, TileSettings(tile_size=side))
    except InputError as error:
      if size_px is not None:
        raise
      raise InputError(
        f'give --size_px=N, since tiles of training, {side} px, cannot cover '
        f'images that are larger: {error}'
      ) from error
    prediction |= dict(tile_size=side, max_tile_size_px=side)
  elif size_px is None or size_px < 1:
    raise InputError(
      f'size_px={size_px}: this network takes images of any size; give '
      '--size_px=N, the side of the tiles to predict by, or that of the '
      'largest image'
    )
  else:
    side = size_px
    prediction |= dict(bucket_px=side, tile_size=side)
  class_names, palette = look_of(config.data, model.num_classes)
  return side, {
    'geometry': artifact.describe_geometry(geometry),
    'head_sizes': model.head_sizes,
    'preprocessing': config.preprocessing.to_dict(),
    'prediction': prediction,
    'average': config.evaluation.average,
    'class_names': class_names,
    'palette': None if palette is None else np.asarray(palette).tolist(),
  }


_CHECKS = {
  'artifact': artifact.check_output,
  'onnx': onnx_file.check_output,
  'hub': hub.check_output,
  'bioimageio': zoo.check_output,
}


def main(_):
  args = flags.FLAGS
  output = Path(args.output)
  check_apart([output], network_flags.paths_from_flags())
  # This check comes before the network is loaded, which takes seconds.
  _CHECKS[args.format](output, args.overwrite)
  remove_leftovers(output.parent)
  network = network_flags.load_from_flags()
  shared = dict(overwrite=args.overwrite)
  sized = dict(size_px=args.size_px)
  signed = dict(authors=args.authors, license_id=args.license)
  if args.format == 'artifact':
    export_network(network, output, **shared, **sized)
    print(f'{output}: for {", ".join(PLATFORMS)}', flush=True)
    return
  if args.format == 'onnx':
    export_onnx(network, output, **shared, **sized)
  elif args.format == 'bioimageio':
    export_bioimageio(network, output, **shared, **sized, **signed)
  else:
    origin = dict(workdir=args.workdir, checkpoint=args.checkpoint)
    export_hub(network, output, **shared, **signed, **origin)
  print(f'{output}: {args.format}', flush=True)
