"""Imports point down only, and heavy libraries stay in their corner."""

import ast
import pathlib

import pytest

_PACKAGE = pathlib.Path(__file__).parent.parent / 'onerec_jax'

# Level of every top-level module or package; a module imports strictly lower
# levels, or its own package.
_LEVELS = {
  'config_tree': -0.5,  # under config, knows no setting
  'config': 0,
  'batch': 0,
  'workdir': 0,
  'accelerators': 0,
  'exported': 0,
  'distributed': 0,
  'meshes': 0,
  'sharding': 0.5,  # puts arrays on meshes
  'ops': 1,
  'losses': 1,
  'metrics': 1,
  'bootstrap': 1,
  'session_rewards': 1.5,  # builds on bootstrap
  'item_rewards': 1.5,
  'semantic_ids': 1,
  'model': 2,
  'data': 2,
  'objectives': 3,
  'decoding': 3,
  'train': 4,
  'stages': 5,
  'aot': 5.5,
  'command_line': 6,
  'huge_pages': 6,  # only what starts a process wants it
  'main': 7,
}

# library prefix -> where it may be imported
_CORNERS = {
  'flax.linen': ('model/',),
  'optax': ('train/', 'losses/'),
  'orbax': ('train/checkpoints.py',),
  'grain': ('data/', 'train/checkpoints.py'),
  'polars': ('data/',),
  'ml_collections': ('config/__init__.py', 'config_tree.py', 'command_line.py'),
}


def _imports(path: pathlib.Path) -> set[str]:
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


# What no training needs, and longer to import than all that it does need.
_SLOW_LIBRARIES = ('jinja2', 'matplotlib', 'scipy', 'sklearn')


def _file(name: str) -> pathlib.Path | None:
  """Returns the file of a module or package of ours; None: it is none."""
  place = _PACKAGE.parent / name.replace('.', '/')
  files = place.with_suffix('.py'), place / '__init__.py'
  return next((file for file in files if file.exists()), None)


def _imported_at_once(name: str) -> set[str]:
  """Returns all modules that `import name` imports, ours and libraries'."""
  found, todo = set(), [name]
  while todo:
    module = todo.pop()
    file = _file(module) if module.startswith('onerec_jax') else None
    if module in found:
      continue
    found.add(module)
    if file is None:
      continue
    for node in ast.parse(file.read_text()).body:  # not inside functions
      if isinstance(node, ast.Import):
        todo += [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        todo += [str(node.module)]
        todo += [f'{node.module}.{alias.name}' for alias in node.names]
  return found


_MODULES = sorted(p for p in _PACKAGE.rglob('*.py') if p.name != '__init__.py')


@pytest.mark.parametrize(
  'path', _MODULES, ids=lambda p: str(p.relative_to(_PACKAGE))
)
def test_module_imports_only_lower_layers(path):
  relative = path.relative_to(_PACKAGE)
  own = relative.parts[0].removesuffix('.py')
  assert own in _LEVELS, f'give {own} a level in this test'
  for name in _imports(path):
    parts = name.split('.')
    if parts[0] != 'onerec_jax' or len(parts) < 2:
      continue
    other = parts[1]
    assert other == own or _LEVELS[other] < _LEVELS[own], (
      f'{relative} (level {_LEVELS[own]}) imports {name} (level'
      f' {_LEVELS[other]})'
    )


@pytest.mark.parametrize(
  'path', _MODULES, ids=lambda p: str(p.relative_to(_PACKAGE))
)
def test_libraries_stay_in_their_corner(path):
  relative = str(path.relative_to(_PACKAGE))
  for name in _imports(path):
    for library, places in _CORNERS.items():
      if name == library or name.startswith(f'{library}.'):
        assert relative.startswith(places), (
          f'{relative} imports {name}; only {places} may'
        )


@pytest.mark.parametrize(
  'name', ['command_line', 'stages.runner', 'stages.pretrain']
)
def test_a_training_starts_without_libraries_of_texts_and_pictures(name):
  found = _imported_at_once(f'onerec_jax.{name}')
  assert 'onerec_jax.config' in found, 'this test follows imports'
  assert not [x for x in found if x.split('.')[0] in _SLOW_LIBRARIES]


def test_no_file_has_a_name_that_explains_nothing():
  banned = {'utils', 'helpers', 'common', 'misc'}
  assert not [p for p in _MODULES if p.stem in banned]
