"""The toy model as a fixture: test folders are no packages."""

import importlib.util
import pathlib
import sys

import pytest

_PATH = pathlib.Path(__file__).parent / 'toy.py'


@pytest.fixture(scope='session')
def toy():
  spec = importlib.util.spec_from_file_location('train_toy', _PATH)
  module = importlib.util.module_from_spec(spec)
  sys.modules['train_toy'] = module  # dataclasses look their module up
  spec.loader.exec_module(module)
  return module
