"""The toy decoder as a fixture."""

import pathlib

import pytest


@pytest.fixture(scope='session')
def toys(load_module):
  """Module with the toy decoder and its reference search."""
  return load_module(pathlib.Path(__file__).parent / 'toy_decoder.py')
