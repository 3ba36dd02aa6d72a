"""Delimited text: what parses, and where it does not."""

import polars as pl
import pytest

from onerec_jax.data import columns
from onerec_jax.data import schema


def cast(values, dtype, **kwargs):
  problems = []
  frame = pl.DataFrame({'x': values}, schema={'x': pl.String})
  column = columns.cast(
    frame, 'x', dtype, file='t.csv', problems=problems, **kwargs
  )
  return column.to_list(), [str(p) for p in problems]


def test_whole_numbers_may_be_written_with_a_point():
  assert cast(['7', ' 8 ', '9.0', None], pl.Int64) == ([7, 8, 9, None], [])


def test_numbers_and_booleans_are_read_as_feedback():
  values = ['1.5', 'True', 'false', '-2e1', None]
  assert cast(values, pl.Float32) == ([1.5, 1.0, 0.0, -20.0, None], [])
  assert cast(['0', '2', 'TRUE'], pl.Boolean) == ([False, True, True], [])


def test_values_that_do_not_parse_are_listed_with_row_and_line():
  values, problems = cast(['1', 'x', '2.5', None], pl.Int64)
  assert values == [1, None, None, None]
  assert problems == [
    "t.csv, row 2 (line 3), column 'x': 'x' is not a whole number.",
    "t.csv, row 3 (line 4), column 'x': '2.5' is not a whole number.",
  ]


def test_empty_cells_are_a_problem_only_where_required():
  assert cast([None], pl.Float32)[1] == []
  _, problems = cast([None], pl.Float32, required=True, header_lines=None)
  assert problems == ["t.csv, row 1, column 'x': is empty."]


def test_many_problems_are_counted_instead_of_listed():
  _, problems = cast(['?'] * 25, pl.Float32)
  assert len(problems) == 21
  assert problems[-1] == ("t.csv, column 'x': 5 more cells: is not a number.")


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
  path = tmp_path / 'x.csv'
  path.write_bytes(b'a,b\n1,2\n3,\xff\n')
  with pytest.raises(schema.DataError, match=r'row 2 \(line 3\): is not utf-8'):
    columns.read_delimited(path, separator=',')


def test_empty_and_absent_files_are_named(tmp_path):
  path = tmp_path / 'x.csv'
  with pytest.raises(FileNotFoundError, match=r'x\.csv does not exist'):
    columns.read_delimited(path, separator=',')
  path.write_text('')
  with pytest.raises(schema.DataError, match='the file is empty'):
    columns.read_delimited(path, separator=',')


def test_long_lists_of_problems_are_cut_in_the_message():
  problems = [schema.Problem('f', f'p{i}.') for i in range(30)]
  error = schema.DataError(problems)
  assert len(error.problems) == 30
  assert str(error).endswith('f: p19.\n  ... and 10 more.')


def test_notices_do_not_raise():
  columns.raise_if_any([schema.Problem('f', 'x', severity='notice')])
  with pytest.raises(schema.DataError):
    columns.raise_if_any([schema.Problem('f', 'x')])
