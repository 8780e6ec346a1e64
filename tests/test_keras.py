# SPDX-License-Identifier: Apache-2.0
"""VGG16 at full width against Keras's, by way of the files that it writes."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from segjax import convert
from segjax.models.vgg import VGG16

# In a process of its own: Keras takes its backend from the environment, and
# writes a config into the home folder if it is not told otherwise.
SCRIPT = """
import keras
import numpy as np

keras.utils.set_random_seed(0)
model = keras.applications.VGG16(weights=None, classifier_activation=None)
rng = np.random.default_rng(0)
for weight in model.weights:
  if weight.shape == (weight.shape[-1],):
    weight.assign(rng.normal(size=weight.shape).astype(np.float32))
image = 50 * rng.normal(size=(1, 224, 224, 3)).astype(np.float32)
np.save('image.npy', image)
np.save('logits.npy', model.predict(image, verbose=0))
model.save('vgg16.keras')
model.save('vgg16.h5')
"""


@pytest.fixture(scope='module')
def folder():
  """Files of a random VGG16, 550 MB each, an image, and Keras's logits."""
  if importlib.util.find_spec('keras') is None:
    pytest.skip('Keras, the independent implementation, is not installed')
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run(
      [sys.executable, '-c', SCRIPT],
      cwd=folder,
      env=os.environ | {'KERAS_BACKEND': 'jax', 'KERAS_HOME': folder},
      check=True,
      capture_output=True,
      timeout=300,
    )
    yield Path(folder)


@pytest.mark.parametrize(
  'file, convolutional', [('vgg16.h5', False), ('vgg16.keras', True)]
)
def test_logits_are_kerass(folder, file, convolutional):
  model = VGG16(convolutional=convolutional)
  source = convert.read_tensors(folder / file)
  params, report = convert.convert(source, model)
  assert len(report.matched) == len(source) == 32
  got = jax.jit(model.apply)({'params': params}, np.load(folder / 'image.npy'))
  want = np.load(folder / 'logits.npy')
  assert want.shape == (1, 1000)
  difference = np.abs(got.reshape(1, -1) - want).max() / np.ptp(want)
  print(f'largest difference from Keras, of the range: {difference:.1e}')
  assert difference < 1e-5
