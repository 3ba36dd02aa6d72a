"""A user's own tables, and what `validate-data` says about them."""

import datetime

import polars as pl
import pytest

from onerec_jax import config
from onerec_jax.data import schema
from onerec_jax.data import tables
from onerec_jax.data import validation

EVENTS = (
  'user,item,when,liked,visit\n'
  'u1,i1,1650000000,1,v1\n'
  'u1,i2,1650000001,0,v1\n'
  'u2,i1,1650000002,,v2\n'
)
ITEMS = 'item,name,about,kind\ni1,"Tea, green",leaf drink,drink|hot\ni2,Cup,,\n'
USERS = 'user,age,city\nu1,30,Rome\nu2,,Oslo\n'


def settings(folder, events=EVENTS, items=ITEMS, users=USERS, **kwargs):
  """Writes CSV files and returns the configuration that names them."""
  paths = {}
  for name, text in (
    ('interactions', events),
    ('items', items),
    ('users', users),
  ):
    if text is not None:
      paths[name] = str(folder / f'{name}.csv')
      (folder / f'{name}.csv').write_text(text)
  options = {
    'user_column': 'user',
    'item_column': 'item',
    'timestamp_column': 'when',
    'session_column': 'visit',
    'feedback_columns': ('liked',),
    'item_title_column': 'name',
    'item_text_columns': ('name', 'about'),
    'item_category_columns': ('kind',),
    'user_feature_columns': ('age', 'city'),
  }
  return config.TablesConfig(**paths, **{**options, **kwargs})


def bare(path, **kwargs):
  """Configuration of an interaction table alone."""
  return config.TablesConfig(
    interactions=str(path),
    user_column='user',
    item_column='item',
    timestamp_column='when',
    **kwargs,
  )


def times(tmp_path, values, unit='s'):
  path = tmp_path / 't.csv'
  rows = ''.join(f'u,i,{v}\n' for v in values)
  path.write_text('user,item,when\n' + rows)
  return tables.read(bare(path, timestamp_unit=unit)).interactions['timestamp']


def test_csv_tables_become_the_schema(tmp_path):
  data = schema.validate(tables.read(settings(tmp_path)))
  assert data.interactions.rows() == [
    ('u1', 'i1', 1650000000_000_000, 'v1', 1.0),
    ('u1', 'i2', 1650000001_000_000, 'v1', 0.0),
    ('u2', 'i1', 1650000002_000_000, 'v2', None),
  ]
  assert data.items.rows() == [
    ('i1', 'Tea, green', 'Tea, green leaf drink', ['drink', 'hot']),
    ('i2', 'Cup', 'Cup', []),
  ]
  assert data.users.rows() == [('u1', 30.0, 'Rome'), ('u2', None, 'Oslo')]


def test_parquet_tables_keep_their_types(tmp_path):
  path = tmp_path / 'events.parquet'
  moment = datetime.datetime(2022, 5, 1, 12, tzinfo=datetime.UTC)
  pl.DataFrame(
    {
      'user': [1.0, 12.0],  # as Pandas writes ids of a column with gaps
      'item': [3, 4],
      'when': [moment, moment],
      'liked': [True, None],
    }
  ).write_parquet(path)
  items = tmp_path / 'items.parquet'
  pl.DataFrame({'item': [3, 4], 'kind': [['a', 'b'], None]}).write_parquet(
    items
  )
  data = schema.validate(
    tables.read(
      bare(
        path,
        feedback_columns=('liked',),
        items=str(items),
        item_category_columns=('kind',),
      )
    )
  )
  assert data.interactions.rows()[0] == (
    '1',
    '3',
    1651406400_000_000,
    1.0,
  )
  assert data.interactions['user_id'].to_list() == ['1', '12']
  assert data.items['categories'].to_list() == [['a', 'b'], []]
  assert data.items['title'].to_list() == [None, None]


@pytest.mark.parametrize(
  ('unit', 'value'),
  [
    ('s', '1650000000'),
    ('s', '1650000000.0'),
    ('ms', '1650000000000'),
    ('us', '1650000000000000'),
    ('ns', '1650000000000000000'),
    ('s', '2022-04-15T05:20:00'),
    ('ms', '2022-04-15 05:20:00'),
    ('s', '2022-04-15T05:20:00Z'),
    ('s', '2022-04-15 07:20:00+02:00'),
  ],
)
def test_times_are_read_in_every_usual_form(tmp_path, unit, value):
  assert times(tmp_path, [value], unit).to_list() == [1650000000_000_000]


def test_dates_begin_at_midnight_utc(tmp_path):
  assert times(tmp_path, ['1970-01-02']).to_list() == [86_400_000_000]


def test_bad_times_are_all_listed(tmp_path):
  with pytest.raises(schema.DataError) as error:
    times(tmp_path, ['1650000000', 'soon', '', '-5', '1650000000000'])
  text = str(error.value)
  place = "row 2 (line 3), column 'when': "
  assert place + "'soon' is neither a number nor an ISO-8601 time" in text
  assert "row 3 (line 4), column 'when': is empty" in text
  assert "row 4 (line 5), column 'when': '-5' in" in text
  # Milliseconds taken for seconds.
  assert "row 5 (line 6), column 'when': '1650000000000' in" in text
  assert "is the unit 'ms', 'us' or 'ns'?" in text


def test_numbers_beyond_int64_do_not_wrap(tmp_path):
  path = tmp_path / 'e.parquet'
  pl.DataFrame(
    {'user': [1], 'item': [1], 'when': [9_000_000_000_000_000_000]}
  ).write_parquet(path)
  with pytest.raises(schema.DataError, match='is not a date between'):
    tables.read(bare(path))


def test_rows_are_not_called_lines_where_cells_span_lines(tmp_path):
  path = tmp_path / 't.csv'
  path.write_text('user,item,when\n"u\n1",i,1\nu,i,bad\n')
  with pytest.raises(schema.DataError, match=r"t\.csv, row 2, column 'when'"):
    tables.read(bare(path))


def test_several_tables_are_checked_before_giving_up(tmp_path):
  tables_config = settings(
    tmp_path,
    events=EVENTS.replace('u1,i1', 'u1,').replace(',0,', ',maybe,'),
    items=ITEMS.replace('i2,', 'i1,'),
    users=USERS.replace('u2', 'u1'),
  )
  with pytest.raises(schema.DataError) as error:
    tables.read(tables_config)
  places = [(p.file.rsplit('/', 1)[-1], p.row, p.column) for p in (
    error.value.problems
  )]  # fmt: skip
  assert places == [
    ('interactions.csv', 1, 'item'),
    ('interactions.csv', 2, 'liked'),
    ('items.csv', 2, 'item'),
    ('users.csv', 2, 'user'),
  ]


def test_a_missing_column_names_the_nearest_one(tmp_path):
  with pytest.raises(schema.DataError) as error:
    tables.read(settings(tmp_path, feedback_columns=('like',)))
  text = str(error.value)
  assert "column 'like': is missing (data.tables.feedback_columns)" in text
  assert "Did you mean 'liked'?" in text


def test_reserved_column_names_are_refused(tmp_path):
  events = EVENTS.replace('liked', 'positive')
  with pytest.raises(schema.DataError, match=r"'positive'.*rename it"):
    tables.read(
      settings(tmp_path, events=events, feedback_columns=('positive',))
    )


def test_files_of_other_kinds_are_refused(tmp_path):
  path = tmp_path / 'e.xlsx'
  path.write_text('x')
  with pytest.raises(schema.DataError, match=r'\.parquet, \.csv or \.tsv'):
    tables.read(bare(path))
  with pytest.raises(schema.DataError, match='does not exist'):
    tables.read(bare(tmp_path / 'none.csv'))


# --- validate-data ----------------------------------------------------------


def check(tables_config, **kwargs):
  return validation.check(
    config.DataConfig(
      source='tables', tables=tables_config, min_user_positives=1, **kwargs
    )
  )


def test_a_good_data_set_is_ok_and_counted(tmp_path):
  report = check(settings(tmp_path))
  assert report.ok
  assert report.statistics['events'] == 3
  text = report.text()
  assert 'kept: 2 users, 2 items, 3 events, of them 3 positive' in text
  assert 'every event counts as positive' in text
  assert text.endswith('OK')


def test_notices_do_not_fail_the_check(tmp_path):
  events = EVENTS.replace('u2,i1', 'u9,i9')
  report = check(settings(tmp_path, events=events))
  assert report.ok
  text = report.text()
  assert '1 items of the interactions are not in the item table' in text
  assert '1 users of the interactions are not in the user table' in text
  assert 'unknown_items: 1.' in text


def test_a_suspicious_unit_is_a_notice(tmp_path):
  report = check(settings(tmp_path, timestamp_unit='ms'))
  assert report.ok
  assert "timestamp_unit='ms' right?" in report.text()
  assert 'from 1970-01-20' in report.text()


def test_errors_are_listed_and_fail_the_check(tmp_path):
  report = check(settings(tmp_path, EVENTS.replace('1650000001', 'x')))
  assert not report.ok
  assert report.statistics == {}
  assert 'error: ' in report.text() and 'row 2 (line 3)' in report.text()
  assert report.text().endswith('1 error(s)')


def test_settings_that_leave_nothing_are_an_error(tmp_path):
  report = check(
    settings(tmp_path), positive=config.PositiveConfig(any_of=('shared',))
  )
  assert not report.ok
  assert "feedback column 'shared'" in report.text()


def test_describe_prints_a_good_and_raises_a_bad_report(tmp_path):
  data = config.DataConfig(
    source='tables', tables=settings(tmp_path), min_user_positives=1
  )
  assert validation.describe(data).endswith('OK')
  settings(tmp_path, events=EVENTS.replace('1650000001', 'x'))
  with pytest.raises(ValueError, match=r"row 2 \(line 3\), column 'when'"):
    validation.describe(data)


def test_other_sources_can_be_checked_too(tmp_path):
  report = validation.check(config.DataConfig(source='synthetic'))
  assert report.ok and report.statistics['users'] == 300
  report = validation.check(
    config.DataConfig(source='kuairand', path=str(tmp_path))
  )
  assert not report.ok
  assert 'log_standard_4_08_to_4_21_pure.csv is missing' in report.text()


def test_brackets_in_a_file_name_are_no_pattern(tmp_path):
  path = tmp_path / 'events [1].csv'
  path.write_text('user,item,when\nu,i,1\n')
  assert len(tables.read(bare(path)).interactions) == 1


# --- Items alone ------------------------------------------------------------


def test_items_alone_are_read_with_the_usual_columns(tmp_path):
  path = tmp_path / 'new.csv'
  path.write_text('item_id,text,categories\n7,red hat,a|b\n8,,\n')
  found = tables.read_items(str(path), None)
  assert found.to_dicts() == [
    {
      'item_id': '7', 'title': None, 'text': 'red hat',
      'categories': ['a', 'b'],
    },
    {'item_id': '8', 'title': None, 'text': None, 'categories': []},
  ]  # fmt: skip


def test_items_alone_are_read_as_those_of_the_data(tmp_path):
  path = tmp_path / 'new.csv'
  path.write_text('sku,name,words\n7,Hat,red\n')
  settings = config.TablesConfig(
    item_column='sku', item_title_column='name', item_text_columns=('words',)
  )
  (found,) = tables.read_items(str(path), settings).to_dicts()
  assert found == {
    'item_id': '7', 'title': 'Hat', 'text': 'red', 'categories': []
  }  # fmt: skip


def test_mistakes_of_items_alone_are_listed(tmp_path):
  path = tmp_path / 'new.csv'
  path.write_text('item_id\n7\n7\n')
  with pytest.raises(schema.DataError, match='occurred before'):
    tables.read_items(str(path), None)
