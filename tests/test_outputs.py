# SPDX-License-Identifier: Apache-2.0
"""Outputs that are inputs, however they are named; `test_bad_input` has more.

The commands are tried there, with links and folders.
"""

import os

import numpy as np
import pytest

from segjax.errors import InputError
from segjax.prediction.outputs import check_apart, encode


def refusal(outputs, inputs):
  """Returns what is said of outputs, or '' where nothing is."""
  try:
    check_apart(outputs, inputs)
  except InputError as error:
    return str(error)
  return ''


def test_values_that_do_not_fit_are_refused():
  logits = np.float32([[1, 70_000]])
  with pytest.raises(InputError, match='70000.0 does not fit into float16'):
    encode(logits, 'logits', 'float16', (2,))
  np.testing.assert_array_equal(
    encode(logits, 'logits', 'float32', (2,)), logits
  )
  many = np.eye(300, dtype=np.float32)
  with pytest.raises(InputError, match='300 classes do not fit into labels'):
    encode(many, 'labels', 'uint8', (300,))
  np.testing.assert_array_equal(
    encode(many[:256, :256], 'labels', 'uint8', (256,)), np.arange(256)
  )


@pytest.mark.parametrize(
  ('output', 'message'),
  [
    ('a.tif', 'a.tif is the input'),
    ('../data/a.tif', 'a.tif is the input'),
    ('link.tif', 'link.tif is the input'),
    ('hard.tif', 'hard.tif is the input'),
    ('chain.tif', 'chain.tif is the input'),
    ('in.zarr', 'in.zarr is the input'),
    ('in.zarr/new.tif', 'new.tif lies in the input'),
    ('in.zarr/no/new.tif', 'new.tif lies in the input'),
    ('way/new.tif', 'new.tif lies in the input'),
    ('dangling.tif', 'dangling.tif lies in the input'),
    ('.', 'holds the input'),
    ('..', 'holds the input'),
    ('b.tif', ''),
    ('sub/a.tif', ''),
    ('no/a.tif', ''),
    ('a.tif.partial', ''),
    ('broken.tif', ''),
  ],
)
def test_outputs_are_compared_by_what_is_there(tmp_path, output, message):
  folder = tmp_path / 'data'
  (folder / 'sub').mkdir(parents=True)
  (folder / 'in.zarr' / 'c').mkdir(parents=True)
  for name in ('a.tif', 'b.tif', 'sub/a.tif'):
    (folder / name).write_text(name)
  (folder / 'link.tif').symlink_to('a.tif')
  (folder / 'chain.tif').symlink_to('link.tif')
  (folder / 'hard.tif').hardlink_to(folder / 'a.tif')
  (folder / 'way').symlink_to('in.zarr/c')
  (folder / 'dangling.tif').symlink_to('in.zarr/none.tif')
  (folder / 'broken.tif').symlink_to('broken.tif')
  said = refusal([folder / output], [folder / 'a.tif', folder / 'in.zarr'])
  assert message in said and bool(said) == bool(message)


def test_an_input_that_is_a_link_is_spared_with_what_it_links_to(tmp_path):
  (tmp_path / 'set').mkdir()
  (tmp_path / 'a.tif').write_text('a')
  link = tmp_path / 'set' / 'link.tif'
  link.symlink_to(tmp_path / 'a.tif')
  for output in ('a.tif', 'set', 'set/link.tif', '.'):
    assert refusal([tmp_path / output], [link])
  assert not refusal([tmp_path / 'set' / 'b.tif'], [link])


def test_two_outputs_that_are_one_file(tmp_path):
  (tmp_path / 'a.tif').write_text('a')
  (tmp_path / 'b.tif').hardlink_to(tmp_path / 'a.tif')
  outputs = [tmp_path / name for name in ('a.tif', 'c.tif', 'b.tif')]
  said = refusal(outputs, [])
  assert said == (
    f'output {outputs[2]} is the same file as the output {outputs[0]}; give '
    'another output'
  )
  assert not refusal(outputs[:2], [])


def test_many_files_are_compared_in_one_pass(tmp_path, monkeypatch):
  """Not each with each: a million comparisons would ask the disk as often."""
  for i in range(1000):
    (tmp_path / f'{i}.png').write_text('')
  inputs = sorted(tmp_path.iterdir())
  asked = []
  stat = os.stat
  monkeypatch.setattr(
    'segjax.prediction.outputs.os.stat',
    lambda path: asked.append(path) or stat(path),
  )
  check_apart([path.with_suffix('.tif') for path in inputs], inputs)
  assert len(asked) < 2100
