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
  'main': 6,
}

# library prefix -> where it may be imported
_CORNERS = {
  'flax.linen': ('model/',),
  'optax': ('train/', 'losses/'),
  'orbax': ('train/checkpoints.py',),
  'grain': ('data/', 'train/checkpoints.py'),
  'polars': ('data/',),
  'ml_collections': ('config/__init__.py', 'config_tree.py', 'main.py'),
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


def test_no_file_has_a_name_that_explains_nothing():
  banned = {'utils', 'helpers', 'common', 'misc'}
  assert not [p for p in _MODULES if p.stem in banned]
