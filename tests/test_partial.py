# SPDX-License-Identifier: Apache-2.0
"""Outputs in the making, and going on after a crash."""

import os

import pytest

from segjax.errors import InputError
from segjax.partial import open_partial


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
