"""An exported recommender: one compiled program, its arrays, its item ids.

Loading and asking needs JAX, NumPy, etils and (for jax.export) flatbuffers, no
other part of this package and none of the libraries that trained the model.
`stages/export.py` writes the folder; its format is defined here alone.
"""

import json
import os
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.export
import ml_dtypes
import numpy as np
from etils import epath

FORMAT = 1
PLATFORMS = ('cpu', 'cuda', 'tpu')
_MANIFEST, _PROGRAM, _ARRAYS = (
  'manifest.json',
  'program.stablehlo',
  'arrays.npz',
)
_EXTENDED = {'bfloat16': ml_dtypes.bfloat16}  # types that NumPy files lose


class Manifest(NamedTuple):
  """What the program expects, and where it comes from."""

  format: int
  batch_size: int  # users of one call (B)
  history_length: int  # items that are read (N), the latest
  max_excluded: int  # items that are kept out of the answer (X), the latest
  top_k: int  # items of an answer (K)
  new_user: int  # dense user of somebody who is in no training data
  item_ids: list[str]  # by dense item
  dtypes: list[str]  # of the arrays, in the program's order
  name: str  # of the experiment
  checkpoint_step: int
  semantic_ids: str | None  # digest; None: an item-level baseline
  versions: dict[str, str]


class Answer(NamedTuple):
  """A recommended item."""

  item_id: str
  score: float  # log-probability, nats


class Inputs(NamedTuple):
  """What the program reads of B users beside its arrays."""

  items: Any  # int32 [B, N]; dense, oldest first, pads (0, masked) at the end
  mask: Any  # bool [B, N]
  user: Any  # int32 [B]
  excluded: Any  # int32 [B, X]; dense; -1: none


jax.export.register_namedtuple_serialization(
  Inputs, serialized_name='onerec_jax.exported.Inputs'
)


class Recommender:
  """Answers histories in batches of the size it was exported with."""

  def __init__(
    self,
    manifest: Manifest,
    program: jax.export.Exported,
    arrays: Sequence[np.ndarray],
  ):
    """Puts the arrays on the default device; compiles at the first call."""
    self.manifest = manifest
    self._index = {item_id: i for i, item_id in enumerate(manifest.item_ids)}
    self._arrays = jax.device_put(list(arrays))
    self._call = jax.jit(program.call)

  def recommend(
    self,
    histories: Sequence[Sequence[str]],
    *,
    top_k: int | None = None,
    skip_unknown: bool = False,
  ) -> list[list[Answer]]:
    """Returns the best items for each history, best first.

    What is in a history is not recommended again, unless the model was
    exported with evaluate.decoding.exclude_history off.

    Args:
      histories: original item ids, oldest first, at least one each.
      top_k: at most the number that was exported; None: that number.
      skip_unknown: leaves out ids that were not in the catalogue, instead of
        raising.

    Raises:
      ValueError: top_k is out of range, an id is unknown, or a history is
        empty.
    """
    m = self.manifest
    top_k = m.top_k if top_k is None else top_k
    if not 1 <= top_k <= m.top_k:
      raise ValueError(
        f'top_k={top_k} must be in 1..{m.top_k}, which was exported: export'
        f' again with --top_k={top_k}.'
      )
    dense = [
      self._dense(place, history, skip_unknown=skip_unknown)
      for place, history in enumerate(histories)
    ]
    answers = []
    for start in range(0, len(dense), m.batch_size):
      part = dense[start : start + m.batch_size]
      items, scores = self._call(self._arrays, self._inputs(part))
      items, scores = np.asarray(items), np.asarray(scores)
      answers += [
        [
          Answer(m.item_ids[item], float(score))
          for item, score in zip(items[row], scores[row], strict=True)
          if item >= 0
        ][:top_k]
        for row in range(len(part))
      ]
    return answers

  def _dense(
    self, place: int, history: Sequence[str], *, skip_unknown: bool
  ) -> list[int]:
    if isinstance(history, str):
      raise ValueError(
        f'Request {place} is the string {history!r}, expected a list of item'
        ' ids: recommend([[id, id, ...], ...]).'
      )
    unknown = [i for i in history if i not in self._index]
    if unknown and not skip_unknown:
      raise ValueError(
        f'Request {place} has unknown item ids: {", ".join(unknown[:5])}. The'
        f' catalogue has {len(self._index):,}, e.g.'
        f' {", ".join(self.manifest.item_ids[:3])}; skip_unknown=True leaves'
        ' them out.'
      )
    found = [self._index[i] for i in history if i in self._index]
    if not found:
      raise ValueError(
        f'Request {place} has no known item: the model continues a history of'
        ' at least one.'
      )
    return found

  def _inputs(self, histories: Sequence[Sequence[int]]) -> Inputs:
    """Returns histories as arrays; rows beyond them repeat the first one."""
    m = self.manifest
    rows = [*histories, *[histories[0]] * (m.batch_size - len(histories))]
    inputs = zeros(m)._replace(
      user=np.full(m.batch_size, m.new_user, np.int32),
      excluded=np.full((m.batch_size, m.max_excluded), -1, np.int32),
    )
    for row, history in enumerate(rows):
      read, out = history[-m.history_length :], history[-m.max_excluded :]
      inputs.items[row, : len(read)] = read
      inputs.mask[row, : len(read)] = True
      inputs.excluded[row, : len(out)] = out
    return inputs


def zeros(manifest: Manifest) -> Inputs:
  """Returns inputs of the right shapes and dtypes, NumPy."""
  m = manifest
  return Inputs(
    items=np.zeros((m.batch_size, m.history_length), np.int32),
    mask=np.zeros((m.batch_size, m.history_length), bool),
    user=np.zeros(m.batch_size, np.int32),
    excluded=np.zeros((m.batch_size, m.max_excluded), np.int32),
  )


# --- Files ------------------------------------------------------------------


def check_folder(folder: str | os.PathLike[str]) -> None:
  """Raises ValueError where a folder holds anything but an export."""
  path = epath.Path(folder)
  names = {p.name for p in path.iterdir()} if path.exists() else set()
  others = sorted(names - {_MANIFEST, _PROGRAM, _ARRAYS})
  if others:
    raise ValueError(
      f'{path} holds {others[:3]}: export into a folder of its own.'
    )


def save(
  folder: str | os.PathLike[str],
  manifest: Manifest,
  program: jax.export.Exported,
  arrays: Sequence[np.ndarray],
) -> None:
  """Writes an export, the manifest last; an older one is replaced.

  Args:
    folder: local or gs://; made if it is not there.
    manifest: without the dtypes, which are those of the arrays.
    program: of ([array, ...], Inputs) -> (items [B, K], scores [B, K]).
    arrays: what the program reads.

  Raises:
    ValueError: the folder holds something else.
  """
  check_folder(folder)
  path = epath.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  (path / _MANIFEST).unlink(missing_ok=True)
  (path / _PROGRAM).write_bytes(bytes(program.serialize()))
  with (path / _ARRAYS).open('wb') as file:
    np.savez(
      file,
      **{f'{n:05d}': _as_plain(x) for n, x in enumerate(arrays)},  # type: ignore[arg-type]
    )
  manifest = manifest._replace(dtypes=[str(x.dtype) for x in arrays])
  (path / _MANIFEST).write_text(json.dumps(manifest._asdict()))


def load(folder: str | os.PathLike[str]) -> Recommender:
  """Returns the recommender that was exported into a folder.

  Raises:
    FileNotFoundError: there is none, or it was not finished.
    ValueError: it was written in another format.
  """
  path = epath.Path(folder)
  if not (path / _MANIFEST).exists():
    raise FileNotFoundError(
      f'{path / _MANIFEST} is missing: python -m onerec_jax.main export'
      f' --workdir=RUN --output={path}'
    )
  fields = json.loads((path / _MANIFEST).read_text())
  if fields.get('format') != FORMAT:
    raise ValueError(
      f'{path} has format {fields.get("format")}, this version reads {FORMAT}:'
      ' export the run again.'
    )
  manifest = Manifest(**fields)
  program = jax.export.deserialize(bytearray((path / _PROGRAM).read_bytes()))
  with (path / _ARRAYS).open('rb') as file, np.load(file) as stored:
    arrays = [
      _as_was(stored[f'{n:05d}'], dtype)
      for n, dtype in enumerate(manifest.dtypes)
    ]
  return Recommender(manifest, program, arrays)


def _as_plain(x: np.ndarray) -> np.ndarray:
  return x.view(np.uint16) if str(x.dtype) in _EXTENDED else x


def _as_was(x: np.ndarray, dtype: str) -> np.ndarray:
  return x.view(_EXTENDED[dtype]) if dtype in _EXTENDED else x
