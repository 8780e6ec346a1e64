# SPDX-License-Identifier: Apache-2.0
"""The page and the pictures at the end of a run, read back by parsers."""

import base64
import html.parser
import io
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from commands import tiny_config
from PIL import Image

from segjax.images.files import read_stack
from segjax.runs import curves, report

pytestmark = pytest.mark.smoke

VOID = {'meta', 'img'}
HOSTILE = '"><script>alert(1)</script>&<b>'


class Page(html.parser.HTMLParser):
  """Texts, tags and attributes of a page; raises if its tags don't nest."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.attributes, self.texts = [], [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != 'style' and data.strip():
      self.texts.append(data.strip())


def check_alone(text):
  """Returns a page, which must ask for nothing but what is in it."""
  page = Page(text)
  assert not {'script', 'link', 'iframe', 'object'} & {*page.tags}
  for name, value in page.attributes:
    assert not name.startswith('on') and name != 'href'
    if name == 'src':
      assert value.startswith('data:image/jpeg;base64,')
  assert not re.search(r'https?://|url\(|@import', text)
  return page


def rows_of(steps):
  """Rows of a loss that falls, and of held-out scores that rise and fall."""
  rows = [{'step': s, 'train/loss': 2 / s} for s in range(1, steps + 1)]
  for step, score in ((steps // 2, 0.75), (steps, 0.5)):
    rows.append({'step': step, 'heldout/mean_iu': score, 'heldout/x': None})
  return rows


@pytest.fixture
def run(tmp_path):
  """A workdir with names that would be markup, and a config."""
  workdir = tmp_path / 'a <i>run & more'
  workdir.mkdir()
  lines = [json.dumps(row) for row in rows_of(40)]
  (workdir / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  (workdir / 'labels.txt').write_text(
    f'digest\nlabels: 3 to train on, 1 held out\n'
    f'{HOSTILE}  1,234,567  99.50%  3  60,000  1\n'
  )
  (workdir / 'warnings.txt').write_text(f'loss: has not fallen, {HOSTILE}\n')
  config = tiny_config()
  config.evaluation.best_metric = 'mean_iu'
  config.data.dir = HOSTILE
  return workdir, config


def test_page_shows_all_and_is_alone(run):
  workdir, config = run
  picture = np.zeros((40, 90, 3), np.uint8)
  scores = {'mean_iu': 0.5, 'iu/cell': 0.25, f'iu/{HOSTILE}': float('nan')}
  best, worst = ('b', picture, 0.9), (HOSTILE, picture, 0.1)
  report.finish_run(
    workdir, config, f'title {HOSTILE}', scores, [worst], [best, worst], 'x, y'
  )
  page = check_alone((workdir / 'report.html').read_text())
  texts = '\n'.join(page.texts)
  for text in (
    'a <i>run & more',  # The name of the workdir.
    f'title {HOSTILE}',
    f'has not fallen, {HOSTILE}',
    '1,234,567',  # Of the labels.
    'From left to right: x, y.',
    'best 0.7500 at step 20',  # Of the curve.
    'mean_iu 0.9000',
    repr(HOSTILE),  # Of the settings.
    'num_train_steps',
    report.predict_command(workdir),
  ):
    assert text in texts
  assert page.tags.count('img') == page.tags.count('svg') == 2
  assert dict(page.attributes)['style'].startswith('width:')  # Bars of IU.
  assert 'prefers-color-scheme: dark' in (workdir / 'report.html').read_text()


def test_pictures_of_a_page_fit_a_mail(run):
  workdir, config = run
  noise = np.random.default_rng(0).integers(0, 256, (600, 2000, 3), np.uint8)
  panels = [(f'image {i}', noise, 0.5) for i in range(5)]
  report.finish_run(workdir, config, 'title', {'mean_iu': 1.0}, panels, [])
  text = (workdir / 'report.html').read_text()
  assert len(text.encode()) < 5_000_000
  page = check_alone(text)
  count = page.tags.count('img')
  assert 1 <= count < 5
  assert f'{5 - count} more are in pictures/' in page.texts
  src = dict(page.attributes)['src'].partition(',')[2]
  with Image.open(io.BytesIO(base64.b64decode(src))) as picture:
    assert picture.size == (1600, 480)
  assert len([*(workdir / 'pictures').glob('image_*.png')]) == 5


def test_best_and_worst_have_files_of_this_end_alone(run):
  workdir, config = run
  picture = np.zeros((4, 9, 3), np.uint8)
  for best, metric in ((0.8125, 'mean_iu'), (0.9, 'ap/0.50')):
    config.evaluation.best_metric = metric
    extremes = [('a/../b', picture, best), ('c', picture + 7, 0.25)]
    report.finish_run(
      workdir,
      config,
      'title',
      {metric: 0.5},
      [('c', picture, 0.25)],
      extremes,
    )
  assert sorted(file.name for file in (workdir / 'pictures').iterdir()) == [
    'best_ap_0.50_0.900_a_.._b.png',
    'c.png',
    'learning_curve.png',
    'worst_ap_0.50_0.250_c.png',
  ]
  written = read_stack(workdir / 'pictures' / 'worst_ap_0.50_0.250_c.png')
  np.testing.assert_array_equal(written[0], picture + 7)
  page = check_alone((workdir / 'report.html').read_text())
  assert 'ap/0.50 0.9000' in page.texts and 'ap/0.50 0.2500' in page.texts


def test_page_without_anything_held_out(tmp_path):
  config = tiny_config()
  report.finish_run(tmp_path, config, 'nothing is held out', {}, [], [])
  page = check_alone((tmp_path / 'report.html').read_text())
  assert 'nothing is held out' in page.texts
  assert not (tmp_path / 'scores.txt').exists()


def test_curves_are_where_their_values_are():
  [loss, score] = curves.charts_of(rows_of(40), 'mean_iu')
  assert [curve.name for curve in loss.curves] == ['training']
  svg = xml.etree.ElementTree.fromstring(curves.draw_svg(score))
  texts = {text.text: text.attrib for text in svg.iter('text')}
  dots = [(float(c.get('cx')), float(c.get('cy'))) for c in svg.iter('circle')]
  assert dots[0][0] == pytest.approx((56 + dots[1][0]) / 2, abs=0.1)
  for (_, y), label in zip(dots, ('0.75', '0.5'), strict=False):
    assert y == pytest.approx(float(texts[label]['y']) - 4)  # Its baseline.


def test_losses_over_decades_are_drawn_by_their_logarithm():
  [chart] = curves.charts_of(
    [{'step': 10, 'train/loss': 100.0}, {'step': 20, 'train/loss': 0.01}], ''
  )
  svg = xml.etree.ElementTree.fromstring(curves.draw_svg(chart))
  heights = {t.text: float(t.get('y')) for t in svg.iter('text')}
  assert heights['1'] == pytest.approx((heights['0.01'] + heights['100']) / 2)


@pytest.mark.parametrize('values', [[0.5], [0.0, 0.0], [-1.0, -2.0], [1e-9]])
def test_few_and_equal_values_are_drawn(values):
  rows = [{'step': s, 'train/loss': v} for s, v in enumerate(values)]
  charts = curves.charts_of(rows, '')
  xml.etree.ElementTree.fromstring(curves.draw_svg(charts[0]))
  picture = curves.draw_picture(charts)
  assert picture.dtype == np.uint8 and picture.shape[2] == 3
  assert (picture == curves._COLOURS['train']).all(axis=-1).any()


def test_long_runs_make_no_long_pages():
  [chart] = curves.charts_of(
    [{'step': s, 'train/loss': 1 + s % 2} for s in range(100_000)], ''
  )
  assert len(curves.draw_svg(chart)) < 10_000
