# SPDX-License-Identifier: Apache-2.0
"""A file is the old one or the new one, never a part."""

import os

import pytest

from segjax.atomic import replacing


def write(file, text):
  with replacing(file) as temporary:
    temporary.write_text(text)


def test_a_failure_leaves_the_old_file_alone(tmp_path):
  file = tmp_path / 'a.txt'
  write(file, 'old')
  with pytest.raises(RuntimeError), replacing(file) as temporary:
    temporary.write_text('ne')
    raise RuntimeError
  assert file.read_text() == 'old'
  assert os.listdir(tmp_path) == ['a.txt']


def test_a_reader_keeps_the_old_file(tmp_path):
  file = tmp_path / 'a.txt'
  write(file, 'old')
  with file.open() as reader:
    write(file, 'new')
    assert reader.read() == 'old'
  assert file.read_text() == 'new'
