"""Reads a user's own interactions, items and users from Parquet or CSV.

Collects every problem with file, row and column before it gives up, so that
a table can be mended in one go.
"""

import dataclasses
import difflib
import io
from typing import Any

import polars as pl
from etils import epath

from onerec_jax import config
from onerec_jax.data import columns
from onerec_jax.data import schema

_TO_MICROSECONDS = {'s': 1_000_000.0, 'ms': 1_000.0, 'us': 1.0, 'ns': 0.001}
_YEAR_10000 = 253_402_300_800_000_000  # microseconds
_YEAR_2100 = 4_102_444_800_000_000
_YEAR_1980 = 315_532_800_000_000
_MAX_PROBLEMS = 20


@dataclasses.dataclass(eq=False)
class _Source:
  """One table as it was read, and the problems found in it."""

  path: epath.Path
  frame: pl.DataFrame
  problems: list[schema.Problem]
  is_text: bool

  @property
  def header_lines(self) -> int | None:
    """Lines before row 1; None where a row is not a line."""
    if not self.is_text:
      return None
    multiline = pl.any_horizontal(
      pl.col(pl.String).str.contains('\n', literal=True).any()
    )
    return None if self.frame.select(multiline).item() else 1

  def where(self) -> dict[str, Any]:
    return {
      'file': self.path,
      'problems': self.problems,
      'header_lines': self.header_lines,
    }

  def add(self, message: str, **place: Any) -> None:
    self.problems.append(schema.Problem(str(self.path), message, **place))

  def has(self, column: str, setting: str) -> bool:
    """Whether the column exists; adds a problem if not."""
    if column in self.frame.columns:
      return True
    near = difflib.get_close_matches(column, self.frame.columns, 1, 0.6)
    self.add(
      f'is missing (data.tables.{setting}); the table has'
      f' {self.frame.columns}.'
      + (f' Did you mean {near[0]!r}?' if near else ''),
      column=column,
    )
    return False


def read(tables: config.TablesConfig) -> schema.Dataset:
  """Returns the data set of a user's own tables.

  Raises:
    DataError: lists everything that is wrong.
  """
  dataset, problems = load(tables)
  columns.raise_if_any(problems)
  if dataset is None:
    raise schema.DataError(problems)
  return dataset


def load(
  tables: config.TablesConfig,
) -> tuple[schema.Dataset | None, list[schema.Problem]]:
  """Returns the data set (None where it is unusable) and every problem.

  Timestamps may be numbers in data.tables.timestamp_unit, ISO-8601 text (UTC
  unless it has an offset) or Parquet datetimes.  Ids may be text or whole
  numbers.  Categories may be lists or text separated by '|'.
  """
  problems: list[schema.Problem] = []
  interactions = _open(tables.interactions, problems)
  items = _open(tables.items, problems)
  users = _open(tables.users, problems)
  events = None if interactions is None else _interactions(interactions, tables)
  item_table = None if items is None else _items(items, tables)
  user_table = None if users is None else _users(users, tables)
  if events is None or any(p.severity == 'error' for p in problems):
    return None, problems
  dataset = schema.Dataset(
    interactions=events,
    items=schema.items_of(events) if item_table is None else item_table,
    users=schema.users_of(events) if user_table is None else user_table,
    feedback=tables.feedback_columns,
    source=f'tables, {epath.Path(str(tables.interactions)).name}',
    has_item_table=item_table is not None,
    has_user_table=user_table is not None,
  )
  return dataset, problems


def read_items(path: str, tables: config.TablesConfig | None) -> pl.DataFrame:
  """Returns an item table alone, such as of items that came later.

  Args:
    path: .parquet, .csv or .tsv.
    tables: its columns; None: item_id and, where they are there, title, text
      and categories.

  Returns:
    item_id, title, text (str or null), categories (list of str).

  Raises:
    DataError: lists everything that is wrong.
  """
  problems: list[schema.Problem] = []
  source = _open(path, problems)
  columns.raise_if_any(problems)
  assert source is not None
  if tables is None:
    has = source.frame.columns
    tables = config.TablesConfig(
      item_text_columns=('text',) if 'text' in has else (),
      item_category_columns=('categories',) if 'categories' in has else (),
    )
  items = _items(source, tables)
  columns.raise_if_any(problems)
  assert items is not None
  return items


def _open(name: str | None, problems: list[schema.Problem]) -> _Source | None:
  if name is None:
    return None
  path = epath.Path(name)
  if not path.exists():
    problems.append(schema.Problem(name, 'the file does not exist.'))
    return None
  try:
    if path.suffix == '.parquet':
      return _Source(
        path,
        pl.read_parquet(io.BytesIO(path.read_bytes())),
        problems,
        is_text=False,
      )
    if path.suffix in ('.csv', '.tsv'):
      frame = columns.read_delimited(
        path, separator=',' if path.suffix == '.csv' else '\t', quote='"'
      )
      return _Source(path, frame, problems, is_text=True)
  except schema.DataError as error:
    problems += error.problems
    return None
  except pl.exceptions.PolarsError as error:
    reason = str(error).splitlines()[0]
    problems.append(schema.Problem(name, f'cannot be read: {reason}.'))
    return None
  problems.append(schema.Problem(name, 'has to end in .parquet, .csv or .tsv.'))
  return None


def _interactions(
  source: _Source, tables: config.TablesConfig
) -> pl.DataFrame | None:
  required = {
    'user_column': tables.user_column,
    'item_column': tables.item_column,
    'timestamp_column': tables.timestamp_column,
  }
  optional = [('feedback_columns', c) for c in tables.feedback_columns]
  if tables.session_column:
    optional.append(('session_column', tables.session_column))
  present = [source.has(c, s) for s, c in (*required.items(), *optional)]
  _check_names(source, tables.feedback_columns, 'feedback_columns')
  if not all(present):
    return None
  result = {
    'user_id': _ids(source, tables.user_column),
    'item_id': _ids(source, tables.item_column),
    'timestamp': _timestamps(source, tables),
  }
  if tables.session_column:
    result['session_id'] = _text(source.frame[tables.session_column])
  for name in tables.feedback_columns:
    result[name] = columns.cast(
      source.frame, name, pl.Float32, **source.where()
    )
  return pl.DataFrame(result)


def _items(source: _Source, tables: config.TablesConfig) -> pl.DataFrame | None:
  wanted = [('item_column', tables.item_column)]
  wanted += [('item_text_columns', c) for c in tables.item_text_columns]
  wanted += [('item_category_columns', c) for c in tables.item_category_columns]
  title = tables.item_title_column
  # 'title' is the default, not a wish; any other name must exist.
  if title == 'title' and title not in source.frame.columns:
    title = None
  if title:
    wanted.append(('item_title_column', title))
  if not all([source.has(c, s) for s, c in wanted]):
    return None
  frame = source.frame
  ids = _ids(source, tables.item_column)
  _check_distinct(source, ids, tables.item_column)
  titles = (
    _text(frame[title])
    if title
    else pl.repeat(None, len(frame), dtype=pl.String, eager=True)
  )
  texts = [_text(frame[c]) for c in tables.item_text_columns] or [titles]
  lists = [_category_lists(frame[c]) for c in tables.item_category_columns]
  empty = pl.repeat([], len(frame), dtype=pl.List(pl.String), eager=True)
  return pl.select(
    ids.alias('item_id'),
    titles.alias('title'),
    pl.concat_str(texts, separator=' ', ignore_nulls=True).alias('text'),
    pl.concat_list([empty, *lists]).alias('categories'),
  ).with_columns(pl.col('text').replace('', None))


def _users(source: _Source, tables: config.TablesConfig) -> pl.DataFrame | None:
  wanted = [('user_column', tables.user_column)]
  wanted += [('user_feature_columns', c) for c in tables.user_feature_columns]
  _check_names(source, tables.user_feature_columns, 'user_feature_columns')
  if not all([source.has(c, s) for s, c in wanted]):
    return None
  ids = _ids(source, tables.user_column)
  _check_distinct(source, ids, tables.user_column)
  features = [_feature(source.frame[c]) for c in tables.user_feature_columns]
  return pl.DataFrame([ids.alias('user_id'), *features])


# --- Columns ----------------------------------------------------------------


def _check_names(source: _Source, names: tuple[str, ...], setting: str) -> None:
  for name in names:
    if name in schema.RESERVED:
      source.add(
        f'data.tables.{setting} names a column that the prepared tables use'
        ' themselves; rename it.',
        column=name,
      )


def _text(values: pl.Series) -> pl.Series:
  """Returns values as text; 12.0 becomes '12', as Pandas meant it."""
  if values.dtype.is_float():
    whole = values.cast(pl.Int64, strict=False)
    if (whole.cast(values.dtype) == values).fill_null(True).all():
      values = whole
  return values.cast(pl.String, strict=False)


def _ids(source: _Source, column: str) -> pl.Series:
  columns.require_cells(source.frame, [column], **source.where())
  return _text(source.frame[column])


def _check_distinct(source: _Source, ids: pl.Series, column: str) -> None:
  first = pl.select(ids.is_first_distinct()).to_series()
  repeated = (~first & ids.is_not_null()).arg_true().to_list()
  lines = source.header_lines
  for row in repeated[:_MAX_PROBLEMS]:
    source.add(
      f'the id {ids[row]!r} occurred before (ids must be unique).',
      row=row + 1,
      line=None if lines is None else row + 1 + lines,
      column=column,
    )
  if len(repeated) > _MAX_PROBLEMS:
    source.add(
      f'{len(repeated) - _MAX_PROBLEMS} more repeated ids.', column=column
    )


def _timestamps(source: _Source, tables: config.TablesConfig) -> pl.Series:
  """Returns microseconds UTC, null where a value does not parse."""
  column, unit = tables.timestamp_column, tables.timestamp_unit
  values = source.frame[column]
  if values.dtype.is_temporal():
    if values.dtype == pl.Date:
      values = values.cast(pl.Datetime('us'))
    result = values.dt.epoch('us')
  elif values.dtype == pl.String:
    result = _parse_timestamps(values, unit)
  else:
    result = _scale(values, unit)
  lines = source.header_lines
  bad = result.is_null() | (result >= _YEAR_10000) | (result < 0)
  rows = bad.fill_null(True).arg_true().to_list()
  for row in rows[:_MAX_PROBLEMS]:
    value = values[row]
    if value is None:
      message = 'is empty.'
    elif result[row] is None:
      message = f'{value!r} is neither a number nor an ISO-8601 time.'
    else:
      message = (
        f'{value!r} in data.tables.timestamp_unit={unit!r} is not a date'
        " between 1970 and 9999; is the unit 'ms', 'us' or 'ns'?"
      )
    source.add(
      message,
      row=row + 1,
      line=None if lines is None else row + 1 + lines,
      column=column,
    )
  if len(rows) > _MAX_PROBLEMS:
    source.add(f'{len(rows) - _MAX_PROBLEMS} more bad times.', column=column)
  elif not rows and len(result):
    first, last = result.min(), result.max()
    if last < _YEAR_1980 or last > _YEAR_2100:  # type: ignore[operator] # int64 column without nulls
      source.add(
        f'times run from {_date(first)} to {_date(last)}: is'
        f' data.tables.timestamp_unit={unit!r} right?',
        column=column,
        severity='notice',
      )
  return result


def _parse_timestamps(values: pl.Series, unit: str) -> pl.Series:
  text = values.str.strip_chars()
  numbers = text.cast(pl.Int64, strict=False)
  result = _scale(numbers, unit)
  if numbers.null_count():
    result = result.fill_null(_scale(text.cast(pl.Float64, strict=False), unit))
  missing = result.is_null() & text.is_not_null()
  if missing.any():
    # 'T' or a blank may separate date and time, and an offset may follow.
    iso = text.str.replace(r'^(\d{4}-\d{2}-\d{2})[ ]', '${1}T')
    naive = iso.str.to_datetime(time_unit='us', time_zone='UTC', strict=False)
    offset = iso.str.to_datetime(
      '%Y-%m-%dT%H:%M:%S%.f%#z', time_unit='us', time_zone='UTC', strict=False
    )
    date = iso.str.to_datetime(
      '%Y-%m-%d', time_unit='us', time_zone='UTC', strict=False
    )
    for parsed in (naive, offset, date):
      result = result.fill_null(parsed.dt.epoch('us'))
  return result


def _scale(values: pl.Series, unit: str) -> pl.Series:
  """Returns numbers in `unit` as whole microseconds."""
  factor = _TO_MICROSECONDS[unit]
  if values.dtype.is_integer():
    wide = values.cast(pl.Int64, strict=False)
    if factor < 1:
      return wide // round(1 / factor)
    # Beyond int64 it would wrap; as float64 it is caught as a bad date.
    if not (wide.abs() > (2**63 - 1) // int(factor)).any():
      return wide * int(factor)
  number = values.cast(pl.Float64, strict=False) * factor
  number = pl.select(
    pl.when(number.is_finite()).then(number.clip(-1, float(_YEAR_10000)))
  ).to_series()
  return number.round().cast(pl.Int64, strict=False)


def _category_lists(values: pl.Series) -> pl.Series:
  if isinstance(values.dtype, (pl.List, pl.Array)):
    return values.cast(pl.List(pl.String)).fill_null([])
  parts = _text(values).fill_null('').str.split('|')
  return pl.select(
    pl.lit(parts).list.eval(
      pl.element().str.strip_chars().filter(pl.element() != '')
    )
  ).to_series()


def _feature(values: pl.Series) -> pl.Series:
  """Returns numbers as float32 and everything else as text."""
  if values.dtype == pl.String:
    numbers = values.str.strip_chars().cast(pl.Float32, strict=False)
    is_number = numbers.null_count() == values.null_count()
    return numbers if is_number else values
  if values.dtype.is_numeric() or values.dtype == pl.Boolean:
    return values.cast(pl.Float32)
  return values.cast(pl.String, strict=False)


def _date(microseconds: Any) -> str:
  return str(pl.Series([microseconds]).cast(pl.Datetime('us'))[0])
