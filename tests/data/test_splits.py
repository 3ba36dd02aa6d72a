"""What trains, validates and tests."""

import numpy as np
import pytest

from onerec_jax.data import schema
from onerec_jax.data import splits


def events(*users):
  """One list per user of (time, positive) or time."""
  rows = [
    (e if isinstance(e, tuple) else (e, True)) for user in users for e in user
  ]
  return schema.Events(
    offsets=np.concatenate([[0], np.cumsum([len(u) for u in users])]),
    timestamps=np.array([t for t, _ in rows], np.int64),
    positive=np.array([p for _, p in rows], bool),
  )


def next_items(data, boundaries, split, m=2, **kwargs):
  options = {'held_out': split > 0, 'strictly_later': False, **kwargs}
  found = splits.next_item_targets(
    data, boundaries, split, items_per_session=m, **options
  )
  return found.starts.tolist(), found.lengths.tolist()


def of_sessions(data, boundaries, split, session, m=2, good=None, **kwargs):
  options = {'first_only': split > 0, 'strictly_later': False, **kwargs}
  found = splits.session_targets(
    data,
    boundaries,
    split,
    session=np.asarray(session),
    good=None if good is None else np.asarray(good, bool),
    items_per_session=m,
    **options,
  )
  return found.starts.tolist(), found.lengths.tolist()


def test_leave_one_out_holds_out_the_last_two_positives():
  data = events([1, 2, (3, False), 4, (5, False), 6, (7, False)])
  found = splits.leave_one_out(data, session=None)
  # Positives at 0, 1, 3, 5.
  assert (found.valid.tolist(), found.test.tolist()) == ([3], [5])
  assert splits.stretch(data, found).tolist() == [0, 0, 0, 1, 1, 2, 2]
  assert next_items(data, found, 0) == ([1], [1])
  assert next_items(data, found, 1) == ([3], [1])
  assert next_items(data, found, 2) == ([5], [1])


def test_users_with_fewer_than_three_positives_train_only():
  data = events([1, 2], [1, 2, 3], [1, (2, False), 3])
  found = splits.leave_one_out(data, session=None)
  assert found.train_only == 2
  assert splits.stretch(data, found).tolist() == [0, 0, 0, 1, 2, 0, 0, 0]


def test_training_starts_are_all_positives_with_a_history():
  data = events([(0, False), 1, 2, (3, False), 4, 5, 6, 7])
  found = splits.leave_one_out(data, session=None)
  # Positives 1 2 4 5 | 6 | 7: a start needs one before it; lengths end with
  # the stretch.
  assert next_items(data, found, 0, m=3) == ([2, 4, 5], [3, 2, 1])


def test_sessions_are_held_out_whole():
  session = [0, 0, 1, 1, 2, 2, 2, -1]
  data = events([1, 2, 3, 4, (5, False), 6, 7, 8])
  found = splits.leave_one_out(data, session=np.array(session))
  assert (found.valid.tolist(), found.test.tolist()) == ([2], [4])
  assert of_sessions(data, found, 1, session) == ([2], [2])
  # Only the first m = 2 of three events.
  assert of_sessions(data, found, 2, session) == ([4], [2])


def test_sessions_without_a_positive_are_not_held_out():
  session = [0, 1, 2, 3]
  data = events([1, 2, 3, (4, False)])
  found = splits.leave_one_out(data, session=np.array(session))
  assert (found.valid.tolist(), found.test.tolist()) == ([1], [2])


def test_training_sessions_are_taken_in_pieces_of_m():
  session = [0, 0, 0, 1, 1, 1, 1, 1, 2, 2]
  data = events(range(10))
  none = splits.Boundaries(np.array([10]), np.array([10]), 0)
  # The first piece of session 0 has no history.
  expected = ([2, 3, 5, 7, 8], [1, 2, 2, 1, 2])
  assert of_sessions(data, none, 0, session) == expected
  # Session 1 is below quality: it is history, not target.
  good = [True, False, True]
  assert of_sessions(data, none, 0, session, good=good) == ([2, 8], [1, 2])


def test_no_sessions_give_no_targets():
  data = events([1, 2])
  none = splits.Boundaries(np.array([2]), np.array([2]), 0)
  assert of_sessions(data, none, 0, [-1, -1], good=[]) == ([], [])


def test_by_time_cuts_every_user_at_the_instants():
  data = events([1, 5, 9], [6, 7], [1, 2], [10])
  found = splits.by_time(data, validation_start=5, test_start=7)
  assert splits.stretch(data, found).tolist() == [0, 1, 2, 1, 2, 0, 0, 2]


def test_held_out_windows_do_not_overlap():
  data = events([0, 10, 11, 12, 13, 14, 20])
  found = splits.by_time(data, validation_start=10, test_start=20)
  assert next_items(data, found, 1, m=2) == ([1, 3, 5], [2, 2, 1])
  assert next_items(data, found, 1, m=1) == ([1, 2, 3, 4, 5], [1] * 5)
  assert next_items(data, found, 2, m=2) == ([6], [1])


def test_targets_do_not_begin_at_the_time_of_their_history():
  data = events([0, 10, 10, 10, 11])
  found = splits.by_time(data, validation_start=10, test_start=20)
  targets = splits.next_item_targets(
    data, found, 1, items_per_session=2, held_out=True, strictly_later=True
  )
  # 2 and 3 are tied with 1; the start at 1 takes 1 and 2.
  assert targets.starts.tolist() == [1, 4]
  assert targets.lengths.tolist() == [2, 1]
  assert targets.tied == 2


def test_ties_are_judged_against_the_last_positive():
  # The event just before the start is no history, so its tie does not count.
  data = events([0, (10, False), 10])
  found = splits.by_time(data, validation_start=10, test_start=20)
  assert next_items(data, found, 1, strictly_later=True) == ([2], [1])


def test_a_session_across_the_boundary_is_cut_there():
  session = [0, 0, 1, 1, 1]
  data = events([1, 2, 9, 10, 11])
  found = splits.by_time(data, validation_start=10, test_start=99)
  options = {'first_only': False}
  assert of_sessions(data, found, 0, session, 3, **options) == ([2], [1])
  assert of_sessions(data, found, 1, session, 3, **options) == ([3], [2])


@pytest.mark.parametrize(
  ('instant', 'seconds'),
  [
    ('1970-01-02', 86_400),
    ('1970-01-01T01:00:00+01:00', 0),
    ('1970-01-01T00:00:01Z', 1),
  ],
)
def test_instants_are_utc_unless_they_say_otherwise(instant, seconds):
  assert splits.microseconds(instant) == seconds * 1_000_000


def test_bad_instants_are_refused():
  with pytest.raises(ValueError, match='is not an ISO-8601 instant'):
    splits.microseconds('last May')
  data = events([10, 20])
  with pytest.raises(ValueError, match='must lie before'):
    splits.by_time(data, validation_start=7, test_start=7)
  with pytest.raises(ValueError, match='lies before all events'):
    splits.by_time(data, validation_start=5, test_start=7)


@pytest.mark.parametrize('seed', range(4))
def test_held_out_targets_are_never_visible_to_training(seed):
  random = np.random.default_rng(seed)
  lengths = random.integers(0, 12, size=30)
  number = int(lengths.sum())
  times = np.concatenate(
    [np.sort(random.integers(0, 20, size=n)) for n in lengths]
  )
  data = schema.Events(
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
    timestamps=times.astype(np.int64),
    positive=random.random(number) < 0.7,
  )
  session = np.cumsum(random.random(number) < 0.4)
  session += data.user * 1000
  _, session = np.unique(session, return_inverse=True)
  later = {}
  for name, boundaries in (
    ('loo', splits.leave_one_out(data, session=None)),
    ('loo sessions', splits.leave_one_out(data, session=session)),
    ('time', splits.by_time(data, validation_start=8, test_start=14)),
  ):
    where = splits.stretch(data, boundaries)
    ends = boundaries.valid, boundaries.test, data.offsets[1:]
    for split in range(3):
      for kind in ('next', 'session'):
        strictly = name == 'time'
        if kind == 'next':
          found = splits.next_item_targets(
            data, boundaries, split, items_per_session=3,
            held_out=split > 0, strictly_later=strictly,
          )  # fmt: skip
        else:
          found = splits.session_targets(
            data, boundaries, split, session=session, good=None,
            items_per_session=3, first_only=False, strictly_later=strictly,
          )  # fmt: skip
        for start, length in zip(found.starts, found.lengths, strict=True):
          user = data.user[start]
          places = np.arange(start, ends[split][user])
          if kind == 'next':
            places = places[data.positive[places]]
          targets = places[:length]
          assert len(targets) == length
          # Targets lie in the split itself: no other split's stretch.
          assert (where[targets] == split).all()
          history = np.arange(data.offsets[user], start)
          history = history[data.positive[history]]
          assert len(history)
          assert (where[history] <= split).all()
          if strictly:
            assert data.timestamps[history].max() < data.timestamps[start]
          later[split] = True
  assert len(later) == 3  # the loop has seen targets of every split
