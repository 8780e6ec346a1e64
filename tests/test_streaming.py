# SPDX-License-Identifier: Apache-2.0
"""Streamed predictions against whole passes."""

import functools
import threading

import jax
import numpy as np
import pytest
from random_unets import image_of, predicted, random_unet, streamed

from segjax.models.unet import NORMS
from segjax.prediction.streaming import stream_predict
from segjax.tiling.settings import TileSettings
from segjax.tiling.turns import DIHEDRAL_GROUP, restored, turned


def test_average_by_tiles_equals_that_of_whole_turned_images():
  model, variables = random_unet(2, 1)
  image = image_of(45, 38, 1)  # No multiple of the period, 4.
  options = dict(tile_size=model.geometry.input_size(14), activation='logits')
  actual = streamed(
    image,
    model,
    variables,
    average=True,
    tiles_per_batch=3,
    **options,
  )
  plain = functools.partial(
    predicted,
    model=model,
    variables=variables,
    **options,
  )
  expected = np.mean(
    [restored(plain(image=turned(image, *t)), *t) for t in DIHEDRAL_GROUP],
    axis=0,
  )
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  assert np.abs(actual - plain(image=image)).max() > 0.01


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('tiles_per_batch', [1, 3])
def test_devices_and_batches_change_no_bit(tiles_per_batch, norm, monkeypatch):
  model, variables = random_unet(norm=norm)
  predict = functools.partial(
    streamed,
    image_of(90, 95, 1),
    model,
    variables,
    tile_size=model.geometry.input_size(16),
  )
  eight = predict(tiles_per_batch=tiles_per_batch)
  assert jax.local_device_count() == 8
  one = jax.local_devices()[:1]
  monkeypatch.setattr(jax, 'local_devices', lambda: one)
  np.testing.assert_array_equal(predict(), eight)


class Reader:
  """An image that tells which thread reads how much."""

  def __init__(self, image):
    self.image, self.shape = image, image.shape
    self.threads, self.largest = set(), 0

  def __getitem__(self, window):
    self.threads.add(threading.current_thread().name)
    pixels = self.image[window]
    self.largest = max(self.largest, pixels.size)
    return pixels


def test_windows_are_read_by_tiles_in_a_thread_and_finished_ones_left_out():
  model, variables = random_unet()
  reader = Reader(image_of(60, 50, 1))
  options = dict(tile_size=model.geometry.input_size(16), tiles_per_batch=2)
  whole = streamed(reader, model, variables, **options)
  assert all(name.startswith('read') for name in reader.threads)
  assert reader.largest <= options['tile_size'] ** 2
  calls = []
  rest = streamed(
    reader,
    model,
    variables,
    finished={0, 5},
    on_written=lambda *call: calls.append(call),
    **options,
  )
  missing = np.isnan(rest).any(axis=-1)
  assert missing[:16, :16].all() and missing[16:32, 16:32].all()
  assert missing.sum() == 512
  np.testing.assert_array_equal(rest[~missing], whole[~missing])
  assert sum(pixels for _, pixels in calls) == 60 * 50 - 512
  assert [number for number, _ in calls] == [*range(1, 5), *range(6, 16)]


@pytest.mark.parametrize('which', ['reader', 'writer'])
def test_what_reader_or_writer_raise_is_passed_on(which):
  model, variables = random_unet()

  class Broken:
    shape = (60, 50, 1)

    def __getitem__(self, window):
      raise OSError('broken')

    def __setitem__(self, window, values):
      raise OSError('broken')

  arguments = {'reader': image_of(60, 50, 1), 'writer': np.empty((60, 50, 2))}
  arguments[which] = Broken()
  with pytest.raises(OSError, match='broken'):
    stream_predict(
      *arguments.values(),
      model,
      variables['params'],
      TileSettings(tile_size=model.geometry.input_size(16)),
    )
