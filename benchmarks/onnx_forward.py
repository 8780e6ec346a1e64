# SPDX-License-Identifier: Apache-2.0
"""A U-Net's ONNX file in onnxruntime: `python -m benchmarks.onnx_forward`

Beside segjax's own compiled forward pass, in interleaved rounds. Logits are
compared first.
"""

import time

import jax
import numpy as np
import onnxruntime
from absl import flags

from benchmarks import sides, timing
from segjax.cli.command_line import run_command
from segjax.models.unet import UNet
from segjax.sharing import onnx_file

_WIDTH = flags.DEFINE_integer('width', 64, 'Channels at the top.', 1)
_SIZE = flags.DEFINE_integer('size', 572, 'Of the tile, in pixels.', 1)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Interleaved rounds.', 1)


def main(_):
  size = _SIZE.value
  model = UNet(base_width=_WIDTH.value, dropout_rate=0.0)
  params = sides.random_params(model)
  image = np.random.default_rng(0).normal(size=(1, size, size, 1))
  image = image.astype(np.float32)
  start = time.perf_counter()
  content = onnx_file.to_onnx(model, params, size, {}).SerializeToString()
  seconds_to_convert = time.perf_counter() - start
  session = onnxruntime.InferenceSession(content)
  ours = sides.forward(model, params, {'image': jax.device_put(image)})
  theirs = {'image': np.ascontiguousarray(image.transpose(0, 3, 1, 2))}

  def run(calls):
    for _ in range(calls):
      session.run(None, theirs)

  expected = np.asarray(jax.jit(model.apply)({'params': params}, image))
  (logits,) = session.run(None, theirs)
  difference = np.abs(logits.transpose(0, 2, 3, 1) - expected).max()
  cases = {'segjax': ours.case, 'onnxruntime': run}
  seconds, cpu_seconds = timing.interleave(cases, _ROUNDS.value)
  timing.print_report(
    f'ONNX, U-Net of width {_WIDTH.value}, {size} px',
    ('', 'ms', 'CPU ms', 'this / segjax', 'CPU time'),
    (
      (
        name,
        f'{1e3 * np.median(seconds[name]):.4g}',
        f'{1e3 * np.median(cpu_seconds[name]):.4g}',
        timing.ratio(seconds[name], seconds['segjax']),
        timing.ratio(cpu_seconds[name], cpu_seconds['segjax']),
      )
      for name in cases
    ),
    f'{timing.LEGEND} onnxruntime {onnxruntime.__version__}; the conversion '
    f'took {seconds_to_convert:.0f} s, the file has {len(content) / 1e6:.0f} '
    f'MB. Logits differ by at most {difference / np.ptp(expected):.1e} of '
    'their range.',
  )


if __name__ == '__main__':
  run_command(main)
