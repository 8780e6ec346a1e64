# SPDX-License-Identifier: Apache-2.0
"""The closed forms against a walk through the layers, one size at a time."""

import pytest

from segjax.errors import InputError
from segjax.geometry import UNetGeometry

pytestmark = pytest.mark.smoke

DEPTHS = range(5)
CONVS = (1, 2, 3)


def walk(size, depth, convs, contracting=()):
  """Output size and crops of a valid U-Net, layer by layer; None if none."""
  contracting = contracting or [convs] * (depth + 1)
  skips = []
  for level in range(depth):
    size -= 2 * contracting[level]
    if size < 2 or size % 2:
      return None
    skips.append(size)
    size //= 2
  size -= 2 * contracting[depth]
  crops = []
  for skip in reversed(skips):
    size *= 2
    if (skip - size) % 2 or size < 1:
      return None
    crops.insert(0, (skip - size) // 2)
    size -= 2 * convs
  return (size, crops) if size > 0 else None


@pytest.mark.parametrize(
  ('depth', 'convs', 'contracting'),
  [
    *((depth, convs, ()) for depth in DEPTHS for convs in CONVS),
    (4, 2, (2, 2, 3, 3, 3)),  # VGG16
    (3, 1, (3, 1, 2, 4)),
    (2, 3, (1, 1, 1)),
  ],
)
def test_valid_sizes_and_crops_are_those_of_a_walk(depth, convs, contracting):
  geometry = UNetGeometry(depth, convs, contracting_convs=contracting)
  admissible = 0
  for size in range(1, 700):
    walked = walk(size, depth, convs, contracting)
    if walked is None:
      with pytest.raises(InputError, match='not admissible'):
        geometry.output_size(size)
    else:
      admissible += 1
      assert geometry.output_size(size) == walked[0]
      assert [geometry.crop(level) for level in range(depth)] == walked[1]
  assert admissible > 5


def test_the_papers_numbers():
  geometry = UNetGeometry()
  assert geometry.output_size(572) == 388
  assert geometry.margin == 92
  assert [geometry.crop(level) for level in range(4)] == [88, 40, 16, 4]
  assert geometry.input_size(1) == 188
  assert geometry.input_size(512) == 700


@pytest.mark.parametrize('padding', ['VALID', 'SAME'])
@pytest.mark.parametrize('convs', CONVS)
@pytest.mark.parametrize('depth', DEPTHS)
def test_input_size_is_the_smallest_with_that_core(depth, convs, padding):
  geometry = UNetGeometry(depth, convs, padding)

  def core(size):
    return geometry.output_size(size) - 2 * geometry.core_offset

  for wanted in range(1, 70):
    size = geometry.input_size(wanted)
    assert core(size) >= wanted
    smaller = size - geometry.period
    if smaller >= geometry.input_size(1):
      assert core(smaller) < wanted


def test_an_error_names_the_rule_and_the_nearest_sizes():
  with pytest.raises(InputError) as error:
    UNetGeometry().output_size(573)
  for part in ('573', '188 + 16 j', 'nearest: 572 and 588'):
    assert part in str(error.value)


@pytest.mark.parametrize(
  'fields',
  [
    {'depth': -1},
    {'convs_per_block': 0},
    {'padding': 'FULL'},
    {'contracting_convs': (2, 2)},
  ],
)
def test_impossible_networks_are_refused(fields):
  with pytest.raises(InputError):
    UNetGeometry(**fields)
