# SPDX-License-Identifier: Apache-2.0
"""The coordinate algebra against walks over taps, and FCN's published sizes."""

import dataclasses
import itertools
from fractions import Fraction

import pytest

from segjax.errors import InputError
from segjax.geometry import (
  Coordinates,
  Deconvolution,
  Footprint,
  crop_offset,
  locate,
  receptive_field,
)
from segjax.models.fcn import (
  FCN8s,
  FCN8sAtOnce,
  FCN16s,
  FCN32s,
  FCNAlexNet,
  FCNGoogLeNet,
)
from segjax.models.googlenet import googlenet

FAMILY = (FCN32s, FCN16s, FCN8s, FCN8sAtOnce, FCNAlexNet, FCNGoogLeNet)
FOOTPRINTS = [
  Footprint(k, s, p)
  for k, s, p in itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1))
  if p < k
]


def centre_of_taps(layers, y):
  """Mean of the first and the last input position that output y depends on."""
  low = high = Fraction(y)
  for layer in reversed(layers):
    if isinstance(layer, Footprint):
      taps = [t - layer.pad for t in range(layer.kernel)]
      low, high = low * layer.stride + taps[0], high * layer.stride + taps[-1]
    else:
      # Input i reaches outputs s i .. s i + k - 1.
      low = (low - layer.kernel + 1) / layer.stride
      high = high / layer.stride
  return (low + high) / 2


@pytest.mark.parametrize('first', FOOTPRINTS)
@pytest.mark.parametrize(
  'rest',
  [
    (),
    (Footprint(3, 2, 1),),
    (Footprint(2, 2), Footprint(3), Deconvolution(4, 2)),
    (Deconvolution(7, 4), Footprint(5, 3)),
  ],
)
def test_a_map_lies_at_the_centre_of_its_taps(first, rest):
  layers = (first, *rest)
  at = locate(layers)
  for y in range(4):
    assert (y - at.shift) / at.scale == centre_of_taps(layers, y)


def placed(footprint, size):
  """Starts of the windows, placed one after another."""
  starts, end = [], size + footprint.pad
  for start in itertools.count(-footprint.pad, footprint.stride):
    is_whole = start + footprint.kernel <= end
    hangs_over = not starts or starts[-1] + footprint.kernel < end
    if footprint.pad:
      hangs_over = hangs_over and start < size
    if not is_whole and not (footprint.ceil and hangs_over):
      return starts
    starts.append(start)


@pytest.mark.parametrize('footprint', FOOTPRINTS)
def test_sizes_by_placing_footprints(footprint):
  for size, ceil in itertools.product(range(1, 14), (False, True)):
    footprint = dataclasses.replace(footprint, ceil=ceil)
    starts = placed(footprint, size)
    if not starts:
      with pytest.raises(InputError, match='too few'):
        footprint.output_size(size)
      continue
    assert footprint.output_size(size) == len(starts)
    after = starts[-1] + footprint.kernel - size
    assert footprint.padding(size) == (footprint.pad, after)


@pytest.mark.parametrize(
  'model, offsets',
  [
    (FCN32s, {'upscore': 19}),
    (FCN16s, {'score_pool4': 5, 'upscore16': 27}),
    (FCN8s, {'score_pool4': 5, 'score_pool3': 9, 'upscore8': 31}),
    (FCN8sAtOnce, {'score_pool4': 5, 'score_pool3': 9, 'upscore8': 31}),
    (FCNAlexNet, {'upscore': 18}),
    (FCNGoogLeNet, {'upscore': 98}),
  ],
)
def test_the_authors_crop_offsets(model, offsets):
  assert model().geometry.offsets == offsets


def test_googlenet_with_its_native_padding_is_cropped_by_1():
  assert FCNGoogLeNet(padding='same').geometry.offsets == {'upscore': 1}


@pytest.mark.parametrize('model', [FCN32s, FCN16s, FCN8s])
def test_same_crops_what_a_deconvolution_adds(model):
  # (k - s) / 2 at each side: padding that deconvolutions in Caffe could have.
  geometry = model(padding='same').geometry
  assert geometry.offsets == {
    up.name: (up.layer.kernel - up.layer.stride) // 2 for up in geometry.decoder
  }


def test_offsets_for_other_paddings_of_the_image():
  # Closed forms of the VGG16 networks: P - 81, P - 73, P - 69.
  for model, least in ((FCN32s, 81), (FCN16s, 73), (FCN8s, 69)):
    geometry = model().geometry
    (_, first), *others = geometry.footprints
    for pad in range(least, 120):
      padded = type(geometry)(
        (('conv1_1', Footprint(first.kernel, pad=pad)), *others),
        geometry.decoder,
      )
      final = geometry.decoder[-1].name
      assert padded.offsets[final] == pad - least
      assert padded.offsets.get('score_pool4', 5) == 5
      assert padded.offsets.get('score_pool3', 9) == 9
    too_small = (('conv1_1', Footprint(first.kernel, pad=least - 1)), *others)
    with pytest.raises(InputError, match='-1 is not an integer >= 0'):
      _ = type(geometry)(too_small, geometry.decoder).offsets


@pytest.mark.parametrize(
  'size, pools, fc6, upscore, up2, up4, upscore8',
  [
    (224, (211, 106, 53, 27, 14), 8, 288, 18, 38, 312),
    (333, (266, 133, 67, 34, 17), 11, 384, 24, 50, 408),
    (375, (287, 144, 72, 36, 18), 12, 416, 26, 54, 440),
    (480, (339, 170, 85, 43, 22), 16, 544, 34, 70, 568),
    (500, (349, 175, 88, 44, 22), 16, 544, 34, 70, 568),
  ],
)
def test_sizes_of_the_authors_maps(
  size, pools, fc6, upscore, up2, up4, upscore8
):
  sizes = FCN8s().geometry.sizes(size)
  assert tuple(sizes[f'pool{i}'] for i in range(1, 6)) == pools
  assert sizes['fc6'] == fc6
  assert sizes['upscore2'] == up2
  assert sizes['upscore_pool4'] == up4
  assert sizes['upscore8'] == upscore8
  assert FCN32s().geometry.sizes(size)['upscore'] == upscore


def test_sizes_of_fcn_alexnet():
  sizes = FCNAlexNet().geometry.sizes(500)
  names = ('conv1', 'pool1', 'pool2', 'pool5', 'fc6', 'upscore')
  assert [sizes[name] for name in names] == [173, 86, 43, 21, 16, 543]


@pytest.mark.parametrize('padding', ['pad100', 'same'])
@pytest.mark.parametrize('model', FAMILY)
def test_the_scores_cover_every_image(model, padding):
  geometry = model(padding=padding).geometry
  offsets = geometry.offsets
  for size in range(1, 600):
    sizes = geometry.sizes(size)
    for up in geometry.decoder:
      have, wanted = sizes[up.name], sizes.get(up.skip, size)
      if up.name not in offsets:
        have, wanted = wanted, have
      name = up.name if up.name in offsets else f'score_{up.skip}'
      assert have >= offsets[name] + wanted, (size, up.name)


def test_receptive_fields():
  assert FCN32s().geometry.receptive_field == 404
  assert FCNAlexNet().geometry.receptive_field == 355
  # The paper's 907 has the average pool that the network drops.
  net = googlenet()
  rows = [row.footprint for row in net.trunk]
  assert receptive_field(rows) == 715
  assert receptive_field(rows + [net.pool[0].footprint]) == 907


def test_impossible_crops_are_refused():
  half = Coordinates(Fraction(1, 2), Fraction(3))
  with pytest.raises(InputError, match='1 and 1/2'):
    crop_offset(Coordinates(), half)
  # A kernel of 64 puts FCN-AlexNet's scores between the pixels.
  footprints = [footprint for _, footprint in FCNAlexNet().geometry.footprints]
  with pytest.raises(InputError, match='37/2 is not an integer'):
    crop_offset(locate([*footprints, Deconvolution(64, 32)]), Coordinates())


def test_a_window_says_how_many_pixels_it_needs():
  with pytest.raises(InputError, match='at least 7 px'):
    Footprint(7).output_size(6)
  assert Footprint(7).output_size(7) == 1
  assert Footprint(3, 2, ceil=True).output_size(1) == 1


def test_an_empty_image_is_refused():
  with pytest.raises(InputError, match='at least 1 px'):
    FCN32s().geometry.output_size(0)
  assert FCN32s().geometry.output_size(1) == 1
