# SPDX-License-Identifier: Apache-2.0
"""Streamed predictions against whole passes, and going on after a crash."""

import functools
import os
import threading

import fcn_nets
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import tile_plans, tiling
from segjax.errors import InputError
from segjax.geometry import UNetGeometry
from segjax.models.fcn import FCN8s, FCN16s, FCN32s, FCNAlexNet, FCNGoogLeNet
from segjax.models.unet import UNet
from segjax.partial import open_partial
from segjax.streaming import stream_predict
from segjax.turns import (
  DIHEDRAL_GROUP,
  is_reversed,
  restored,
  turned,
  turned_shape,
)


@functools.cache
def unet(depth=1, convs_per_block=1, padding='VALID'):
  model = UNet(
    depth=depth,
    convs_per_block=convs_per_block,
    base_width=2,
    num_classes=2,
    padding=padding,
  )
  side = model.geometry.input_size(1)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), np.zeros((1, side, side, 1))
  )
  rng = np.random.default_rng(0)
  return model, jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 2, shapes
  )


def image_of(*shape):
  return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def streamed(reader, apply, params, geometry, classes, **options):
  written = np.full((*reader.shape[:2], classes), np.nan, np.float32)
  stream_predict(reader, written, apply, params, geometry, **options)
  return written


@pytest.mark.parametrize('transform', DIHEDRAL_GROUP)
def test_turns_are_undone_and_said_of_the_axes(transform):
  array = np.arange(12).reshape(3, 4)
  after = turned(array, *transform)
  np.testing.assert_array_equal(restored(after, *transform), array)
  assert turned_shape((3, 4), *transform) == after.shape
  # Rows grow by 4 and columns by 1.
  steps = {
    abs(s): s < 0
    for s in (after[1, 0] - after[0, 0], after[0, 1] - after[0, 0])
  }
  assert is_reversed(*transform) == (steps[4], steps[1])


@settings(max_examples=60, deadline=None)
@given(
  st.sampled_from([(0, 1), (1, 2), (3, 1), (4, 2)]),
  st.sampled_from(['VALID', 'SAME']),
  st.tuples(st.integers(1, 400), st.integers(1, 400)),
  st.integers(0, 12),
)
def test_places_hold_the_windows_on_phase_in_every_turn(
  net, padding, shape, more
):
  geometry = UNetGeometry(*net, padding)
  least = geometry.input_size(2 * geometry.period)
  plan = tile_plans.plan_tiles(
    *shape, geometry, least + more * geometry.period, transforms=DIHEDRAL_GROUP
  )
  for window in plan.windows:
    for transform in DIHEDRAL_GROUP:
      place = plan.place(window, transform)
      backwards = is_reversed(*transform)
      for side, crop, first, tile, length, is_backwards in zip(
        window,
        place.crop,
        place.origin,
        plan.tile_shape,
        shape,
        backwards,
        strict=True,
      ):
        assert side.start == first + geometry.margin + crop.start
        assert 0 <= crop.start and crop.stop <= tile - 2 * geometry.margin
        phase = length - first - tile if is_backwards else first
        assert (phase + geometry.margin) % geometry.period == 0


def test_average_by_tiles_equals_that_of_whole_turned_images():
  model, variables = unet(2, 1)
  image = image_of(45, 38, 1)  # No multiple of the period, 4.
  options = dict(tile_size=model.geometry.input_size(14), activation='logits')
  actual = streamed(
    image,
    model.apply,
    variables,
    model.geometry,
    2,
    average=True,
    tiles_per_batch=3,
    **options,
  )
  plain = functools.partial(
    tiling.predict_image,
    model.apply,
    variables,
    geometry=model.geometry,
    **options,
  )
  expected = np.mean(
    [restored(plain(image=turned(image, *t)), *t) for t in DIHEDRAL_GROUP],
    axis=0,
  )
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  assert np.abs(actual - plain(image=image)).max() > 0.01


@pytest.mark.parametrize('tiles_per_batch', [1, 3])
def test_devices_and_batches_change_no_bit(tiles_per_batch, monkeypatch):
  model, variables = unet()
  predict = functools.partial(
    streamed,
    image_of(90, 95, 1),
    model.apply,
    variables,
    model.geometry,
    2,
    tile_size=model.geometry.input_size(16),
  )
  eight = predict(tiles_per_batch=tiles_per_batch)
  assert jax.local_device_count() == 8
  one = jax.local_devices()[:1]
  monkeypatch.setattr(jax, 'local_devices', lambda: one)
  np.testing.assert_array_equal(predict(), eight)


FCNS = [FCN32s, FCN16s, FCN8s, FCNAlexNet, FCNGoogLeNet]


@pytest.mark.parametrize('padding', ['pad100', 'same'])
@pytest.mark.parametrize(
  'create', FCNS, ids=['32', '16', '8', 'alex', 'google']
)
def test_fcn_plans_hold_the_margin(create, padding):
  geometry = create(padding=padding).geometry
  least = 2 * geometry.margin + 64
  for size in (1, least, least + 1, 1000, 1777, 3333):
    for slack in (0, size % 32):
      for tile in (least, least + 32, 1024):
        windows = tile_plans.plan_clipped_axis(size, geometry, tile, slack)
        ends = [0, *(window.stop for window in windows)]
        assert ends[-1] == size and sorted(set(ends)) == ends
        for window in windows:
          first = max(0, window.start - geometry.margin) if size > tile else 0
          assert first % 32 == 0
          assert min(size, window.stop + geometry.margin) <= max(
            first + tile, tile
          )


@pytest.mark.parametrize('create', [FCN8s, FCN32s], ids=['8', '32'])
@pytest.mark.parametrize('padding', ['pad100', 'same'])
def test_fcn_tiles_equal_the_whole_pass(create, padding):
  model = create(**fcn_nets.NARROW, padding=padding)
  params = {'params': fcn_nets.random_params(model)}
  tile = 2 * model.geometry.margin + 96
  image = image_of(130, tile + 201, 3)
  options = dict(head_sizes=model.head_sizes, activation='logits')
  actual = streamed(
    image, model.apply, params, model.geometry, 4, tile_size=tile, **options
  )
  expected = np.asarray(jax.jit(model.apply)(params, image[None])[0])
  difference = np.abs(actual - expected).max() / np.ptp(expected)
  assert difference < 1e-5, difference


def test_fcn_averages_by_tiles():
  model = FCN32s(**fcn_nets.NARROW, padding='same')
  params = {'params': fcn_nets.random_params(model)}
  tile = 2 * model.geometry.margin + 64
  image = image_of(40, tile + 77, 3)
  options = dict(head_sizes=model.head_sizes, activation='logits')
  transforms = [(0, False), (2, False), (0, True)]
  actual = streamed(
    image,
    model.apply,
    params,
    model.geometry,
    4,
    tile_size=tile,
    average=transforms,
    **options,
  )
  apply = jax.jit(model.apply)
  expected = np.mean(
    [
      restored(np.asarray(apply(params, turned(image, *t)[None])[0]), *t)
      for t in transforms
    ],
    axis=0,
  )
  assert np.abs(actual - expected).max() < 1e-5 * np.ptp(expected)


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
  model, variables = unet()
  reader = Reader(image_of(60, 50, 1))
  options = dict(tile_size=model.geometry.input_size(16), tiles_per_batch=2)
  whole = streamed(reader, model.apply, variables, model.geometry, 2, **options)
  assert all(name.startswith('read') for name in reader.threads)
  assert reader.largest <= options['tile_size'] ** 2
  calls = []
  rest = streamed(
    reader,
    model.apply,
    variables,
    model.geometry,
    2,
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
  model, variables = unet()

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
      model.apply,
      variables,
      model.geometry,
      tile_size=model.geometry.input_size(16),
    )


def test_partial_goes_on_and_is_dropped_only_where_told(tmp_path, monkeypatch):
  monkeypatch.setattr('segjax.partial.RECORD_EVERY_SECONDS', 0)
  output = tmp_path / 'out.npy'
  identity = {'input': 'a', 'settings': 'b'}
  synced = []

  def begin(identity=identity, overwrite=False, fail=KeyboardInterrupt):
    with open_partial(output, identity, overwrite) as partial:
      found.append(dict(partial.finished))
      (partial.folder / 'out.npy').write_text('done')
      partial.record((0, len(found)), 7, lambda: synced.append(len(found)))
      if fail:
        raise fail('on purpose')

  found = []
  with pytest.raises(KeyboardInterrupt):
    begin()
  assert not output.exists()
  # A crash in the middle of an entry.
  journal = tmp_path / 'out.npy.partial/journal'
  journal.write_text(journal.read_text() + '0 9')
  with pytest.raises(
    InputError, match='out.npy: cannot be written; on purpose; the same'
  ):
    begin(fail=OSError)
  with pytest.raises(
    InputError, match='begun with other settings; give --over'
  ):
    begin({**identity, 'settings': 'c'})
  begin(fail=None)
  assert found == [{}, {(0, 1): 7}, {(0, 1): 7, (0, 2): 7}]
  assert synced == [1, 2, 3]
  assert output.read_text() == 'done'
  assert os.listdir(tmp_path) == ['out.npy']
  with pytest.raises(KeyboardInterrupt):
    begin()
  begin({**identity, 'settings': 'c'}, overwrite=True, fail=None)
  assert found[-1] == {}
  with pytest.raises(InputError, match='on purpose'):
    begin(fail=InputError)
  assert os.listdir(tmp_path) == ['out.npy']
