# SPDX-License-Identifier: Apache-2.0
"""Tests of .pth files: wrappers that are read, and files that are refused."""

import numpy as np
import pytest

from segjax.errors import InputError
from segjax.weights.torchvision import read_state_dict

torch = pytest.importorskip('torch')


def _read(path, value):
  torch.save(value, path)
  return read_state_dict(path)


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('wrap', [dict, lambda state: {'state_dict': state}])
def test_wrappers_are_taken_off(tmp_path, prefix, wrap):
  values = torch.arange(6.0).reshape(2, 3)
  state = _read(tmp_path / 'a.pth', wrap({f'{prefix}fc6.weight': values}))
  assert list(state) == ['fc6.weight']
  np.testing.assert_array_equal(state['fc6.weight'], values.numpy())


@pytest.mark.filterwarnings('ignore:Validating sparse')
@pytest.mark.parametrize(
  ('value', 'words'),
  [
    ({'fc6.weight': torch.eye(3).to_sparse()}, 'fc6.weight is a sparse'),
    (7, 'not a state dict of tensors'),
    ({'epoch': 7}, 'not a state dict of tensors'),
    ({0: torch.eye(3)}, 'not a state dict of tensors'),
    (torch.nn.Linear(2, 2), 'holds Python objects'),
  ],
)
def test_other_contents_are_refused(tmp_path, value, words):
  with pytest.raises(InputError, match=words) as error:
    _read(tmp_path / 'a.pth', value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_tensors_larger_than_the_file_are_refused(tmp_path, dtype):
  value = torch.ones(1, dtype=dtype).expand(2**33)  # Of stride 0.
  with pytest.raises(InputError, match='a is too large for the size of the fi'):
    _read(tmp_path / 'a.pth', {'a': value})


@pytest.mark.parametrize(
  ('start', 'words'),
  [
    (b'version https://git-lfs.github.com/spec/v1\n', 'git-LFS pointer'),
    (b'\n<!DOCTYPE html><html>', 'HTML page'),
  ],
)
def test_pages_and_pointers_are_named(tmp_path, start, words):
  (tmp_path / 'a.pth').write_bytes(start)
  with pytest.raises(InputError, match=words):
    read_state_dict(tmp_path / 'a.pth')


@pytest.mark.parametrize('version', ['2.5.1+cpu', '1.13.0'])
def test_torch_that_runs_code_is_refused(tmp_path, monkeypatch, version):
  torch.save({'fc6.weight': torch.eye(2)}, tmp_path / 'a.pth')
  monkeypatch.setattr(torch, '__version__', version)
  with pytest.raises(InputError, match='torch>=2.6'):
    read_state_dict(tmp_path / 'a.pth')
