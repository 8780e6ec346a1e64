# SPDX-License-Identifier: Apache-2.0
"""Learning curves, drawn as SVG for the report and as a picture.

`_marks` lays a chart out as lines, dots and texts. `draw_svg` and
`draw_picture` draw these marks.
"""

import functools
import html
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 46, 34
_MOST_POINTS = 240  # Limit of a line; further points are averaged.
_MOST_DOTS = 40
_TEXT_PX = 12
_SCALE = 2  # Pixels of the picture per unit of the layout.
# Lines and dots are blue and vermilion, which colour-blind readers tell apart.
_COLOURS = {
  'train': (0, 114, 178),
  'heldout': (200, 80, 0),
  'axis': (205, 205, 205),
  'text': (70, 70, 70),
  'title': (20, 20, 20),
}


class Curve(NamedTuple):
  """One line of a chart.

  Attributes:
    name: name in the legend.
    role: 'train' or 'heldout', which decides the colour.
    points: (step, value) of each point, finite, by ascending step; at least
      one.
  """

  name: str
  role: str
  points: Sequence[tuple[float, float]]


class Chart(NamedTuple):
  """Curves over the same steps.

  Attributes:
    title: name of the values.
    curves: at least one.
    marks_largest: whether the largest value of the last curve is marked.
  """

  title: str
  curves: Sequence[Curve]
  marks_largest: bool = False


class _Mark(NamedTuple):
  """A line through `points`, a dot at each of them, or a text at the first."""

  kind: str
  role: str
  points: Sequence[tuple[float, float]]
  text: str = ''
  anchor: str = 'start'


def charts_of(rows: Sequence[dict], best_metric: str) -> list[Chart]:
  """Returns the charts for which there are values in rows of metrics.jsonl."""

  def curve(name, role, key):
    points = [
      (row['step'], row[key]) for row in rows if row.get(key) is not None
    ]
    return [Curve(name, role, sorted(points))] if points else []

  losses = curve('training', 'train', 'train/loss')
  losses += curve('held out', 'heldout', 'heldout/loss')
  scores = curve('held out', 'heldout', f'heldout/{best_metric}')
  charts = [Chart('loss', losses)] if losses else []
  if scores:
    charts.append(Chart(best_metric, scores, marks_largest=True))
  return charts


def draw_svg(chart: Chart) -> str:
  """Returns a chart as an SVG element; the roles of marks are CSS classes."""
  parts = [
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
    f'aria-label="{html.escape(chart.title)} over the steps of training">'
  ]
  for mark in _marks(chart):
    if mark.kind == 'line':
      points = ' '.join(f'{x:.1f},{y:.1f}' for x, y in mark.points)
      parts.append(f'<polyline class="{mark.role}" points="{points}"/>')
    for x, y in mark.points if mark.kind == 'dot' else ():
      parts.append(
        f'<circle class="{mark.role}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
      )
    if mark.kind == 'text':
      [(x, y)] = mark.points
      parts.append(
        f'<text class="{mark.role}" x="{x:.1f}" y="{y:.1f}" '
        f'text-anchor="{mark.anchor}">{html.escape(mark.text)}</text>'
      )
  return '\n'.join([*parts, '</svg>'])


def draw_picture(charts: Sequence[Chart]) -> np.ndarray:
  """Returns charts side by side, u8[h, w, 3], dark on white."""
  size = WIDTH * len(charts) * _SCALE, HEIGHT * _SCALE
  canvas = Image.new('RGB', size, (255, 255, 255))
  draw = ImageDraw.Draw(canvas)
  font = ImageFont.load_default(size=_TEXT_PX * _SCALE)
  for column, chart in enumerate(charts):
    for mark in _marks(chart):
      colour = _COLOURS[mark.role]
      points = [
        ((x + column * WIDTH) * _SCALE, y * _SCALE) for x, y in mark.points
      ]
      if mark.kind == 'line':
        width = _SCALE if mark.role == 'axis' else 2 * _SCALE
        draw.line(points, colour, width, joint='curve')
      for x, y in points if mark.kind == 'dot' else ():
        radius = 2.5 * _SCALE
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
      if mark.kind == 'text':
        anchor = {'start': 'ls', 'middle': 'ms', 'end': 'rs'}[mark.anchor]
        draw.text(points[0], mark.text, colour, font, anchor)
  return np.asarray(canvas)


def _marks(chart: Chart) -> Iterator[_Mark]:
  """Yields the marks of a chart, in the units of WIDTH and HEIGHT."""
  values = [value for curve in chart.curves for _, value in curve.points]
  last_step = max(curve.points[-1][0] for curve in chart.curves)
  is_log = 0 < 20 * min(values) < max(values)
  ticks = _log_ticks if is_log else _ticks
  low, high = min(values), max(values)
  if not is_log and 0 <= low <= high / 2:
    low = 0.0
  levels = ticks(low, high)
  low, high = min(low, levels[0]), max(high, levels[-1])
  bend = math.log if is_log else float
  right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

  def x_of(step):
    return _LEFT + (right - _LEFT) * step / max(last_step, 1)

  def y_of(value):
    share = (bend(value) - bend(low)) / max(bend(high) - bend(low), 1e-12)
    return bottom - (bottom - _TOP) * share

  say = functools.partial(_Mark, 'text')
  for level in levels:
    y = y_of(level)
    yield _Mark('line', 'axis', [(_LEFT, y), (right, y)])
    yield say('text', [(_LEFT - 8, y + 4)], f'{level:g}', 'end')
  for step in _ticks(0, max(last_step, 1)):
    if step <= last_step and step == int(step):
      yield say('text', [(x_of(step), bottom + 18)], f'{step:,.0f}', 'middle')
  title = f'{chart.title}{", logarithmic" if is_log else ""}'
  best = max(chart.curves[-1].points, key=lambda point: point[1])
  if chart.marks_largest:
    title += f', best {best[1]:.4f} at step {best[0]:,.0f}'
  yield say('title', [(_LEFT, 18)], title)
  x = right
  for curve in reversed(chart.curves):
    yield say('text', [(x, 18)], curve.name, 'end')
    x -= 0.58 * _TEXT_PX * len(curve.name) + 12
    yield _Mark('line', curve.role, [(x - 18, 14), (x, 14)])
    x -= 36
  for curve in chart.curves:
    points = [(x_of(step), y_of(value)) for step, value in _thin(curve.points)]
    if len(points) > 1:
      yield _Mark('line', curve.role, points)
    if curve.role == 'heldout' and len(points) <= _MOST_DOTS or len(points) < 2:
      yield _Mark('dot', curve.role, points)
  if chart.marks_largest:
    x, y = x_of(best[0]), y_of(best[1])
    yield _Mark('dot', chart.curves[-1].role, [(x, y)])


def _thin(points):
  """Returns at most `_MOST_POINTS`, each the mean of neighbouring points."""
  if len(points) <= _MOST_POINTS:
    return points
  parts = np.array_split(np.array(points, np.float64), _MOST_POINTS)
  return [tuple(part.mean(axis=0)) for part in parts]


def _ticks(low: float, high: float) -> list[float]:
  """Returns four to seven round numbers that enclose a range."""
  span = high - low or abs(high) or 1.0
  power = 10.0 ** math.floor(math.log10(span / 4))
  step = next(k * power for k in (1, 2, 2.5, 5, 10) if span / (k * power) <= 5)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [
    float(f'{i * step:.12g}') for i in range(first, max(last, first + 1) + 1)
  ]


def _log_ticks(low: float, high: float) -> list[float]:
  """Returns powers of ten that enclose a range, at most seven."""
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  step = -(-(last - first) // 6)
  return [10.0**i for i in range(first, last + step, step)]
