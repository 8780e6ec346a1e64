# SPDX-License-Identifier: Apache-2.0
"""Writes a trained network as an artifact that needs no model code.

`python -m segjax.export --workdir=DIR --output=NET.segjax`, or with converted
weights `--config=CONFIG --params=FILE`; then
`python -m segjax.predict --artifact=NET.segjax --input=IMAGES --output=FILE`.
"""

if __name__ == '__main__':  # Before imports that take seconds.
  from segjax.command_line import run

  run('export')

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import export

from segjax import network_flags
from segjax.atomic import remove_leftovers
from segjax.data import look_of
from segjax.errors import InputError
from segjax.networks import Network
from segjax.prediction import artifact
from segjax.prediction.outputs import check_apart
from segjax.prediction.predictor import check_prediction
from segjax.settings import read_prediction
from segjax.tiling.plans import plan_tiles
from segjax.tiling.settings import TileSettings

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export_network(
  network: Network,
  output: str | os.PathLike,
  *,
  size_px: int | None = None,
  overwrite: bool = False,
) -> None:
  """Writes an artifact of a network for `PLATFORMS`; see `artifact`.

  It has tiles of one size, which cover images of any size.

  Args:
    network: network of a run, or one with converted weights.
    output: folder to write.
    size_px: input side of a tile; None for that of training, which an FCN on
      whole images hasn't.
    overwrite: whether to replace an artifact that is there.

  Raises:
    InputError: the network does not take the size or an FCN gets none; a
      setting in `prediction` or `preprocessing` is wrong; or see
      `artifact.write`.
  """
  artifact.check_output(output, overwrite)
  model, params, config = network
  preprocessing, settings = read_prediction(config)
  check_prediction(model, preprocessing, settings)
  prediction = config.prediction.to_dict()
  geometry = model.geometry
  if not geometry.takes_any_size:
    side: int = config.tile_size_px if size_px is None else size_px
    # An image that needs more than one tile.
    plan_tiles(side + 1, side + 1, geometry, TileSettings(tile_size=side))
    prediction |= dict(tile_size=side, max_tile_size_px=side)
  elif size_px is None or size_px < 1:
    raise InputError(
      f'size_px={size_px}: this network was trained on whole images; give the '
      'side of the tiles to predict by, or that of the largest image'
    )
  else:
    side = size_px
    prediction |= dict(bucket_px=side, tile_size=side)

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
  class_names, palette = look_of(config.data, model.num_classes)
  about = {
    'geometry': artifact.describe_geometry(geometry),
    'head_sizes': model.head_sizes,
    'preprocessing': config.preprocessing.to_dict(),
    'prediction': prediction,
    'average': config.evaluation.average,
    'class_names': class_names,
    'palette': None if palette is None else np.asarray(palette).tolist(),
  }
  if 'refinement' in config:
    about['refinement'] = config.refinement.to_dict()
  artifact.write(output, exported, params, about, overwrite)


def main(_):
  args = flags.FLAGS
  check_apart([Path(args.output)], network_flags.paths_from_flags())
  artifact.check_output(args.output, args.overwrite)
  remove_leftovers(Path(args.output).parent)
  network = network_flags.load_from_flags()
  export_network(
    network, args.output, size_px=args.size_px, overwrite=args.overwrite
  )
  print(f'{args.output}: for {", ".join(PLATFORMS)}', flush=True)
