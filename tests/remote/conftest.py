"""A bucket for tests."""

import pathlib

import pytest


@pytest.fixture(scope='session')
def fake_bucket(load_module):
  return load_module(pathlib.Path(__file__).parent / 'fake_bucket.py')


@pytest.fixture(scope='module')
def bucket(fake_bucket):
  """Address of a bucket that a module's tests share."""
  with fake_bucket.mounted() as address:
    yield address
