"""Every rule of schema.RULES, on events written out by hand."""

import polars as pl
import pytest

from onerec_jax import config
from onerec_jax.data import amazon
from onerec_jax.data import cleaning
from onerec_jax.data import schema

ALL = config.PositiveConfig()


def dataset(rows, *, items=None, users=None, **columns):
  """Builds a data set from (user, item, time, rating) rows."""
  frame = pl.DataFrame(
    rows,
    schema={
      'user_id': pl.String,
      'item_id': pl.String,
      'timestamp': pl.Int64,
      'rating': pl.Float32,
    },
    orient='row',
  ).with_columns(**{k: pl.Series(v) for k, v in columns.items()})
  item_table = schema.items_of(frame)
  if items is not None:
    item_table = schema.items_of(pl.DataFrame({'item_id': items}))
    item_table = item_table.sort(
      pl.col('item_id').replace_strict(items, range(len(items)))
    )
  user_table = schema.users_of(frame)
  if users is not None:
    user_table = pl.DataFrame({'user_id': users})
  return schema.validate(
    schema.Dataset(
      interactions=frame,
      items=item_table,
      users=user_table,
      feedback=('rating',),
      source='by hand',
      has_item_table=items is not None,
      has_user_table=users is not None,
    )
  )


def clean(data, positive=ALL, users=1, items=1):
  return cleaning.clean(
    data,
    positive=positive,
    min_user_positives=users,
    min_item_positives=items,
  )


def nonzero(result):
  return {k: v for k, v in result.counts.items() if v}


def test_events_are_sorted_by_user_and_time_and_counted():
  rows = [
    ('2', 'a', 5, 1.0),
    ('1', 'b', 9, 1.0),
    ('1', 'c', 3, 1.0),
    ('2', 'b', 6, 1.0),
  ]
  result = clean(dataset(rows))
  assert result.interactions['user'].to_list() == [0, 0, 1, 1]
  assert result.events.timestamps.tolist() == [3, 9, 5, 6]
  assert result.events.offsets.tolist() == [0, 2, 4]
  assert nonzero(result) == {'unsorted_users': 1}


def test_ties_keep_the_order_of_the_file():
  rows = [('1', i, 7, 1.0) for i in 'dacb'] + [('1', 'e', 1, 1.0)]
  result = clean(dataset(rows))
  order = result.items['item_id'].gather(pl.Series(result.item))
  assert order.to_list() == ['e', 'd', 'a', 'c', 'b']
  assert nonzero(result) == {'unsorted_users': 1, 'tied_events': 3}


def test_exact_duplicates_are_dropped_and_repeats_kept():
  rows = [
    ('1', 'a', 1, 5.0),
    ('1', 'a', 1, 5.0),  # the same event again
    ('1', 'a', 1, 4.0),  # the same event with another rating
    ('1', 'a', 2, 5.0),  # seen again later
    ('2', 'a', 1, 5.0),  # another user
  ]
  result = clean(dataset(rows))
  assert result.interactions['rating'].to_list() == [5.0, 5.0, 5.0]
  assert nonzero(result) == {
    'duplicate_events_dropped': 2,
    'duplicate_events_with_other_feedback': 1,
    'repeated_pairs_kept': 1,
  }


def test_items_and_users_missing_in_their_tables_are_kept_and_counted():
  rows = [('1', 'a', 1, 1.0), ('1', 'zz', 2, 1.0), ('9', 'b', 1, 1.0)]
  result = clean(dataset(rows, items=['b', 'a', 'unused'], users=['1', '5']))
  # Table order first, then the unknown ones.
  assert result.items['item_id'].to_list() == ['b', 'a', 'zz']
  assert result.items['title'].null_count() == 3
  assert result.items['categories'].to_list() == [[], [], []]
  assert result.users['user_id'].to_list() == ['1', '9']
  assert nonzero(result) == {
    'unknown_items': 1,
    'unknown_users': 1,
    'items_without_events': 1,
    'users_without_events': 1,
  }


def test_a_minimum_of_zero_keeps_the_whole_item_table():
  rows = [('1', 'a', 1, 1.0), ('1', 'b', 2, 0.0)]
  positive = config.PositiveConfig(any_of=('rating',))
  data = dataset(rows, items=['unused', 'b', 'a'])
  result = clean(data, positive, items=0)
  assert result.items['item_id'].to_list() == ['unused', 'b', 'a']
  assert result.item.tolist() == [2, 1]
  assert 'items_without_events' not in nonzero(result)


def test_users_without_positives_go_with_their_events():
  rows = [('1', 'a', 1, 5.0), ('2', 'a', 1, 1.0), ('2', 'b', 2, 1.0)]
  result = clean(dataset(rows), config.PositiveConfig(min_rating=4.0))
  assert result.users['user_id'].to_list() == ['1']
  assert nonzero(result) == {
    'users_without_positives': 1,
    'items_below_min_positives': 1,  # b was never liked
    'events_of_dropped_users_or_items': 2,
  }


def test_the_core_is_found_by_repetition():
  # c is met once, so it goes; then user 2 has one positive left and goes;
  # then b is met once and goes; users 1 and 3 keep a and d.
  rows = [
    ('1', 'a', 1, 1.0),
    ('1', 'd', 2, 1.0),
    ('3', 'a', 1, 1.0),
    ('3', 'd', 2, 1.0),
    ('3', 'b', 3, 1.0),
    ('2', 'b', 1, 1.0),
    ('2', 'c', 2, 1.0),
  ]
  result = clean(dataset(rows), users=2, items=2)
  assert result.users['user_id'].to_list() == ['1', '3']
  assert result.items['item_id'].to_list() == ['a', 'd']
  assert nonzero(result) == {
    'users_below_min_positives': 1,
    'items_below_min_positives': 2,
    'events_of_dropped_users_or_items': 3,
  }


def test_only_positives_count_for_the_core():
  rows = [('1', 'a', 1, 5.0), ('1', 'b', 2, 1.0), ('2', 'a', 1, 5.0)]
  positive = config.PositiveConfig(min_rating=4.0)
  result = clean(dataset(rows), positive, items=1)
  assert result.items['item_id'].to_list() == ['a']


@pytest.mark.parametrize(
  ('positive', 'expected'),
  [
    (ALL, [True, True, True, True]),
    (config.PositiveConfig(any_of=('like',)), [False, True, False, True]),
    (config.PositiveConfig(min_rating=3.0), [False, False, True, True]),
    (
      config.PositiveConfig(any_of=('like',), min_rating=3.0),
      [False, False, False, True],
    ),
  ],
)
def test_positive_feedback_needs_any_column_and_the_rating(positive, expected):
  frame = pl.DataFrame(
    {'like': [None, 1.0, 0.0, 1.0], 'rating': [None, 2.0, 3.0, 4.0]}
  )
  column = frame.with_columns(
    cleaning.is_positive(positive, ('like', 'rating')).alias('positive')
  )['positive']
  assert column.to_list() == expected


def test_a_positive_rule_on_an_absent_column_names_those_there_are():
  with pytest.raises(ValueError, match=r"any_of needs.*'likes'.*\['rating'\]"):
    cleaning.is_positive(config.PositiveConfig(any_of=('likes',)), ('rating',))


def test_an_empty_result_says_what_to_lower():
  with pytest.raises(ValueError, match='min_user_positives=9'):
    clean(dataset([('1', 'a', 1, 1.0)]), users=9)


def test_natural_order_is_by_number_where_all_ids_are_numbers():
  order = schema.natural_order
  assert order(pl.Series(['10', '9', '9'])).to_list() == ['9', '10']
  assert order(pl.Series(['10', '9', 'a'])).to_list() == ['10', '9', 'a']


def test_sessions_and_exact_times_follow_their_events():
  rows = [('1', 'a', 5, 1.0), ('1', 'b', 3, 1.0), ('1', 'c', 4, 1.0)]
  data = dataset(
    rows, session_id=['y', None, 'x'], exact_time=[True, False, True]
  )
  result = clean(data)
  assert result.session_ids is not None and result.exact_time is not None
  assert result.session_ids[0] == -1
  assert len(set(result.session_ids.tolist())) == 3
  assert result.exact_time.tolist() == [False, True, True]
  assert nonzero(result)['placeholder_time_events'] == 1


def test_adapter_mistakes_are_reported_with_their_place():
  good = dataset([('1', 'a', 1, 1.0)])
  bad = schema.Dataset(
    interactions=good.interactions.with_columns(
      pl.lit(None, pl.String).alias('item_id')
    ),
    items=pl.concat([good.items, good.items]),
    users=good.users.rename({'user_id': 'uid'}),
    feedback=('like',),
    source='wrong',
    has_item_table=True,
    has_user_table=True,
  )
  with pytest.raises(schema.DataError) as error:
    schema.validate(bad)
  text = str(error.value)
  assert "wrong (interactions), row 1, column 'item_id': is empty" in text
  assert "wrong (users), column 'user_id': is missing" in text
  assert "column 'like': feedback must be float32" in text


def test_beauty_keeps_its_published_size(real_data_root):
  folder = real_data_root / 'amazon2014'
  data = amazon.read_sequences(folder, variant='Beauty')
  result = clean(data, users=3)
  assert result.events.num_users == 22_363
  assert len(result.items) == 12_101
  assert result.events.num_events == 198_502
  assert nonzero(result) == {}
  # The dense index is the number in the file minus one, so that arrays in the
  # order of the file fit.
  with (folder / 'Beauty.sequences.txt').open() as file:
    user, *items = map(int, file.readline().split())
  mine = slice(*result.events.offsets[user - 1 : user + 1])
  assert result.item[mine].tolist() == [i - 1 for i in items]
