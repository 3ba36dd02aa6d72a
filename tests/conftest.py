"""Test set-up: eight CPU devices, no silent rank promotion, warm compiles."""

import os
import pathlib

# Must be set before the first JAX array exists.
_CACHE = pathlib.Path(__file__).parent.parent / '.pytest_cache' / 'jax'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

_DEFAULT_DATA = pathlib.Path(__file__).parent.parent.parent / 'shared' / 'data'


@pytest.fixture(scope='session')
def real_data_root() -> pathlib.Path:
  """Folder of the real data sets; the test is skipped where it is absent."""
  root = pathlib.Path(os.environ.get('ONEREC_DATA', _DEFAULT_DATA))
  if not root.is_dir():
    pytest.skip(
      f'no real data: ONEREC_DATA={root} is not a folder; set ONEREC_DATA to'
      ' the folder that holds amazon2014/ and kuairand_pure/'
    )
  return root
