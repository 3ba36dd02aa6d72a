"""Cutting sessions and rating them."""

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.data import schema
from onerec_jax.data import sessions

MINUTE = 60_000_000


def events(*users):
  """One list of minutes per user."""
  lengths = [len(u) for u in users]
  times = np.concatenate([np.asarray(u, np.int64) for u in users])
  return schema.Events(
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
    timestamps=(times * MINUTE).astype(np.int64),
    positive=np.ones(len(times), bool),
  )


def cut(data, kind, *, ids=None, exact=None, gap=30.0):
  return sessions.cut(
    data,
    sessions=config.SessionsConfig(kind=kind, gap_minutes=gap),
    session_ids=None if ids is None else np.asarray(ids),
    exact_time=None if exact is None else np.asarray(exact),
  )


def test_next_items_has_no_sessions():
  assert cut(events([1, 2]), 'next_items') is None


def test_a_gap_longer_than_the_limit_begins_a_session():
  # Pauses of 30 and 31 minutes; the second user begins anew.
  found = cut(events([0, 30, 61], [61, 62]), 'gap')
  assert found.number.tolist() == [0, 0, 1, 2, 2]
  assert found.total == 3


def test_days_are_those_of_utc():
  day = 24 * 60
  found = cut(events([day - 1, day, day + 5, 3 * day]), 'day')
  assert found.number.tolist() == [0, 1, 1, 2]


def test_events_without_real_time_are_in_no_session():
  found = cut(events([0, 1, 2, 3]), 'gap', exact=[True, False, True, True])
  # What is known to lie between is not bridged.
  assert found.number.tolist() == [0, -1, 1, 1]
  assert found.total == 2


def test_logged_ids_cut_sessions_and_alternating_ones_are_counted():
  data = events([0, 1, 2, 3, 4], [0, 1])
  found = cut(data, 'id', ids=[7, 7, 8, 7, -1, 7, 7])
  assert found.number.tolist() == [0, 0, 1, 2, -1, 3, 3]
  assert (found.total, found.interleaved) == (4, 1)


def test_logged_ids_are_required_by_kind_id():
  with pytest.raises(ValueError, match="'gap', 'day' or 'next_items'"):
    cut(events([0]), 'id')


def rate(watched, *, seconds=None, liked=None, minimum=None):
  number = np.array([0, 0, 0, 1, 1, 1, -1, 2, 2, 2])
  return sessions.high_quality(
    sessions.Sessions(number, 3, 0),
    watched=np.asarray(watched, bool),
    watch_time=None if seconds is None else np.asarray(seconds, np.float32),
    interacted=None if liked is None else np.asarray(liked, bool),
    min_watched=2,
    min_watch_time=minimum,
  ).tolist()


def test_quality_needs_watched_items():
  # 3, 1 and 2 watched; the event outside any session does not matter.
  assert rate([1, 1, 1, 1, 0, 0, 1, 0, 1, 1]) == [True, False, True]


def test_quality_needs_watch_time_or_an_interaction():
  watched = np.ones(10)
  seconds = [1, 1, 1, 5, 5, 5, 99, 1, 1, np.nan]
  assert rate(watched, seconds=seconds, minimum=10.0) == [False, True, False]
  liked = [0, 0, 0, 0, 0, 0, 1, 0, 1, 0]
  assert rate(watched, seconds=seconds, liked=liked, minimum=10.0) == [
    False,
    True,
    True,
  ]
  assert rate(watched, liked=liked) == [False, False, True]


def test_quality_threshold_defaults_to_the_median_session():
  # Totals 3, 15 and 2: the median is 3.
  seconds = [1, 1, 1, 5, 5, 5, 99, 1, 1, 0]
  assert rate(np.ones(10), seconds=seconds) == [True, True, False]


def test_quality_of_no_sessions_is_empty():
  good = sessions.high_quality(
    sessions.Sessions(np.array([-1]), 0, 0),
    watched=np.ones(1, bool),
    watch_time=np.ones(1, np.float32),
    interacted=None,
    min_watched=1,
    min_watch_time=None,
  )
  assert good.shape == (0,)
