# SPDX-License-Identifier: Apache-2.0
"""The report of a run: scores, pictures, and an HTML file that shows all.

`report.html` is one file without scripts and references to other files, so it
can be mailed, and opened in years. Text that comes from files is escaped.
"""

import base64
import html
import math
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import segjax
from segjax.atomic import write_text
from segjax.images.files import write_stack
from segjax.images.png_jpeg import encode_preview
from segjax.runs import curves, writers
from segjax.runs.run_warnings import read_labels_table, read_warnings

LABELS = 'labels.txt'  # The digest of all labels, and a table of their classes.
_EXTREMES = ('best', 'worst')
# Limit of all pictures in a report; as text, they grow by a third.
_MOST_PICTURE_BYTES = 3_300_000

# (name of the example, u8[h, w, 3], the run's metric of this example alone).
Panel = tuple[str, np.ndarray, float]


def finish_run(
  workdir: Path,
  config: ConfigDict,
  title: str,
  scores: Mapping[str, float],
  panels: Sequence[Panel],
  extremes: Sequence[Panel],
  columns: str = '',
) -> None:
  """Prints the scores of a run, and writes them with pictures and a report.

  `scores.txt`, `pictures/` and `report.html` replace those of an earlier end of
  the run.

  Args:
    workdir: folder of the run, with its metrics.
    config: config of the run.
    title: the images that the scores are of, or the reason for no scores.
    scores: name -> number; may be empty.
    panels: pictures of some held-out examples.
    extremes: pictures of the best and the worst example by
      `evaluation.best_metric`, or [].
    columns: names of the parts of each panel, from left to right.
  """
  print(title)
  if scores:
    table = writers.table(scores)
    print(table)
    write_text(workdir / 'scores.txt', f'{title}\n{table}\n')
  folder = workdir / 'pictures'
  folder.mkdir(exist_ok=True)
  metric = config.evaluation.best_metric
  for kind in _EXTREMES:
    for file in folder.glob(f'{kind}_*_[01].[0-9][0-9][0-9]_*.png'):
      file.unlink()  # Another example may be the best or the worst now.
  named = {name: picture for name, picture, _ in panels}
  for kind, (name, picture, score) in zip(_EXTREMES, extremes, strict=False):
    named[f'{kind}_{metric}_{score:.3f}_{name}'] = picture
  rows = writers.read_rows(workdir)
  if charts := curves.charts_of(rows, metric):
    named['learning_curve'] = curves.draw_picture(charts)
  for name, picture in named.items():
    # A name that comes from a file must not lead out of the folder.
    name = re.sub(r'[^\w.-]', '_', name)
    write_stack(folder / f'{name}.png', picture[None])
  file = workdir / 'report.html'
  figures = _figures(panels, extremes, columns, metric)
  write_text(file, _document(workdir, config, title, scores, charts, figures))
  print(f'pictures: {folder}')
  print(f'report: {file}', flush=True)


def predict_command(workdir: Path) -> str:
  """Returns the command that predicts images with a run."""
  return (
    f'python -m segjax.predict --workdir={shlex.quote(str(workdir))} '
    '--input=IMAGES --output=PREDICTIONS'
  )


def _document(workdir, config, title, scores, charts, figures) -> str:
  """Returns the text of `report.html`."""
  name = html.escape(workdir.resolve().name)
  device = jax.devices()[0].device_kind
  said = [
    str(config.model.name),
    f'{config.num_train_steps:,} steps of {config.batch_size} '
    + ('image' if config.batch_size == 1 else 'images'),
    time.strftime('%Y-%m-%d %H:%M'),
    f'segjax {segjax.__version__}, jax {jax.__version__}, {device}',
  ]
  parts = [
    f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src '
    "'none'; img-src data:; style-src 'unsafe-inline'\">\n"
    f'<title>{name}: training report</title>\n<style>{_CSS}</style>\n</head>\n'
    f'<body>\n<header><p class="quiet">Training report</p><h1>{name}</h1>'
    f'<p class="quiet">{html.escape(" · ".join(said))}</p></header>',
    _warnings(read_warnings(workdir)),
    _scores(title, scores, config.evaluation.best_metric),
    _section('Learning curves', _charts(charts)),
    _section('Held-out images', figures),
    _section('Data', _labels(workdir / LABELS)),
    _section(
      'Predict',
      f'<pre><code>{html.escape(predict_command(workdir))}</code></pre>',
    ),
    _section('Settings', _settings(config)),
    '</body>\n</html>\n',
  ]
  return '\n'.join(part for part in parts if part)


def _section(title: str, content: str) -> str:
  return f'<section><h2>{title}</h2>\n{content}\n</section>' if content else ''


def _table(
  rows: Iterable[Sequence[Any]], header: Sequence[str] = (), caption: str = ''
) -> str:
  """Returns an HTML table; the first cell of each row is its header."""
  head = ''.join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
  lines = [
    '<div class="wide"><table>',
    f'<caption>{html.escape(caption)}</caption>' if caption else '',
    f'<thead><tr>{head}</tr></thead>' if header else '',
    '<tbody>',
  ]
  for first, *others in rows:
    cells = ''.join(f'<td>{html.escape(str(cell))}</td>' for cell in others)
    name = html.escape(str(first))
    lines.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
  return '\n'.join(line for line in [*lines, '</tbody></table></div>'] if line)


def _warnings(warnings: Sequence[str]) -> str:
  items = []
  for warning in warnings:
    name, _, text = map(html.escape, warning.partition(': '))
    items.append(f'<li><b>{name}</b> {text}</li>')
  if not items:
    return ''
  return f'<aside><h2>Warnings</h2><ul>{"".join(items)}</ul></aside>'


def _scores(title: str, scores: Mapping[str, float], best_metric: str) -> str:
  if not scores:
    return _section('Scores', f'<p>{html.escape(title)}</p>')
  of_classes = {k: v for k, v in scores.items() if 'iu/' in k}
  others = {k: v for k, v in scores.items() if k not in of_classes}
  content = [
    f'<p class="figure">{_number(scores[best_metric])}'
    f'<span>{html.escape(best_metric)}</span></p>',
    f'<p class="quiet">{html.escape(title)}</p>',
    '<div class="beside">',
    _table((name, _number(value)) for name, value in others.items()),
  ]
  if of_classes:
    content.append('<table class="bars"><caption>IU of each class</caption>')
    for name, value in of_classes.items():
      share = 0 if math.isnan(value) else 100 * min(max(value, 0), 1)
      name = html.escape(name.replace('iu/', '', 1))
      content.append(
        f'<tr><th scope="row">{name}</th><td><div style="width:{share:.1f}%">'
        f'</div></td><td>{_number(value)}</td></tr>'
      )
    content.append('</table>')
  return _section('Scores', '\n'.join([*content, '</div>']))


def _number(value: float) -> str:
  return '–' if math.isnan(value) else writers.format_value(value)


def _charts(charts: Sequence[curves.Chart]) -> str:
  drawn = ''.join(f'<div>{curves.draw_svg(chart)}</div>' for chart in charts)
  if not drawn:
    return ''
  return (
    f'<div class="beside charts">{drawn}</div>\n<p class="quiet">The curves '
    'run over the steps of training. Their scores come from one pass over each '
    'image; the scores above are those of the end.</p>'
  )


def _figures(
  panels: Sequence[Panel],
  extremes: Sequence[Panel],
  columns: str,
  metric: str,
) -> str:
  shown = [*zip(_EXTREMES, extremes, strict=False)]
  names = {name for _, (name, _, _) in shown}
  shown += [('', panel) for panel in panels if panel[0] not in names]
  if not shown:
    return ''
  figures = [
    f'<p class="quiet">From left to right: {html.escape(columns)}.</p>'
  ]
  free = _MOST_PICTURE_BYTES
  for kind, (name, picture, score) in shown:
    encoded = encode_preview(picture)
    free -= len(encoded)
    if free < 0:
      left = len(shown) - len(figures) + 1
      figures.append(f'<p class="quiet">{left} more are in pictures/</p>')
      break
    label = f'<b>{kind.capitalize()}</b> ' if kind else ''
    text = html.escape(name)
    figures.append(
      f'<figure><figcaption>{label}{text} '
      f'<span>{html.escape(metric)} {_number(score)}</span></figcaption>'
      f'<div class="wide"><img alt="{text}" '
      f'width="{picture.shape[1]}" height="{picture.shape[0]}" '
      f'src="data:image/jpeg;base64,{base64.b64encode(encoded).decode()}">'
      '</div></figure>'
    )
  return '\n'.join(figures)


def _labels(file: Path) -> str:
  if not file.is_file():
    return ''
  _, _, text = file.read_text(encoding='utf-8').partition('\n')
  rows = [
    (name, pixels, f'{percent} %', *others)
    for name, pixels, percent, *others in read_labels_table(text)
  ]
  header = ('class', 'training px', 'share', 'images', 'held-out px', 'images')
  return _table(rows, header, text.partition('\n')[0])


def _settings(config: ConfigDict) -> str:
  sections: dict[str, list] = {'': []}
  for name, value in flatten_dict(config.to_dict(), sep='.').items():
    section, _, field = name.rpartition('.')
    sections.setdefault(section, []).append((field, repr(value)))
  tables = [_table(rows, caption=name) for name, rows in sections.items()]
  return f'<div class="settings">{"".join(tables)}</div>'


_CSS = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #1f1f1d;
  --quiet: #6b6a64; --line: #e3e1d9; --soft: #f3f2ec; --train: #0072b2;
  --heldout: #c85000; --warn: #fdf3e1; --edge: #e0a030; }
@media (prefers-color-scheme: dark) { :root { --paper: #161615; --ink: #e8e6e0;
  --quiet: #9b9991; --line: #33322f; --soft: #21201e; --train: #56b4e9;
  --heldout: #f0913c; --warn: #2b2417; --edge: #b98324; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2.5rem 1.25rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
h1 { font-size: 2rem; font-weight: 600; letter-spacing: -0.02em;
  line-height: 1.2; margin: 0; }
h2 { font-size: 1.05rem; font-weight: 600; margin: 0 0 1rem; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem;
  padding-top: 1.5rem; }
header p, figcaption span, .quiet { color: var(--quiet); }
header p { margin: 0.3rem 0; }
.quiet, caption, table, pre, figcaption { font-size: 0.875rem; }
aside { background: var(--warn); border-left: 3px solid var(--edge);
  border-radius: 0 6px 6px 0; margin-top: 1.75rem; padding: 1rem 1.25rem; }
aside h2 { margin-bottom: 0.4rem; }
ul { margin: 0; padding-left: 1.1rem; }
li + li { margin-top: 0.4rem; }
li b { font-weight: 600; margin-right: 0.25rem; }
li b::after { content: ":"; }
.figure { font-size: 3rem; font-weight: 300; letter-spacing: -0.03em;
  line-height: 1; margin: 0 0 0.75rem; }
.figure span { color: var(--quiet); font-size: 1rem; font-weight: 400;
  letter-spacing: 0; margin-left: 0.6rem; }
.beside { display: grid; gap: 1.5rem 3rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.charts { gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { color: var(--quiet); padding-bottom: 0.4rem; text-align: left; }
th { font-weight: 400; text-align: left; overflow-wrap: break-word; }
thead th { color: var(--quiet); }
th, td { border-bottom: 1px solid var(--line); padding: 0.32rem 1rem 0.32rem 0;
  vertical-align: top; }
td, thead th:not(:first-child) { padding-right: 0; padding-left: 1rem;
  text-align: right; white-space: nowrap; }
.bars td:nth-child(2) { vertical-align: middle; width: 45%; }
.bars div { background: var(--train); border-radius: 2px; height: 0.5rem; }
svg { display: block; height: auto; width: 100%; }
polyline { fill: none; stroke-linejoin: round; stroke-width: 1.75; }
polyline.axis { stroke: var(--line); stroke-width: 1; }
polyline.train { stroke: var(--train); }
polyline.heldout { stroke: var(--heldout); }
circle.train { fill: var(--train); }
circle.heldout { fill: var(--heldout); }
svg text { fill: var(--quiet); font-size: 12px; }
svg text.title { fill: var(--ink); font-weight: 500; }
figure { margin: 0 0 1.75rem; }
figcaption { margin-bottom: 0.4rem; }
figcaption b { font-weight: 600; }
figcaption span { margin-left: 0.5rem; white-space: nowrap; }
img { border-radius: 4px; display: block; height: auto; max-width: none;
  width: max(100%, 44rem); }
pre { background: var(--soft); border-radius: 6px; margin: 0;
  padding: 0.9rem 1.1rem; white-space: pre-wrap; }
code, .settings td { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas,
  "Liberation Mono", monospace; }
.settings { columns: 2 24rem; column-gap: 3rem; }
.settings > div { break-inside: avoid; margin-bottom: 1.75rem; }
.settings caption { color: var(--ink); font-weight: 600; }
.settings table { font-size: 0.8125rem; }
.settings td { overflow-wrap: anywhere; white-space: normal; }
@media (max-width: 40rem) { svg text { font-size: 15px; } }
@media print { body { max-width: none; padding: 0; } }
"""
