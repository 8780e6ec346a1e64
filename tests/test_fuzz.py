# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile bytes for every reader: only ValueErrors come out.

`test_caffe` does it for .caffemodel.
"""

import resource

import hypothesis
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
import tifffile
from commands import tiny_config
from hypothesis import strategies as st
from PIL import Image
from trees import write_mat, write_picture

from segjax import train
from segjax.data import create_dataset, layout, matlab
from segjax.data.label_coding import LabelCoding
from segjax.errors import InputError
from segjax.images.files import read_labels, read_stack
from segjax.weights import files

EXAMPLES = 60
MEMORY_BYTES = 12 * 2**30  # Of addresses; jax alone takes some.
LABEL = np.arange(48, dtype=np.uint8).reshape(6, 8) % 5
ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def write_tiff(path, **how):
  stack = np.arange(96, dtype=np.uint8).reshape(2, 6, 8)
  tifffile.imwrite(path, stack, photometric='minisblack', **how)


def decode_label(path):
  """What the data sets do with a palette PNG."""
  [page] = read_labels(path)
  return LabelCoding(5, (), (255,)).decode(page, path)


# File name -> what writes a good one, and what reads it.
READERS = {
  'list.txt': (lambda p: p.write_text('a b\n/x/c d\n'), layout.read_list),
  'tail.txt': (
    lambda p: p.write_text('/a/b/c.png /d/e\n'),
    lambda p: layout.read_list(p, tail=2),
  ),
  'palette.png': (
    lambda p: write_picture(p, LABEL, palette=np.zeros((256, 3))),
    decode_label,
  ),
  'rgb.png': (
    lambda p: write_picture(p, np.zeros((6, 8, 3))),
    read_stack,
  ),
  'picture.jpg': (
    lambda p: Image.fromarray(LABEL).save(p),
    read_stack,
  ),
  'plain.tif': (write_tiff, read_stack),
  'deflated.tif': (
    lambda p: write_tiff(p, compression='zlib', predictor=True),
    read_stack,
  ),
  'tiled.tif': (
    lambda p: write_tiff(p, tile=(16, 16), compression='lzw'),
    read_stack,
  ),
  'big.tif': (lambda p: write_tiff(p, bigtiff=True), read_stack),
  'stack.npy': (lambda p: np.save(p, ARRAY), read_stack),
  'label.mat': (
    lambda p: write_mat(p, S=LABEL),
    lambda p: matlab.read_label(p, 'S'),
  ),
  'stored.npz': (
    lambda p: np.savez(p, **{'a/kernel': ARRAY, 'a/bias': ARRAY[0]}),
    files.read_params,
  ),
  'deflated.npz': (
    lambda p: np.savez_compressed(p, **{'a/kernel': ARRAY}),
    files.read_params,
  ),
  'net.safetensors': (
    lambda p: safetensors.numpy.save_file({'a/kernel': ARRAY}, p),
    files.read_params,
  ),
}


@st.composite
def damages(draw):
  """A function from bytes to bytes."""
  edits = draw(
    st.lists(
      st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
      max_size=4,
    )
  )
  stop = draw(st.just(1.0) | st.floats(0, 1))
  tail = draw(st.just(b'') | st.binary(max_size=20))

  def damage(content):
    content = bytearray(content)
    for at, value in edits:
      content[int(at * len(content))] = value
    return bytes(content[: round(stop * len(content))]) + tail

  return damage


@pytest.mark.parametrize('name', READERS)
def test_damaged_files(name, tmp_path):
  write, read = READERS[name]
  path = tmp_path / name
  write(path)
  whole = path.read_bytes()
  if not name.endswith('.txt'):
    read(path)

  @hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None)
  @hypothesis.seed(0)
  @hypothesis.given(
    damages().map(lambda damage: damage(whole)) | st.binary(max_size=100)
  )
  def refused_or_read(content):
    path.write_bytes(content)
    try:
      read(path)
    except ValueError as error:
      assert str(error)

  refused_or_read()


def test_archive_that_inflates_is_refused(tmp_path):
  path = tmp_path / 'bomb.npz'
  np.savez_compressed(path, a=np.zeros(2**20, np.float32))
  assert path.stat().st_size < 2**22 / 100
  with pytest.raises(InputError, match='bomb.npz .* would inflate to 4194'):
    files.read_arrays(path)


@hypothesis.settings(max_examples=200, deadline=None, database=None)
@hypothesis.given(st.text(min_size=1, max_size=30))
def test_listed_names_stay_inside(tmp_path_factory, name):
  folder = tmp_path_factory.getbasetemp() / 'root' / 'list'
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / 'list.txt'
  file.write_text(f'{name}\n', encoding='utf-8', errors='surrogatepass')
  try:
    lines = layout.read_list(file)
  except ValueError:
    return
  for word in sum(lines, []):
    inside = (folder / word).resolve()
    assert inside.is_relative_to(folder.resolve())


class _Reached(Exception):
  """Where a run would begin to write."""


def test_config_overrides(tmp_path, monkeypatch):
  config = tiny_config()
  config.batch_size = 8
  dataset = create_dataset(config.data)
  monkeypatch.setattr(train, 'create_dataset', lambda data: dataset)

  def reach(*unused):
    raise _Reached

  monkeypatch.setattr(train, 'claim_workdir', reach)
  leaves = dict(_leaves(config))
  for known in ('data', 'num_train_steps'):
    leaves = {k: v for k, v in leaves.items() if not k.startswith(known)}
  numbers = st.integers(-3, 9) | st.sampled_from([10**6, 2**31, 2**64])
  values = {
    bool: st.booleans(),
    int: numbers,
    float: st.floats(),
    type(None): numbers,
    str: st.text(max_size=8) | st.sampled_from(['sgd', 'SAME', 'bfloat16']),
    tuple: st.lists(
      numbers | st.text(max_size=3) | st.floats(), max_size=4
    ).map(tuple),
  }
  settings = st.sampled_from(sorted(leaves)).flatmap(
    lambda name: st.tuples(st.just(name), values[type(leaves[name])])
  )

  @hypothesis.settings(max_examples=300, deadline=None, database=None)
  @hypothesis.seed(0)
  @hypothesis.given(settings)
  def refused_or_reached(setting):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(dict([setting]))
    try:
      train.train_and_evaluate(changed, tmp_path / 'run')
    except _Reached:
      pass
    except ValueError as error:
      assert str(error)

  # 21 GB were asked for by a depth of a million.
  limit = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, limit[1]))
  try:
    refused_or_reached()
  finally:
    resource.setrlimit(resource.RLIMIT_AS, limit)
  assert not (tmp_path / 'run').exists()


def _leaves(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value
