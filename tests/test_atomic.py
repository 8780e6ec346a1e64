# SPDX-License-Identifier: Apache-2.0
"""A file or a folder is the old one or the new one, never a part."""

import os

import pytest

from segjax.atomic import replacing, replacing_folder


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


def test_a_folder_appears_with_all_its_files(tmp_path):
  folder = tmp_path / 'a'
  for text in ('old', 'new'):
    with replacing_folder(folder) as temporary:
      (temporary / text).write_text(text)
      assert os.path.lexists(folder) == (text == 'new')
    assert os.listdir(folder) == [text]
  assert os.listdir(tmp_path) == ['a']


def test_a_failure_leaves_the_old_folder_alone(tmp_path, monkeypatch):
  folder = tmp_path / 'a'
  with replacing_folder(folder) as temporary:
    (temporary / 'b').write_text('old')
  with pytest.raises(RuntimeError), replacing_folder(folder) as temporary:
    (temporary / 'b').write_text('new')
    raise RuntimeError
  assert (folder / 'b').read_text() == 'old'

  rename = os.rename

  def fail_to_move_in(source, target):
    if os.path.exists(os.path.join(source, 'new')):
      raise OSError
    rename(source, target)

  monkeypatch.setattr(os, 'rename', fail_to_move_in)
  with pytest.raises(OSError), replacing_folder(folder) as temporary:
    (temporary / 'new').write_text('new')
  assert os.listdir(folder) == ['b']
  assert os.listdir(tmp_path) == ['a']
