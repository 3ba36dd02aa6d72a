"""Reads Amazon reviews: S3-Rec/TIGER sequence files and McAuley's JSON lines.

Sequence files have an order but no times and no ratings.  Review files have
days as timestamps, so reviews of one day keep the order of the file.
"""

import ast
import contextlib
import gzip
import io
import json
import os
import re
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import polars as pl
from etils import epath

from onerec_jax.data import columns
from onerec_jax.data import schema

_REVIEW_KEYS = {
  'reviewerID': pl.String,
  'asin': pl.String,
  'overall': pl.Float32,
  'unixReviewTime': pl.Int64,
}
_ASIN = re.compile(r"""['"]asin['"]\s*:\s*['"]([^'"]+)['"]""")
_MAX_PROBLEMS = 20


def read_sequences(
  path: str | os.PathLike[str], *, variant: str | None
) -> schema.Dataset:
  """Returns a data set from one line per user, 'user item item ...'.

  Files: <variant>.sequences.txt, <variant>.txt (S3-Rec) or, without a
  variant, sequential_data.txt (P5); oldest item first.  Item features, where
  there: <variant>.items.jsonl ({id, asin, title, categories | tags,
  attribute_ids}), else <variant>_item2attributes.json (S3-Rec).  An item is
  named by its ASIN where the file knows it, else by its number; items keep
  the order of their numbers.  Timestamps are ranks within the user.

  Args:
    path: folder of the files.
    variant: prefix of the files, e.g. 'Beauty'.

  Raises:
    DataError: a line is wrong; names file and line.
    FileNotFoundError: there is no sequence file.
  """
  folder = epath.Path(path)
  names = [f'{variant}.sequences.txt', f'{variant}.txt']
  names = names if variant else ['sequential_data.txt']
  file = _first_existing(folder, names)
  interactions = _read_sequence_file(file)
  items = _sequence_items(folder, variant, interactions)
  if items is not None and 'number' in items.columns:
    renamed = interactions.join(
      items.select('number', name='item_id'),
      left_on='item_id',
      right_on='number',
      how='left',
      maintain_order='left',
    )
    interactions = renamed.with_columns(
      item_id=pl.coalesce('name', 'item_id')
    ).drop('name')
    items = items.drop('number')
  return schema.Dataset(
    interactions=interactions,
    items=schema.items_of(interactions) if items is None else items,
    users=schema.users_of(interactions),
    feedback=(),
    source=f'Amazon sequences, {file.name}',
    has_item_table=items is not None,
    has_user_table=False,
    has_time=False,
  )


def _read_sequence_file(file: epath.Path) -> pl.DataFrame:
  text = file.read_text()
  lines = pl.DataFrame({'line': text.split('\n')}).with_row_index('row')
  cells = lines.select(
    'row', cells=pl.col('line').str.extract_all(r'\S+')
  ).filter(pl.col('cells').list.len() > 0)
  user = pl.col('cells').list.first()
  frame = cells.select('row', user_id=user, items=pl.col('cells').list.slice(1))
  problems = []
  short = frame.filter(pl.col('items').list.len() == 0)
  for row, name in zip(short['row'], short['user_id'], strict=True):
    problems.append(
      schema.Problem(
        str(file),
        f'has only {name!r}, expected a user and its items.',
        line=int(row) + 1,
        row=int(row) + 1,
      )
    )
  repeated = frame.filter(~pl.col('user_id').is_first_distinct())
  for row, name in zip(repeated['row'], repeated['user_id'], strict=True):
    problems.append(
      schema.Problem(
        str(file),
        f'the user {name!r} has a line already.',
        line=int(row) + 1,
        row=int(row) + 1,
      )
    )
  if problems:
    raise schema.DataError(problems)
  return (
    frame.with_columns(
      timestamp=pl.int_ranges(pl.col('items').list.len(), dtype=pl.Int64)
    )
    .explode('items', 'timestamp')
    .select('user_id', pl.col('items').alias('item_id'), 'timestamp')
  )


def _sequence_items(
  folder: epath.Path, variant: str | None, interactions: pl.DataFrame
) -> pl.DataFrame | None:
  file = folder / f'{variant}.items.jsonl'
  if file.exists():
    rows = [_sequence_item(row) for _, row in _json_objects(file)]
    return pl.DataFrame(
      rows,
      schema={
        'number': pl.String,
        'item_id': pl.String,
        'title': pl.String,
        'text': pl.String,
        'categories': pl.List(pl.String),
      },
    )
  file = folder / f'{variant}_item2attributes.json'
  if not file.exists():
    return None
  attributes = json.loads(file.read_text())
  items = schema.items_of(interactions)
  return items.with_columns(
    categories=pl.Series(
      [
        [f'attribute:{a}' for a in attributes.get(i, [])]
        for i in items['item_id']
      ],
      dtype=pl.List(pl.String),
    )
  )


def _sequence_item(row: dict[str, Any]) -> dict[str, Any]:
  categories = list(row.get('categories') or [])
  text = [row.get('title'), row.get('tags'), *categories]
  categories += [f'attribute:{a}' for a in row.get('attribute_ids') or []]
  return {
    'number': str(row['id']),
    'item_id': str(row.get('asin') or row['id']),
    'title': row.get('title') or row.get('tags') or None,
    'text': ' '.join(t for t in text if t) or None,
    'categories': categories,
  }


def read_reviews(
  path: str | os.PathLike[str], *, variant: str | None
) -> schema.Dataset:
  """Returns a data set from McAuley's review and metadata JSON lines.

  Files, each also with .gz: reviews_<variant>_5.json, reviews_<variant>.json
  (2014), <variant>_5.json, <variant>.json (2018); metadata, where there:
  meta_<variant>.json.  Lines may be JSON or, as in 2014, Python literals.
  Metadata of items without a review is skipped (it covers the whole
  department); of several lines for one item the first is kept.

  Args:
    path: folder of the files.
    variant: name of the category in the file names, e.g. 'Beauty'.

  Raises:
    DataError: a line is wrong; names file, line and key.
    FileNotFoundError: there is no review file.
    ValueError: no variant is given.
  """
  if not variant:
    raise ValueError(
      "data.source='amazon_reviews' needs data.variant, the category in the"
      " file names, e.g. 'Beauty' for reviews_Beauty_5.json.gz."
    )
  folder = epath.Path(path)
  stems = [
    f'reviews_{variant}_5.json',
    f'reviews_{variant}.json',
    f'{variant}_5.json',
    f'{variant}.json',
  ]
  file = _first_existing(
    folder, [f'{s}{z}' for s in stems for z in ('', '.gz')]
  )
  reviews = _read_review_file(file)
  counts = {}
  items = None
  for suffix in ('', '.gz'):
    meta = folder / f'meta_{variant}.json{suffix}'
    if items is None and meta.exists():
      items = _read_meta(meta, set(reviews['item_id'].unique()), counts)
  return schema.Dataset(
    interactions=reviews,
    items=schema.items_of(reviews) if items is None else items,
    users=schema.users_of(reviews),
    feedback=('rating',),
    source=f'Amazon reviews, {file.name}',
    has_item_table=items is not None,
    has_user_table=False,
    counts=counts,
  )


def _read_review_file(file: epath.Path) -> pl.DataFrame:
  try:
    # Polars reads local files itself, and decompresses them.
    is_remote = '://' in str(file)
    source = io.BytesIO(_contents(file)) if is_remote else str(file)
    frame = pl.read_ndjson(source, schema=_REVIEW_KEYS)
  except pl.exceptions.PolarsError:
    # Python literals, or a broken line: slower, but it can tell which line.
    rows = [
      {key: row.get(key) for key in _REVIEW_KEYS}
      for _, row in _json_objects(file)
    ]
    frame = pl.DataFrame(
      {
        key: [None if r[key] is None else str(r[key]) for r in rows]
        for key in _REVIEW_KEYS
      },
      schema=dict.fromkeys(_REVIEW_KEYS, pl.String),
    )
  problems: list[schema.Problem] = []
  where: dict[str, Any] = {
    'file': file,
    'problems': problems,
    'header_lines': 0,
  }
  columns.require_cells(frame, ('reviewerID', 'asin'), **where)
  rating = columns.cast(frame, 'overall', pl.Float32, **where)
  seconds = columns.cast(
    frame, 'unixReviewTime', pl.Int64, required=True, **where
  )
  columns.raise_if_any(problems)
  return frame.select(
    user_id='reviewerID',
    item_id='asin',
    timestamp=seconds * 1_000_000,
    rating=rating,
  )


def _read_meta(
  file: epath.Path, wanted: set[str], counts: dict[str, int]
) -> pl.DataFrame:
  rows: dict[str, dict[str, Any]] = {}
  counts['metadata_lines_of_other_items'] = 0
  counts['metadata_lines_repeated'] = 0
  for number, line in _lines(file):
    # Parsing a literal is slow; most lines are of items without a review.
    found = _ASIN.search(line)
    if found is None or found.group(1) not in wanted:
      counts['metadata_lines_of_other_items'] += 1
    elif found.group(1) in rows:
      counts['metadata_lines_repeated'] += 1
    else:
      rows[found.group(1)] = _meta_item(_parse(line, file, number))
  return pl.DataFrame(
    list(rows.values()),
    schema={
      'item_id': pl.String,
      'title': pl.String,
      'text': pl.String,
      'categories': pl.List(pl.String),
    },
  )


def _meta_item(row: dict[str, Any]) -> dict[str, Any]:
  # 2014: a list of paths; 2018: one path.
  paths = row.get('categories') or row.get('category') or []
  if paths and isinstance(paths[0], str):
    paths = [paths]
  categories = list(dict.fromkeys(str(c) for path in paths for c in path))
  title, brand = row.get('title') or None, row.get('brand')
  text = ' '.join(str(t) for t in (title, brand, *categories) if t)
  return {
    'item_id': str(row['asin']),
    'title': title,
    'text': text or None,
    'categories': categories,
  }


def _first_existing(folder: epath.Path, names: Sequence[str]) -> epath.Path:
  for name in names:
    if (folder / name).exists():
      return folder / name
  raise FileNotFoundError(
    f'data.path={folder} has none of {", ".join(names)}. Check data.path and'
    ' data.variant (the prefix of the file names, e.g. Beauty).'
  )


def _contents(file: epath.Path) -> bytes:
  data = file.read_bytes()
  return gzip.decompress(data) if file.suffix == '.gz' else data


def _lines(file: epath.Path) -> Iterator[tuple[int, str]]:
  """Yields (1-based number, text) of the lines that are not blank."""
  with contextlib.ExitStack() as stack:
    stream: Any = stack.enter_context(file.open('rb'))
    if file.suffix == '.gz':
      stream = stack.enter_context(gzip.open(stream))
    lines = stack.enter_context(io.TextIOWrapper(stream, encoding='utf-8'))
    for number, line in enumerate(lines, start=1):
      if line.strip():
        yield number, line


def _json_objects(file: epath.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (line number, object); raises once, naming up to 20 bad lines."""
  problems: list[schema.Problem] = []
  for number, line in _lines(file):
    try:
      yield number, _parse(line, file, number)
    except schema.DataError as error:
      problems += error.problems
      if len(problems) >= _MAX_PROBLEMS:
        break
  if problems:
    raise schema.DataError(problems)


def _parse(line: str, file: epath.Path, number: int) -> dict[str, Any]:
  try:
    value = json.loads(line)
  except ValueError:
    try:
      value = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      value = None
  if not isinstance(value, dict):
    problem = schema.Problem(
      str(file),
      f'is no JSON object: {line.strip()[:60]!r}.',
      row=number,
      line=number,
    )
    raise schema.DataError([problem])
  return value
