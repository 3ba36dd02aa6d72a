"""Feature ids against hand-made values."""

import math

import numpy as np
import polars as pl
import pytest

from onerec_jax import config
from onerec_jax.data import catalog
from onerec_jax.data import event_table
from onerec_jax.data import features


def make_events(play_time, split=None, **feedback):
  count = len(play_time)
  return event_table.EventTable(
    offsets=np.array([0, count]),
    items=np.zeros(count, np.int32),
    timestamps=np.arange(count),
    exact_time=np.ones(count, bool),
    positive=np.ones(count, bool),
    split=np.asarray(split or [0] * count, np.int8),
    feedback={
      'play_time': np.asarray(play_time, np.float32),
      **{k: np.asarray(v, np.float32) for k, v in feedback.items()},
    },
  )


EVENTS = make_events([0.0, 1.0])


def write(folder, *, users=None, categories=((),)):
  users = {'sex': ['f']} if users is None else users
  count = len(next(iter(users.values())))
  ids = pl.Series(range(count), dtype=pl.Int32)
  items = pl.DataFrame(
    {
      'item': pl.Series(range(len(categories)), dtype=pl.Int32),
      'item_id': [f'i{i}' for i in range(len(categories))],
      'categories': pl.Series(
        [list(c) for c in categories], dtype=pl.List(pl.String)
      ),
    }
  )
  catalog.write_tables(
    folder,
    pl.DataFrame({'user': [0]}),
    items,
    pl.DataFrame({'user': ids, 'user_id': ids.cast(pl.String), **users}),
  )
  return folder


def make(folder, log=EVENTS, /, **pathways):
  return features.make_features(folder, log, config.PathwaysConfig(**pathways))


# --- Users ------------------------------------------------------------------


def test_texts_are_numbered_by_frequency_and_the_rest_shares_an_id(tmp_path):
  sex = ['b', 'a', None, 'c', 'c', 'd', 'b', 'c', 'a']
  folder = write(tmp_path, users={'sex': sex})
  # c 3, a 2, b 2 (ties by value), d 1.
  whole = make(folder, user_features=(config.UserFeature(column='sex'),))
  assert whole.users[:, 0].tolist() == [3, 2, 0, 1, 1, 4, 3, 1, 2]
  assert whole.sizes.users == (5,)
  two = make(
    folder, user_features=(config.UserFeature(column='sex', max_values=2),)
  )
  assert two.users[:, 0].tolist() == [3, 2, 0, 1, 1, 3, 3, 1, 2]
  assert two.sizes.users == (4,)


def test_numbers_fall_into_quantiles_of_the_known_users(tmp_path):
  fans = [None, 0.0, 10.0, 20.0, float('nan'), 30.0, 40.0, 50.0, 60.0, 70.0]
  folder = write(
    tmp_path,
    users={
      'fans': pl.Series(fans, dtype=pl.Float32),
      'same': pl.Series([7.0] * 10, dtype=pl.Float32),
      'none': pl.Series([None] * 10, dtype=pl.Float32),
    },
  )
  result = make(
    folder,
    user_features=tuple(
      config.UserFeature(column=c, buckets=4) for c in ('fans', 'same', 'none')
    ),
  )
  # Quartiles of 0..70 in steps of 10: 17.5, 35, 52.5.
  assert result.users[:, 0].tolist() == [0, 1, 1, 2, 0, 2, 3, 3, 4, 4]
  assert result.users[:, 1].tolist() == [1] * 10
  assert result.users[:, 2].tolist() == [0] * 10
  assert result.sizes.users == (5, 2, 1)


def test_repeated_quantiles_make_one_bucket(tmp_path):
  flag = [0.0] * 9 + [1.0]
  folder = write(tmp_path, users={'flag': pl.Series(flag, dtype=pl.Float32)})
  result = make(
    folder, user_features=(config.UserFeature(column='flag', buckets=20),)
  )
  # Only the quantiles above 0.9 lie between 0 and 1.
  assert result.users[:9, 0].tolist() == [1] * 9
  assert result.users[9, 0] == result.sizes.users[0] - 1 > 1


# --- Items ------------------------------------------------------------------


def test_items_keep_their_first_known_values_of_the_prefix(tmp_path):
  folder = write(
    tmp_path,
    categories=[
      ['tag:x', 'author:1', 'tag:y', 'tag:x'],
      [],
      ['tag:y', 'tag:z', 'tag:w', 'tag:x'],
      ['author:2'],
      ['tag:rare', 'tag:y'],
    ],
  )
  result = make(
    folder,
    item_features=(
      config.ItemFeature(name='tag', prefix='tag:', max_values=3),
      config.ItemFeature(name='top', prefix='tag:', max_values=2, vocabulary=2),
      config.ItemFeature(name='aid', prefix='author:', max_values=1),
    ),
  )
  # y 3, x 2, then rare, w, z once each: by value.
  tag, top, aid = (values.tolist() for values in result.items.values)
  y, x, rare, w, z = 1, 2, 3, 4, 5
  assert tag == [[x, y, 0], [0, 0, 0], [y, z, w], [0, 0, 0], [rare, y, 0]]
  assert top == [[x, y], [0, 0], [y, x], [0, 0], [y, 0]]
  assert aid == [[1], [0], [0], [2], [0]]
  assert result.sizes.items == (6, 3, 3)
  assert result.sizes.num_items == 5


# --- Events -----------------------------------------------------------------


def test_event_numbers_are_bucketed_between_the_training_extremes(tmp_path):
  folder = write(tmp_path)
  feature = (config.EventFeature(column='play_time', buckets=4),)
  # log(1 + x) from 0 to log 16 in four parts: edges at x = 1, 3, 7.
  events = make_events([15, 0, np.nan, 4000], split=[0, 0, 0, 1])
  (edges,) = make(folder, events, event_features=feature).edges
  np.testing.assert_allclose(np.expm1(edges), [1, 3, 7], rtol=1e-12)
  values = np.array([0, 0.9, 1.1, 2.9, 3.1, 6.9, 7.1, 15, 4000, -5, np.nan])
  ids = features.number_ids(values, edges)
  assert ids.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 4, 1, 0]
  # What training cannot see fits nothing.
  other = make_events([15, 0, np.nan, 9], split=[0, 0, 0, 2])
  np.testing.assert_array_equal(
    make(folder, other, event_features=feature).edges[0], edges
  )


def test_a_number_on_an_edge_belongs_to_the_bucket_above():
  edges = np.array([0.0, np.log1p(2.0)])
  values = np.array([0.0, 1.0, 2.0, 3.0])
  assert features.number_ids(values, edges).tolist() == [2, 2, 3, 3]


def test_a_constant_event_number_has_one_bucket(tmp_path):
  events = make_events([3, 3, np.nan])
  feature = config.EventFeature(column='play_time', buckets=8)
  (edges,) = make(write(tmp_path), events, event_features=(feature,)).edges
  ids = features.number_ids(events.feedback['play_time'], edges)
  assert ids.tolist() == [1, 1, 0]


def test_ages_follow_the_stated_logarithm():
  seconds = np.array([0, 1, 60, 86_400, 30 * 86_400, 20 * 365 * 86_400])
  ids = features.age_ids(seconds * 1_000_000, np.ones(6, bool), num_buckets=64)
  longest = math.log(1 + 10 * 365.25 * 86_400)
  expected = [
    1 + min(63, math.floor(64 * math.log(1 + s) / longest))
    for s in seconds.tolist()
  ]
  assert ids.tolist() == expected
  assert ids[0] == 1 and ids[-1] == 64 and (np.diff(ids) > 0).all()
  unknown = features.age_ids(
    seconds * 1_000_000, np.zeros(6, bool), num_buckets=64
  )
  assert unknown.tolist() == [0] * 6
  # A clock that runs backwards is no age below the first bucket.
  back = features.age_ids(np.array([-5]), np.array([True]), num_buckets=64)
  assert back.tolist() == [1]


# --- Errors -----------------------------------------------------------------


def test_everything_that_is_missing_is_listed_with_what_there_is(tmp_path):
  folder = write(tmp_path, categories=[['tag:x', 'plain', 'author:1']])
  events = make_events([np.nan], is_like=[1])
  with pytest.raises(ValueError, match='Bad features') as error:
    make(
      folder,
      events,
      user_features=(config.UserFeature(column='age'),),
      item_features=(config.ItemFeature(name='dur', prefix='duration:'),),
      event_features=(
        config.EventFeature(column='duration'),
        config.EventFeature(column='play_time'),
      ),
      labels=('is_like', 'is_follow'),
    )
  text = str(error.value)
  assert (
    "user_features[0]: there is no user column 'age'; there are ['sex']" in text
  )
  assert "begins with 'duration:'; there are ['author:', 'plain', 'tag:']" in (
    text
  )
  known = "there are ['is_like', 'play_time']"
  assert (
    f"event_features[0]: there is no feedback column 'duration'; {known}"
    in text
  )
  assert f"labels[1]: there is no feedback column 'is_follow'; {known}" in text
  assert (
    "event_features[1]: 'play_time' is unknown in every training event" in text
  )
  assert 'labels[0]' not in text


def test_no_features_give_empty_arrays(tmp_path):
  result = make(write(tmp_path))
  assert result.users.shape == (1, 0)
  assert result.items.values == () and result.edges == ()
  assert result.sizes == (1, (), ())
