# SPDX-License-Identifier: Apache-2.0
"""A network of segjax against its twin in PyTorch: equal first, then timed.

Training is segjax's own step, so its metrics and the norm of its gradient are
in its time, without augmentation and dropout, which no twin could repeat.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from absl import flags
from flax import traverse_util
from torch.nn import functional as F

from benchmarks import timing, torch_nets
from benchmarks.torch_nets import DEVICE
from segjax import parallel, steps
from segjax.data import IGNORE_LABEL
from segjax.data.augment import Augmentation
from segjax.errors import InputError

MODES = ('forward', 'train')
VARIANTS = ('eager', 'channels_last', 'compile')
STEPS = 2  # Of training, whose updates must agree.
LEARNING_RATE, MOMENTUM = 1e-3, 0.9

_MODES = flags.DEFINE_list('modes', ','.join(MODES), 'Of forward and train.')
_VARIANTS = flags.DEFINE_list(
  'variants',
  ','.join(VARIANTS),
  "PyTorch's: eager (NCHW), channels_last, compile (channels_last).",
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ('float32', 'bfloat16'), 'To compute in.'
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 1, 'Images in a batch.', 1)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Interleaved rounds.', 1)
_CALLS = flags.DEFINE_integer('calls', 1, 'Calls of a case in a round.', 1)
_PEAK_SIZE = flags.DEFINE_integer(
  'peak_size', 4096, 'Side of the matrices whose product is the peak.', 1
)
# Largest norm of the difference of logits and of updates, relative to the norm.
# In bfloat16 many maxima are tied, and each framework has its way to share
# their gradient.
_TOLERANCES = {
  'float32': {'forward': 1e-4, 'train': 1e-2},
  'bfloat16': {'forward': 0.05, 'train': 0.5},
}

# A case, and what to compare of it: arrays by name.
Side = tuple[timing.Case, Callable[[], dict[str, np.ndarray]]]


def compare(
  title: str,
  model: nn.Module,
  make_twin: Callable[[], torch.nn.Module],
  size: int,
) -> None:
  """Prints a table for each of the modes that the flags ask for.

  Args:
    title: of the tables.
    model: without dropout.
    make_twin: returns its twin, of any parameters.
    size: height and width of the images.

  Raises:
    InputError: a flag is wrong, or the frameworks see different devices.
    ArithmeticError: the two don't compute the same.
  """
  for flag, known in ((_MODES, MODES), (_VARIANTS, VARIANTS)):
    for name in flag.value:
      if name not in known:
        raise InputError(f'--{flag.name}: {name!r} is not one of {known}')
  if (jax.default_backend() == 'cpu') != (DEVICE == 'cpu'):
    raise InputError(
      f'jax runs on {jax.default_backend()} and PyTorch on {DEVICE}; they need '
      'the same device'
    )
  # On a GPU: what jax does to float32 there, and the fastest convolutions.
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.backends.cudnn.allow_tf32 = True
  torch.backends.cudnn.benchmark = True
  model = model.clone(dtype=jnp.dtype(_DTYPE.value))
  params = random_params(model)
  batch = random_batch(model, _BATCH_SIZE.value, size)
  peak = timing.matmul_peak(model.dtype, _PEAK_SIZE.value)
  for mode in _MODES.value:
    ours, theirs = _SIDES[mode]
    case, result, operations = ours(model, params, batch)
    want, cases, notes = result(), {'segjax': case}, []
    for variant in _VARIANTS.value:
      module = torch_nets.load(make_twin(), params)
      case, result = theirs(*_prepare(variant, module, batch))
      try:
        got = result()
      except Exception as e:
        if variant != 'compile':
          raise
        notes.append(f'torch.compile failed: {str(e).splitlines()[0]}')
        continue
      notes.append(_check_equal(variant, mode, got, want))
      cases[variant] = case
    seconds = timing.interleave(cases, _ROUNDS.value, _CALLS.value)
    _print(f'{title}, {mode}', seconds, operations, peak, notes)


def random_params(model: nn.Module, seed: int = 0) -> dict:
  """Returns parameters of which none is zero: each shows in the logits."""
  shapes = jax.eval_shape(
    functools.partial(steps.init_params, model), jax.random.key(0)
  )
  rng = np.random.default_rng(seed)

  def draw(x):
    fan_in = np.prod(x.shape[:-1]) if len(x.shape) > 1 else 100
    return rng.standard_normal(x.shape, np.float32) * (2 / fan_in) ** 0.5

  return jax.tree.map(draw, shapes)


def random_batch(model: nn.Module, batch_size: int, size: int) -> dict:
  """Returns images of `size` px and labels of the pixels that come out."""
  rng = np.random.default_rng(0)
  shape = (batch_size, size, size, model.in_channels)
  side = model.geometry.output_size(size)
  return {
    'image': rng.standard_normal(shape, np.float32),
    'label': rng.integers(
      model.num_classes, size=(batch_size, side, side), dtype=np.int32
    ),
  }


def _forward(model, params, batch):
  """Returns segjax's case, its result, and its number of operations."""
  apply = parallel.jit(model.apply)
  args = jax.device_put(({'params': params}, batch['image']))

  def case(calls):
    for _ in range(calls):
      logits = apply(*args)
    logits.block_until_ready()

  return (
    case,
    lambda: {'logits': np.asarray(apply(*args))},
    timing.flops(model.apply, *args),
  )


def _forward_twin(module, image, label) -> Side:
  del label
  module.eval()

  @torch.inference_mode()
  def run():
    with _precision():
      return module(image)

  def case(calls):
    for _ in range(calls):
      run()
    _wait()

  def result():
    return {'logits': run().float().cpu().numpy().transpose(0, 2, 3, 1)}

  return case, result


def _train(model, params, batch):
  """As `_forward`; the result are the updates of the first steps."""
  optimizer = optax.chain(
    optax.scale_by_learning_rate(LEARNING_RATE), optax.trace(MOMENTUM)
  )
  make_step = functools.partial(
    steps.make_train_step,
    model,
    optimizer,
    optax.constant_schedule(LEARNING_RATE),
    standardise=lambda image: image,
    tile_size=0,
    augmentation=Augmentation(),
    ignore_label=IGNORE_LABEL,
    reduction='mean',
  )
  devices = parallel.parallelize(
    lambda axis_name: make_step(axis_name=axis_name),
    'jit',
    len(batch['image']),
  )
  state = steps.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(jnp.array, params),  # Copies: the step takes them.
    opt_state=optimizer.init(params),
    key=jax.random.key_data(jax.random.key(0)),
  )
  operations = timing.flops(make_step(), state, batch)
  state, batch = devices.put_state(state), devices.put_batch(batch)

  def case(calls):
    nonlocal state
    for _ in range(calls):
      state, _ = devices.step(state, batch)
    jax.block_until_ready(state)

  def result():
    before = _flattened(params)
    case(STEPS)
    after = _flattened(state.params)
    return {name: after[name] - before[name] for name in after}

  return case, result, operations


def _train_twin(module, image, label) -> Side:
  module.train()
  optimizer = torch.optim.SGD(
    module.parameters(), LEARNING_RATE, momentum=MOMENTUM, fused=True
  )

  def case(calls):
    for _ in range(calls):
      optimizer.zero_grad(set_to_none=True)
      with _precision():
        logits = module(image)
      F.cross_entropy(logits.float(), label).backward()
      optimizer.step()
    _wait()

  def result():
    before = torch_nets.flattened(module)
    case(STEPS)
    after = torch_nets.flattened(module)
    return {name: after[name] - before[name] for name in after}

  return case, result


_SIDES = {'forward': (_forward, _forward_twin), 'train': (_train, _train_twin)}


def _flattened(params):
  arrays = traverse_util.flatten_dict(params, sep='/')
  # A copy: the next step takes the buffers.
  return {name: np.array(array) for name, array in arrays.items()}


def _prepare(variant, module, batch):
  """Returns module, image and label as a variant of PyTorch's takes them."""
  image = torch.tensor(batch['image'].transpose(0, 3, 1, 2)).to(DEVICE)
  label = torch.tensor(batch['label'], dtype=torch.int64).to(DEVICE)
  module = module.to(DEVICE)
  if variant == 'eager':
    return module, image.contiguous(), label
  module = module.to(memory_format=torch.channels_last)
  if variant == 'compile':
    module = torch.compile(module)
  return module, image.to(memory_format=torch.channels_last), label


def _precision():
  reduced = _DTYPE.value == 'bfloat16'
  return torch.autocast(DEVICE, torch.bfloat16, enabled=reduced)


def _wait():
  if DEVICE == 'cuda':
    torch.cuda.synchronize()


def _check_equal(variant, mode, got, want):
  """Returns a note on the difference; raises ArithmeticError if it is large."""
  norms = [
    np.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for x in arrays))
    for arrays in ([got[name] - want[name] for name in want], want.values())
  ]
  what = 'logits' if mode == 'forward' else f'updates of {STEPS} steps'
  note = f'{what}: {variant} differs by {norms[0] / norms[1]:.1e} of the norm.'
  if not norms[0] <= _TOLERANCES[_DTYPE.value][mode] * norms[1]:
    raise ArithmeticError(f'the networks are not equal; {note}')
  return note


def _print(title, seconds, operations, peak, notes):
  """Prints the table of a mode: a row for each case."""
  best = min(
    (name for name in seconds if name != 'segjax'),
    key=lambda name: np.median(seconds[name]),
    default='segjax',
  )
  rows = []
  for name, times in seconds.items():
    median = np.median(times)
    rows.append(
      (
        f'**{name}**' if name == best else name,
        f'{1e3 * median:.4g}',
        f'{_BATCH_SIZE.value / median:.3g}',
        f'{operations / median / 1e9:.4g}',
        f'{operations / median / peak:.0%}',
        timing.ratio(seconds['segjax'], times),
      )
    )
  timing.print_report(
    f'{title}, batch {_BATCH_SIZE.value}, {_DTYPE.value}',
    ('', 'ms', 'images/s', 'GFLOP/s', 'of peak', 'segjax / this'),
    rows,
    [
      f'{operations / 1e9:.4g} GFLOP as segjax computes it; peak of a '
      f'{_DTYPE.value} matrix product here: {peak / 1e9:.4g} GFLOP/s. Medians '
      f'of {_ROUNDS.value} interleaved rounds; ratios with least and largest.',
      *notes,
    ],
  )
