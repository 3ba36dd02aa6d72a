"""All prepared events in memory, as flat arrays sorted by user and time.

What pathways, clusters and P-Scores read of the log.  Buckets nothing and
chooses nothing: features.py and user_context.py do.
"""

import dataclasses
import functools
import os

import numpy as np
import polars as pl
from etils import epath
from jaxtyping import Bool
from jaxtyping import Float32
from jaxtyping import Int8
from jaxtyping import Int32
from jaxtyping import Int64

from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import schema


@dataclasses.dataclass(frozen=True, eq=False)
class EventTable:
  """Events of all users; position p of user u is place offsets[u] + p.

  An example at position p may read the places offsets[u] .. offsets[u]+p-1.
  """

  offsets: Int64[np.ndarray, ' U1']  # user u: offsets[u]..offsets[u+1]
  items: Int32[np.ndarray, ' E']  # dense
  timestamps: Int64[np.ndarray, ' E']  # microseconds UTC, or ranks
  exact_time: Bool[np.ndarray, ' E']  # False: the timestamp only orders
  positive: Bool[np.ndarray, ' E']
  split: Int8[
    np.ndarray, ' E'
  ]  # place in schema.SPLITS; 0: training may see it
  feedback: dict[str, Float32[np.ndarray, ' E']]  # by column; NaN: unknown

  @property
  def num_users(self) -> int:
    return len(self.offsets) - 1

  @property
  def num_events(self) -> int:
    return len(self.items)

  @functools.cached_property
  def user(self) -> Int32[np.ndarray, ' E']:
    """Dense user of each event."""
    users = np.arange(self.num_users, dtype=np.int32)
    return np.repeat(users, np.diff(self.offsets))

  @functools.cached_property
  def positives_before(self) -> Int64[np.ndarray, ' E1']:
    """Positive events of all users before each place, and in all."""
    return np.concatenate(([0], np.cumsum(self.positive, dtype=np.int64)))

  @functools.cached_property
  def positive_places(self) -> Int64[np.ndarray, ' P']:
    """Places of the positive events, rising."""
    return np.flatnonzero(self.positive).astype(np.int64)

  def column(self, name: str, setting: str) -> Float32[np.ndarray, ' E']:
    """Returns a feedback column.

    Args:
      name: of the column.
      setting: the config path that names it, for the error.

    Raises:
      ValueError: there is no such column.
    """
    if name not in self.feedback:
      raise ValueError(
        f'{setting} names {name!r}, which is no feedback column of this data'
        f' set; it has {sorted(self.feedback)}. Take one of them, or leave'
        ' this entry out.'
      )
    return self.feedback[name]


def read(folder: str | os.PathLike[str]) -> EventTable:
  """Returns all events of a prepared data set.

  A timestamp is exact if the table's column exact_time says so.  Without that
  column all are, unless dataset.json tells that timestamps are ranks or that
  some are placeholders: nobody knows which ones, so none counts as exact.

  Args:
    folder: the workdir's data/.

  Raises:
    FileNotFoundError: the stage `prepare` has not run.
  """
  frame = catalog.read_interactions(folder)
  num_users = len(catalog.read_users(folder))
  user = frame['user'].to_numpy()
  lengths = np.bincount(user, minlength=num_users)
  return EventTable(
    offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
    items=frame['item'].to_numpy().astype(np.int32),
    timestamps=frame['timestamp'].to_numpy().astype(np.int64),
    exact_time=_exact_time(epath.Path(folder), frame),
    positive=frame['positive'].to_numpy().astype(bool),
    split=frame['split']
    .cast(schema.SPLIT_DTYPE)
    .to_physical()
    .to_numpy()
    .astype(np.int8),
    feedback={
      name: frame[name].cast(pl.Float32).fill_null(float('nan')).to_numpy()
      for name in frame.columns
      if name not in schema.RESERVED
    },
  )


def _exact_time(folder: epath.Path, frame: pl.DataFrame) -> np.ndarray:
  if 'exact_time' in frame.columns:
    return frame['exact_time'].to_numpy().astype(bool)
  told = workdir_lib.read_json(folder / 'dataset.json')
  if told is None:
    raise FileNotFoundError(
      f'{folder / "dataset.json"} is missing; it is written by the stage'
      " 'prepare'. Run that stage with the same --workdir first."
    )
  ranks = told['timestamps'] != 'microseconds UTC'
  some = told['counts']['placeholder_time_events'] > 0
  return np.full(len(frame), not (ranks or some))


def check_index(events: EventTable, index: examples.ExampleIndex) -> None:
  """Checks that an example's start is a position of the event table.

  That is so if every record of the example file is the beginning of its
  user's events.

  Raises:
    ValueError: it is not, so the files belong to different runs.
  """
  users = index.users.astype(np.int64)
  problem = None
  if np.any(users >= events.num_users):
    problem = f'user {users.max()} of {events.num_users}'
  else:
    first = events.offsets[users]
    count = index.num_events.astype(np.int64)
    too_long = count > events.offsets[users + 1] - first
    if np.any(too_long):
      problem = f'more events of user {users[too_long.argmax()]} than the table'
    else:
      before = events.positives_before
      other = before[first + count] - before[first] != index.num_positives
      rows = index.example_rows()
      base = first[rows]
      start = before[base + index.starts] - before[base]
      moved = start != index.history_counts
      if np.any(other):
        problem = f'other positive events of user {users[other.argmax()]}'
      elif np.any(moved):
        problem = f'other histories of user {users[rows[moved.argmax()]]}'
  if problem is not None:
    raise ValueError(
      f'The example file has {problem}: it does not belong to the'
      ' interactions.parquet beside it. Run the stage `prepare` again.'
    )
