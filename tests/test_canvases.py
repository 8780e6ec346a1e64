# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tensorstore
import tifffile

from segjax.errors import InputError
from segjax.images import canvases, files


def read(path, shape):
  if path.suffix == '.npy':
    return np.load(path)
  if path.suffix == '.tif':
    with tifffile.TiffFile(path) as tif:
      return np.stack([page.asarray() for page in tif.pages]).reshape(shape)
  spec = {'driver': 'zarr3', 'kvstore': f'file://{path}/'}
  return tensorstore.open(spec).result().read().result()


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float16', 'float32'])
@pytest.mark.parametrize('shape', [(2, 40, 50), (1, 40, 50, 3), (3, 40, 50, 1)])
@pytest.mark.parametrize('ending', ['.tif', '.npy', '.zarr'])
def test_windows_in_two_openings_make_the_stack(
  tmp_path, ending, shape, dtype, monkeypatch
):
  monkeypatch.setattr(canvases, 'CHUNK', 24)  # Windows share chunks.
  stack = (200 * np.random.default_rng(0).random(shape)).astype(dtype)
  path = tmp_path / f'a{ending}'
  for parity in (0, 1):
    with canvases.open_canvas(path, shape, dtype) as canvas:
      for page in range(shape[0]):
        for i, j in np.ndindex(3, 4):
          rows = slice(16 * i, min(16 * i + 16, 40))
          columns = slice(16 * j, min(16 * j + 16, 50))
          if (i + j) % 2 == parity:
            canvas[page, rows, columns] = stack[page, rows, columns]
      canvas.sync()
    written = read(path, shape)
    assert written.dtype == dtype
    # Of the first half, the others are 0 still.
    assert parity or not written[0, 0:16, 16:32].any()
  np.testing.assert_array_equal(written, stack)
  if ending == '.tif' and dtype != 'float16':
    files.write_stack(tmp_path / 'b.tif', stack)
    assert path.read_bytes() == (tmp_path / 'b.tif').read_bytes()


def test_large_tiff_is_a_bigtiff_and_costs_no_disk(tmp_path):
  path, shape = tmp_path / 'a.tif', (2, 40000, 40000)
  with canvases.open_canvas(path, shape, np.float32) as canvas:
    canvas[1, slice(39999, 40000), slice(39998, 40000)] = np.float32([[1, 2]])
  assert path.stat().st_blocks * 512 < 2**20
  with tifffile.TiffFile(path) as tif:
    assert tif.is_bigtiff and len(tif.pages) == 2
  assert np.memmap(path, np.float32, mode='r')[-2:].tolist() == [1, 2]


def test_unknown_ending_and_too_large(tmp_path):
  with pytest.raises(InputError, match="'.png' is none of .tif"):
    with canvases.open_canvas(tmp_path / 'a.png', (1, 2, 2), np.uint8):
      pass
  with pytest.raises(OSError, match='File too large'):
    with canvases.open_canvas(tmp_path / 'a.npy', (1, 2**31, 2**31), 'f4'):
      pass
