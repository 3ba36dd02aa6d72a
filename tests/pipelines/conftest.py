"""The command line, called as a new user calls it."""

import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def smoke_recipe():
  return _ROOT / 'experiments' / 'smoke.py'


@pytest.fixture
def onerec():
  """Returns the function that runs a command in a folder, for its output.

  It compiles as for a user, or with quick=True as other tests do.
  """

  def run(*args: str, folder: pathlib.Path, quick: bool = False) -> str:
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': str(_ROOT),
    }
    if not quick:
      environment |= {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0', 'XLA_FLAGS': ''}
    done = subprocess.run(
      [sys.executable, '-m', 'onerec_jax.main', *args],
      cwd=folder,
      env=environment,
      capture_output=True,
      text=True,
      timeout=900,
      check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr

  return run
