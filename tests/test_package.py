# SPDX-License-Identifier: Apache-2.0
"""What a package of segjax says of itself, and its links."""

import re
import tomllib

import pytest
from commands import REPOSITORY

import segjax

PAGES = sorted(
  page.relative_to(REPOSITORY)
  for pattern in ('*.md', 'docs/*.md', 'launch/*.md', 'benchmarks/*.md')
  for page in REPOSITORY.glob(pattern)
)


def anchors(page):
  """Anchors of the titles of a page, as GitHub makes them."""
  titles = re.findall(r'(?m)^#+ (.+)$', page.read_text())
  return {
    re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles
  }


def test_the_version_is_one():
  project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())
  version = project['project']['version']
  citation = (REPOSITORY / 'CITATION.cff').read_text()
  assert f'\nversion: {version}\n' in citation
  assert f'\n## [{version}]' in (REPOSITORY / 'CHANGELOG.md').read_text()
  assert '__version__' not in vars(segjax)  # Looked up when it is asked for.
  assert segjax.__version__ == version
  with pytest.raises(AttributeError, match='No segjax attribute nets'):
    _ = segjax.nets


def test_the_lowest_versions_are_tried():
  project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())
  # flax 0.12.0 to 0.12.6 warn of deprecated jax.
  assert 'flax>=0.12.7' in project['project']['dependencies']
  ci = (REPOSITORY / '.ci' / 'run').read_text()
  assert '\nfor resolution in highest lowest-direct; do\n' in ci
  assert '--resolution "$resolution" -r pyproject.toml\n' in ci


def test_every_folder_of_modules_is_packed():
  tool = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['tool']
  folders = {
    '.'.join(file.parent.relative_to(REPOSITORY).parts)
    for file in (REPOSITORY / 'segjax').rglob('*.py')
  }
  packages = tool['setuptools']['packages']
  assert sorted(packages) == sorted(folders | {'segjax.configs'})


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_links_lead_somewhere(page):
  text = (REPOSITORY / page).read_text()
  for link in re.findall(r'\]\(([^)\s]+)\)', text):
    if link.startswith('https://'):
      continue
    file, _, anchor = link.partition('#')
    target = REPOSITORY / page.parent / file if file else REPOSITORY / page
    assert target.is_file(), link
    assert not anchor or anchor in anchors(target), link
