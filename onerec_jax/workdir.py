"""The work directory: where each stage reads and writes, and what is done.

A stage is complete when its result.json exists and carries the digest of the
settings it depends on; it is written last and atomically.  Local paths and
gs:// alike (etils.epath).
"""

import json
import os
import uuid
from typing import Any

from etils import epath

RESULT = 'result.json'


class Workdir:
  """Paths of one run.  Creating the object touches nothing on disk."""

  def __init__(self, root: str | os.PathLike[str]):
    self.root = epath.Path(root)

  def stage(self, name: str) -> epath.Path:
    """Folder of a stage, made if needed."""
    path = self.root / name
    path.mkdir(parents=True, exist_ok=True)
    return path

  @property
  def data(self) -> epath.Path:
    """interactions/items/users.parquet, examples/, dataset.json."""
    return self.root / 'data'

  @property
  def embeddings(self) -> epath.Path:
    """item_embeddings.npz: 'embeddings' f32 [num_items, dim]."""
    return self.root / 'embed' / 'item_embeddings.npz'

  @property
  def tokenizer(self) -> epath.Path:
    """codebooks.npz, semantic_ids.parquet."""
    return self.root / 'tokenizer'

  def result(self, stage: str) -> dict[str, Any] | None:
    """Returns a finished stage's result.json, or None."""
    path = self.root / stage / RESULT
    return json.loads(path.read_text()) if path.exists() else None

  def require(self, path: epath.Path, stage: str) -> epath.Path:
    """Returns `path`, or says which stage makes it."""
    if not path.exists():
      raise FileNotFoundError(
        f'{path} is missing: it is written by the stage {stage!r}. Run'
        f' `python -m onerec_jax.main {stage} --config=... '
        f'--workdir={self.root}` first.'
      )
    return path


def write_json(path: epath.Path, value: Any) -> None:
  """Writes `value` so that a reader sees the old file or the whole new one."""
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}'
  temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + '\n')
  temporary.replace(path)
