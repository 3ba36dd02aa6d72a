"""The toy model as a fixture."""

import pathlib

import pytest


@pytest.fixture(scope='session')
def toy(load_module):
  return load_module(pathlib.Path(__file__).parent / 'toy.py')
