"""Huge pages for large buffers, asked of the C library before Python starts.

XLA takes the memory of every step anew from the system, and on a CPU touching
it page by page of 4 KB costs a quarter of a small model's training
(experiments/benchmarks/LOG.md).  glibc reads the setting once, when a process
starts, so the process begins again in its place.
"""

import os
import sys
from collections.abc import Mapping

VARIABLE = 'GLIBC_TUNABLES'
_TUNABLE = 'glibc.malloc.hugetlb'
_SINCE = (2, 35)  # version of glibc


def restart_with() -> None:
  """Begins this process again with huge pages, unless it has been asked for.

  Same process id and arguments.  Returns where there is nothing to do: the C
  library knows no such setting, or GLIBC_TUNABLES names it already (with =0 to
  do without huge pages); and in a debugger, which would lose the process.
  Whether the kernel has huge pages, it decides itself.
  """
  environment = environment_with(os.environ)
  wanted = environment != dict(os.environ)
  if wanted and _is_known() and not _is_debugged():
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def environment_with(environment: Mapping[str, str]) -> dict[str, str]:
  """Returns the environment with the setting added, unless it is there."""
  given = environment.get(VARIABLE, '')
  if _TUNABLE in given:
    return dict(environment)
  joined = ':'.join(filter(None, (given, f'{_TUNABLE}=1')))
  return {**environment, VARIABLE: joined}


def _is_known() -> bool:
  """Whether the C library is a glibc that has the setting."""
  if 'CS_GNU_LIBC_VERSION' not in getattr(os, 'confstr_names', {}):
    return False
  name, _, version = (os.confstr('CS_GNU_LIBC_VERSION') or '').partition(' ')
  numbers = tuple(int(n) for n in version.split('.')[:2] if n.isdecimal())
  return name == 'glibc' and numbers >= _SINCE


def _is_debugged() -> bool:
  """Whether a debugger follows this process."""
  return sys.gettrace() is not None or 'debugpy' in sys.modules
