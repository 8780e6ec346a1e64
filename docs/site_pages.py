# SPDX-License-Identifier: Apache-2.0
"""Pages of the documentation site that have no file in docs/.

mkdocs calls the `on_` functions (`hooks` in mkdocs.yml). Pages are made of the
README's sections, of other files of the repository, of the notebooks and of
the names in `segjax/__init__.pyi`, so that nothing is written twice.
"""

import json
import os
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))

# Page -> sections of the README; '' is what stands before the first.
SECTIONS = {
  'index.md': ('', 'Start', 'Your own images', 'In a notebook'),
  'isbi.md': ('U-Net on ISBI 2012',),
  'fcn.md': ('FCN',),
}
# File of the repository -> page.
COPIES = {
  'launch/README.md': 'launch.md',
  'benchmarks/README.md': 'benchmarks.md',
  'CHANGELOG.md': 'changelog.md',
}
# What a link may lead to, beside the files in docs/.
LINKED = {
  'segjax/__init__.pyi': 'api.md',
  **COPIES,
  **{f'notebooks/{p.name}': f'notebooks/{p.stem}.md' for p in NOTEBOOKS},
}


def on_files(files, config):
  """Adds the pages to those in docs/."""
  pages = {page: readme_page(titles) for page, titles in SECTIONS.items()}
  for source, page in COPIES.items():
    text = (ROOT / source).read_text()
    pages[page] = with_links(text, Path(source).parent)
  for notebook in NOTEBOOKS:
    pages[f'notebooks/{notebook.stem}.md'] = notebook_page(notebook)
  pages['api.md'] = api_page((ROOT / 'segjax' / '__init__.pyi').read_text())
  for page, text in pages.items():
    files.append(File.generated(config, page, content=text))
  return files


def on_page_markdown(markdown, page, **_):
  """Returns the text of a file in docs/ with links to pages of the site."""
  is_file = page.file.generated_by is None
  return with_links(markdown, Path('docs')) if is_file else markdown


def readme_page(titles):
  """Returns sections of the README; a single one has a page of its own."""
  text = (ROOT / 'README.md').read_text()
  found = re.split(r'(?m)^## (.+)\n', text)
  sections = dict(zip(['', *found[1::2]], found[::2], strict=True))
  parts = [
    f'## {title}\n{sections[title]}' if title else sections[title]
    for title in titles
  ]
  if len(titles) == 1:
    parts[0] = parts[0].removeprefix('#')
  return with_links(''.join(parts), Path())


def with_links(text, folder):
  """Returns the text with links of a file in `folder` as links of the site.

  A link to a file that has no page becomes plain text.
  """

  def changed(match):
    name, target, anchor = match.groups()
    if '://' in target:
      return match[0]
    path = os.path.normpath(folder / target) if target else ''
    page = LINKED.get(path, path.removeprefix('docs/'))
    if page == path and target:
      return name.strip('[]')
    return f'{name}({page}{anchor})'

  return re.sub(r'(\[[^]\[]*\])\(([^)#\s]*)((?:#[^)\s]*)?)\)', changed, text)


def notebook_page(path):
  """Returns the cells of a notebook with the outputs that it holds."""
  parts = []
  for cell in json.loads(path.read_text())['cells']:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
      parts.append(source)
      continue
    parts.append(f'```python\n{source}\n```')
    for output in cell['outputs']:
      if output['output_type'] == 'stream':
        parts.append(f'```text\n{"".join(output["text"]).rstrip()}\n```')
      elif 'image/png' in output.get('data', {}):
        png = ''.join(output['data']['image/png']).replace('\n', '')
        parts.append(f'![Picture of the cell](data:image/png;base64,{png})')
  return '\n\n'.join(parts)


def api_page(stub):
  """Returns the names of the table of contents, under its comments."""
  parts = ['# API', 'All names are those of `import segjax`.']
  for line in stub.splitlines():
    if line.startswith('# ') and 'SPDX' not in line:
      parts.append(f'## {line[2:].rstrip(".")}')
    elif found := re.search(r' as (\w+)$', line):
      parts.append(f'::: segjax.{found[1]}')
  return '\n\n'.join(parts)


class Examples(griffe.Extension):
  """Makes a section of the examples at the end of a docstring."""

  def on_object(self, *, obj, **_):
    """Titles and indents what follows the first `>>>`."""
    if obj.docstring:
      text, mark, examples = obj.docstring.value.partition('\n>>> ')
      if mark:
        lines = f'>>> {examples}'.splitlines()
        indented = '\n'.join(f'  {line}'.rstrip() for line in lines)
        obj.docstring.value = f'{text}\nExamples:\n{indented}\n'
