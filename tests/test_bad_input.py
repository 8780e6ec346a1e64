# SPDX-License-Identifier: Apache-2.0
"""Input that a person can correct: one line, status 2, nothing written.

The table is in the modules `bad_input_*`. What is wrong -> (command, words of
the message) or (command, words, environment). In command and words, {tree} is a
folder that `write_tree` of the module made and nothing may change, {new} a path
where nothing is nor may be, and PLACES names others.
"""

import concurrent.futures
import re
import shlex
import time

import bad_input_fcn
import bad_input_own
import bad_input_results
import bad_input_unet
import pytest
from commands import REPOSITORY, run, snapshot

TABLES = {
  'unet': bad_input_unet,
  'fcn': bad_input_fcn,
  'results': bad_input_results,
  'own': bad_input_own,
}
CASES = {
  name: (table, *case)
  for table, module in TABLES.items()
  for name, case in module.CASES.items()
}
COMMANDS = (
  'plan',
  'main',
  'evaluate',
  'predict',
  'convert',
  'export',
  'instances',
  'prepare',
)
# The first case of each command runs without the fork server.
FIRST = {case[1].split()[0]: name for name, case in reversed(CASES.items())}


def fill(text, name, root):
  """Returns a text of a case with the paths that it stands for."""
  table = CASES[name][0]
  inside = {'tree': root / table / 'tree', 'new': new_path(name, root)}
  places = {
    key: value.format(**inside) for key, value in TABLES[table].PLACES.items()
  }
  return text.format(**inside, **places)


def new_path(name, root):
  return root / f'new{list(CASES).index(name):03}'


@pytest.fixture(scope='module')
def ended(request, tmp_path_factory):
  """The folder of all; and of each selected case its process, to be awaited.

  They run two at a time, for the suite has two workers, and this is a file.
  """
  root = tmp_path_factory.mktemp('bad_input')
  items = [item for item in request.session.items if item.path == request.path]
  names = [
    item.callspec.params['name'] for item in items if hasattr(item, 'callspec')
  ]
  before = {}
  for table in {CASES[name][0] for name in names}:
    (root / table).mkdir()
    TABLES[table].write_tree(root / table / 'tree')
    before[table] = snapshot(root / table)

  def run_case(name):
    _, command, _, *env = CASES[name]
    arguments = shlex.split(fill(command, name, root))
    fork = name not in FIRST.values()
    return run(*arguments, env=dict(*env), fork=fork)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    processes = {name: pool.submit(run_case, name) for name in names}
    yield root, before, processes


@pytest.mark.parametrize('name', CASES)
def test_bad_input(name, ended):
  root, before, processes = ended
  table, _, words, *_ = CASES[name]
  process = processes[name].result()
  message = process.stderr.splitlines()
  assert len(message) == 1, process.stderr
  assert message[0].startswith('error: ')
  for word in words:
    assert fill(word, name, root) in message[0]
  assert process.returncode == 2
  assert process.stdout == ''
  # The command that runs beside this one may lock a folder for a moment.
  for _ in range(50):
    if snapshot(root / table) == before[table]:
      break
    time.sleep(0.1)
  assert snapshot(root / table) == before[table]
  new = new_path(name, root)
  assert not list(new.parent.glob(f'{new.name}*'))


def test_the_table_is_whole():
  """No case hides another of its name, and every command has some."""
  assert len(CASES) == sum(len(module.CASES) for module in TABLES.values())
  assert len(CASES) >= 80
  count = {name: 0 for name in COMMANDS}
  for _, command, *_ in CASES.values():
    count[command.split()[0]] += 1
  assert min(count.values()) >= 6, count


def test_the_page_of_cases_names_tests_that_exist():
  page = (REPOSITORY / 'docs' / 'cases.md').read_text()
  rows = dict(re.findall(r'(?m)^\| (\d\.\d+) \|(.*) \|$', page))
  counts = {1: 18, 2: 6, 3: 9, 4: 12, 5: 8}
  assert [*rows] == [f'{i}.{j + 1}' for i in counts for j in range(counts[i])]
  name = re.compile(r'`(\w+)\.py(?:::(test_\w+)(?:\[(.+?)\])?|: (.+?))`')
  for number, row in rows.items():
    held_by = row.rpartition(' | ')[2]
    found = name.findall(held_by)
    others = name.sub('', held_by).strip(', ')
    assert others == ('stated only' if number == '5.3' else '')
    for file, test, parameter, case in found:
      text = (REPOSITORY / 'tests' / f'{file}.py').read_text()
      if case:
        assert case in TABLES[file.removeprefix('bad_input_')].CASES
      else:
        assert f'def {test}(' in text, (number, test)
        assert not parameter or f"'{parameter}'" in text, (number, parameter)
