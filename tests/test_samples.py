# SPDX-License-Identifier: Apache-2.0
"""What stored samples mean, as images and as labels, against other readers."""

import itertools
import json
import struct

import numpy as np
import pytest
import tensorstore
import tifffile
from inputs import png_of, random_stack
from PIL import Image, ImageOps, UnidentifiedImageError

from segjax.errors import InputError
from segjax.images import files, windows
from segjax.images.labels import label_of
from segjax.images.pixels import image_of

SIZE = 16, 37
GRAYS = np.random.default_rng(0).permutation(256).astype(np.uint8)


def turned(array, orientation):
  """Returns what Pillow makes of an image [H, W, ...] of this orientation."""
  numbers = np.arange(array.shape[0] * array.shape[1], dtype=np.int32)
  picture = Image.fromarray(numbers.reshape(array.shape[:2]))
  picture.getexif()[0x0112] = orientation
  order = np.asarray(ImageOps.exif_transpose(picture))
  return array.reshape(-1, *array.shape[2:])[order]


def assert_read(path, expected, meaning=image_of):
  """Whole and by windows, [H, W] or [H, W, C]."""
  expected = expected.reshape(*expected.shape[:2], -1)
  with files.open_rasters(path, meaning) as [page]:
    assert (page.shape, page.dtype) == (expected.shape, expected.dtype)
    height, width, _ = page.shape
    for rows, columns in (
      (slice(0, height), slice(0, width)),
      (slice(1, 9), slice(2, 13)),
      (slice(height - 1, height), slice(width - 2, width)),
    ):
      np.testing.assert_array_equal(
        page[rows, columns], expected[rows, columns]
      )
  read = files.read_labels if meaning is label_of else files.read_stack
  np.testing.assert_array_equal(read(path), expected[None])


def as_pillow_shows(path):
  """Returns the pixels that Pillow shows, or None where it cannot read them."""
  try:
    with Image.open(path) as picture:
      picture = ImageOps.exif_transpose(picture)
      if picture.mode == 'P':
        picture = picture.convert('RGB')
      if picture.mode == '1':
        picture = picture.convert('L')
      return np.asarray(picture)
  except (UnidentifiedImageError, OSError, ValueError):
    return None


def tiffs():
  """Yields photometric, bits, planes and samples that tifffile writes."""
  for bits in (1, 2, 4, 8, 10, 12, 14, 16):
    yield 'minisblack', bits, 'contig', 1
    yield 'miniswhite', bits, 'contig', 1
    for planes in ('contig', 'separate'):
      if bits >= 8:
        yield 'rgb', bits, planes, 3
        yield 'minisblack', bits, planes, 4
  for bits in (8, 16):
    yield 'palette', bits, 'contig', 1
    yield 'gray palette', bits, 'contig', 1


@pytest.mark.parametrize(
  ('photometric', 'bits', 'planes', 'samples'), list(tiffs()), ids=str
)
def test_tiff_is_read_as_others_show_it(
  tmp_path, photometric, bits, planes, samples
):
  dtype = np.dtype(bool if bits == 1 else 'u1' if bits <= 8 else 'u2')
  stored = random_stack((*SIZE, samples), 'uint16') >> (16 - bits)
  stored = stored.astype(dtype)
  full, top = 2**bits - 1, 255 if bits <= 8 else 65535
  # Rounded halves up, in whole numbers.
  shown = (2 * stored.astype(np.int64) * top + full) // (2 * full)
  options = {'photometric': photometric, 'bitspersample': bits}
  if 'palette' in photometric:
    colours = random_stack((3, full + 1), seed=1)
    if photometric == 'gray palette':
      colours = np.tile(GRAYS[np.arange(full + 1) % 256], (3, 1))
    options |= {
      'photometric': 'palette',
      'colormap': colours.astype(np.uint16) * 257,
    }
    shown, top = colours.T[stored[..., 0].astype(int)], 255
    if photometric == 'gray palette':
      shown = shown[..., :1]
  elif photometric == 'miniswhite':
    shown = top - shown
  shown = shown.astype('u1' if top == 255 else 'u2')
  written = stored[..., 0] if samples == 1 else stored
  if samples > 1:
    options['planarconfig'] = planes
    if samples > 3:
      options['extrasamples'] = ['unspecified'] * (samples - 1)
  if planes == 'separate':
    written = np.moveaxis(stored, -1, 0)
  path = tmp_path / 'a.tif'
  layouts = [{}, {'rowsperstrip': 5}]
  if bits in (1, 8, 16):  # tifffile compresses no others.
    layouts.append({'tile': (16, 16), 'compression': 'zlib'})
  compared = 0
  for orientation, layout in itertools.product(range(1, 9), layouts):
    tag = ('Orientation', 'H', 1, orientation, True)
    tifffile.imwrite(
      path, written, extratags=[tag], metadata=None, **options, **layout
    )
    expected = turned(shown, orientation)
    assert_read(path, expected)
    if photometric == 'miniswhite':
      with pytest.raises(InputError, match='0 is white'):
        files.read_labels(path)
    else:
      label = turned(stored, orientation)
      label = label.astype('u1') if bits == 1 else label
      assert_read(path, label, label_of)
    by_pillow = as_pillow_shows(path)
    # From 5 on, Pillow 13 itself depends on the compression.
    if by_pillow is not None and bits <= 8 and samples <= 3 and orientation < 5:
      compared += 1
      if photometric == 'gray palette':
        by_pillow = by_pillow[..., :1]
      np.testing.assert_array_equal(by_pillow.reshape(expected.shape), expected)
  if bits in (1, 8) and samples <= 3:
    assert compared == 4 * len(layouts)


@pytest.mark.parametrize(
  ('mode', 'compression'),
  [
    *itertools.product(
      ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16', 'F'],
      [None, 'tiff_lzw', 'packbits', 'tiff_adobe_deflate'],
    ),
    *itertools.product(['L', 'RGB'], ['jpeg']),
  ],
)
def test_tiff_of_pillow_is_read_as_it_shows_it(tmp_path, mode, compression):
  smooth = np.add.outer(np.arange(16), np.arange(37)).astype(np.uint8) * 4
  picture = Image.fromarray(np.dstack([smooth, 255 - smooth, smooth // 2]))
  if mode == 'I;16':
    picture = Image.fromarray(smooth.astype(np.uint16) * 257)
  else:
    picture = picture.convert(mode)
  path = tmp_path / 'a.tif'
  picture.save(path, compression=compression)
  with Image.open(path) as shown:
    if mode == 'P':
      shown = shown.convert('RGB')
    expected = np.asarray(shown).reshape(16, 37, -1)
  if mode == '1':
    expected = expected * np.uint8(255)
  if mode in ('LA', 'RGBA'):
    expected = expected[..., :-1]
  [read] = files.read_stack(path)
  assert (read.shape, read.dtype) == (expected.shape, expected.dtype)
  if compression == 'jpeg':  # Other decoders round in another way.
    np.testing.assert_allclose(read.astype(int), expected, atol=3)
  else:
    assert_read(path, expected)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_pictures_are_turned_by_their_own_tag(tmp_path, orientation):
  colours = np.kron(random_stack((2, 5, 3)), np.ones((8, 8, 1), np.uint8))
  exif = Image.Exif()
  exif[0x0112] = orientation
  for ending in ('png', 'jpg', 'webp'):
    path = tmp_path / f'a.{ending}'
    Image.fromarray(colours).save(path, exif=exif)
    assert_read(path, as_pillow_shows(path))
  assert_read(tmp_path / 'a.png', turned(colours, orientation), label_of)
  # Some programs put the tag behind the pixels.
  data = (tmp_path / 'a.png').read_bytes()
  at = data.index(b'eXIf') - 4
  size = 12 + int.from_bytes(data[at : at + 4], 'big')
  moved = data[:at] + data[at + size : -12] + data[at : at + size] + data[-12:]
  (tmp_path / 'b.png').write_bytes(moved)
  assert_read(tmp_path / 'b.png', turned(colours, orientation))


@pytest.mark.parametrize('ending', ['png', 'bmp', 'gif', 'tif'])
@pytest.mark.parametrize('is_gray', [True, False])
def test_palette_means_colours_in_images_and_indices_in_labels(
  tmp_path, ending, is_gray
):
  indices = random_stack(SIZE) % 250
  table = (
    np.stack([GRAYS, GRAYS, GRAYS], 1)
    if is_gray
    else random_stack((256, 3), seed=2)
  )
  picture = Image.fromarray(indices).convert('P')
  picture.putdata(indices.ravel().tolist())
  picture.putpalette(table.tobytes())
  path = tmp_path / f'a.{ending}'
  options = {'optimize': False} if ending == 'gif' else {}
  picture.save(path, **options)
  shown = table[indices]
  np.testing.assert_array_equal(as_pillow_shows(path), shown)
  assert_read(path, shown[..., :1] if is_gray else shown)
  assert_read(path, indices, label_of)


def test_index_without_a_colour_is_refused(tmp_path):
  header = struct.pack('>IIBBBBB', 2, 1, 8, 3, 0, 0, 0)
  data = png_of(header, bytes([0, 0, 9]), [(b'PLTE', bytes(6))])
  (tmp_path / 'a.png').write_bytes(data)
  with pytest.raises(InputError, match='index 9 in a palette of 2 colours'):
    files.read_stack(tmp_path / 'a.png')


def test_gray_and_colours_of_bmp_and_frames_of_gif(tmp_path):
  colours = random_stack((3, *SIZE, 3))
  Image.fromarray(colours[0]).save(tmp_path / 'a.bmp')
  assert_read(tmp_path / 'a.bmp', colours[0])
  assert_read(tmp_path / 'a.bmp', colours[0], label_of)
  Image.fromarray(colours[0, ..., 0]).save(tmp_path / 'g.bmp')
  assert_read(tmp_path / 'g.bmp', colours[0, ..., 0])
  Image.fromarray(colours[0, ..., 0] > 99).save(tmp_path / 'b.bmp')
  assert_read(tmp_path / 'b.bmp', 255 * np.uint8(colours[0, ..., 0] > 99))
  assert_read(tmp_path / 'b.bmp', np.uint8(colours[0, ..., 0] > 99), label_of)
  frames = [Image.fromarray(c).quantize(16) for c in colours]
  frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
  read = files.read_stack(tmp_path / 'a.gif')
  for page, frame in zip(read, frames, strict=True):
    np.testing.assert_array_equal(page, np.asarray(frame.convert('RGB')))
  frames = [Image.fromarray(c[..., 0]) for c in colours]
  frames[0].save(tmp_path / 'g.gif', save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(
    files.read_stack(tmp_path / 'g.gif'), colours[..., :1]
  )
  with pytest.raises(InputError, match='GIF animation changes values'):
    files.read_labels(tmp_path / 'g.gif')


@pytest.mark.parametrize('name', ['a.png', 'a.webp', 'a.tif'])
def test_lossy_labels_are_refused_by_their_content(tmp_path, name):
  label = np.zeros(SIZE, np.uint8)
  kind = {'a.png': 'JPEG', 'a.webp': 'WEBP', 'a.tif': 'TIFF'}[name]
  options = {'compression': 'jpeg'} if kind == 'TIFF' else {}
  with open(tmp_path / name, 'wb') as file:
    Image.fromarray(label).save(file, kind, **options)
  files.read_stack(tmp_path / name)
  with pytest.raises(InputError, match='changes values; .* PNG or TIFF'):
    files.read_labels(tmp_path / name)


def test_alpha_is_dropped_only_if_the_file_says_that_it_is(tmp_path):
  four = random_stack((*SIZE, 4))
  path = tmp_path / 'a.tif'
  for photometric in ('rgb', 'minisblack'):
    for extra in ('unspecified', 'unassalpha', 'assocalpha'):
      count = 1 if photometric == 'rgb' else 3
      extras = ['unspecified'] * (count - 1) + [extra]
      tifffile.imwrite(path, four, photometric=photometric, extrasamples=extras)
      assert_read(path, four if extra == 'unspecified' else four[..., :3])


def test_labels_take_alpha_that_is_constant(tmp_path):
  colours = random_stack((*SIZE, 3))
  alpha = np.full((*SIZE, 1), 255, np.uint8)
  for ending in ('png', 'tif'):
    path = tmp_path / f'a.{ending}'
    Image.fromarray(np.dstack([colours, alpha])).save(path)
    assert_read(path, colours, label_of)
    Image.fromarray(np.dstack([colours[..., :1], alpha])).save(path)
    assert_read(path, colours[..., 0], label_of)
  alpha[9, 3] = 254
  Image.fromarray(np.dstack([colours, alpha])).save(path)
  with pytest.raises(InputError, match='alpha channel that varies'):
    files.read_labels(path)


WIDE = {
  'int8': [-128, 127],
  'int16': [-1024, 3071],
  'int32': [-(2**24), 2**24],
  'uint32': [0, 2**24],
  'int64': [-5, 2**24],
  'uint64': [0, 2**24],
  'float16': [-2.0, 2048.0],
  'float32': [-7.0, 1e6],
  'float64': [-7.0, 2.0**24],
}


@pytest.mark.parametrize('ending', ['tif', 'npy'])
@pytest.mark.parametrize('dtype', WIDE)
def test_wide_types_keep_their_values(tmp_path, capsys, dtype, ending):
  path = tmp_path / f'a.{ending}'
  array = np.resize(np.array(WIDE[dtype], dtype), SIZE)

  def write(array):
    if ending == 'npy':
      np.save(path, array)
    else:
      tifffile.imwrite(path, array, photometric='minisblack')

  write(array)
  windows._said.clear()
  assert_read(path, array.astype(np.float32))
  said = capsys.readouterr().out.splitlines()
  line = f'{path}: images of {dtype} are read as float32, their values '
  how = 'rounded to about seven digits' if dtype == 'float64' else 'unchanged'
  assert said == ([] if dtype == 'float32' else [f'{line}{how}'])
  assert_read(path, array.astype(np.int32), label_of)
  if dtype[0] == 'f':
    array[2, 3] = 0.5
    write(array)
    with pytest.raises(InputError, match='label 0.5 in row 2, column 3'):
      files.read_labels(path)
  if dtype in ('int32', 'uint32', 'int64'):
    array[2, 3] = 2**24 + 1
    write(array)
    with pytest.raises(InputError, match='pixel 16777217 of .* float32'):
      files.read_stack(path)
    assert files.read_labels(path)[0, 2, 3, 0] == 2**24 + 1
  if dtype in ('uint32', 'int64', 'float64'):
    array[2, 3] = 2**31
    write(array)
    with pytest.raises(InputError, match=r'label 2147483648.*row 2, column 3'):
      files.read_labels(path)


def test_float_that_float32_cannot_hold_is_refused(tmp_path):
  np.save(tmp_path / 'a.npy', np.full(SIZE, 1e300))
  with pytest.raises(InputError, match=r'1e\+300 of float64'):
    files.read_stack(tmp_path / 'a.npy')


def test_bool_array_is_black_and_white_or_0_and_1(tmp_path):
  bits = random_stack(SIZE) > 99
  np.save(tmp_path / 'a.npy', bits)
  assert_read(tmp_path / 'a.npy', 255 * np.uint8(bits))
  assert_read(tmp_path / 'a.npy', np.uint8(bits), label_of)


@pytest.mark.parametrize('kind', ['imagej', 'ome', 'tifffile'])
@pytest.mark.parametrize('axes', ['TCYX', 'TZCYX', 'CZYX', 'CYX', 'ZYX', 'YX'])
def test_axes_of_the_file_are_honoured(tmp_path, kind, axes):
  if kind == 'imagej' and axes == 'CZYX':
    return  # ImageJ's order is always TZC.
  sizes = {'T': 3, 'Z': 4, 'C': 2, 'Y': 16, 'X': 37}
  array = random_stack([sizes[axis] for axis in axes])
  path = tmp_path / ('a.ome.tif' if kind == 'ome' else 'a.tif')
  for options in ({}, {'compression': 'zlib'}):
    tifffile.imwrite(
      path,
      array,
      imagej=kind == 'imagej',
      photometric='minisblack',
      metadata={'axes': axes},
      **options,
    )
    expected = array
    if 'C' in axes:
      expected = np.moveaxis(array, axes.index('C'), -1)
    channels = 2 if 'C' in axes else 1
    expected = expected.reshape(-1, *SIZE, channels)
    read = files.read_stack(path)
    assert read.shape == expected.shape
    np.testing.assert_array_equal(read, expected)
    with files.open_rasters(path) as pages:
      np.testing.assert_array_equal(
        pages[-1][slice(3, 9), slice(5, 6)], expected[-1, 3:9, 5:6]
      )


def test_ome_tiff_of_several_files_is_refused(tmp_path):
  path = tmp_path / 'a.ome.tif'
  array = random_stack((2, *SIZE))
  tifffile.imwrite(path, array, metadata={'axes': 'CYX'})
  with tifffile.TiffFile(path) as tif:
    own = tif.ome_metadata
  plane = '<UUID FileName="b.ome.tif">urn:uuid:0-1</UUID>'
  other = own.replace('</Pixels>', f'<TiffData>{plane}</TiffData></Pixels>')
  for pages in (array, array[:1]):
    tifffile.imwrite(
      path,
      pages,
      description=other,
      metadata=None,
      photometric='minisblack',
    )
    if len(pages) == 1:
      np.testing.assert_array_equal(files.read_stack(path)[..., 0], pages)
      # Of a set with more planes than a small file may have pages.
      many = other.replace('SizeT="1"', 'SizeT="99999"')
      assert many != other
      tifffile.imwrite(
        path, pages, description=many, metadata=None, photometric='minisblack'
      )
      np.testing.assert_array_equal(files.read_stack(path)[..., 0], pages)
    else:
      with pytest.raises(InputError, match='one of several files'):
        files.read_stack(path)


def test_reduced_pages_and_masks_are_passed_over(tmp_path):
  path = tmp_path / 'a.tif'
  array = random_stack((2, *SIZE))
  with tifffile.TiffWriter(path) as tif:
    for page in array:
      tif.write(page, photometric='minisblack', metadata=None)
      tif.write(page[::2, ::2].copy(), subfiletype=1, metadata=None)
      tif.write(page > 3, photometric=4, subfiletype=4, metadata=None)
  np.testing.assert_array_equal(files.read_stack(path)[..., 0], array)


def test_codecs_and_colours_that_are_not_read_are_named(tmp_path):
  path = tmp_path / 'a.tif'
  array = random_stack(SIZE)

  def error(tag, value, **options):
    tifffile.imwrite(path, array, compression='zlib', **options)
    with tifffile.TiffFile(path, mode='r+b') as tif:
      for name, given in zip(tag, value, strict=True):
        tif.pages[0].tags[name].overwrite(given)
    with pytest.raises(InputError) as caught:
      files.read_stack(path)
    return str(caught.value)

  assert 'codec JBIG is not supported' in error(['Compression'], [34661])
  said = error(['PhotometricInterpretation'], [8])
  assert 'colours are stored as CIELAB' in said
  tags = ['StripOffsets', 'StripByteCounts']
  said = error(tags, [(0,) * 16, (0,) * 16], rowsperstrip=1)
  assert '16 of 16 strips or tiles of page 0 are not stored' in said
  for compression in ('group3', 'group4', 'tiff_ccitt'):
    Image.fromarray(array > 99).save(path, compression=compression)
    with pytest.raises(
      InputError, match='codec CCITT.* is not supported; save'
    ):
      files.read_labels(path)


@pytest.mark.parametrize(
  'shape', [*((16, 37, channels) for channels in range(1, 6)), (3, 16, 37)]
)
def test_npy_and_zarr_of_two_readings_are_refused(tmp_path, shape):
  array = random_stack(shape)
  np.save(tmp_path / 'a.npy', array)
  kvstore = {'driver': 'file', 'path': f'{tmp_path}/a.zarr/'}
  store = tensorstore.open(
    {'driver': 'zarr', 'kvstore': kvstore},
    create=True,
    shape=shape,
    dtype=array.dtype,
  ).result()
  store[:] = array
  for name in ('a.npy', 'a.zarr'):
    with pytest.raises(InputError, match=r'page\S* \[N,H,W\].*save it as \['):
      files.read_stack(tmp_path / name)
  # Labels of several channels are stored as [H,W,C].
  if shape[0] == 3:
    np.testing.assert_array_equal(
      files.read_labels(tmp_path / 'a.npy')[..., 0], array
    )
  else:
    with pytest.raises(InputError, match=r'one image \[H,W,C\]'):
      files.read_labels(tmp_path / 'a.npy')


def write_zarr(folder, compressor=None, filters=None, separator=None, name=''):
  """Writes a Zarr v2 of 4 x 6 in four chunks; returns the array."""
  array = random_stack((4, 6))
  folder.mkdir(parents=True)
  metadata = {
    'zarr_format': 2,
    'shape': array.shape,
    'chunks': [2, 3],
    'dtype': '|u1',
    'compressor': compressor,
    'fill_value': 0,
    'order': 'C',
    'filters': filters,
  }
  if name:
    metadata['dimension_separator'] = name
  (folder / '.zarray').write_text(json.dumps(metadata))
  for i, j in np.ndindex(2, 2):
    data = array[2 * i : 2 * i + 2, 3 * j : 3 * j + 3].tobytes()
    if compressor and compressor['id'] == 'zstd':
      data = tifffile.TIFF.COMPRESSORS[50000](data)
    path = folder / f'{i}{separator or "."}{j}'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
  return array


@pytest.mark.parametrize('separator', ['.', '/'])
@pytest.mark.parametrize('checksum', [None, False, True])
def test_zarr_v2_nested_and_with_checksums(tmp_path, separator, checksum):
  compressor = None
  if checksum is not None:
    compressor = {'id': 'zstd', 'level': 0, 'checksum': checksum}
  for name in ('', separator):
    # A Zarr is known by its files, whatever its name.
    folder = tmp_path / f'image{len(name)}' / '0'
    array = write_zarr(folder, compressor, None, separator, name)
    assert_equal = np.testing.assert_array_equal
    assert_equal(files.read_stack(folder)[0, ..., 0], array)
    assert files.list_rasters(folder) == [folder]
    assert files.list_rasters(folder.parent) == [folder]


@pytest.mark.parametrize(
  ('options', 'codec'),
  [
    ({'compressor': {'id': 'lz4', 'acceleration': 1}}, 'lz4'),
    ({'compressor': {'id': 'lzma'}}, 'lzma'),
    ({'filters': [{'id': 'delta', 'dtype': '|u1'}]}, 'delta'),
  ],
)
def test_zarr_codec_that_is_not_supported_is_named(tmp_path, options, codec):
  write_zarr(tmp_path / 'a.zarr', **options)
  with pytest.raises(InputError, match=f'codec {codec} is not supp') as caught:
    files.read_stack(tmp_path / 'a.zarr')
  assert len(str(caught.value)) < 300


def test_missing_chunks_of_a_zarr(tmp_path, capsys):
  folder = tmp_path / 'a.zarr'
  array = write_zarr(folder)
  (folder / '1.1').unlink()
  array[2:, 3:] = 0
  np.testing.assert_array_equal(files.read_stack(folder)[0, ..., 0], array)
  assert '1 of 4 chunks are missing and read as 0' in capsys.readouterr().out
  for file in folder.glob('?.?'):
    file.unlink()
  with pytest.raises(InputError, match='none of its 4 chunks is there'):
    files.read_stack(folder)
  with files.open_canvas(tmp_path / 'b.zarr', (1, 4, 6), 'uint8') as canvas:
    canvas[0, slice(0, 4), slice(0, 6)] = np.zeros((4, 6), np.uint8)
  assert not files.read_stack(tmp_path / 'b.zarr').any()
  assert not capsys.readouterr().out  # Chunks of zeros are written.
  for file in (tmp_path / 'b.zarr' / '0' / 'c').rglob('0'):
    if file.is_file():
      file.unlink()
  with pytest.raises(InputError, match='none of its 1 chunks is there'):
    files.read_stack(tmp_path / 'b.zarr')


@pytest.mark.parametrize('series', [1, 2])
def test_bioformats2raw_layout(tmp_path, series):
  folder = tmp_path / 'a.zarr'
  for i in range(series):
    array = write_zarr(folder / f'{i}' / '0')
    axes = [{'name': 'y'}, {'name': 'x'}]
    multiscales = [{'axes': axes, 'datasets': [{'path': '0'}]}]
    attributes = json.dumps({'multiscales': multiscales})
    (folder / f'{i}' / '.zattrs').write_text(attributes)
  (folder / '.zattrs').write_text('{"bioformats2raw.layout": 3}')
  (folder / 'OME').mkdir()
  if series == 1:
    np.testing.assert_array_equal(files.read_stack(folder)[0, ..., 0], array)
  else:
    with pytest.raises(InputError, match='holds 2 series; name one'):
      files.read_stack(folder)
  np.testing.assert_array_equal(
    files.read_stack(folder / '0')[0, ..., 0], array
  )


def test_files_of_other_endings_are_counted(tmp_path, capsys):
  for name in ('a.png', 'b.webp', 'c.heic', 'd.heic', 'e.txt', '.f.txt'):
    (tmp_path / name).touch()
  windows._said.clear()
  for _ in range(2):
    assert len(files.list_images(tmp_path)) == 2
  said = '3 file(s) of other endings are passed over: .heic .txt'
  assert capsys.readouterr().out == f'{tmp_path}: {said}\n'
