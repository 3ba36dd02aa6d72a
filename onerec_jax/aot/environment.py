"""Environment that a compilation for TPUs without TPUs needs.

Imports no JAX: variables count only if they are set before JAX is imported.
"""

import importlib.util
import os
import sys

# Set unless the user has set them.
_VARIABLES = {
  # The host's own backend is not used; libtpu is a compiler here.
  'JAX_PLATFORMS': 'cpu',
  # Nobody to ask: off Google Cloud the metadata server would be retried.
  'TPU_SKIP_MDS_QUERY': '1',
  # Without it a second process aborts on libtpu's lock file.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  # These two only silence warnings; the topology is asked for by name.
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TF_CPP_MIN_LOG_LEVEL': '3',
}


class LibtpuMissing(ValueError):
  """The TPU compiler is not installed."""


def prepare() -> None:
  """Sets the environment; call it before anything imports JAX.

  Raises:
    LibtpuMissing: there is no libtpu; says what to install.
  """
  problem = missing()
  if problem is not None:
    raise LibtpuMissing(problem)
  for name, value in _VARIABLES.items():
    os.environ.setdefault(name, value)


def missing() -> str | None:
  """Returns why TPU programs cannot be compiled here; None: they can."""
  if importlib.util.find_spec('libtpu') is not None:
    return None
  return (
    'aot compiles with libtpu, which is not installed in'
    f" {sys.prefix}. Install it with pip install 'jax[tpu]' (Linux, no TPU"
    " needed; the extra 'tpu' of this package is the same)."
  )
