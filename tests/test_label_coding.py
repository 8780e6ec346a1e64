# SPDX-License-Identifier: Apache-2.0
"""Tests of indices and colours that say classes."""

import numpy as np
import pytest

from segjax.data.label_coding import LabelCoding
from segjax.errors import InputError

COLOURS = ((9, 8, 7), (0, 200, 3), (0, 3, 200))
LABEL = np.random.default_rng(0).integers(0, 3, (4, 6))


def decode(stored, *arguments):
  return LabelCoding(*arguments).decode(np.asarray(stored), 'some.png')


@pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
def test_indices(dtype):
  label = decode(LABEL[..., None].astype(dtype), 3, (), ())
  assert label.dtype == np.int32
  np.testing.assert_array_equal(label, LABEL)


def test_colours():
  label = decode(np.uint8(COLOURS)[LABEL], 3, COLOURS, ())
  assert label.dtype == np.int32
  np.testing.assert_array_equal(label, LABEL)


@pytest.mark.parametrize('num_classes', [2, 3])  # Beside the classes, or one.
def test_ignored_index(num_classes):
  label = decode(np.uint8(LABEL)[..., None], num_classes, (), (2,))
  np.testing.assert_array_equal(label, np.where(LABEL == 2, 255, LABEL))


def test_ignored_colour():
  label = decode(np.uint8(COLOURS)[LABEL], 2, COLOURS[:2], COLOURS[2])
  np.testing.assert_array_equal(label, np.where(LABEL == 2, 255, LABEL))


@pytest.mark.parametrize(
  'dtype, values', [('uint8', (255, 0, 7)), ('uint16', (0, 65535, 255))]
)
@pytest.mark.parametrize('ignore_value', [(), (255,)])
def test_values_of_classes(dtype, values, ignore_value):
  """Also where one of them is the ignored one."""
  stored = np.array(values, dtype)[LABEL][..., None]
  np.testing.assert_array_equal(
    decode(stored, 3, (), ignore_value, values), LABEL
  )
  # Another value is ignored where that is said, and else refused.
  stored[2, 5] = 9
  label = decode(stored, 3, (), (9,), values)
  assert label[2, 5] == 255 and (label == 255).sum() == 1
  stored[2, 4] = 1
  message = (
    'label 1 in row 2, column 4 .*expected one of label_values=.*; the values '
    'in this label are 0, 1, '
  )
  with pytest.raises(InputError, match=message):
    decode(stored, 3, (), (9,), values)


@pytest.mark.parametrize('ignore_value', [(), (254,)])
def test_255_is_ignored_only_if_said(ignore_value):
  stored = np.uint8(LABEL)[..., None]
  stored[2, 5] = 255
  with pytest.raises(InputError, match='label 255 in row 2, column 5 .*0..2'):
    decode(stored, 3, (), ignore_value)
  assert decode(stored, 3, (), (255,))[2, 5] == 255


@pytest.mark.parametrize(
  'num_classes, colours, ignore_value, message',
  [
    (0, (), (), '0 class names; expected 1 to 255'),
    (256, (), (), '256 class names; expected 1 to 255'),
    (3, COLOURS[:2], (), '2 colours for 3 classes'),
    (1, ((1, 2),), (), r'colour \(1, 2\); expected'),
    (1, ((1, 2, 256),), (), r'colour \(1, 2, 256\); expected'),
    (2, COLOURS[:1] * 2, (), r'\(9, 8, 7\) is given twice'),
    (3, COLOURS, COLOURS[1], r'\(0, 200, 3\) is given twice'),
    (3, COLOURS, (255,), r'expected \(red, green, blue\)'),
    (3, (), (0, 0, 0), r'expected \(index,\)'),
  ],
)
def test_impossible_codings_are_refused(
  num_classes, colours, ignore_value, message
):
  with pytest.raises(InputError, match=message):
    LabelCoding(num_classes, colours, ignore_value)


@pytest.mark.parametrize(
  'values, colours, message',
  [
    ((0, 255), COLOURS, 'label_values=.* and colours=.*one of them'),
    ((0, 255), (), r'label_values=\(0, 255\) for 3 classes'),
    ((0, 255, 0), (), 'a different value for each'),
    ((0, 255, 65536), (), 'whole numbers in 0..65535'),
    ((0, 255, -1), (), 'whole numbers'),
  ],
)
def test_impossible_values_are_refused(values, colours, message):
  with pytest.raises(InputError, match=message):
    LabelCoding(3, colours, (), values)
