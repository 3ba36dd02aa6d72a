"""What tests of several operations share."""

import pathlib

import pytest


@pytest.fixture(name='cases', scope='session')
def fixture_cases(load_module):
  return load_module(pathlib.Path(__file__).parent / 'self_attention_cases.py')
