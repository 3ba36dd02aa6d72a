"""A bucket for tests: test folders are no packages."""

import importlib.util
import pathlib
import sys

import pytest

_PATH = pathlib.Path(__file__).parent / 'fake_bucket.py'


@pytest.fixture(scope='session')
def fake_bucket():
  spec = importlib.util.spec_from_file_location('fake_bucket', _PATH)
  module = importlib.util.module_from_spec(spec)
  sys.modules['fake_bucket'] = module
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def bucket(fake_bucket):
  """Address of a bucket that a module's tests share."""
  with fake_bucket.mounted() as address:
    yield address
