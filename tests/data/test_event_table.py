"""The event table holds the log as `prepare` wrote it."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import event_table
from onerec_jax.data import examples
from onerec_jax.data import schema
from onerec_jax.stages import prepare


def write(folder, *, timestamps='microseconds UTC', placeholders=0, **columns):
  """Three users, of whom the middle one has no event."""
  interactions = pl.DataFrame(
    {
      'user': pl.Series([0, 0, 0, 2, 2], dtype=pl.Int32),
      'item': pl.Series([4, 1, 4, 0, 3], dtype=pl.Int32),
      'timestamp': [10, 20, 20, 5, 6],
      'positive': [True, False, True, False, True],
      'split': pl.Series(
        ['train', 'train', 'test', 'train', 'valid'], dtype=schema.SPLIT_DTYPE
      ),
      'is_like': pl.Series([1.0, None, 0.0, 0.0, 1.0], dtype=pl.Float32),
      **columns,
    }
  )
  items = pl.DataFrame({'item': range(5), 'item_id': list('abcde')})
  users = pl.DataFrame({'user': range(3), 'user_id': list('xyz')})
  catalog.write_tables(folder, interactions, items, users)
  workdir_lib.write_json(
    folder / 'dataset.json',
    {
      'timestamps': timestamps,
      'counts': {'placeholder_time_events': placeholders},
    },
  )


@pytest.fixture(name='folder')
def fixture_folder(tmp_path):
  return workdir_lib.Workdir(tmp_path).stage('prepare')


def test_events_lie_in_the_order_of_the_table(folder):
  write(folder)
  events = event_table.read(folder)
  assert (events.num_users, events.num_events) == (3, 5)
  assert events.offsets.tolist() == [0, 3, 3, 5]
  assert events.user.tolist() == [0, 0, 0, 2, 2]
  assert events.items.tolist() == [4, 1, 4, 0, 3]
  assert events.timestamps.tolist() == [10, 20, 20, 5, 6]
  assert events.positive.tolist() == [True, False, True, False, True]
  assert events.split.tolist() == [0, 0, 2, 0, 1]
  assert events.positives_before.tolist() == [0, 1, 1, 2, 2, 3]
  assert events.positive_places.tolist() == [0, 2, 4]
  assert events.exact_time.all()


def test_unknown_feedback_is_nan_and_other_columns_are_no_feedback(folder):
  write(folder, session=[1, None, 1, 2, 2], exact_time=[True] * 5)
  events = event_table.read(folder)
  assert list(events.feedback) == ['is_like']
  np.testing.assert_array_equal(
    events.feedback['is_like'], [1, np.nan, 0, 0, 1]
  )


@pytest.mark.parametrize(
  'told', [{'timestamps': 'rank in user'}, {'placeholders': 2}]
)
def test_no_time_is_exact_where_nobody_knows_which_are(folder, told):
  write(folder, **told)
  assert not event_table.read(folder).exact_time.any()


def test_the_column_says_which_times_are_exact(folder):
  exact = [True, False, True, True, False]
  write(folder, placeholders=2, exact_time=exact)
  assert event_table.read(folder).exact_time.tolist() == exact


def test_missing_files_name_the_stage_that_writes_them(folder):
  with pytest.raises(FileNotFoundError, match="'prepare'"):
    event_table.read(folder)
  write(folder)
  (folder / 'dataset.json').unlink()
  with pytest.raises(FileNotFoundError, match="'prepare'"):
    event_table.read(folder)


def test_an_unknown_column_is_refused_with_those_that_exist(folder):
  write(folder)
  events = event_table.read(folder)
  assert events.column('is_like', 'x') is events.feedback['is_like']
  with pytest.raises(ValueError, match=r"a.b names 'is_lik'.*\['is_like'\]"):
    events.column('is_lik', 'a.b')


# --- Example files ----------------------------------------------------------


@pytest.fixture(name='prepared', scope='module', params=['next_items', 'id'])
def fixture_prepared(request, tmp_path_factory):
  experiment = config.Experiment(
    data=config.DataConfig(
      synthetic=config.SyntheticConfig(
        num_users=15, num_items=30, num_clusters=3, events_per_user=12
      ),
      positive=config.PositiveConfig(any_of=('long_view',)),
      sessions=config.SessionsConfig(kind=request.param, items_per_session=2),
    ),
    seed=1,
  )
  workdir = workdir_lib.Workdir(tmp_path_factory.mktemp(request.param))
  prepare.run(experiment, workdir)
  return workdir.data


@pytest.mark.parametrize('split', schema.SPLITS)
def test_records_are_beginnings_of_their_users_events(prepared, split):
  events = event_table.read(prepared)
  store = examples.ExampleStore(prepared / 'examples' / f'{split}.arrayrecord')
  event_table.check_index(events, store.index)
  assert store.index.num_examples
  for row in range(len(store)):
    record = store[row]
    first = events.offsets[record.user]
    same = slice(first, first + len(record.items))
    np.testing.assert_array_equal(record.items, events.items[same])
    np.testing.assert_array_equal(record.timestamps, events.timestamps[same])
    np.testing.assert_array_equal(record.positive, events.positive[same])


def test_an_index_of_another_run_is_refused(prepared):
  events = event_table.read(prepared)
  index = examples.ExampleStore(
    prepared / 'examples' / 'train.arrayrecord'
  ).index

  def changed(name, row, by):
    values = getattr(index, name).copy()
    values[row] += by
    return dataclasses.replace(index, **{name: values})

  for other, words in (
    (changed('users', -1, 100), 'user 1'),
    (changed('num_events', 2, 1000), 'more events of user'),
    (changed('num_positives', 2, 1), 'other positive events'),
    (changed('history_counts', 5, 1), 'other histories'),
  ):
    with pytest.raises(ValueError, match=f'{words}.*prepare'):
      event_table.check_index(events, other)
