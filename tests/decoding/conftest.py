"""The toy decoder as a fixture: test folders are no packages."""

import importlib.util
import pathlib

import pytest

_PATH = pathlib.Path(__file__).parent / 'toy_decoder.py'


@pytest.fixture(scope='session')
def toys():
  """Module with the toy decoder and its reference search."""
  spec = importlib.util.spec_from_file_location('toy_decoder', _PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
