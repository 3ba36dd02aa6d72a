"""README and the page of results: what they name exists."""

import ast
import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_README = (_ROOT / 'README.md').read_text()
_SECTION = _README.split('## From the papers to the code')[1].split('\n## ')[0]


def _named_functions() -> list[tuple[str, str]]:
  found = []
  for line in _SECTION.splitlines():
    match = re.search(r'`(\S+\.py): (\w+)`(.*)', line)
    if match:
      path, first, rest = match.groups()
      found += [(path, name) for name in (first, *re.findall(r'`(\w+)`', rest))]
  return found


@pytest.mark.parametrize(('path', 'name'), _named_functions())
def test_function_of_the_equation_table_exists(path, name):
  tree = ast.parse((_ROOT / path).read_text())
  defined = {
    node.name
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.ClassDef)
  }
  assert name in defined


def test_equation_table_was_found():
  assert len(_named_functions()) > 15


def _links() -> list[tuple[str, str]]:
  return [
    (page, link)
    for page in ('README.md', 'experiments/README.md')
    for link in sorted(
      set(re.findall(r'\]\(((?!http)[^)]+)\)', (_ROOT / page).read_text()))
    )
  ]


@pytest.mark.parametrize(('page', 'link'), _links())
def test_relative_link_leads_somewhere(page, link):
  path, _, anchor = link.partition('#')
  target = (_ROOT / page).parent / path if path else _ROOT / page
  assert target.exists()
  if anchor:
    if target.is_dir():
      target /= 'README.md'
    titles = re.findall(r'^#+ (.+)$', target.read_text(), re.M)
    assert anchor in {
      re.sub(r'[^\w -]', '', t).lower().replace(' ', '-') for t in titles
    }


def test_every_recipe_is_on_the_page_of_results():
  page = (_ROOT / 'experiments' / 'README.md').read_text()
  listed = set()
  for name in re.findall(r'`([\w{},]+)\.py', page):
    first, _, rest = name.partition('{')
    choices, _, end = rest.partition('}')
    listed |= {f'{first}{c}{end}' for c in choices.split(',')}
  recipes = {
    path.stem
    for path in (_ROOT / 'experiments').glob('*.py')
    if '\ndef get_config(' in path.read_text()
  }
  assert recipes and recipes <= listed


_TARGETS = set(re.findall(r'^make ([a-z-]+)|`make ([a-z-]+)`', _README, re.M))


@pytest.mark.parametrize('target', sorted(a or b for a, b in _TARGETS))
def test_make_target_exists(target):
  assert re.search(
    rf'^{target}:', (_ROOT / 'Makefile').read_text(), re.MULTILINE
  )


def test_every_module_of_the_package_is_on_the_map():
  table = _README.split('## Map of the package')[1].split('\n## ')[0]
  package = _ROOT / 'onerec_jax'
  names = {p.stem for p in package.glob('*.py')} | {
    p.name for p in package.iterdir() if (p / '__init__.py').exists()
  }
  missing = {n for n in names - {'__init__'} if f'`{n}' not in table}
  assert not missing
