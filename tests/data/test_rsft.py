"""Which training examples rejection sampling keeps."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from onerec_jax import config
from onerec_jax.data import batch_plan
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.data import rsft

_MINUTE = 60_000_000
_SESSIONS = config.SessionsConfig(items_per_session=1)
# Two users; pauses of more than 30 minutes part the sessions a .. e.
_USER = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
_MINUTES = [0, 1, 2, 100, 101, 300, 0, 1, 90, 91]
_SESSION = list('aaabbcddee')
_PLAY = [1, 1, 1, 5, 4, 2, 8, 0, 2, 2]  # a 3, b 9, c 2, d 8, e 4
_POSITIVE = [1, 0, 1, 1, 1, 1, 1, 1, 0, 1]


def write(folder, *, play=None, exact=None, split=None, session=None):
  count = len(_USER)
  columns = {
    'user': np.array(_USER, np.int32),
    'item': np.arange(count, dtype=np.int32),
    'timestamp': np.array(_MINUTES, np.int64) * _MINUTE,
    'exact_time': np.array([True] * count if exact is None else exact),
    'positive': np.array(_POSITIVE, bool),
    'split': ['train'] * count if split is None else split,
    'play': np.array(_PLAY if play is None else play, np.float32),
  }
  if session is not None:
    columns['session'] = session
  catalog.write_tables(
    folder,
    pl.DataFrame(columns),
    pl.DataFrame({'item': np.arange(count, dtype=np.int32)}),
    pl.DataFrame({'user': np.arange(2, dtype=np.int32)}),
  )
  records = [
    examples.UserRecord(
      user=user,
      items=np.flatnonzero(np.array(_USER) == user).astype(np.int32),
      positive=np.array(_POSITIVE, bool)[np.array(_USER) == user],
      timestamps=np.arange((np.array(_USER) == user).sum()),
      # Every positive but the first; user 1 has one more in session d.
      target_starts=np.array([2, 3, 4, 5] if user == 0 else [1, 3], np.int32),
      target_lengths=np.ones(4 if user == 0 else 2, np.int32),
    )
    for user in (0, 1)
  ]
  examples.write_examples(folder / 'train.arrayrecord', records)
  return examples.ExampleStore(folder / 'train.arrayrecord')


def choose(store, folder, **changes):
  settings = {
    'sessions': _SESSIONS,
    'column': 'play',
    'drop_share': 0.5,
    'seed': 0,
    **changes,
  }
  return rsft.choose_examples(store, folder, **settings)


def targets(store):
  batch = pipeline.session_batch(
    store,
    np.arange(store.index.num_examples),
    history_length=4,
    items_per_session=1,
  )
  return batch.target_items[:, 0].tolist()


def test_examples_of_the_least_watched_sessions_are_dropped(tmp_path):
  store = write(tmp_path)
  assert targets(store) == [2, 3, 4, 5, 7, 9]  # sessions a b b c d e
  found = choose(store, tmp_path)
  # The two lowest sums of five are c 2 and a 3.
  assert targets(found.store) == [3, 4, 7, 9]
  assert found.report == {
    'column': 'play',
    'sessions': 5,
    'sessions_unknown': 0,
    'sessions_dropped': 2,
    'threshold': 3.0,
    'examples_before': 6,
    'examples': 4,
  }
  assert store.index.num_examples == 6  # left as it was


def test_kept_examples_keep_user_history_and_position(tmp_path):
  store = write(tmp_path)
  chosen = choose(store, tmp_path).store
  kept = np.array([1, 2, 4, 5])
  settings = {'history_length': 4, 'items_per_session': 1}
  before = pipeline.session_batch(store, kept, **settings)
  after = pipeline.session_batch(chosen, np.arange(4), **settings)
  for field in dataclasses.fields(before):
    if field.name not in ('example_id', 'context'):
      np.testing.assert_array_equal(
        getattr(before, field.name), getattr(after, field.name)
      )
  np.testing.assert_array_equal(chosen.index.starts, store.index.starts[kept])


def test_an_epoch_holds_every_kept_example_once(tmp_path):
  store = choose(write(tmp_path), tmp_path).store
  plan = batch_plan.BatchPlan(
    store.index, batch_size=2, history_length=4, stride=1, seed=0
  )
  assert plan.batches_per_epoch == 2
  ids = np.concatenate([plan(b).example_ids for b in range(2)])
  assert sorted(ids.tolist()) == [0, 1, 2, 3]


def test_a_session_with_an_unknown_value_is_kept(tmp_path):
  play = list(_PLAY)
  play[1] = np.nan  # session a, which would be dropped
  found = choose(write(tmp_path, play=play), tmp_path)
  assert targets(found.store) == [2, 3, 4, 7]  # c 2 and e 4 of four known
  assert found.report['sessions_unknown'] == 1


def test_later_events_of_a_session_do_not_count(tmp_path):
  # Event 8 of session e is held out with a huge value: e keeps its 2.
  play = list(_PLAY)
  play[8] = 1000
  split = ['train'] * 8 + ['test', 'train']
  found = choose(write(tmp_path, play=play, split=split), tmp_path)
  assert 9 not in targets(found.store)


def test_sessions_that_were_cut_before_are_taken(tmp_path):
  session = [0, 0, 0, 0, 0, 0, 1, 1, 2, None]
  sessions = dataclasses.replace(_SESSIONS, kind='day')
  store = write(tmp_path, session=session)
  found = choose(store, tmp_path, sessions=sessions, drop_share=0.4)
  # 14 for all of user 0, 8 for event 7; event 9 is alone with 2: dropped.
  assert targets(found.store) == [2, 3, 4, 5, 7]


def test_without_real_times_every_event_is_judged_alone(tmp_path):
  store = write(tmp_path, exact=[False] * len(_USER))
  found = choose(store, tmp_path)
  # Own values of the targets 2 3 4 5 7 9: 1 5 4 2 0 2; three are dropped.
  kept = targets(found.store)
  assert len(kept) == 3 and {3, 4} < set(kept)
  assert set(kept) - {3, 4} <= {5, 9}  # a tie


def test_nothing_is_dropped_without_a_column_or_a_share(tmp_path):
  store = write(tmp_path)
  assert choose(store, tmp_path, column=None).store is store
  found = choose(store, tmp_path, drop_share=0.0)
  assert found.store.index.num_examples == 6
  assert found.report['threshold'] is None


def test_unusable_settings_are_refused(tmp_path):
  store = write(tmp_path)
  with pytest.raises(ValueError, match=r"rsft_column names 'watch'"):
    choose(store, tmp_path, column='watch')
  with pytest.raises(ValueError, match=r'rsft_drop_share=1\.0'):
    choose(store, tmp_path, drop_share=1.0)
