# SPDX-License-Identifier: Apache-2.0
"""Batches: their order, their padding, and that they follow from the step."""

import numpy as np
import pytest

from segjax.data.pipeline import create_batches, have_one_size, pad_and_stack
from segjax.devices import processes
from segjax.errors import InputError


def numbered(count, shape=(4, 6)):
  return [
    {
      'image': np.full((*shape, 3), i, np.uint8),
      'label': np.full(shape, i, np.int32),
      'name': str(i),
    }
    for i in range(count)
  ]


def drawn(seed, start, count, order='shuffled', num_examples=12, batch_size=3):
  batches = create_batches(
    numbered(num_examples), batch_size, seed, start, order
  )
  return [tuple(next(batches)['label'][:, 0, 0]) for _ in range(count)]


@pytest.mark.parametrize('order', ['shuffled', 'with_replacement'])
def test_batches_are_a_function_of_seed_and_step(order):
  whole = drawn(0, 0, 12, order)
  assert drawn(0, 7, 5, order) == whole[7:]
  assert drawn(1, 0, 12, order) != whole


def test_a_batch_holds_what_is_trained_on():
  instances = np.ones((4, 6), np.uint16)
  examples = [{**example, 'instances': instances} for example in numbered(2)]
  batch = next(create_batches(examples, 2, 0, 0))
  assert set(batch) == {'image', 'label'}


def test_each_pass_sees_every_example_once_in_a_new_order():
  whole = drawn(0, 0, 12)
  for epoch in range(3):
    assert sorted(sum(whole[4 * epoch : 4 * epoch + 4], ())) == [*range(12)]
  assert whole[:4] != whole[4:8]


def test_with_replacement_every_draw_is_uniform():
  draws = np.ravel(drawn(3, 0, 500, 'with_replacement', 5, 4))
  counts = np.bincount(draws, minlength=5)
  # 2000 draws: 400 each, standard deviation 18.
  assert np.abs(counts - 400).max() < 75
  # A pass over 5 examples is no permutation: 1 - 5!/5^5 = 96 % have a repeat.
  repeats = np.mean([len(set(p)) < 5 for p in draws.reshape(-1, 5)])
  assert repeats > 0.9


def test_padding_keeps_the_pixels_and_says_where_they_end():
  rng = np.random.default_rng(0)
  examples = [
    {
      'image': rng.integers(1, 256, (h, w, 3), dtype=np.uint8),
      'label': rng.integers(0, 3, (h, w, 2)).astype(np.int32),
      'weight': rng.uniform(1, 2, (h, w)).astype(np.float32),
    }
    for h, w in ((5, 9), (8, 3))
  ]
  batch = pad_and_stack(examples, bucket_px=8)
  assert batch['image'].shape == (2, 8, 16, 3)
  assert batch['label'].shape == (2, 8, 16, 2)
  np.testing.assert_array_equal(batch['size'], [[5, 9], [8, 3]])
  for i, example in enumerate(examples):
    h, w = batch['size'][i]
    for name, padding in (('image', 0), ('label', 255), ('weight', 0)):
      inside = np.zeros(batch[name].shape[1:], bool)
      inside[:h, :w] = True
      np.testing.assert_array_equal(batch[name][i, :h, :w], example[name])
      np.testing.assert_array_equal(batch[name][i][~inside], padding)


def test_equal_images_are_stacked_as_they_are():
  batch = pad_and_stack([{'image': np.ones((5, 7, 1), np.uint8)}] * 2)
  assert batch['image'].shape == (2, 5, 7, 1)
  assert 'size' not in batch


def test_what_cannot_be_a_batch_is_refused():
  tall, wide = numbered(1, (6, 4)), numbered(1, (4, 6))
  with pytest.raises(InputError, match=r'\(4, 6, 3\) and \(6, 4, 3\).*bucket'):
    next(create_batches(tall + wide, 2, 0, 0))
  gray = [{'image': np.zeros((4, 6, 1), np.uint8)}]
  with pytest.raises(InputError, match='numbers of channels'):
    pad_and_stack(gray + wide, bucket_px=8)
  with pytest.raises(InputError, match='no example'):
    create_batches([], 1, 0, 0)
  with pytest.raises(InputError, match='sorted.*with_replacement'):
    create_batches(wide, 1, 0, 0, 'sorted')


def test_a_process_reads_its_rows_only():
  class Watched(list):
    def __getitem__(self, index):
      read.add(int(index))
      return list.__getitem__(self, index)

  read = set()
  own = create_batches(Watched(numbered(240)), 4, 0, 2, rows=[1, 3])
  whole = create_batches(numbered(240), 4, 0, 2)
  # More than are read ahead; no example comes twice in them.
  expected = [next(whole)['label'][[1, 3]] for _ in range(40)]
  for label in expected[:3]:
    np.testing.assert_array_equal(next(own)['label'], label)
  assert len(read) >= 6
  assert read <= {*np.ravel(expected)}


def test_examples_are_cut_by_the_step_and_row_of_their_batch():
  def cut(step, row, example):
    first = example['image'][:2, :3]
    label = example['label'][:2, :3]
    assert 'name' not in example
    return {'image': first, 'label': label, 'place': np.array([step, row])}

  examples = numbered(12, (4, 6)) + numbered(12, (9, 3))
  batches = create_batches(examples, 4, 0, 7, rows=[1, 3], cut=cut)
  for step in range(7, 12):
    batch = next(batches)
    assert batch['image'].shape == (2, 2, 3, 3)
    np.testing.assert_array_equal(batch['place'], [[step, 1], [step, 3]])


def test_sizes_are_compared_over_all_processes(monkeypatch):
  class Counted(list):
    def __getitem__(self, index):
      read.append(index)
      return list.__getitem__(self, index)

  read = []
  assert have_one_size(Counted(numbered(200)))
  assert len({*read}) == 200
  read = []
  assert not have_one_size(
    Counted(numbered(1, (6, 4)) + numbered(250) + numbered(250))
  )
  assert len(read) < 200  # No more are needed.
  assert not have_one_size(numbered(199) + numbered(1, (4, 7)))
  # Each of two processes has one size, but not the same.
  for other, same in (((4, 6), True), ((4, 7), False)):

    def gather(own, other=other):
      sizes = np.array([other, other])
      return np.stack([own, sizes if own.shape == sizes.shape else own])

    monkeypatch.setattr(processes, 'gather', gather)
    assert have_one_size(numbered(3)) == same


def test_images_get_the_size_of_the_largest_of_all_processes(monkeypatch):
  batches = create_batches(numbered(2), 2, 0, 0, bucket_px=8)
  alone, larger = (8, 8), (16, 8)  # Of this process, and of another.
  assert next(batches)['image'].shape[1:3] == alone
  monkeypatch.setattr(
    processes, 'gather', lambda size: np.stack([size, np.array(larger)])
  )
  batch = next(batches)
  assert batch['image'].shape == (2, *larger, 3)
  np.testing.assert_array_equal(batch['size'], [[4, 6], [4, 6]])
  for name, padding in (('image', 0), ('label', 255)):
    assert (batch[name][:, 4:] == padding).all()
    assert (batch[name][:, :, 6:] == padding).all()
    assert {*np.ravel(batch[name][:, :4, :6])} == {0, 1}
