# SPDX-License-Identifier: Apache-2.0
"""A network of segjax against its twin in PyTorch: equal first, then timed."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags
from torch.nn import functional as F

from benchmarks import sides, timing, torch_nets
from benchmarks.sides import MOMENTUM, STEPS, Side
from segjax.errors import InputError

MODES = ('forward', 'train')
VARIANTS = ('eager', 'channels_last', 'compile')

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

_PRODUCT = 'product'  # A case of its own.

# Largest `sides.difference` of equal networks. In bfloat16 rounding ties many
# maxima, in each framework others.
_TOLERANCES = {
  'float32': {'forward': 1e-4, 'train': 1e-2},
  'bfloat16': {'forward': 0.05, 'train': 0.5},
}


def compare(
  title: str,
  model: nn.Module,
  make_twin: Callable[[], torch.nn.Module],
  size: int,
  reduction: str = 'mean',
) -> None:
  """Prints a table for each of the modes that the flags ask for.

  A variant of PyTorch's that cannot be compiled stays in it, without figures.

  Args:
    title: of the tables.
    model: without dropout.
    make_twin: returns its twin, of any parameters.
    size: height and width of the images.
    reduction: of the loss over pixels, 'mean' or 'sum'.

  Raises:
    InputError: a flag is wrong, or the frameworks see different devices.
    ArithmeticError: the two don't compute the same.
  """
  for flag, known in ((_MODES, MODES), (_VARIANTS, VARIANTS)):
    for name in flag.value:
      if name not in known:
        raise InputError(f'--{flag.name}: {name!r} is not one of {known}')
  torch_nets.check_device()
  dtype = _DTYPE.value
  model = model.clone(dtype=jnp.dtype(dtype))
  params = sides.random_params(model)
  batch = sides.random_batch(model, _BATCH_SIZE.value, size)
  product, product_flops = timing.matmul(model.dtype, _PEAK_SIZE.value)
  for mode in _MODES.value:
    if mode == 'forward':
      side, theirs = sides.forward(model, params, batch), _forward
    else:
      side = sides.train(model, params, batch, reduction)
      theirs = functools.partial(_train, reduction=reduction)
    want, cases, notes = side.result(), {'segjax': side.case}, []
    cases[_PRODUCT] = product
    for variant in _VARIANTS.value:
      module = torch_nets.load(make_twin(), params)
      case, result, _ = theirs(*_prepare(variant, module, batch))
      try:
        got = result()
      except Exception as e:
        if variant != 'compile':
          raise
        notes.append(f'{variant} failed: {_first_line(e)}')
        continue
      difference = sides.difference(got, want)
      if not difference <= _TOLERANCES[dtype][mode]:
        raise ArithmeticError(
          f'{mode}: {variant} differs from segjax by {difference:.1e}'
        )
      notes.append(f'{variant} {difference:.1e}')
      cases[variant] = case
    timings = timing.interleave(cases, _ROUNDS.value, _CALLS.value)
    peak = product_flops / min(timings[0].pop(_PRODUCT))
    what = 'logits' if mode == 'forward' else f'updates of {STEPS} steps'
    timing.print_report(
      f'{title}, {mode}, batch {_BATCH_SIZE.value}, {dtype}',
      ('', 'ms', 'images/s', 'GFLOP/s', 'of peak', 'segjax / this', 'CPU time'),
      _rows(*timings, ['segjax', *_VARIANTS.value], side.flops, peak),
      f'{side.flops / 1e9:.4g} GFLOP, for every row, with plain convolutions; '
      f'peak: the fastest {dtype} matrix product among them, '
      f'{peak / 1e9:.4g} GFLOP/s. '
      f'{timing.LEGEND} '
      f'Difference of {what} from segjax, relative to their norm: '
      f'{", ".join(notes)}.',
    )


def _first_line(error):
  """Returns what an error says first, fit for a line of Markdown."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def _rows(seconds, cpu_seconds, names, flops, peak):
  """Yields a row for each name, timed or not; PyTorch's fastest in bold."""
  medians = {name: np.median(times) for name, times in seconds.items()}
  theirs = [name for name in medians if name != 'segjax']
  fastest = min(theirs, key=medians.get, default=None)
  for name in names:
    if name not in medians:
      yield name, 'failed', *[''] * 5
      continue
    median = medians[name]
    yield (
      f'**{name}**' if name == fastest else name,
      f'{1e3 * median:.4g}',
      f'{_BATCH_SIZE.value / median:.3g}',
      f'{flops / median / 1e9:.4g}',
      f'{flops / median / peak:.0%}',
      timing.ratio(seconds['segjax'], seconds[name]),
      timing.ratio(cpu_seconds['segjax'], cpu_seconds[name]),
    )


def _forward(module, image, label) -> Side:
  del label
  module.eval()

  @torch.inference_mode()
  def run():
    with torch_nets.autocast(_DTYPE.value):
      return module(image)

  def case(calls):
    for _ in range(calls):
      run()
    torch_nets.wait()

  def result():
    return {'logits': run().float().cpu().numpy().transpose(0, 2, 3, 1)}

  return Side(case, result)


def _train(module, image, label, reduction) -> Side:
  module.train()
  optimizer = torch.optim.SGD(
    module.parameters(),
    sides.learning_rate(reduction, label.numel()),
    momentum=MOMENTUM,
    fused=True,
  )

  def case(calls):
    for _ in range(calls):
      optimizer.zero_grad(set_to_none=True)
      with torch_nets.autocast(_DTYPE.value):
        logits = module(image)
      F.cross_entropy(logits.float(), label, reduction=reduction).backward()
      optimizer.step()
    torch_nets.wait()

  def result():
    before = torch_nets.flattened(module)
    case(STEPS)
    after = torch_nets.flattened(module)
    return {name: after[name] - before[name] for name in after}

  return Side(case, result)


def _prepare(variant, module, batch):
  """Returns module, image and label as a variant of PyTorch's takes them."""
  device = torch_nets.DEVICE
  image = torch.tensor(batch['image'].transpose(0, 3, 1, 2), device=device)
  label = torch.tensor(batch['label'], dtype=torch.int64, device=device)
  module = module.to(device)
  if variant == 'eager':
    return module, image.contiguous(), label
  module = module.to(memory_format=torch.channels_last)
  if variant == 'compile':
    module = torch.compile(module)
  return module, image.to(memory_format=torch.channels_last), label
