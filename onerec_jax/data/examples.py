"""The example files: one record per user and split, plus an index.

`write_examples` and `ExampleStore` are the only writer and reader of
examples/*.arrayrecord and *.index.npz.  What is a target is decided before
(sessions), how batches are made after (pipeline.py).
"""

import copy
import dataclasses
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import grain
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] # a compiled module without stubs
from etils import epath
from jaxtyping import Int
from jaxtyping import Int32

from onerec_jax import batch
from onerec_jax.data import records as records_lib

UserRecord = records_lib.UserRecord  # what callers write and read
# Records read per call while the cache is filled.
_READ_ROWS = 1024
# Decoded events (8 bytes each) are kept in memory below this size, bytes.
CACHE_BYTES = 2 << 30

TargetEvents = Literal['positive', 'all']
# (users [B], positions [B]) -> what is known before those events; a user of
# -1 makes a filler row.  user_context.ContextMaker is one.
Contexts = Callable[[np.ndarray, np.ndarray], batch.UserContext]


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleIndex:
  """What batch planning needs of every record, without reading records.

  R records, S target starts over all records (record order).  An example is
  one target start; its id is its place 0..S-1 in `starts`.
  """

  target_events: TargetEvents  # which events a target takes: positives or all
  users: Int32[np.ndarray, ' R']
  num_events: Int32[np.ndarray, ' R']
  num_positives: Int32[np.ndarray, ' R']
  num_starts: Int32[np.ndarray, ' R']
  starts: Int32[np.ndarray, ' S']  # event positions
  target_lengths: Int32[np.ndarray, ' S']
  history_counts: Int32[np.ndarray, ' S']  # positive events before the start

  @property
  def num_examples(self) -> int:
    return len(self.starts)

  def start_offsets(self) -> Int[np.ndarray, ' R1']:
    """Returns the id of each record's first example, then S."""
    return _offsets(self.num_starts)

  def example_rows(self) -> Int32[np.ndarray, ' S']:
    """Returns the record of each example."""
    return np.repeat(
      np.arange(len(self.users), dtype=np.int32), self.num_starts
    )


class Events(NamedTuple):
  """Ragged events of some records, and of them the positive ones again.

  Both item arrays carry one more 0 at the end, so that a gather from an empty
  file is legal; the offsets never point there.
  """

  items: Int32[np.ndarray, ' E']
  offsets: Int[np.ndarray, ' R1']
  positive_items: Int32[np.ndarray, ' P']
  positive_offsets: Int[np.ndarray, ' R1']


def _offsets(lengths: np.ndarray) -> np.ndarray:
  return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


# --- One file ---------------------------------------------------------------


def index_path(path: str | os.PathLike[str]) -> epath.Path:
  """Returns where the index of the example file `path` lies."""
  file = epath.Path(path)
  return file.parent / f'{file.stem}.index.npz'


def write_examples(
  path: str | os.PathLike[str],
  records: Iterable[UserRecord],
  *,
  target_events: TargetEvents = 'positive',
) -> ExampleIndex:
  """Writes one split; an interrupted write leaves no readable file.

  Args:
    path: the .arrayrecord file; its index is written beside it, last.
    records: one per user, in user order; consumed once.
    target_events: whether targets are the next positive events (sessions of
      kind 'next_items') or all events of a session, as they were shown.

  Raises:
    ValueError: a record contradicts itself; its user is named.
  """
  file = epath.Path(path)
  index_path(file).unlink(missing_ok=True)
  file.parent.mkdir(parents=True, exist_ok=True)
  columns: dict[str, list[Any]] = {
    'users': [],
    'num_events': [],
    'num_positives': [],
    'num_starts': [],
  }
  per_start: dict[str, list[np.ndarray]] = {
    'starts': [],
    'target_lengths': [],
    'history_counts': [],
  }
  # The library writes local files only; a finished file is copied in place.
  with tempfile.TemporaryDirectory() as folder:
    local = os.path.join(folder, 'records')
    # group_size:1 = every record can be read alone.
    writer = array_record_module.ArrayRecordWriter(local, 'group_size:1')
    try:
      for record in records:
        records_lib.check_record(record)
        writer.write(records_lib.encode_record(record))
        positives_before = _offsets(record.positive)
        starts = np.asarray(record.target_starts, np.int64)
        history_counts = positives_before[starts]
        if target_events == 'positive' and np.any(
          history_counts + record.target_lengths > positives_before[-1]
        ):
          raise ValueError(
            f'Bad example of user {record.user}: target_lengths='
            f'{record.target_lengths.tolist()} at target_starts='
            f'{starts.tolist()} reach beyond the {positives_before[-1]}'
            " positive events; pass target_events='all' if targets take"
            ' every event.'
          )
        columns['users'].append(record.user)
        columns['num_events'].append(len(record.items))
        columns['num_positives'].append(positives_before[-1])
        columns['num_starts'].append(len(starts))
        per_start['starts'].append(starts)
        per_start['target_lengths'].append(record.target_lengths)
        per_start['history_counts'].append(history_counts)
    finally:
      writer.close()
    _replace(local, file)
    arrays = {k: np.asarray(v, np.int32) for k, v in columns.items()}
    for name, parts in per_start.items():
      empty = np.zeros(0, np.int32)
      arrays[name] = np.concatenate([empty, *parts]).astype(np.int32)
    index = ExampleIndex(target_events=target_events, **arrays)
    local = os.path.join(folder, 'index.npz')
    stored: dict[str, Any] = {
      'format_version': np.int32(records_lib.FORMAT_VERSION),
      'target_events': np.array(target_events),
      **arrays,
    }
    np.savez(local, **stored)
    _replace(local, index_path(file))
  return index


def _replace(local: str, path: epath.Path) -> None:
  """Copies a local file so that `path` is never seen half written."""
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}'
  epath.Path(local).copy(temporary)
  temporary.replace(path)


def read_index(path: str | os.PathLike[str]) -> ExampleIndex:
  """Returns the index of the example file `path`.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is no index, or of another format version.
  """
  location = index_path(path)
  if not location.exists():
    raise FileNotFoundError(
      f'{location} is missing, so {epath.Path(path).name} cannot be read. Run'
      ' the stage `prepare` first.'
    )
  names = [f.name for f in dataclasses.fields(ExampleIndex)]
  try:
    with location.open('rb') as file, np.load(file) as stored:
      version = int(stored['format_version'])
      if version == records_lib.FORMAT_VERSION:
        arrays: dict[str, Any] = {name: stored[name] for name in names}
      else:
        arrays = {}
  except Exception as error:
    raise ValueError(
      f'{location} is not an example index ({error}). Run the stage `prepare`'
      ' again.'
    ) from error
  if version != records_lib.FORMAT_VERSION:
    raise ValueError(
      f'{location} has format version {version}, this program reads version'
      f' {records_lib.FORMAT_VERSION}. Run the stage `prepare` again.'
    )
  return ExampleIndex(
    **{**arrays, 'target_events': str(arrays['target_events'])}
  )


class _LocalFolder:
  """A temporary folder that goes with the last store that holds it."""

  def __init__(self) -> None:
    self.name = tempfile.mkdtemp(prefix='onerec_examples_')
    weakref.finalize(self, shutil.rmtree, self.name, ignore_errors=True)


class ExampleStore:
  """Random access to the records of one example file.

  Args:
    path: the .arrayrecord file.
    cache_bytes: events are decoded once and kept in memory if they take no
      more than this; otherwise every batch reads its records from the file.
    contexts: what batches know of users beside their history; None: nothing.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    cache_bytes: int = CACHE_BYTES,
    contexts: Contexts | None = None,
  ):
    self.contexts = contexts
    self.path = epath.Path(path)
    self.index = read_index(self.path)
    if not self.path.exists():
      raise FileNotFoundError(
        f'{self.path} is missing. Run the stage `prepare` first.'
      )
    self._source = self._open()
    if len(self._source) != len(self.index.users):
      raise ValueError(
        f'{self.path} holds {len(self._source)} records, its index'
        f' {len(self.index.users)}: they belong to different runs. Run the'
        ' stage `prepare` again.'
      )
    total = int(self.index.num_events.sum(dtype=np.int64)) + int(
      self.index.num_positives.sum(dtype=np.int64)
    )
    self.cached = 4 * total <= cache_bytes
    self.example_rows = self.index.example_rows()  # record of each example
    self._cache: Events | None = None

  def with_contexts(self, contexts: Contexts | None) -> 'ExampleStore':
    """Returns the same records for a model that reads other contexts."""
    other = copy.copy(self)
    other.contexts = contexts
    return other

  def _open(self) -> Any:  # type checkers see no methods on the library's class
    local = os.fspath(self.path)
    if '://' in local:  # the library reads local files only
      self._folder = _LocalFolder()
      local = os.path.join(self._folder.name, self.path.name)
      self.path.copy(local)
    if not self.index.num_events.size:
      return _NoRecords()  # the library refuses empty files
    try:
      source: Any = grain.sources.ArrayRecordDataSource(local)
      len(source)  # reads the footer
    except Exception as error:
      raise ValueError(
        f'{self.path} is not an ArrayRecord file ({error}). Run the stage'
        ' `prepare` again.'
      ) from error
    return source

  def __len__(self) -> int:
    return len(self.index.users)

  def __getitem__(self, row: int) -> UserRecord:
    return self.__getitems__([row])[0]

  def __getitems__(self, rows: Sequence[int]) -> list[UserRecord]:
    """Returns the records at `rows`, read from the file in one call."""
    try:
      data = self._source.__getitems__([int(r) for r in rows])
      return [records_lib.decode_record(d) for d in data]
    except Exception as error:
      raise ValueError(f'{self.path}: {error}') from error

  def events(
    self, rows: Int[np.ndarray, ' B']
  ) -> tuple[Events, Int[np.ndarray, ' B']]:
    """Returns ragged events that contain `rows`, and where each row is there.

    The ragged arrays are shared and must not be changed.
    """
    if self.cached:
      if self._cache is None:
        self._cache = self._read_all()
      return self._cache, rows
    unique, places = np.unique(rows, return_inverse=True)
    return self._ragged(unique.tolist()), places

  def _read_all(self) -> Events:
    parts = [
      self._ragged(range(first, min(first + _READ_ROWS, len(self))))
      for first in range(0, len(self), _READ_ROWS)
    ]
    end = np.zeros(1, np.int32)
    return Events(
      items=np.concatenate([*(p.items[:-1] for p in parts), end]),
      offsets=_offsets(self.index.num_events),
      positive_items=np.concatenate(
        [*(p.positive_items[:-1] for p in parts), end]
      ),
      positive_offsets=_offsets(self.index.num_positives),
    )

  def _ragged(self, rows: Sequence[int]) -> Events:
    records = self.__getitems__(rows)
    for row, record in zip(rows, records, strict=True):
      if len(record.items) != self.index.num_events[row]:
        raise ValueError(
          f'{self.path}: record {row} has {len(record.items)} events, its'
          f' index {self.index.num_events[row]}. Run the stage `prepare` again.'
        )
    end = np.zeros(1, np.int32)
    items = np.concatenate([*(r.items for r in records), end])
    positive = np.concatenate([*(r.positive for r in records), [True]])
    return Events(
      items=items,
      offsets=_offsets(self.index.num_events[rows]),
      positive_items=items[positive],
      positive_offsets=_offsets(self.index.num_positives[rows]),
    )


class _NoRecords:
  """An empty file."""

  def __len__(self) -> int:
    return 0

  def __getitems__(self, rows: Sequence[int]) -> list[bytes]:
    raise IndexError(f'rows {list(rows)} of a file without records')
