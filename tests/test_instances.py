# SPDX-License-Identifier: Apache-2.0
"""Files of instances from files of maps."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tensorstore
import tifffile
from commands import REPOSITORY, run
from test_components import checkerboard, drawn_map

from segjax import instances
from segjax.errors import InputError
from segjax.images import files
from segjax.prediction.components import label_instances
from segjax.prediction.outputs import encode


def write_frames(folder, names):
  folder.mkdir()
  for i, name in enumerate(names):
    cell = drawn_map(i, (12, 15)).astype(np.float32)
    files.write_stack(folder / name, cell[None])
  return folder


def test_command_writes_results_of_the_challenge(tmp_path):
  source = write_frames(tmp_path / 'in', ['t000.tif', 't012.tif', 'tail.tif'])
  output = tmp_path / '01_RES'
  paths = f'--input={source}', f'--output={output}/'
  process = run('instances', *paths, '--seed_threshold=0.7')
  assert process.returncode == 0, process.stderr
  names = ['mask000.tif', 'mask012.tif', 'tail.tif']
  written = sorted(file.name for file in output.iterdir())
  assert written == [*names[:2], 'objects.csv', names[2]]
  lines = process.stdout.splitlines()
  for i, name in enumerate(names):
    with tifffile.TiffFile(output / name) as file:
      written = file.asarray()
    assert written.dtype == np.uint16 and written.shape == (12, 15)
    cell = drawn_map(i, (12, 15)).astype(np.float32)
    expected = label_instances(cell, seed_threshold=0.7)
    np.testing.assert_array_equal(written, expected)
    assert f'{output / name}: {expected.max()} instances' in lines
  again = run('instances', *paths)
  assert again.returncode == 2
  message = f'error: {output}/objects.csv exists; give --overwrite to replace'
  assert again.stderr == f'{message} it\n'


def test_uint8_is_compared_exactly(tmp_path):
  # 204 of 255 is .8, which is not above .8; 205 is.
  cell = np.array([[204, 0, 205, 0, 255]], np.uint8)
  files.write_stack(tmp_path / 'map.tif', cell[None])
  out = tmp_path / 'out.tif'
  instances.label_files(tmp_path / 'map.tif', out, threshold=0.8)
  assert tifffile.imread(out).tolist() == [[0, 0, 1, 0, 2]]
  for name in ('threshold', 'seed_threshold'):
    with pytest.raises(InputError, match=f'{name}=1.5; expected 0 or more, '):
      instances.label_files(tmp_path / 'map.tif', out, **{name: 1.5})


def test_digits_are_those_of_the_frames(tmp_path):
  names = ['t0007.tif', 't07.tif', 't00007.tif', 'cat000.tif']
  source = write_frames(tmp_path / 'in', names)
  instances.label_files(source, tmp_path / 'out')
  written = sorted(file.name for file in (tmp_path / 'out').glob('*.tif'))
  expected = ['cat000.tif', 'mask0007.tif', 't00007.tif', 't07.tif']
  assert written == expected


def test_a_stack_stays_a_stack(tmp_path, capsys):
  labels = np.stack([checkerboard(3), np.ones((3, 3))]).astype(np.uint8)
  files.write_stack(tmp_path / 'in.tif', labels)
  output = tmp_path / 'out.tif'
  instances.label_files(tmp_path / 'in.tif', output)
  written = tifffile.imread(output)
  assert [page.max() for page in written] == [4, 1]
  said = 'maps of uint8 hold only 0 and 1; read as labels'
  lines = [said, f'{output}: 5 instances', output.with_suffix('.csv')]
  assert capsys.readouterr().out.splitlines() == [*map(str, lines)]


@pytest.mark.parametrize('ending', ['.tif', '.npy', '.zarr', '.png'])
@pytest.mark.parametrize('dtype', ['uint8', 'float16'])
def test_what_predict_writes_is_read(tmp_path, ending, dtype):
  if (ending, dtype) == ('.png', 'float16'):
    return
  source = tmp_path / 'in'
  source.mkdir()
  # The second is a map without a cell: all of it is near 0.
  maps = [drawn_map(0, (12, 15)), np.full((12, 15), 1 / 255)]
  for name, cell in zip('ab', maps, strict=True):
    stored = encode(np.stack([1 - cell, cell], -1), 'probabilities', dtype, [2])
    path = source / f'{name}{ending}'
    if ending == '.png':
      files.write_stack(path, stored[None])
      continue
    with files.open_canvas(path, (1, *stored.shape), dtype) as canvas:
      canvas[0, slice(0, 12), slice(0, 15)] = stored
      canvas.sync()
  instances.label_files(source, tmp_path / 'out', seed_threshold=0.7)
  cell = np.round(255 * maps[0]) / np.float32(255)
  if dtype == 'float16':
    cell = maps[0].astype(np.float16).astype(np.float32)
  expected = label_instances(cell, seed_threshold=0.7)
  assert expected.max() > 1
  np.testing.assert_array_equal(
    tifffile.imread(tmp_path / 'out/a.tif'), expected
  )
  assert not tifffile.imread(tmp_path / 'out/b.tif').any()


def test_files_that_are_refused(tmp_path):
  source = write_frames(tmp_path / 'in', ['a.tif'])
  many = checkerboard(370).astype(np.uint8)
  files.write_stack(tmp_path / 'many.tif', many[None])
  files.write_stack(tmp_path / 'gray.png', 100 * many[None])
  files.write_stack(tmp_path / 'two.tif', np.zeros((1, 3, 3, 2), np.uint8))
  (tmp_path / 'file').write_text('')
  before = sorted(tmp_path.rglob('*'))
  for name, output, message in [
    ('many.tif', 'out.tif', '68450 instances on a page; 65535 fit'),
    ('gray.png', 'out.tif', r'values from 0 to 100; .* in \[0, 1\]'),
    ('two.tif', 'out.tif', r'has 2 channel\(s\)'),
    ('two.tif', 'out.png', 'out.png of a file must be a .tif'),
    ('two.tif', 'no/out.tif', 'there is no folder'),
    ('none.tif', 'out.tif', 'none.tif'),
    ('in', 'file', 'file cannot be made a folder'),
    ('in', 'no/out', 'out cannot be made a folder'),
  ]:
    with pytest.raises(InputError, match=message):
      instances.label_files(tmp_path / name, tmp_path / output)
  files.write_stack(source / 'a.png', many[None, :2, :2])
  with pytest.raises(InputError, match='a.tif would hold two inputs'):
    instances.label_files(source, tmp_path / 'out')
  (source / 'a.png').unlink()
  assert sorted(tmp_path.rglob('*')) == before


def test_blocks_change_no_instance(tmp_path, monkeypatch):
  maps = np.stack([drawn_map(i, (30, 41)) for i in range(2)]).astype('f4')
  files.write_stack(tmp_path / 'in.tif', maps)
  output = tmp_path / 'out.tif'
  for block_px in (7, 2048):
    monkeypatch.setattr(instances, '_BLOCK_PX', block_px)
    for seed_threshold in (None, 0.7):
      instances.label_files(
        tmp_path / 'in.tif',
        output,
        seed_threshold=seed_threshold,
        overwrite=True,
      )
      for page, cell in zip(tifffile.imread(output), maps, strict=True):
        expected = label_instances(cell, seed_threshold=seed_threshold)
        assert page.max() == expected.max() > 3
        pairs = np.unique(np.stack([page.ravel(), expected.ravel()]), axis=1)
        assert len(pairs[0]) == expected.max() + 1
  assert sorted(file.name for file in tmp_path.iterdir()) == [
    'in.tif',
    'out.csv',
    'out.tif',
  ]


def test_a_zarr_is_a_map_and_no_folder(tmp_path):
  source = tmp_path / 'in.zarr'
  cell = checkerboard(6).astype(np.uint8)
  spec = {'driver': 'zarr3', 'kvstore': f'file://{source}/'}
  tensorstore.open(
    spec, create=True, dtype=cell.dtype, shape=cell.shape
  ).result().write(cell).result()
  instances.label_files(source, tmp_path / 'out.tif')
  assert tifffile.imread(tmp_path / 'out.tif').max() == 18


def test_memory_of_files_is_of_blocks_and_not_of_pages(tmp_path, monkeypatch):
  """The map is one cell, so that numbers of pieces don't matter."""
  monkeypatch.setattr(instances, '_BLOCK_PX', 256)

  def peak(height):
    source, output = tmp_path / f'{height}.npy', tmp_path / f'{height}.tif'
    np.save(source, np.ones((1, height, 256), np.float32))
    tracemalloc.start()
    instances.label_files(source, output)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tifffile.imread(output) == 1).all()
    return used

  peak(256)  # Imports.
  assert peak(32 * 256) < 1.2 * peak(2 * 256)


def test_a_full_disk_ends_with_one_line(tmp_path):
  files.write_stack(tmp_path / 'in.tif', np.ones((1, 40, 50), np.float32))
  command = [sys.executable, '-m', 'segjax.instances']
  paths = [f'--input={tmp_path}/in.tif', f'--output={tmp_path}/out.tif']
  limited = ['bash', '-c', 'ulimit -f 2; exec "$@"', '', *command, *paths]
  process = subprocess.run(
    limited, capture_output=True, text=True, cwd=REPOSITORY
  )
  assert process.returncode == 2
  message = f'error: {tmp_path}/out.tif: cannot be written; File too large\n'
  assert process.stderr == message
  assert [file.name for file in tmp_path.iterdir()] == ['in.tif']
