"""The prepared tables on disk: their only writer and reader.

interactions.parquet, items.parquet, users.parquet, semantic_ids.parquet and
predictions.parquet; the columns are listed at `write_tables`.
"""

import io
import os
import uuid
from typing import NamedTuple

import numpy as np
import polars as pl
from etils import epath
from jaxtyping import Int

from onerec_jax.data import schema
from onerec_jax.semantic_ids import table

_Path = str | os.PathLike[str]


class Sequences(NamedTuple):
  """The training positives of all users, oldest first, in user order."""

  offsets: Int[np.ndarray, ' U1']  # user u: offsets[u]..offsets[u+1]
  items: Int[np.ndarray, ' E']
  timestamps: Int[np.ndarray, ' E']  # microseconds UTC, or ranks


def write_frame(path: epath.Path, frame: pl.DataFrame) -> None:
  """Writes a table so that a reader sees the old one or the whole new one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  buffer = io.BytesIO()
  frame.write_parquet(buffer, compression='zstd')
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}'
  temporary.write_bytes(buffer.getvalue())
  temporary.replace(path)


def _read(
  path: epath.Path, stage: str, columns: list[str] | None = None
) -> pl.DataFrame:
  if not path.exists():
    raise FileNotFoundError(
      f'{path} is missing; it is written by the stage {stage!r}. Run that'
      ' stage with the same --workdir first.'
    )
  return pl.read_parquet(io.BytesIO(path.read_bytes()), columns=columns)


# --- Interactions, items, users ---------------------------------------------


def write_tables(
  folder: _Path,
  interactions: pl.DataFrame,
  items: pl.DataFrame,
  users: pl.DataFrame,
) -> None:
  """Writes the three tables of a prepared data set.

  Args:
    folder: the workdir's data/.
    interactions: user i32, item i32 (dense), timestamp i64 (microseconds UTC
      or rank within the user), session i64 (only if sessions are cut; null:
      none), exact_time bool (only if some times are placeholders: False),
      positive bool, split ('train' | 'valid' | 'test': the first split
      that sees the event), then feedback f32 by name; sorted by user and
      time.
    items: item i32 (= row), item_id, title, text (str or null), categories
      (list of str), train_positives i32.
    users: user i32 (= row), user_id, then features by name.
  """
  folder = epath.Path(folder)
  write_frame(folder / 'interactions.parquet', interactions)
  write_frame(folder / 'items.parquet', items)
  write_frame(folder / 'users.parquet', users)


def read_interactions(folder: _Path) -> pl.DataFrame:
  """Returns interactions.parquet; columns as in `write_tables`."""
  return _read(epath.Path(folder) / 'interactions.parquet', 'prepare')


def read_items(folder: _Path) -> pl.DataFrame:
  """Returns items.parquet; the row is the dense item index."""
  return _read(epath.Path(folder) / 'items.parquet', 'prepare')


def read_users(folder: _Path) -> pl.DataFrame:
  """Returns users.parquet; the row is the dense user index."""
  return _read(epath.Path(folder) / 'users.parquet', 'prepare')


def _item_column(folder: _Path, column: str) -> pl.Series:
  frame = _read(epath.Path(folder) / 'items.parquet', 'prepare', [column])
  return frame[column]


def num_items(folder: _Path) -> int:
  """Returns the size of the catalogue."""
  return len(_item_column(folder, 'item'))


def item_ids(folder: _Path) -> np.ndarray:
  """Returns the original id of each dense item, as a NumPy str array."""
  return np.array(_item_column(folder, 'item_id').to_list(), dtype=str)


def item_titles(folder: _Path) -> list[str]:
  """Returns the title of each item, its id where it has none."""
  items = read_items(folder)
  return items['title'].fill_null(items['item_id']).to_list()


def item_texts(folder: _Path) -> list[str]:
  """Returns the text of each item, its title or '' where it has none."""
  items = read_items(folder)
  return items['text'].fill_null(items['title']).fill_null('').to_list()


def item_categories(folder: _Path) -> list[list[str]]:
  """Returns the categories of each item, general ones first."""
  return _item_column(folder, 'categories').to_list()


def train_counts(folder: _Path) -> Int[np.ndarray, ' I']:
  """Returns how many training positives each item has. int64 [num_items]"""
  return _item_column(folder, 'train_positives').to_numpy().astype(np.int64)


def training_sequences(folder: _Path) -> Sequences:
  """Returns the positives that training may see; no held-out event is in it."""
  folder = epath.Path(folder)
  events = _read(
    folder / 'interactions.parquet',
    'prepare',
    ['user', 'item', 'timestamp', 'positive', 'split'],
  ).filter(pl.col('positive') & (pl.col('split') == schema.SPLITS[0]))
  num_users = len(_read(folder / 'users.parquet', 'prepare', ['user']))
  lengths = np.bincount(events['user'].to_numpy(), minlength=num_users)
  return Sequences(
    offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    items=events['item'].to_numpy().astype(np.int32),
    timestamps=events['timestamp'].to_numpy().astype(np.int64),
  )


# --- Semantic IDs and predictions -------------------------------------------

# Sizes of the levels travel in the column names' order; this one holds them.
_SIZES = 'codes_per_level'


def write_semantic_ids(
  path: _Path,
  *,
  item_ids: np.ndarray,
  codes: Int[np.ndarray, 'I L'],
  rank_in_bucket: Int[np.ndarray, ' I'],
  codes_per_level: tuple[int, ...],
) -> None:
  """Writes the table item -> semantic ID.

  Columns: item i32 (= row), item_id, code_0..code_{L-1} i32, rank_in_bucket
  i32, codes_per_level (list of int, the same in every row).

  Args:
    path: the .parquet file.
    item_ids: original ids. [I]
    codes: semantic IDs. [I, L]
    rank_in_bucket: place among the items of the same ID. [I]
    codes_per_level: number of codes of each level. [L]
  """
  sizes = [[int(c) for c in codes_per_level]] * len(codes)
  columns: dict[str, object] = {
    'item': np.arange(len(codes), dtype=np.int32),
    'item_id': [str(i) for i in item_ids],
  }
  for level in range(codes.shape[1]):
    columns[f'code_{level}'] = codes[:, level].astype(np.int32)
  columns['rank_in_bucket'] = rank_in_bucket.astype(np.int32)
  columns[_SIZES] = pl.Series(sizes, dtype=pl.List(pl.Int64))
  write_frame(epath.Path(path), pl.DataFrame(columns))


def read_semantic_ids(path: _Path) -> table.SemanticIds:
  """Returns what `write_semantic_ids` wrote.

  Raises:
    FileNotFoundError: the stage `tokenize` has not run.
    ValueError: the table is empty.
  """
  frame = _read(epath.Path(path), 'tokenize')
  if not len(frame):
    raise ValueError(f'{path} has no items. Run the stage `tokenize` again.')
  sizes = tuple(frame[_SIZES][0].to_list())
  codes = frame.select(f'code_{level}' for level in range(len(sizes)))
  return table.SemanticIds(
    codes=np.ascontiguousarray(codes.to_numpy(), dtype=np.int32),
    codes_per_level=sizes,
    rank_in_bucket=frame['rank_in_bucket'].to_numpy().astype(np.int32),
  )


def write_predictions(path: _Path, columns: dict[str, np.ndarray]) -> None:
  """Writes one row per evaluated example.

  Args:
    path: the .parquet file.
    columns: arrays by name, equal in length; a 2-D array becomes a column of
      lists. [N] or [N, width]
  """
  series = []
  for name, values in columns.items():
    if values.ndim == 2:
      inner = pl.Series(values.reshape(-1))
      dtype = pl.Array(inner.dtype, values.shape[1])
      column = inner.reshape(values.shape).cast(dtype).arr.to_list()
      series.append(column.alias(name))
    else:
      series.append(pl.Series(name, values))
  write_frame(epath.Path(path), pl.DataFrame(series))


def read_predictions(path: _Path) -> dict[str, np.ndarray]:
  """Returns what `write_predictions` wrote, with the same shapes."""
  frame = _read(epath.Path(path), 'evaluate')
  result = {}
  for name in frame.columns:
    column = frame[name]
    if isinstance(column.dtype, pl.List) and len(column):
      width = len(column[0])
      column = column.list.to_array(width)
    result[name] = column.to_numpy()
  return result
