"""Flags of libtpu per generation, from tpu/flags/<generation>.env.

The files are those that the launch scripts source; here they become compiler
options, so that a program is judged as it will be run.
"""

import pathlib
import re

FOLDER = pathlib.Path(__file__).parents[2] / 'tpu' / 'flags'

_LINE = re.compile(
  r'^LIBTPU_INIT_ARGS\+?="\s*(?:\$LIBTPU_INIT_ARGS\s+)?(--.*?)\s*"\s*(?:#.*)?$'
)
_FLAG = re.compile(r'^--([a-z][a-z0-9_]*)=(\S+)$')


def read(generation: str, *, folder: pathlib.Path = FOLDER) -> dict[str, str]:
  """Returns the flags of a generation, without their dashes.

  Args:
    generation: e.g. 'v5e'.
    folder: of the .env files.

  Raises:
    FileNotFoundError: there is no file for the generation.
    ValueError: a line is not a flag.
  """
  path = folder / f'{generation}.env'
  if not path.exists():
    known = sorted(p.stem for p in folder.glob('*.env'))
    raise FileNotFoundError(
      f'{path} is missing ({", ".join(known) or "no flag file at all"}'
      ' there). Compile without flags (--nolibtpu_flags), or write the file.'
    )
  result: dict[str, str] = {}
  for number, line in enumerate(path.read_text().splitlines(), 1):
    line = line.strip()
    if not line or line.startswith('#'):
      continue
    found = _LINE.match(line)
    words = found.group(1).split() if found else [line]
    for word in words:
      flag = _FLAG.match(word)
      if not flag:
        raise ValueError(
          f'{path}:{number} is not LIBTPU_INIT_ARGS+=" --name=value" but'
          f' {line[:80]!r}.'
        )
      result[flag.group(1)] = flag.group(2)
  return result


def explain(error: str, flags: dict[str, str], generation: str) -> str | None:
  """Returns what to change where the compiler refused a flag; None: it did not.

  Args:
    error: message of the compiler.
    flags: from `read`.
    generation: whose flags they are.
  """
  named = [name for name in flags if name in error]
  unknown = 'No such compile option' in error
  illegal = 'FAILED_PRECONDITION' in error or 'not supported on' in error
  if not (unknown or (illegal and named)):
    return None
  culprits = ', '.join(f'--{name}={flags[name]}' for name in named)
  what = 'does not know' if unknown else 'refuses'
  return (
    f'libtpu {what} {culprits or "a flag"} on {generation}: remove it from'
    f' tpu/flags/{generation}.env, or compile with --nolibtpu_flags. The'
    f' compiler says: {error.splitlines()[0][:300]}'
  )
