"""Ids of the features that pathways and P-Scores embed.

From the prepared tables and the training events; 0 is unknown everywhere.
Deterministic: the same tables give the same ids.
"""

import dataclasses
import os

import numpy as np
import polars as pl
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Int32

from onerec_jax import batch
from onerec_jax import config
from onerec_jax.data import catalog
from onerec_jax.data import event_table

# Ages from here on share the last bucket.
_LONGEST_AGE = 10 * 365.25 * 86_400  # seconds
_MICROSECONDS = 1_000_000
_LISTED = 20  # names shown in an error


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """Feature ids of users and items, and how event numbers are bucketed."""

  users: Int32[np.ndarray, 'U F']  # per config.UserFeature
  items: batch.ItemFeatures  # NumPy
  sizes: batch.FeatureSizes
  # Per config.EventFeature: inner edges of the buckets of log(1 + value).
  edges: tuple[Float[np.ndarray, ' _'], ...]


def make_features(
  folder: str | os.PathLike[str],
  events: event_table.EventTable,
  pathways: config.PathwaysConfig,
) -> Features:
  """Returns the features that `pathways` names.

  Users' texts are numbered by frequency, users' numbers by quantile; items'
  categories by the number of items that have them; event numbers between the
  extremes of the training events.  Ties go by the value.

  Args:
    folder: the workdir's data/.
    events: of the same folder; only those of the split 'train' are fitted.
    pathways: which columns and categories.

  Raises:
    ValueError: lists every column or prefix that does not exist, and those
      that do.
  """
  users, items = catalog.read_users(folder), catalog.read_items(folder)
  problems: list[str] = []
  user_ids = _user_ids(users, pathways.user_features, problems)
  item_ids = _item_ids(items, pathways.item_features, problems)
  edges = _edges(events, pathways, problems)
  if problems:
    raise ValueError('Bad features:\n  ' + '\n  '.join(problems))
  empty = np.zeros((len(users), 0), np.int32)
  return Features(
    users=np.stack([ids for ids, _ in user_ids], axis=1) if user_ids else empty,
    items=batch.ItemFeatures(tuple(ids for ids, _ in item_ids)),
    sizes=batch.FeatureSizes(
      num_items=len(items),
      users=tuple(size for _, size in user_ids),
      items=tuple(size for _, size in item_ids),
    ),
    edges=tuple(edges),
  )


# --- Events -----------------------------------------------------------------


def number_ids(
  values: Float[np.ndarray, '*b'], edges: Float[np.ndarray, ' _']
) -> Int32[np.ndarray, '*b']:
  """Returns buckets of event numbers.

    1 + #{edges <= log(1 + max(value, 0))};  0 where the value is not finite

  Args:
    values: in the column's unit; NaN: unknown.
    edges: one entry of `Features.edges`.
  """
  known = np.isfinite(values)
  ids = 1 + np.searchsorted(edges, _log(values[known]), side='right')
  result = np.zeros(values.shape, np.int32)
  result[known] = ids
  return result


def age_ids(
  microseconds: Int[np.ndarray, '*b'],
  known: Bool[np.ndarray, '*b'],
  *,
  num_buckets: int,
) -> Int32[np.ndarray, '*b']:
  """Returns buckets of the time between an event and the request.

    1 + floor(n · log(1 + s) / log(1 + ten years)), at most n, s in seconds

  Args:
    microseconds: request time minus event time.
    known: False: one of the two is not exact; bucket 0.
    num_buckets: n.
  """
  seconds = np.where(known, microseconds, 0) / _MICROSECONDS
  share = np.log1p(np.maximum(seconds, 0)) / np.log1p(_LONGEST_AGE)
  ids = 1 + np.minimum((num_buckets * share).astype(np.int32), num_buckets - 1)
  return ids * known


def _log(values: np.ndarray) -> np.ndarray:
  return np.log1p(np.maximum(values.astype(np.float64), 0))


def _edges(
  events: event_table.EventTable,
  pathways: config.PathwaysConfig,
  problems: list[str],
) -> list[np.ndarray]:
  """Returns the inner edges of every event feature; checks the labels too."""
  training = events.split == 0
  named = [(f'labels[{a}]', c) for a, c in enumerate(pathways.labels)]
  named += [
    (f'event_features[{f}]', x.column)
    for f, x in enumerate(pathways.event_features)
  ]
  for where, column in named:
    if column not in events.feedback:
      problems.append(
        f'model.pathways.{where}: there is no feedback column {column!r};'
        f' there are {sorted(events.feedback)}.'
      )
  edges = []
  for f, feature in enumerate(pathways.event_features):
    values = events.feedback.get(feature.column)
    if values is None:
      continue
    fitted = _log(values[training & np.isfinite(values)])
    if not len(fitted):
      problems.append(
        f'model.pathways.event_features[{f}]: {feature.column!r} is unknown in'
        ' every training event; leave it out.'
      )
      continue
    low, high = float(fitted.min()), float(fitted.max())
    inner = np.linspace(low, high, feature.buckets + 1)[1:-1]
    edges.append(np.unique(inner[inner > low]))
  return edges


# --- Users ------------------------------------------------------------------


def _user_ids(
  users: pl.DataFrame,
  wanted: tuple[config.UserFeature, ...],
  problems: list[str],
) -> list[tuple[np.ndarray, int]]:
  """Returns ids [U] and their number, the unknown 0 included, per feature."""
  present = [c for c in users.columns if c not in ('user', 'user_id')]
  result = []
  for u, feature in enumerate(wanted):
    if feature.column not in present:
      problems.append(
        f'model.pathways.user_features[{u}]: there is no user column'
        f' {feature.column!r}; there are {present}.'
      )
      continue
    column = users[feature.column]
    if column.dtype == pl.String:
      result.append(_text_ids(column, feature.max_values))
    else:
      values = column.cast(pl.Float64).fill_null(float('nan')).to_numpy()
      result.append(_quantile_ids(values, feature.buckets))
  return result


def _by_frequency(values: pl.Series) -> pl.DataFrame:
  """Returns the distinct values and their ids from 1, most frequent first."""
  counts = pl.DataFrame({'value': values}).group_by('value').len()
  counts = counts.sort(['len', 'value'], descending=[True, False])
  return counts.select(
    'value', pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias('id')
  )


def _text_ids(values: pl.Series, max_values: int) -> tuple[np.ndarray, int]:
  table = _by_frequency(values.drop_nulls())
  ids = (
    pl.DataFrame({'value': values})
    .join(table, on='value', how='left', maintain_order='left')['id']
    .fill_null(0)
    .to_numpy()
  )
  # Values beyond the table share the id after it.
  shared = min(len(table), max_values + 1)
  return np.minimum(ids, shared).astype(np.int32), shared + 1


def _quantile_ids(values: np.ndarray, buckets: int) -> tuple[np.ndarray, int]:
  known = np.isfinite(values)
  ids = np.zeros(len(values), np.int32)
  if not known.any():
    return ids, 1
  inner = np.linspace(0, 1, buckets + 1)[1:-1]
  edges = np.unique(np.quantile(values[known], inner))
  edges = edges[edges > values[known].min()]
  ids[known] = 1 + np.searchsorted(edges, values[known], side='right')
  return ids, len(edges) + 2


# --- Items ------------------------------------------------------------------


def _item_ids(
  items: pl.DataFrame,
  wanted: tuple[config.ItemFeature, ...],
  problems: list[str],
) -> list[tuple[np.ndarray, int]]:
  """Returns ids [I, max_values] and their number per feature."""
  pairs = (
    items.select('item', value='categories')
    .explode('value')
    .drop_nulls()
    .unique(maintain_order=True)
  )
  result = []
  for q, feature in enumerate(wanted):
    mine = pairs.filter(pl.col('value').str.starts_with(feature.prefix))
    if not len(mine):
      problems.append(
        f'model.pathways.item_features[{q}] ({feature.name}): no category'
        f' begins with {feature.prefix!r}; {_kinds(pairs["value"])}.'
      )
      continue
    table = _by_frequency(mine['value']).head(feature.vocabulary)
    mine = mine.join(table, on='value', how='inner', maintain_order='left')
    item = mine['item'].to_numpy()
    # Place among the item's values: items come one after the other.
    place = np.arange(len(item)) - np.searchsorted(item, item)
    kept = place < feature.max_values
    ids = np.zeros((len(items), feature.max_values), np.int32)
    ids[item[kept], place[kept]] = mine['id'].to_numpy()[kept]
    result.append((ids, len(table) + 1))
  return result


def _kinds(values: pl.Series) -> str:
  """Returns words on which prefixes there are."""
  if not len(values):
    return 'items have no categories'
  kind = pl.col('value').str.extract(r'^([^:]*:)').fill_null(pl.col('value'))
  kinds = pl.DataFrame({'value': values}).select(kind)['value'].unique().sort()
  shown = kinds.head(_LISTED).to_list()
  more = f' and {len(kinds) - _LISTED} more' if len(kinds) > _LISTED else ''
  return f'there are {shown}{more}'
