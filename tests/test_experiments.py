"""Every experiment file resolves, and a change of any number shows in review.

UPDATE_GOLDEN=1 rewrites the resolved configurations in tests/golden/.
"""

import importlib.util
import json
import os
import pathlib

import pytest

from onerec_jax import config

_ROOT = pathlib.Path(__file__).parent.parent
_GOLDEN = pathlib.Path(__file__).parent / 'golden'
_RECIPES = sorted(
  p
  for p in (_ROOT / 'experiments').glob('*.py')
  if 'def get_config(' in p.read_text()
)


def _resolve(path: pathlib.Path) -> config.Experiment:
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return config.from_config_dict(module.get_config())


@pytest.mark.parametrize('path', _RECIPES, ids=lambda p: p.stem)
def test_resolved_experiment_equals_its_golden_file(path):
  text = json.dumps(config.to_dict(_resolve(path)), indent=1) + '\n'
  golden = _GOLDEN / f'{path.stem}.json'
  if os.environ.get('UPDATE_GOLDEN'):
    golden.write_text(text)
  assert golden.exists(), f'run UPDATE_GOLDEN=1 pytest {__file__}'
  assert text == golden.read_text(), (
    f'{path.name} now resolves differently; if that is meant, run'
    f' UPDATE_GOLDEN=1 pytest tests/{pathlib.Path(__file__).name}'
  )


@pytest.mark.parametrize('path', _RECIPES, ids=lambda p: p.stem)
def test_experiment_states_its_claim_and_command(path):
  text = path.read_text()
  assert text.startswith('"""')
  docstring = text.split('"""')[1]
  assert 'make ' in docstring or 'python -m onerec_jax.main' in docstring


def test_no_golden_file_is_left_of_a_deleted_experiment():
  names = {p.stem for p in _RECIPES}
  assert {p.stem for p in _GOLDEN.glob('*.json')} <= names
