# SPDX-License-Identifier: Apache-2.0
"""The U-Net of a card and MONAI's BasicUNet, trained on the same images.

    python -m benchmarks.training --config=mine.py --config.num_train_steps=300

Both take the images of the card's stream in its order and its learning rates,
and are trained in turns, a block of steps each, so that load on the machine
bends both times alike. MONAI's network has the card's width, its own defaults
otherwise (instance norm, leaky ReLU, zero padding), is trained by Adam on the
cross-entropy of whole images, turned and flipped at random, and predicts whole
images. The card needs batches of one image, and labels of two classes.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import torch
from absl import flags
from monai.networks.nets import BasicUNet
from torch.nn import functional as F

from benchmarks import timing, torch_nets
from segjax.cli.command_line import run_command
from segjax.cli.network_flags import define_config
from segjax.data import IGNORE_LABEL
from segjax.data.pipeline import create_batches
from segjax.data.preprocessing import standardise, to_unit_range
from segjax.data.sets import create_dataset
from segjax.errors import InputError
from segjax.experiment import create_experiment
from segjax.metrics.confusion import confusion_matrix, segmentation_scores
from segjax.optimizers import create_schedule
from segjax.prediction.predictor import predict_stored
from segjax.settings.sections import read_prediction, read_refinement

define_config('The experiment of the U-Net.')
_BLOCK = flags.DEFINE_integer('block', 10, 'Steps of a turn.', 1)
_PERIOD = 16  # BasicUNet halves four times.


class Side(NamedTuple):
  """One of the two trainings.

  Attributes:
    train: makes a step on a batch of one image.
    wait: returns when all steps are done.
    predict: image as stored [H, W, C] -> class of each pixel [H, W].
  """

  train: Callable[[dict], None]
  wait: Callable[[], None]
  predict: Callable[[np.ndarray], np.ndarray]


def segjax_side(config) -> Side:
  """Returns segjax's side: the training step of the card."""
  model, init, devices, _ = create_experiment(config)
  state = devices.put_state(init())
  preprocessing, tiles = read_prediction(config, average=False)
  refinement = read_refinement(config)

  def train(batch):
    nonlocal state
    state, _ = devices.step(state, devices.put_batch(batch))

  def wait():
    jax.block_until_ready(state)

  def predict(image):
    return predict_stored(
      model, devices.get(state).params, image, preprocessing, tiles, refinement
    ).argmax(axis=-1)

  return Side(train, wait, predict)


def monai_side(config) -> Side:
  """Returns MONAI's side, at the card's width, rates and preprocessing."""
  torch.manual_seed(config.seed)
  rng = np.random.default_rng(config.seed)
  width = config.model.base_width
  network = BasicUNet(
    spatial_dims=2,
    in_channels=config.model.in_channels,
    out_channels=config.model.num_classes,
    features=(*(width * 2**level for level in range(5)), width),
  ).to(torch_nets.DEVICE, memory_format=torch.channels_last)
  optimizer = torch.optim.Adam(network.parameters())
  schedule = create_schedule(
    **config.schedule.to_dict(), num_steps=config.num_train_steps
  )
  pixels_are, _ = read_prediction(config, average=False)
  step = 0

  def to_input(image):
    pixels = standardise(
      to_unit_range(image, pixels_are.limits),
      pixels_are.mean,
      pixels_are.std,
      pixels_are.channels,
    )
    pads = [(0, -size % _PERIOD) for size in image.shape[:2]]
    pixels = np.pad(np.asarray(pixels), (*pads, (0, 0)), mode='reflect')
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).to(
      torch_nets.DEVICE, memory_format=torch.channels_last
    )

  def train(batch):
    nonlocal step
    turns, flip = rng.integers(4), rng.integers(2)
    image, label = (
      np.rot90(batch[name][0, :: 1 - 2 * flip], turns)
      for name in ('image', 'label')
    )
    height, width = label.shape
    for group in optimizer.param_groups:
      group['lr'] = float(schedule(step))
    logits = network(to_input(image))[..., :height, :width]
    target = torch.from_numpy(label[None].astype(np.int64))
    loss = F.cross_entropy(
      logits, target.to(torch_nets.DEVICE), ignore_index=IGNORE_LABEL
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1

  def wait():
    if torch_nets.DEVICE == 'cuda':
      torch.cuda.synchronize()

  def predict(image):
    height, width = image.shape[:2]
    with torch.no_grad():
      classes = network.eval()(to_input(image))[0].argmax(dim=0)
    network.train()
    return classes[:height, :width].cpu().numpy()

  return Side(train, wait, predict)


def train_in_turns(
  sides: dict[str, Side], batches: Iterator[dict], num_steps: int, block: int
) -> dict[str, list[float]]:
  """Trains both on the same batches; returns the seconds of each block.

  The first step of each side, which compiles, is in no block.
  """
  seconds = {name: [] for name in sides}
  first = next(batches)
  for side in sides.values():
    side.train(first)
    side.wait()
  for start in range(1, num_steps, block):
    turn = [next(batches) for _ in range(start, min(start + block, num_steps))]
    for name, side in sides.items():
      began = time.perf_counter()
      for batch in turn:
        side.train(batch)
      side.wait()
      seconds[name].append(time.perf_counter() - began)
  return seconds


def score(side: Side, examples) -> dict:
  """Returns the scores of whole images, counts summed before one division."""
  matrix = sum(
    confusion_matrix(e['label'], side.predict(e['image']), num_classes=2)
    for e in examples
  )
  return segmentation_scores(matrix)


def main(_):
  torch_nets.check_device()
  config = flags.FLAGS.config
  if config.batch_size != 1 or config.model.num_classes != 2:
    raise InputError(
      f'batch_size={config.batch_size} and model.num_classes='
      f'{config.model.num_classes}; expected 1 and 2'
    )
  dataset = create_dataset(config.data)
  sides = {
    'segjax, the card': segjax_side(config),
    "MONAI's BasicUNet": monai_side(config),
  }
  batches = create_batches(dataset.train, 1, config.seed, 0)
  steps = config.num_train_steps
  seconds = train_in_turns(sides, batches, steps, _BLOCK.value)
  ours, _ = (np.array(values) for values in seconds.values())
  scores = {name: score(sides[name], dataset.heldout) for name in sides}
  timing.print_report(
    f'Width {config.model.base_width}, {steps} steps, seed {config.seed}',
    ('', 'seconds', 'segjax / this', f'IU of {dataset.class_names[1]}')
    + ('pixel accuracy',),
    (
      (
        name,
        f'{sum(seconds[name]):.0f}',
        timing.ratio(ours, np.array(seconds[name])),
        f'{scores[name]["iu"][1]:.3f}',
        f'{scores[name]["pixel_accuracy"]:.3f}',
      )
      for name in sides
    ),
    f'Seconds of all steps but the first, which compiles; ratios of blocks of '
    f'{_BLOCK.value} steps, median with least and largest.',
  )


if __name__ == '__main__':
  run_command(main)
