"""Reads delimited text as strings and casts it, saying where a cast fails.

Letting a CSV reader guess types turns a typing error in row 70,000 into a
column of strings; here every value that does not parse has a file, a row, a
line and a column.
"""

import io
import os
from collections.abc import Sequence
from typing import Any

import polars as pl
from etils import epath

from onerec_jax.data import schema

_REPORTED_PER_COLUMN = 20


def read_delimited(
  path: str | os.PathLike[str],
  *,
  separator: str,
  names: Sequence[str] | None = None,
  encoding: str = 'utf-8',
  quote: str | None = None,
  columns: Sequence[str] | None = None,
) -> pl.DataFrame:
  """Returns a text table with every column as a string, empty cells null.

  Args:
    path: file to read.
    separator: one or more characters between the cells.
    names: column names of a file without a header; None: line 1 names them.
    encoding: Python name of the character encoding.
    quote: quote character, or None where quotes are ordinary text.
    columns: read these only (all are needed where `names` is given).

  Raises:
    DataError: a line has too many cells, or a column is missing.
    FileNotFoundError: there is no such file.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist.')
  is_remote = '://' in str(path)
  source: str | bytes = path.read_bytes() if is_remote else str(path)
  text_separator = separator
  if encoding != 'utf-8' or len(separator) > 1:
    text = path.read_bytes().decode(encoding)
    if len(separator) > 1:
      text_separator = '\x1f'  # ASCII unit separator: not in any title
      text = text.replace(separator, text_separator)
    source = text.encode()
  if columns is not None:
    header = _header(path, separator, quote)
    missing = [c for c in columns if c not in header]
    if missing:
      raise schema.DataError(
        [
          schema.Problem(
            str(path), f'is missing; the file has {header}.', column=c
          )
          for c in missing
        ]
      )
  try:
    return pl.read_csv(
      io.BytesIO(source) if isinstance(source, bytes) else source,
      separator=text_separator,
      has_header=names is None,
      new_columns=list(names) if names is not None else None,
      columns=list(columns) if columns is not None else None,
      quote_char=quote,
      infer_schema=False,
      glob=False,  # '[' in a file name is no pattern
    )
  except pl.exceptions.NoDataError:
    problem = schema.Problem(str(path), 'the file is empty.')
    raise schema.DataError([problem]) from None
  except (pl.exceptions.ComputeError, pl.exceptions.ShapeError) as error:
    raise schema.DataError(
      [_ragged_line(path, separator, encoding, names, str(error))]
    ) from None


def cast(
  frame: pl.DataFrame,
  column: str,
  dtype: Any,  # the run-time type checker rejects Polars' metaclass
  *,
  file: str | os.PathLike[str],
  problems: list[schema.Problem],
  required: bool = False,
  header_lines: int | None = 1,
) -> pl.Series:
  """Returns a column as `dtype`; what does not parse goes to `problems`.

  Args:
    frame: table whose row i is data row i + 1 of `file`.
    column: name of the column.
    dtype: pl.Int64, pl.Float32 or pl.Boolean.
    file: named in the problems.
    problems: list that is appended to.
    required: an empty cell is a problem too.
    header_lines: lines before the first data row; None: rows are not lines.
  """
  before = frame[column]
  text = pl.col(column).str.strip_chars()
  if before.dtype == pl.String and dtype in (pl.Float32, pl.Boolean):
    # 'True' and 'false' are how Pandas and SQL dumps write booleans.
    lowered = text.str.to_lowercase()
    number = lowered.replace({'true': '1', 'false': '0'}).cast(
      pl.Float32, strict=False
    )
    after = frame.select(number if dtype == pl.Float32 else number > 0)
  elif before.dtype == pl.String and dtype == pl.Int64:
    # '880606923.0' is a whole number too.
    number = text.cast(pl.Float64, strict=False)
    whole = pl.when(number == number.floor()).then(number)
    after = frame.select(
      pl.coalesce(
        text.cast(pl.Int64, strict=False), whole.cast(pl.Int64, strict=False)
      )
    )
  else:
    after = frame.select(pl.col(column).cast(dtype, strict=False))
  after = after.to_series().alias(column)
  failed = (after.is_null() & before.is_not_null()).arg_true()
  wrong = f'is not {_WORDS[dtype]}'
  _report(frame, column, failed, wrong, file, problems, header_lines)
  if required:
    empty = before.is_null().arg_true()
    _report(frame, column, empty, 'is empty', file, problems, header_lines)
  return after


_WORDS = {
  pl.Int64: 'a whole number',
  pl.Float32: 'a number',
  pl.Float64: 'a number',
  pl.Boolean: 'true, false or a number',
}


def _report(
  frame: pl.DataFrame,
  column: str,
  rows: pl.Series,
  message: str,
  file: str | os.PathLike[str],
  problems: list[schema.Problem],
  header_lines: int | None,
) -> None:
  for row in rows.head(_REPORTED_PER_COLUMN).to_list():
    value = frame[column][row]
    what = message if value is None else f'{value!r} {message}'
    problems.append(
      schema.Problem(
        str(file),
        f'{what}.',
        row=row + 1,
        line=None if header_lines is None else row + 1 + header_lines,
        column=column,
      )
    )
  if len(rows) > _REPORTED_PER_COLUMN:
    problems.append(
      schema.Problem(
        str(file),
        f'{len(rows) - _REPORTED_PER_COLUMN} more cells: {message}.',
        column=column,
      )
    )


def require_cells(
  frame: pl.DataFrame,
  columns: Sequence[str],
  *,
  file: str | os.PathLike[str],
  problems: list[schema.Problem],
  header_lines: int | None = 1,
) -> None:
  """Adds a problem for each empty cell of `columns` (up to a cap)."""
  for column in columns:
    empty = frame[column].is_null().arg_true()
    _report(frame, column, empty, 'is empty', file, problems, header_lines)


def raise_if_any(problems: Sequence[schema.Problem]) -> None:
  """Raises DataError when `problems` holds an error."""
  errors = [p for p in problems if p.severity == 'error']
  if errors:
    raise schema.DataError(errors)


def _header(path: epath.Path, separator: str, quote: str | None) -> list[str]:
  with path.open('rb') as file:
    line = file.readline().decode('utf-8-sig').rstrip('\r\n')
  return [c.strip(quote) if quote else c for c in line.split(separator)]


def _ragged_line(
  path: epath.Path,
  separator: str,
  encoding: str,
  names: Sequence[str] | None,
  reason: str,
) -> schema.Problem:
  """Returns the first line that has more cells than the table has columns."""
  expected = len(names) if names is not None else None
  headers = 0 if names is not None else 1
  with path.open('rb') as file:
    for number, raw in enumerate(file, start=1):
      row = number - headers
      try:
        line = raw.decode(encoding)
      except UnicodeDecodeError:
        return schema.Problem(
          str(path),
          f'is not {encoding} text: {raw[:60]!r}.',
          row=row,
          line=number,
        )
      cells = line.rstrip('\r\n').count(separator) + 1
      if expected is None:
        expected = cells
      elif cells > expected:
        return schema.Problem(
          str(path),
          f'has {cells} cells, expected {expected}.',
          row=row,
          line=number,
        )
  return schema.Problem(str(path), reason.splitlines()[0])
