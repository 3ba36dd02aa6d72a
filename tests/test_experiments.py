"""Every experiment file resolves, and a change of any number shows in review.

A recipe whose get_config takes a variant lists them in VARIANTS.
UPDATE_GOLDEN=1 rewrites the resolved configurations in tests/golden/.
"""

import importlib.util
import json
import os
import pathlib
from typing import Any

import pytest

from onerec_jax import config

_ROOT = pathlib.Path(__file__).parent.parent
_GOLDEN = pathlib.Path(__file__).parent / 'golden'
_RECIPES = sorted(
  p
  for p in (_ROOT / 'experiments').glob('*.py')
  if 'def get_config(' in p.read_text()
)


def _load(path: pathlib.Path) -> Any:
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _cases() -> list[tuple[pathlib.Path, str | None]]:
  """Every recipe with each of its variants; None: it has none."""
  return [
    (path, variant)
    for path in _RECIPES
    for variant in getattr(_load(path), 'VARIANTS', (None,))
  ]


def _golden_name(path: pathlib.Path, variant: str | None) -> str:
  return (
    f'{path.stem}.json' if variant is None else f'{path.stem}.{variant}.json'
  )


_CASES = _cases()
_NAMES = [_golden_name(*case).removesuffix('.json') for case in _CASES]


@pytest.mark.parametrize(('path', 'variant'), _CASES, ids=_NAMES)
def test_resolved_experiment_equals_its_golden_file(path, variant):
  arguments = () if variant is None else (variant,)
  resolved = config.from_config_dict(_load(path).get_config(*arguments))
  text = json.dumps(config.to_dict(resolved), indent=1) + '\n'
  golden = _GOLDEN / _golden_name(path, variant)
  if os.environ.get('UPDATE_GOLDEN'):
    golden.write_text(text)
  assert golden.exists(), f'run UPDATE_GOLDEN=1 pytest {__file__}'
  assert text == golden.read_text(), (
    f'{path.name} now resolves differently; if that is meant, run'
    f' UPDATE_GOLDEN=1 pytest tests/{pathlib.Path(__file__).name}'
  )


@pytest.mark.parametrize(
  'path',
  [p for p in _RECIPES if hasattr(_load(p), 'VARIANTS')],
  ids=lambda p: p.stem,
)
def test_unknown_variant_is_refused_with_the_known_ones(path):
  module = _load(path)
  with pytest.raises(ValueError, match='nonsense') as error:
    module.get_config('nonsense')
  assert all(variant in str(error.value) for variant in module.VARIANTS)


@pytest.mark.parametrize('path', _RECIPES, ids=lambda p: p.stem)
def test_experiment_states_its_claim_and_command(path):
  text = path.read_text()
  assert text.startswith('"""')
  docstring = text.split('"""')[1]
  assert 'make ' in docstring or 'python -m onerec_jax.main' in docstring


def test_no_golden_file_is_left_of_a_deleted_experiment():
  assert {p.stem for p in _GOLDEN.glob('*.json')} <= set(_NAMES)
