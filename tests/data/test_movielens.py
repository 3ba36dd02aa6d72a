"""MovieLens in each of its official layouts."""

import polars as pl
import pytest

from onerec_jax.data import movielens
from onerec_jax.data import schema


def write_grouplens(folder, data='1\t10\t5\t881250949\n2\t11\t3\t881250950\n'):
  folder.joinpath('u.data').write_text(data)
  # id|title|release|video|url and 19 genre flags: unknown, Action, ...
  flags = ['0'] * 19
  comedy_drama = [*flags]
  comedy_drama[5] = comedy_drama[8] = '1'
  unknown = ['1', *flags[1:]]
  folder.joinpath('u.item').write_bytes(
    (
      '10|Café "Müller" (1996)|01-Jan-1996||http://x|'
      + '|'.join(comedy_drama)
      + '\n11|unknown||||'
      + '|'.join(unknown)
      + '\n'
    ).encode('latin-1')
  )
  folder.joinpath('u.user').write_text(
    '1|24|M|technician|85711\n2|53|F|other|T8H1N\n'
  )


def write_recbole(folder):
  folder.joinpath('ml-100k.inter').write_text(
    'user_id:token\titem_id:token\trating:float\ttimestamp:float\n'
    '1\t10\t5\t881250949\n2\t11\t3\t881250950\n'
  )
  folder.joinpath('ml-100k.item').write_text(
    'item_id:token\tmovie_title:token_seq\trelease_year:token\t'
    'class:token_seq\n'
    "10\tToy Story\t1995\tAnimation Children's\n11\tunkonwn\tV\tunknown\n"
  )
  folder.joinpath('ml-100k.user').write_text(
    'user_id:token\tage:token\tgender:token\toccupation:token\t'
    'zip_code:token\n1\t24\tM\ttechnician\t85711\n2\t53\tF\tother\t94043\n'
  )


def write_1m(folder, ratings='1::10::5::978300760\n2::11::3::978300761\n'):
  folder.joinpath('ratings.dat').write_text(ratings)
  movies = (
    '10::Misérables, Les: A Film (1995)::Drama|Musical\n11::M (1931)::Crime\n'
  )
  folder.joinpath('movies.dat').write_bytes(movies.encode('latin-1'))
  folder.joinpath('users.dat').write_text(
    '1::F::1::10::48067\n2::M::56::16::70072\n'
  )


def test_grouplens_layout_reads_latin1_titles_genres_and_seconds(tmp_path):
  write_grouplens(tmp_path)
  data = schema.validate(movielens.read(tmp_path, variant='100k'))
  assert data.interactions.rows() == [
    ('1', '10', 881250949_000_000, 5.0),
    ('2', '11', 881250950_000_000, 3.0),
  ]
  assert data.items['title'].to_list() == ['Café "Müller" (1996)', 'unknown']
  assert data.items['categories'].to_list() == [['Comedy', 'Drama'], []]
  assert data.items['text'][0] == 'Café "Müller" (1996) Comedy Drama'
  assert data.users.rows()[1] == ('2', 53.0, 'F', 'other', 'T8H1N')


def test_recbole_layout_gives_the_same_form(tmp_path):
  write_recbole(tmp_path)
  data = schema.validate(movielens.read(tmp_path, variant='100k'))
  assert data.interactions.rows()[0] == ('1', '10', 881250949_000_000, 5.0)
  # A year that is none is left out.
  assert data.items['title'].to_list() == ['Toy Story (1995)', 'unkonwn']
  assert data.items['categories'].to_list() == [
    ['Animation', "Children's"],
    [],
  ]
  assert data.users.schema['age'] == pl.Float32


def test_1m_layout_splits_at_double_colons_only(tmp_path):
  write_1m(tmp_path)
  data = schema.validate(movielens.read(tmp_path, variant='1m'))
  assert data.items['title'][0] == 'Misérables, Les: A Film (1995)'
  assert data.items['categories'].to_list() == [['Drama', 'Musical'], ['Crime']]
  assert data.interactions['timestamp'].to_list() == [
    978300760_000_000,
    978300761_000_000,
  ]
  assert data.users['age'].to_list() == [1.0, 56.0]


def test_a_bad_timestamp_is_named_by_file_row_and_column(tmp_path):
  write_grouplens(tmp_path, '1\t10\t5\t881250949\n2\t11\t3\tyesterday\n')
  with pytest.raises(schema.DataError) as error:
    movielens.read(tmp_path, variant='100k')
  (problem,) = error.value.problems
  assert problem.file.endswith('u.data')
  assert (problem.row, problem.line, problem.column) == (2, 2, 'timestamp')
  assert "'yesterday' is not a whole number" in str(error.value)


def test_a_missing_cell_is_named_in_the_1m_layout(tmp_path):
  write_1m(tmp_path, '1::10::5::978300760\n2::11::3\n')
  with pytest.raises(schema.DataError, match=r"row 2 .*'timestamp': is empty"):
    movielens.read(tmp_path, variant='1m')


def test_a_line_with_too_many_cells_is_named(tmp_path):
  write_1m(tmp_path, '1::10::5::978300760\n2::11::3::4::5\n')
  with pytest.raises(schema.DataError, match=r'line 2.*5 cells, expected 4'):
    movielens.read(tmp_path, variant='1m')


def test_an_empty_folder_says_which_file_is_wanted(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no u\.data or ml-100k\.inter'):
    movielens.read(tmp_path, variant='100k')
  with pytest.raises(ValueError, match="'100k' or '1m'"):
    movielens.read(tmp_path, variant='20m')
