# SPDX-License-Identifier: Apache-2.0
"""The flags that name a network: a run, or a config and a file of weights.

Modules that load networks are imported only when one is loaded, so that flags
are parsed at once.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict, config_flags

from segjax.errors import InputError
from segjax.settings.cards import find_card, load_card
from segjax.settings.fields import check_name

if TYPE_CHECKING:
  from segjax.networks import Network

_READ_OF_RUN = ('config.json', 'checkpoints', 'params.safetensors')


class _CardParser(flags.ArgumentParser):
  """Loads a config file, which may be the name of a shipped card."""

  def parse(self, argument):
    config = load_card(argument)
    # Flags that change fields are defined next, but only for fields that exist.
    for given in flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False):
      match = re.match(r'--?(?:no)?config\.([\w.]+)', given)
      if match:
        _add_refinement(config, match[1])
        _check_field(config, match[1])
    return config

  def flag_type(self):
    return 'config object'


def _add_refinement(config: ConfigDict, path: str) -> None:
  """Adds the section that cards lack if a flag changes a field of it."""
  if path.startswith('refinement.') and 'refinement' not in config:
    from segjax.crf import Refinement

    with config.unlocked():
      config.refinement = dataclasses.asdict(Refinement())


def _check_field(config: ConfigDict, path: str) -> None:
  """Raises InputError if a config lacks the field that a flag changes."""
  section, node = '', config
  elsewhere = [
    f'{part}.{name}'
    for part in config
    if isinstance(config[part], ConfigDict)
    for name in config[part]
  ]
  for name in path.split('.'):
    if not isinstance(node, ConfigDict):
      raise InputError(f'config.{section[:-1]}={node!r} is no section')
    check_name(section, name, map(str, node), elsewhere)
    section, node = f'{section}{name}.', node[name]


def define_config(help_text: str) -> None:
  """Defines --config, and with it --config.FIELD for each of its fields."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    f'{help_text} The value is FILE.py or FILE.py:ARGUMENT; a shipped card is '
    'found by its name, such as unet_isbi.py:demo. --config.FIELD=VALUE '
    'changes a field of it.',
  )
  flags.FLAGS['config'].parser = _CardParser()


def define_flags() -> None:
  """Defines --workdir, --checkpoint, --config and --params."""
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the run whose network is used, or a folder for a model hub that '
    'segjax.export wrote.',
  )
  flags.DEFINE_string(
    'checkpoint',
    'latest',
    "Checkpoint of the run: 'latest', 'best' or the number of a step. 'best' "
    'has the highest score on the held-out examples, so that score is '
    'optimistic.',
  )
  define_config(
    'Config of the network whose weights --params gives. Both together replace '
    '--workdir.'
  )
  flags.DEFINE_string(
    'params',
    None,
    'Weights (.npz or .safetensors) of the network that --config describes.',
  )


def check_flags() -> None:
  """Raises InputError unless the flags name one network."""
  args = flags.FLAGS
  given = [args[name].value is not None for name in ('config', 'params')]
  if (args.workdir is not None, *given) not in (
    (True, False, False),
    (False, True, True),
  ):
    raise InputError(
      'give --workdir=DIR for the network of a run, or --config=CONFIG and '
      '--params=FILE for converted weights'
    )


def paths_from_flags() -> list[Path]:
  """Returns the files and folders from which `load_from_flags` reads."""
  args = flags.FLAGS
  paths = []
  if args.workdir is not None:
    paths += [Path(args.workdir) / name for name in _READ_OF_RUN]
  if args.config is not None:
    card = find_card(config_flags.get_config_filename(args['config']))
    paths.append(Path(card.partition(':')[0]))  # Without its argument.
  if args.params is not None:
    paths.append(Path(args.params))
  return paths


def load_from_flags() -> 'Network':
  """Returns the network that the flags name.

  Its config decides whether compiled programs are kept from here on. The flags
  must have passed `check_flags`.

  Raises:
    InputError: the network cannot be loaded.
  """
  from segjax import networks
  from segjax.devices.compilation_cache import use_compilation_cache

  args = flags.FLAGS
  if args.workdir is not None:
    network = networks.load_run(args.workdir, args.checkpoint)
  else:
    network = networks.load_converted(args.config, args.params)
  if network.config.compilation_cache:
    use_compilation_cache()
  return network
