"""Names of slices and the environment of libtpu; libtpu where it is there."""

import os
import subprocess
import sys

import pytest

from onerec_jax import accelerators
from onerec_jax.aot import environment
from onerec_jax.aot import topology


@pytest.mark.parametrize(
  ('name', 'libtpu_name', 'bounds', 'chip'),
  [
    ('v5e-1', 'v5e:1x1', (1, 1, 1), None),
    ('v6e-16', 'v6e:4x4', (2, 2, 1), None),
    ('v5p-128', 'v5:4x4x4', (2, 2, 1), 'megacore'),
    ('tpu7x-2', 'tpu7x:1x1x1', (1, 1, 1), None),
  ],
)
def test_user_names_become_libtpus(name, libtpu_name, bounds, chip):
  got, options = topology.libtpu_arguments(
    accelerators.tpu_slice(name), num_slices=2
  )
  assert got == libtpu_name
  assert options['num_slices'] == 2
  assert options['chips_per_host_bounds'] == bounds
  assert options.get('chip_config_name') == chip
  # The rings of a 4 x 4 x 4 cube are closed, those of a 4 x 4 board are not.
  assert all(options['wrap']) == (name == 'v5p-128')


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setattr(environment.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(environment.LibtpuMissing, match=r"install 'jax\[tpu\]'"):
    environment.prepare()
  with pytest.raises(environment.LibtpuMissing, match='libtpu'):
    topology.describe('v6e-16')


def test_the_package_is_imported_without_jax():
  code = (
    'import sys; from onerec_jax import aot; from onerec_jax.aot import'
    ' environment, flags, hlo, table; assert "jax" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_what_the_user_set_stays(monkeypatch):
  monkeypatch.setattr(environment, 'missing', lambda: None)
  monkeypatch.setenv('TPU_STDERR_LOG_LEVEL', '0')
  for name in environment._VARIABLES:
    if name != 'TPU_STDERR_LOG_LEVEL':
      monkeypatch.delenv(name, raising=False)
  environment.prepare()
  assert os.environ['TPU_STDERR_LOG_LEVEL'] == '0'
  assert os.environ['JAX_PLATFORMS'] == 'cpu'
  # monkeypatch puts back only what it has seen.
  for name in environment._VARIABLES:
    monkeypatch.setenv(name, os.environ[name])
    monkeypatch.delenv(name)


def test_unknown_slices_are_refused_before_libtpu_is_asked():
  with pytest.raises(ValueError, match=r'Nearest: .*v6e-16'):
    topology.describe('v6e-17')
  with pytest.raises(ValueError, match='--slices=0'):
    topology.describe('v6e-16', num_slices=0)
