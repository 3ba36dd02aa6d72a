"""From an adapter's data set to dense, sorted, filtered events.

Applies the rules of schema.RULES and counts what each one did.  Cuts no
sessions and splits nothing.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Bool
from jaxtyping import Int

from onerec_jax import config
from onerec_jax.data import schema


@dataclasses.dataclass(frozen=True, eq=False)
class CleanData:
  """Kept events with dense ids, sorted by user and time."""

  # user, item (i32), timestamp (i64), positive, feedback (f32 by name).
  interactions: pl.DataFrame
  items: pl.DataFrame  # item (i32), item_id, title, text, categories
  users: pl.DataFrame  # user (i32), user_id, features
  events: schema.Events
  item: Int[np.ndarray, ' E']  # dense item of each event
  session_ids: Int[np.ndarray, ' E'] | None  # logged sessions, -1: none
  exact_time: Bool[np.ndarray, ' E'] | None  # None: all times are real
  counts: dict[str, int]  # by rule

  def feedback(self, name: str) -> np.ndarray:
    """Returns a feedback column as float32, NaN where unknown. [E]"""
    return self.interactions[name].fill_null(float('nan')).to_numpy()


def clean(
  dataset: schema.Dataset,
  *,
  positive: config.PositiveConfig,
  min_user_positives: int,
  min_item_positives: int,
) -> CleanData:
  """Returns the events that remain, with dense user and item indices.

  Dense indices follow the user and item tables; ids that the tables lack come
  after them, in natural order.

  Raises:
    ValueError: a column of `positive` does not exist, or nothing remains.
  """
  counts = dict.fromkeys(schema.RULES, 0)
  interactions = _drop_duplicates(dataset, counts)
  interactions = interactions.with_columns(
    is_positive(positive, dataset.feedback).alias('positive')
  )
  users, counts['unknown_users'] = _complete(
    dataset.users, interactions['user_id'], 'user_id'
  )
  items, counts['unknown_items'] = _complete(
    dataset.items, interactions['item_id'], 'item_id'
  )
  user = _codes(interactions['user_id'], users['user_id'])
  item = _codes(interactions['item_id'], items['item_id'])
  keep_user, keep_item = _core(
    user,
    item,
    interactions['positive'].to_numpy(),
    (len(users), len(items)),
    (min_user_positives, min_item_positives),
    counts,
  )
  kept = keep_user[user] & keep_item[item]
  counts['events_of_dropped_users_or_items'] = int((~kept).sum())
  if not kept.any():
    raise ValueError(
      'No event is left: no user reaches data.min_user_positives='
      f'{min_user_positives} with items of at least data.min_item_positives='
      f'{min_item_positives} positives. Lower them, or check data.positive'
      f' ({positive}); feedback columns are {list(dataset.feedback)}.'
    )
  user = (np.cumsum(keep_user) - 1)[user[kept]].astype(np.int32)
  item = (np.cumsum(keep_item) - 1)[item[kept]].astype(np.int32)
  interactions = interactions.filter(pl.Series(kept))
  timestamp = interactions['timestamp'].to_numpy()
  counts['unsorted_users'] = _count_unsorted(user, timestamp)
  order = np.lexsort((timestamp, user))  # stable: ties keep file order
  user, item = user[order], item[order]
  interactions = interactions[order].select(
    pl.Series('user', user),
    pl.Series('item', item),
    'timestamp',
    'positive',
    *dataset.feedback,
    *(c for c in ('session_id', 'exact_time') if c in interactions.columns),
  )
  timestamp = timestamp[order]
  num_users = int(keep_user.sum())
  lengths = np.bincount(user, minlength=num_users)
  same_user = user[1:] == user[:-1]
  counts['tied_events'] = int(
    (same_user & (timestamp[1:] == timestamp[:-1])).sum()
  )
  pairs = user.astype(np.int64) * len(items) + item
  counts['repeated_pairs_kept'] = int((np.diff(np.sort(pairs)) == 0).sum())
  session_ids = exact_time = None
  if 'session_id' in interactions.columns:
    session = interactions['session_id'].rank('dense').cast(pl.Int64)
    session_ids = session.fill_null(-1).to_numpy()
  if 'exact_time' in interactions.columns:
    exact_time = interactions['exact_time'].to_numpy()
    counts['placeholder_time_events'] = int((~exact_time).sum())
  return CleanData(
    interactions=interactions.drop(['session_id', 'exact_time'], strict=False),
    items=_densify(items, keep_item, 'item'),
    users=_densify(users, keep_user, 'user'),
    events=schema.Events(
      offsets=np.concatenate([[0], np.cumsum(lengths)]),
      timestamps=timestamp,
      positive=interactions['positive'].to_numpy(),
    ),
    item=item,
    session_ids=session_ids,
    exact_time=exact_time,
    counts=counts,
  )


def is_positive(
  positive: config.PositiveConfig, feedback: Sequence[str]
) -> pl.Expr:
  """Returns which events are positive feedback; unknown values are not.

    (any_of is empty or any named column > 0) and (rating >= min_rating)

  Raises:
    ValueError: a named column is not among `feedback`.
  """
  rating = () if positive.min_rating is None else ('rating',)
  for column in (*positive.any_of, *rating):
    if column not in feedback:
      source = 'any_of' if column in positive.any_of else 'min_rating'
      raise ValueError(
        f'data.positive.{source} needs the feedback column {column!r}; this'
        f' data set has {list(feedback)}.'
      )
  result = pl.lit(True)
  if positive.any_of:
    result = pl.any_horizontal(
      (pl.col(c) > 0).fill_null(False) for c in positive.any_of
    )
  if positive.min_rating is not None:
    result &= (pl.col('rating') >= positive.min_rating).fill_null(False)
  return result


def tables(
  data: CleanData,
  *,
  session: Int[np.ndarray, ' E'] | None,
  stretch: Int[np.ndarray, ' E'],
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
  """Returns interactions, items and users as catalog.write_tables takes them.

  Args:
    data: cleaned events.
    session: session of each event, -1: none; None: sessions are not cut. [E]
    stretch: 0 train, 1 valid, 2 test. [E]
  """
  added = [
    pl.Series('split', np.array(schema.SPLITS)[stretch]).cast(
      schema.SPLIT_DTYPE
    )
  ]
  if session is not None:
    number = pl.Series('session', session.astype(np.int64))
    added.append(number.replace(-1, None))
  if data.exact_time is not None:
    added.append(pl.Series('exact_time', data.exact_time))
  interactions = data.interactions.with_columns(added)
  first = ['user', 'item', 'timestamp', 'positive', 'split']
  first += ['session'] if session is not None else []
  first += ['exact_time'] if data.exact_time is not None else []
  interactions = interactions.select(*first, pl.exclude(first))
  trained = data.item[(stretch == 0) & data.events.positive]
  train_positives = np.bincount(trained, minlength=len(data.items))
  items = data.items.with_columns(
    pl.Series('train_positives', train_positives.astype(np.int32))
  )
  return interactions, items, data.users


def statistics(data: CleanData) -> dict[str, object]:
  """Returns the figures of the cleaned data for dataset.json."""
  events = data.events
  positives = np.diff(
    np.concatenate([[0], np.cumsum(events.positive)])[events.offsets]
  )
  feedback = {}
  for name in data.interactions.columns[4:]:
    column = data.interactions[name]
    known = len(column) - column.null_count()
    feedback[name] = {
      'known': known,
      'mean': float(column.mean() or 0),  # type: ignore[arg-type] # float32 column
      'share_above_zero': int((column > 0).sum()) / max(known, 1),
    }
  return {
    'users': events.num_users,
    'items': len(data.items),
    'events': events.num_events,
    'positives': int(events.positive.sum()),
    'density': events.num_events / (events.num_users * len(data.items)),
    'positives_per_user': {
      'min': int(positives.min()),
      'median': float(np.median(positives)),
      'mean': float(positives.mean()),
      'max': int(positives.max()),
    },
    'first_timestamp': int(events.timestamps.min()),
    'last_timestamp': int(events.timestamps.max()),
    'feedback': feedback,
  }


# --- Steps ------------------------------------------------------------------


def _drop_duplicates(
  dataset: schema.Dataset, counts: dict[str, int]
) -> pl.DataFrame:
  key = ['user_id', 'item_id', 'timestamp']
  frame = dataset.interactions
  first = frame.select(pl.struct(key).is_first_distinct()).to_series()
  dropped = frame.filter(~first)
  counts['duplicate_events_dropped'] = len(dropped)
  if len(dropped) and dataset.feedback:
    # Of each event that occurs more than once, the kept one and the others.
    same = dropped.join(
      frame.filter(first), on=key, suffix=' of kept', how='left'
    )
    differs = pl.any_horizontal(
      pl.col(c).ne_missing(pl.col(f'{c} of kept')) for c in dataset.feedback
    )
    counts['duplicate_events_with_other_feedback'] = int(
      same.select(differs.sum()).item()
    )
  return frame.filter(first)


def _complete(
  frame: pl.DataFrame, ids: pl.Series, column: str
) -> tuple[pl.DataFrame, int]:
  """Appends the ids that the table lacks; returns it and their number."""
  present = pl.DataFrame({column: ids.unique()})
  unknown = present.join(frame, on=column, how='anti')[column]
  if not len(unknown):
    return frame, 0
  added = pl.DataFrame({column: schema.natural_order(unknown)})
  frame = pl.concat([frame, added], how='diagonal')
  if 'categories' in frame.columns:
    frame = frame.with_columns(pl.col('categories').fill_null([]))
  return frame, len(unknown)


def _codes(ids: pl.Series, known: pl.Series) -> np.ndarray:
  """Returns the row of each id in `known`. int64"""
  rows = pl.DataFrame({'id': known}).with_row_index('row')
  return (
    pl.DataFrame({'id': ids})
    .join(rows, on='id', how='left', maintain_order='left')['row']
    .to_numpy()
    .astype(np.int64)
  )


def _core(
  user: np.ndarray,
  item: np.ndarray,
  positive: np.ndarray,
  sizes: tuple[int, int],
  minima: tuple[int, int],
  counts: dict[str, int],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns which users and items remain in the k-core of positives."""
  num_users, num_items = sizes
  user_events = np.bincount(user, minlength=num_users)
  item_events = np.bincount(item, minlength=num_items)
  has_positive = np.bincount(user[positive], minlength=num_users) > 0
  counts['users_without_events'] = int((user_events == 0).sum())
  counts['users_without_positives'] = int(
    ((user_events > 0) & ~has_positive).sum()
  )
  keep_user = has_positive.copy()
  if minima[1] > 0:
    counts['items_without_events'] = int((item_events == 0).sum())
    keep_item = item_events > 0
  else:
    keep_item = np.ones(num_items, bool)
  began = int(keep_user.sum()), int(keep_item.sum())
  user, item = user[positive], item[positive]
  while True:
    alive = keep_user[user] & keep_item[item]
    users = np.bincount(user[alive], minlength=num_users)
    items = np.bincount(item[alive], minlength=num_items)
    stay_user = keep_user & (users >= max(minima[0], 1))
    stay_item = keep_item & (items >= minima[1])
    if (stay_user == keep_user).all() and (stay_item == keep_item).all():
      break
    keep_user, keep_item = stay_user, stay_item
  counts['users_below_min_positives'] = began[0] - int(keep_user.sum())
  counts['items_below_min_positives'] = began[1] - int(keep_item.sum())
  return keep_user, keep_item


def _count_unsorted(user: np.ndarray, timestamp: np.ndarray) -> int:
  order = np.argsort(user, kind='stable')
  user, timestamp = user[order], timestamp[order]
  backwards = (user[1:] == user[:-1]) & (timestamp[1:] < timestamp[:-1])
  return len(np.unique(user[1:][backwards]))


def _densify(frame: pl.DataFrame, keep: np.ndarray, name: str) -> pl.DataFrame:
  kept = frame.filter(pl.Series(keep))
  index = pl.Series(name, np.arange(len(kept), dtype=np.int32))
  return kept.select(index, pl.all())
