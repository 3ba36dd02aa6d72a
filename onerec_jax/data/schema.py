"""The one form in which every adapter hands over a data set.

Original ids as strings, times as microseconds UTC, feedback as float32.
Nothing is filtered, sorted or renumbered here: that is stages/prepare.py.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

SPLITS = ('train', 'valid', 'test')
SPLIT_DTYPE = pl.Enum(SPLITS)

# Columns that the prepared tables use themselves.
RESERVED = (
  'user',
  'item',
  'timestamp',
  'session',
  'positive',
  'split',
  'user_id',
  'item_id',
  'exact_time',
)
_INTERACTIONS = {
  'user_id': pl.String,
  'item_id': pl.String,
  'timestamp': pl.Int64,
}
_ITEMS = {
  'item_id': pl.String,
  'title': pl.String,
  'text': pl.String,
  'categories': pl.List(pl.String),
}
_LISTED_PROBLEMS = 20  # shown in one error; the rest is counted

# What happens to events, items and users, in this order.  The keys are those
# of 'counts' in dataset.json.
RULES = {
  'duplicate_events_dropped': (
    'Events with the same user, item and timestamp: the first is kept.'
  ),
  'duplicate_events_with_other_feedback': (
    'Of those dropped, the ones whose feedback differed from the kept event.'
  ),
  'repeated_pairs_kept': (
    'Events on an item the user has met before, at another time: kept.'
  ),
  'unsorted_users': (
    'Users whose events were not in time order: sorted by timestamp.'
  ),
  'tied_events': (
    'Events at the same timestamp as the event before them, of the same user:'
    ' they keep the order of the file.'
  ),
  'placeholder_time_events': (
    'Events whose order is known but whose time is not: they count as history'
    ' and targets in order, never for sessions cut by gap or day.'
  ),
  'unknown_items': (
    'Items of interactions that the item table lacks: kept without a title.'
  ),
  'unknown_users': (
    'Users of interactions that the user table lacks: kept without features.'
  ),
  'items_without_events': (
    'Items of the item table that no event names: dropped, unless'
    ' data.min_item_positives is 0.'
  ),
  'users_without_events': (
    'Users of the user table that no event names: dropped.'
  ),
  'users_without_positives': (
    'Users with events but no positive one: dropped.'
  ),
  'users_below_min_positives': (
    'Users with fewer than data.min_user_positives positives: dropped,'
    ' together with the next rule until neither changes anything (k-core).'
  ),
  'items_below_min_positives': (
    'Items with fewer than data.min_item_positives positives: dropped with'
    ' all of their events.'
  ),
  'events_of_dropped_users_or_items': (
    'Events that went with a dropped user or item.'
  ),
  'users_train_only': (
    'Users too short to be held out (leave_one_out needs 3 positives, or 3'
    ' sessions with a positive one): all of their events train.'
  ),
  'users_without_training_target': (
    'Kept users who yield no training example, because a target needs a'
    ' positive event before it: their events still count as popularity.'
  ),
  'sessions': 'Sessions found (0 for data.sessions.kind=next_items).',
  'interleaved_sessions_cut': (
    'Logged sessions whose events alternate with those of another session:'
    ' cut where they alternate, so that time order holds.'
  ),
  'events_without_session': (
    'Events without a session id or without a real time: history only.'
  ),
  'sessions_below_quality': (
    'Training sessions that the filter of data.sessions.filter removes as'
    ' targets; their events stay in histories.'
  ),
  'starts_tied_with_history': (
    'by_time only: target starts at the very timestamp of their last history'
    ' event, not used, so that a history lies strictly before its target.'
  ),
}


@dataclasses.dataclass(frozen=True)
class Problem:
  """One thing that is wrong with the input, and where."""

  file: str
  message: str
  row: int | None = None  # 1-based data row, the header not counted
  line: int | None = None  # 1-based line of a text file
  column: str | None = None
  severity: str = 'error'  # or 'notice': handled by a rule

  def __str__(self) -> str:
    place = [self.file]
    if self.row is not None:
      line = f' (line {self.line})' if self.line is not None else ''
      place.append(f'row {self.row}{line}')
    if self.column is not None:
      place.append(f'column {self.column!r}')
    return f'{", ".join(place)}: {self.message}'


class DataError(ValueError):
  """The input data is wrong; `problems` lists where, in reading order."""

  def __init__(self, problems: Sequence[Problem]):
    self.problems = tuple(problems)
    shown = [str(p) for p in self.problems[:_LISTED_PROBLEMS]]
    more = len(self.problems) - len(shown)
    if more > 0:
      shown.append(f'... and {more} more.')
    super().__init__('Bad data:\n  ' + '\n  '.join(shown))


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Raw logs of one data set; see the module docstring for the units."""

  # user_id, item_id, timestamp, then maybe session_id (str), exact_time
  # (bool, False: only the order is known) and feedback columns (float32).
  # Rows in file order, which settles ties of the timestamp.
  interactions: pl.DataFrame
  items: pl.DataFrame  # item_id, title, text, categories
  users: pl.DataFrame  # user_id, features (str or float32)
  feedback: tuple[str, ...]  # names of the feedback columns
  source: str  # where it came from, for dataset.json
  has_item_table: bool  # False: `items` was derived from the interactions
  has_user_table: bool
  # False: timestamps are only ranks within the user.
  has_time: bool = True
  # Rows an adapter dropped or repaired, by rule of its docstring.
  counts: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Events:
  """Events of all kept users as flat arrays, sorted by user and time."""

  offsets: np.ndarray  # int64 [U+1]; events of user u: offsets[u]..offsets[u+1]
  timestamps: np.ndarray  # int64 [E]; microseconds UTC, or rank
  positive: np.ndarray  # bool [E]

  @property
  def num_users(self) -> int:
    return len(self.offsets) - 1

  @property
  def num_events(self) -> int:
    return len(self.timestamps)

  @property
  def user(self) -> np.ndarray:
    """Dense user of each event. int64 [E]"""
    return np.repeat(np.arange(self.num_users), np.diff(self.offsets))

  @property
  def positives_before(self) -> np.ndarray:
    """Positive events of the same user before each event. int64 [E]"""
    total = np.concatenate([[0], np.cumsum(self.positive)])
    return total[:-1] - np.repeat(
      total[self.offsets[:-1]], np.diff(self.offsets)
    )


def natural_order(ids: pl.Series) -> pl.Series:
  """Returns distinct ids, by number if all are whole numbers, else by text."""
  ids = ids.unique()
  numbers = ids.cast(pl.Int64, strict=False)
  if numbers.null_count() == 0:
    return ids.gather(numbers.arg_sort())
  return ids.sort()


def items_of(interactions: pl.DataFrame) -> pl.DataFrame:
  """Returns an item table with ids only, for data without item features."""
  ids = natural_order(interactions['item_id'])
  return pl.DataFrame({'item_id': ids}).with_columns(
    pl.lit(None, pl.String).alias('title'),
    pl.lit(None, pl.String).alias('text'),
    pl.lit([], pl.List(pl.String)).alias('categories'),
  )


def users_of(interactions: pl.DataFrame) -> pl.DataFrame:
  """Returns a user table with ids only."""
  return pl.DataFrame({'user_id': natural_order(interactions['user_id'])})


def validate(dataset: Dataset) -> Dataset:
  """Returns `dataset`, or raises if an adapter broke the form.

  Raises:
    DataError: a column is missing or of another type, an id or a timestamp is
      null, or an id occurs twice in the item or user table.
  """
  problems: list[Problem] = []
  for name, frame, expected in (
    ('interactions', dataset.interactions, _INTERACTIONS),
    ('items', dataset.items, _ITEMS),
    ('users', dataset.users, {'user_id': pl.String}),
  ):
    where = f'{dataset.source} ({name})'
    for column, dtype in expected.items():
      if column not in frame.columns:
        problems.append(
          Problem(where, f'is missing; has {frame.columns}.', column=column)
        )
      elif frame.schema[column] != dtype:
        problems.append(
          Problem(
            where,
            f'has type {frame.schema[column]}, expected {dtype}.',
            column=column,
          )
        )
      elif column in ('user_id', 'item_id', 'timestamp'):
        nulls = frame[column].is_null().arg_true()
        if len(nulls):
          problems.append(
            Problem(where, 'is empty.', row=nulls[0] + 1, column=column)
          )
  for column in dataset.feedback:
    if dataset.interactions.schema.get(column) != pl.Float32:
      problems.append(
        Problem(
          f'{dataset.source} (interactions)',
          'feedback must be float32; has'
          f' {dataset.interactions.schema.get(column)}.',
          column=column,
        )
      )
  if not problems:
    for name, frame, column in (
      ('items', dataset.items, 'item_id'),
      ('users', dataset.users, 'user_id'),
    ):
      for row in frame[column].is_duplicated().arg_true()[:_LISTED_PROBLEMS]:
        problems.append(
          Problem(
            f'{dataset.source} ({name})',
            f'the id {frame[column][row]!r} occurs more than once.',
            row=row + 1,
            column=column,
          )
        )
  if not problems and not len(dataset.interactions):
    problems.append(Problem(dataset.source, 'there are no interactions.'))
  if problems:
    raise DataError(problems)
  return dataset
