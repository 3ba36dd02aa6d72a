"""The work directory: where each stage reads and writes, and what is done.

A stage is complete when its result.json exists; it is written last and
atomically.  started.json says with which settings the stage was begun.  Local
paths and gs:// alike (etils.epath).
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import socket
import uuid
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import fsspec
from absl import logging
from etils import epath
from fsspec import config as fsspec_config

CONFIG = 'config.json'
RESULT = 'result.json'
STARTED = 'started.json'
_LOCK = '.lock'

# Stages whose folder is named after what it holds.
FOLDERS = {'prepare': 'data', 'tokenize': 'tokenizer'}


# Address scheme -> fsspec's name of its file system.
_STORES = {'gs': 'gcs', 's3': 's3', 'az': 'az'}
# The hosts of a job write for each other: a listing that one of them remembered
# would hide for ever what another writes later, or cut it at its old length.
for _store in _STORES.values():
  fsspec_config.conf.setdefault(_store, {}).setdefault(
    'use_listings_cache', False
  )


def check_reachable(path: str) -> None:
  """Raises ValueError for a path that would not lead where it says.

  Without this, 'gcs://b' is a folder of this machine named 'gcs:', and gs://
  fails wherever it is read first.
  """
  scheme, found, _ = path.partition('://')
  if not found:
    return
  if scheme not in _STORES:
    raise ValueError(
      f'{path} begins with {scheme}://, expected a local path or gs://, e.g.'
      ' gs://bucket/folder.'
    )
  if importlib.util.find_spec('tensorflow') is None:  # etils prefers it
    try:
      fsspec.get_filesystem_class(_STORES[scheme])
    except ImportError as error:
      raise ValueError(
        f'{path} cannot be reached: {error}, e.g. python -m pip install gcsfs'
      ) from error


def write_json(path: epath.Path, value: Any) -> None:
  """Writes `value` so that a reader sees the old file or the whole new one."""
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}'
  temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + '\n')
  temporary.replace(path)


def read_json(path: epath.Path) -> dict[str, Any] | None:
  """Returns what `write_json` wrote, or None if there is no file."""
  return json.loads(path.read_text()) if path.exists() else None


class Workdir:
  """Paths of one run.  Creating the object touches nothing on disk.

  Args:
    root: local path or gs://.
    folders: places of stages whose folder is not below the root, as the runs
      of a sweep share theirs; by stage name.
  """

  def __init__(
    self,
    root: str | os.PathLike[str],
    *,
    folders: Mapping[str, epath.Path] | None = None,
  ):
    text = os.fspath(root)
    check_reachable(text)
    # Checkpoints refuse relative paths; a bucket's path is absolute already.
    self.root = epath.Path(text if '://' in text else os.path.abspath(text))
    self._folders = dict(folders or {})

  # --- Paths ---

  def stage(self, name: str) -> epath.Path:
    """Folder of a stage, made if needed."""
    path = self.folder(name)
    path.mkdir(parents=True, exist_ok=True)
    return path

  def folder(self, stage: str) -> epath.Path:
    """Folder of a stage, whether it exists or not."""
    return self._folders.get(stage, self.root / FOLDERS.get(stage, stage))

  @property
  def data(self) -> epath.Path:
    """interactions/items/users.parquet, examples/, dataset.json."""
    return self.folder('prepare')

  @property
  def embeddings(self) -> epath.Path:
    """item_embeddings.npz: 'embeddings' f32 [num_items, dim]."""
    return self.folder('embed') / 'item_embeddings.npz'

  @property
  def tokenizer(self) -> epath.Path:
    """codebooks.npz, semantic_ids.parquet."""
    return self.folder('tokenize')

  def require(self, path: epath.Path, stage: str) -> epath.Path:
    """Returns `path`, or says which stage makes it."""
    if not path.exists():
      raise FileNotFoundError(
        f'{path} is missing: it is written by the stage {stage!r}. Run'
        f' `python -m onerec_jax.main {stage} --config=... '
        f'--workdir={self.root}` first.'
      )
    return path

  # --- Book-keeping ---

  @contextlib.contextmanager
  def exclusive(self) -> Iterator[None]:
    """Keeps a second run out of a local folder for as long as this one writes.

    Two runs would take each other's checkpoints for their own and cut each
    other's metrics.  The lock ends with the process, however that ends.  A
    bucket has no locks: there it is for whoever starts the jobs.

    Raises:
      ValueError: another process holds it.
    """
    if '://' in os.fspath(self.root):
      yield
      return
    self.root.mkdir(parents=True, exist_ok=True)
    with open(os.fspath(self.root / _LOCK), 'a+') as file:
      try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except (BlockingIOError, PermissionError):
        file.seek(0)
        raise ValueError(
          f'{self.root} is in use by {file.read() or "another process"}. Wait'
          ' until it ends, stop it, or pass another --workdir.'
        ) from None
      except OSError as error:
        logging.warning('%s cannot be locked (%s).', self.root, error)
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()}')
      file.flush()
      yield

  def config(self) -> dict[str, Any] | None:
    """Returns the resolved experiment of the last run, or None."""
    return read_json(self.root / CONFIG)

  def write_config(self, resolved: dict[str, Any]) -> None:
    """Records the resolved experiment."""
    self.root.mkdir(parents=True, exist_ok=True)
    write_json(self.root / CONFIG, resolved)

  def result(self, stage: str) -> dict[str, Any] | None:
    """Returns a finished stage's result.json, or None."""
    return read_json(self.folder(stage) / RESULT)

  def started(self, stage: str) -> dict[str, Any] | None:
    """Returns {'digest', 'config'} of the stage's last start, or None."""
    return read_json(self.folder(stage) / STARTED)

  def begin(self, stage: str, *, digest: str, config: dict[str, Any]) -> None:
    """Marks a stage as begun and not complete."""
    folder = self.stage(stage)
    (folder / RESULT).unlink(missing_ok=True)
    write_json(folder / STARTED, {'digest': digest, 'config': config})

  def finish(self, stage: str, result: dict[str, Any]) -> None:
    """Marks a stage as complete."""
    write_json(self.stage(stage) / RESULT, result)


def sum_reports(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the sums of nested dictionaries of numbers, key by key."""
  result: dict[str, Any] = {}
  for report in reports:
    for name, value in report.items():
      if isinstance(value, Mapping):
        result[name] = sum_reports([result.get(name, {}), value])
      else:
        result[name] = result.get(name, 0) + value
  return result
